"""Networks as files that onnxruntime runs, without PyTorch: `dgmn.export(model, "model.onnx")`."""

from dgmn.exporting.onnx_graph import Exported, export

__all__ = ["Exported", "export"]
