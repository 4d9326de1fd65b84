"""Writes a network as ONNX, after onnxruntime has computed from it what PyTorch does."""

import copy
import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import resize_boxes

from dgmn.about import Preprocessing, about
from dgmn.errors import InputError
from dgmn.exporting.comparison import DifferenceError, batches, compare, scene
from dgmn.exporting.kernel_nodes import kernel_nodes
from dgmn.images import AnyImage, to_image
from dgmn.onnx_network import METADATA, OnnxNetwork, onnxruntime_library
from dgmn.ops.exported import without_grid_sample
from dgmn.predictor import Predictor
from dgmn.sharing import check_licence, description_of
from dgmn_base.files import writing

OPSET = 18  # of GridSample as TensorRT reads it
_DEFAULT = 512  # side of a segmenter's image that is predicted whole
_SCENE = (800, 1088)  # height and width of a detector's image, near COCO's usual


@dataclass(frozen=True)
class Exported:
    """What `export` wrote, and how it was checked.

    Attributes:
        path: the file.
        sizes: the images on which onnxruntime was compared with PyTorch: (B, H, W), of detectors (H, W).
        image: what they were made of.
        error: the largest difference of a result, relative to the largest of its kind: logits, or boxes, scores, labels
            and masks.
        milliseconds: median time of the first size in onnxruntime.
        pytorch: the same in PyTorch, eager, with as many threads.
        fixed: why the file takes one height and width only; None if it takes any.
    """

    path: Path
    sizes: tuple[tuple[int, ...], ...]
    image: str
    error: float
    milliseconds: float
    pytorch: float
    fixed: str | None


def export(
    model: Predictor,
    path: str | os.PathLike[str],
    *,
    size: Sequence[int] | None = None,
    dynamic: bool = True,
    grid_sample: bool = True,
    kernel: bool = False,
    image: AnyImage | None = None,
    licence: str | None = None,
) -> Exported:
    """Writes the network of a predictor as an ONNX file, which `dgmn.load` and `dgmn predict` read.

        dgmn.export(dgmn.load("runs/x"), "model.onnx")

    The file has standard operators only, unless `kernel` is true. A classifier's or segmenter's takes `images`
    (B, 3, H, W) in float32, normalised, and gives `logits`: of the classes, or of the classes at every pixel. A
    detector's takes an `image` (3, H, W) in 0..1, and gives `boxes` (N, 4) in its pixels, `scores`, `labels`, and
    `masks` (N, 1, 28, 28), each for its box. The metadata hold the names of the classes, the normalisation and all that
    prediction needs, as JSON under "dgmn". Before the file is kept, onnxruntime runs it on a picture at three sizes,
    and its results are compared.

    Args:
        model: a predictor of any task, from `dgmn.load`.
        path: the file to write, with the ending `.onnx`.
        size: height and width of the example; None: the classifier's image size, a segmenter's window or 512, and
            800 x 1088 for a detector.
        dynamic: whether the file takes images of any height and width, where the network allows it. The batch may
            always have any size; a detector takes one image at a time, because each has its own number of objects.
        grid_sample: whether nodes are sampled by ONNX's GridSample; otherwise by its Gather, for runtimes without it.
        kernel: whether messages and their attention are nodes of our own, which run the CPU kernels. onnxruntime needs
            [`dgmn.onnxruntime_library`][dgmn.onnx_network.onnxruntime_library] for them; `dgmn.load` finds it itself.
        image: the picture for the comparison; None takes a photograph with digits painted on it.
        licence: what the metadata say under "license", for instance "MIT"; None says nothing.

    Returns:
        What was written and how it compares.

    Raises:
        InputError (a ValueError): an argument is wrong, the network has no form in ONNX, or the results differ by more
            than a thousandth. Nothing is written then.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise InputError(f"out: got {path}; accepted a file that ends with .onnx")
    if not isinstance(model, Predictor) or isinstance(model.network, OnnxNetwork):
        raise InputError(f"model: got {model!r}; accepted a predictor of a network in PyTorch, from dgmn.load")
    if licence is not None:
        check_licence(licence)
    if kernel and not grid_sample:
        raise InputError(
            "kernel: got True with grid_sample=False; accepted one of them, since the kernel samples by itself"
        )
    if kernel:
        onnxruntime_library()
    description = description_of(model)
    height, width = _checked_size(size) if size is not None else _default_size(description)
    picture, what = scene() if image is None else (to_image(image), "the given image")
    network = copy.deepcopy(model.network).cpu().float().eval()
    detects = model.task == "detection"
    if detects:
        network = _Detector(network).eval()
    preprocessing = None if detects else Preprocessing.from_values(description["preprocessing"])
    given = batches(picture, height, width, preprocessing)
    of_one_size = [x for x in given if x.shape[-2:] == given[0].shape[-2:]]
    fixed = None if dynamic else "as asked"
    facts = {METADATA: json.dumps(description), "dgmn_version": version("dgmn")}
    if licence is not None:
        facts["license"] = licence  # as others spell it
    with without_grid_sample(not grid_sample), kernel_nodes(kernel, OPSET), torch.no_grad():
        for open_sizes in (True, False) if dynamic else (False,):
            content = _converted(network, given[0], facts, open_sizes, description["task"])
            if not grid_sample and b"GridSample" in content:
                name = type(model.network).__name__
                raise InputError(
                    f"grid_sample: got False; accepted True, because {name} samples with GridSample itself"
                )
            try:
                compared = compare(network, content, given if open_sizes else of_one_size)
                break
            except DifferenceError as difference:
                if not open_sizes:
                    raise InputError(f"{path}: is not written: {difference}") from difference
                fixed = f"at other sizes than its own, {difference}"
    with writing(path) as file:
        file.write(content)
    return Exported(path, image=what, fixed=fixed, **vars(compared))


class _Detector(nn.Module):
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


def _checked_size(size: Sequence[int]) -> tuple[int, int]:
    if len(size) != 2 or not all(type(side) is int and 1 <= side <= 10_000 for side in size):
        raise InputError(f"size: got {list(size)}; accepted a height and a width in 1..10000")
    return size[0], size[1]


def _default_size(description: dict[str, Any]) -> tuple[int, int]:
    if description["task"] == "classification":
        return (description["image_size"],) * 2
    if description["task"] == "detection":
        return _SCENE
    inference = description["inference"]
    side = inference["crop"] if inference["mode"] == "slide" else _DEFAULT
    return side, side


def _converted(network: nn.Module, example: Tensor, facts: dict[str, str], open_sizes: bool, task: str) -> bytes:
    """The file's content, with these metadata."""
    try:
        import onnx
    except ImportError as error:
        raise InputError("exporting needs onnx: pip install 'dgmn[export]'") from error
    if isinstance(network, _Detector):
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
        with warnings.catch_warnings():
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
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(f"model: {type(network).__name__} has no form in ONNX: {reason}") from error
    finally:
        for operator in _SYMBOLICS:
            torch.onnx.unregister_custom_op_symbolic(operator, OPSET)  # type: ignore[attr-defined] # public, not listed
    model = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(model, facts)
    content: bytes = model.SerializeToString()
    return content


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
