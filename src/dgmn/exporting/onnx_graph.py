"""Writes a network as ONNX."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import BytesIO, StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import resize_boxes

from dgmn.about import about
from dgmn.errors import InputError
from dgmn.exporting.comparison import Run, said
from dgmn.onnx_network import open_session

OPSET = 18  # of GridSample as TensorRT reads it


class Detector(nn.Module):
    """A detector for one image (3, H, W), with masks as they are before they are put into the image."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        if about(network).masks:
            network.transform.postprocess = _resize_boxes

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        (found,) = self.network([image])
        return tuple(found[name] for name in self.outputs())

    def outputs(self) -> tuple[str, ...]:
        """The names of what it gives."""
        return ("boxes", "scores", "labels", "masks")[: 3 + about(self.network).masks]


def _resize_boxes(
    result: list[dict[str, Tensor]], shapes: Sequence[tuple[int, int]], originals: Sequence[tuple[int, int]]
) -> list[dict[str, Tensor]]:
    for found, shape, original in zip(result, shapes, originals, strict=True):
        found["boxes"] = resize_boxes(found["boxes"], shape, original)
    return result


def converted(network: nn.Module, example: Tensor, facts: dict[str, str], open_sizes: bool, task: str) -> bytes:
    """The file's content, with these metadata."""
    try:
        import onnx
    except ImportError as error:
        raise InputError("exporting needs onnx: pip install 'dgmn[export]'") from error
    if isinstance(network, Detector):
        name, outputs, first = "image", network.outputs(), {}
        every = {0: "objects"}
    else:
        name, outputs, first = "images", ("logits",), {0: "batch"}
        every = first | ({2: "height", 3: "width"} if open_sizes and task == "segmentation" else {})
    rows = example.dim() - 2
    axes = first | ({rows: "height", rows + 1: "width"} if open_sizes else {})
    buffer = BytesIO()
    for operator, symbolic in _SYMBOLICS.items():
        torch.onnx.register_custom_op_symbolic(operator, symbolic, OPSET)  # type: ignore[attr-defined] # public, not listed
    try:
        # Of a network that it does not take, the exporter prints the whole graph.
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            # PyTorch's tracer warns of every Python number, and that another exporter exists. That one takes minutes.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                (example,),
                buffer,  # type: ignore[arg-type] # the exporter by tracing accepts it
                dynamo=False,
                opset_version=OPSET,
                input_names=[name],
                output_names=list(outputs),
                dynamic_axes={name: axes, **dict.fromkeys(outputs, every)},
            )
    except Exception as error:  # whatever a network does that ONNX has no operator for
        raise InputError(f"model: {type(network).__name__} has no form in ONNX: {said(error)}") from error
    finally:
        for operator in _SYMBOLICS:
            torch.onnx.unregister_custom_op_symbolic(operator, OPSET)  # type: ignore[attr-defined] # public, not listed
    model = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(model, facts)
    content: bytes = model.SerializeToString()
    return content


def opened(content: bytes) -> Run:
    """Opens a file's content in onnxruntime."""
    session = open_session(content)
    (source,) = session.get_inputs()
    return lambda images: [torch.from_numpy(values) for values in session.run(None, {source.name: images.numpy()})]


def _linspace(graph: Any, start: Any, end: Any, steps: Any, *_: Any) -> Any:
    """`torch.linspace` in float32. PyTorch's exporter divides by zero where there is one step."""

    def floating(x: Any) -> Any:
        return graph.op("Cast", x, to_i=1)

    zero, one = (graph.op("Constant", value_t=torch.tensor(n)) for n in (0, 1))
    start = floating(start)
    count = floating(graph.op("Max", graph.op("Sub", steps, one), one))
    step = graph.op("Div", graph.op("Sub", floating(end), start), count)
    return graph.op("Add", start, graph.op("Mul", floating(graph.op("Range", zero, steps, one)), step))


def _sigmoid(graph: Any, x: Any) -> Any:
    """The sigmoid with an error relative to its result.

    onnxruntime's own has an absolute one of 1e-7. Below 1e-5 that changes the order of scores, of which the proposals
    of a trained detector have many, and so which of them are kept.
    """
    one = graph.op("CastLike", graph.op("Constant", value_t=torch.tensor(1.0)), x)
    return graph.op("Div", one, graph.op("Add", one, graph.op("Exp", graph.op("Neg", x))))


_SYMBOLICS: dict[str, Callable[..., Any]] = {"aten::linspace": _linspace, "aten::sigmoid": _sigmoid}
"""Operators that PyTorch's exporter, or onnxruntime, does not get right."""
