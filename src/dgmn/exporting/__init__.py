"""Networks as files for other runtimes: `dgmn.export(model, "model.onnx")`."""

from dgmn.exporting.export import Exported, export
from dgmn.exporting.int8 import Quantised

__all__ = ["Exported", "Quantised", "export"]
