"""Networks as files that onnxruntime runs, without PyTorch: `dgmn.export(model, "model.onnx")`."""

from dgmn.export.onnx_graph import Exported, export

__all__ = ["Exported", "export"]
