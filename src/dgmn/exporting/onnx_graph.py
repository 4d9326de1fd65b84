"""Writes a network as ONNX, and compares what onnxruntime computes with what PyTorch does."""

import copy
import json
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import resize_boxes

from dgmn.about import about
from dgmn.errors import InputError
from dgmn.exporting.kernel_nodes import kernel_nodes
from dgmn.images import AnyImage, to_image
from dgmn.onnx_network import METADATA, OnnxDetector, OnnxNetwork, onnxruntime_library, open_session
from dgmn.ops.exported import without_grid_sample
from dgmn.predictor import Predictor
from dgmn.sharing import description_of
from dgmn_base.files import writing

LIMIT = 1e-3
"""Largest error of a file that is kept, relative to the largest result of a kind."""
OPSET = 18  # of GridSample as TensorRT reads it
_DEFAULT = 512  # side of a segmenter's image that is predicted whole
_SCENE = (800, 1088)  # height and width of a detector's image, near COCO's usual
_ROUNDS = 5


@dataclass(frozen=True)
class Exported:
    """What `export` wrote, and how it was checked.

    Attributes:
        path: the file.
        sizes: the images on which onnxruntime was compared with PyTorch: (B, H, W), of detectors (H, W).
        error: the largest difference of a result, relative to the largest of its kind: logits, or boxes, scores, labels
            and masks.
        milliseconds: median time of the first size in onnxruntime.
        pytorch: the same in PyTorch, eager, with as many threads.
        fixed: why the file takes one height and width only; None if it takes any.
    """

    path: Path
    sizes: tuple[tuple[int, ...], ...]
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
) -> Exported:
    """Writes the network of a predictor as an ONNX file, which `dgmn.load` and `dgmn predict` read.

        dgmn.export(dgmn.load("runs/x"), "model.onnx")

    The file has standard operators only, unless `kernel` is true. A classifier's or segmenter's takes `images` (B, 3,
    H, W) in float32, normalised, and gives `logits`: of the classes, or of the classes at every pixel. A detector's
    takes an `image` (3, H, W) in 0..1 of one size, and gives `boxes` (N, 4) in its pixels, `scores`, `labels`, and
    `masks` (N, 1, 28, 28), each for its box. The metadata hold the names of the classes, the normalisation and all that
    prediction needs, as JSON under "dgmn". Before the file is kept, onnxruntime runs it on images of three sizes; a
    detector's on two images of its own size.

    Args:
        model: a predictor of any task, from `dgmn.load`.
        path: the file to write, with the ending `.onnx`.
        size: height and width of the example; None: the classifier's image size, a segmenter's window or 512, and
            800 x 1088 for a detector.
        dynamic: whether the file takes images of any height and width, where the network allows it. The batch may
            always have any size.
        grid_sample: whether nodes are sampled by ONNX's GridSample; otherwise by its Gather, for runtimes without it.
        kernel: whether messages and their attention are nodes of our own, which run the CPU kernels. onnxruntime needs
            [`dgmn.onnxruntime_library`][dgmn.onnx_network.onnxruntime_library] for them; `dgmn.load` finds it itself.
        image: a photograph for the comparison; None takes noise of a photograph's kind.

    Returns:
        What was written and how it compares.

    Raises:
        InputError (a ValueError): an argument is wrong, the network has no form in ONNX, or the results differ by more
            than a thousandth. Nothing is written then.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise InputError(f"out: got {path}; accepted a file that ends with .onnx")
    if not isinstance(model, Predictor) or isinstance(model.network, OnnxNetwork | OnnxDetector):
        raise InputError(f"model: got {model!r}; accepted a predictor of a network in PyTorch, from dgmn.load")
    if kernel and not grid_sample:
        raise InputError(
            "kernel: got True with grid_sample=False; accepted one of them, since the kernel samples by itself"
        )
    if kernel:
        onnxruntime_library()
    description = description_of(model)
    height, width = _checked_size(size) if size is not None else _default_size(description)
    network = copy.deepcopy(model.network).cpu().float().eval()
    fixed = None if dynamic else "as asked"
    pictures = _pictures(height, width, image)
    of_one_size = pictures[:1]
    if model.task == "detection":
        network, dynamic = _Detector(network).eval(), False
        fixed = "the size to which a detector resizes is a part of its graph"
        of_one_size = _scenes(pictures[0][0])
    with without_grid_sample(not grid_sample), kernel_nodes(kernel, OPSET), torch.no_grad():
        try:
            content = _converted(network, (pictures if dynamic else of_one_size)[0], description, dynamic)
            compared = _compare(network, content, pictures if dynamic else of_one_size)
        except _DifferenceError as difference:
            if not dynamic:
                raise InputError(f"{path}: is not written: {difference}") from difference
            fixed = f"at other sizes than its own, {difference}"
            content = _converted(network, pictures[0], description, dynamic=False)
            try:
                compared = _compare(network, content, of_one_size)
            except _DifferenceError as other:
                raise InputError(f"{path}: is not written: {other}") from other
    with writing(path) as file:
        file.write(content)
    return Exported(path, *compared, fixed)


class _DifferenceError(Exception):
    """onnxruntime does not run the file, or computes something else."""


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


def _pictures(height: int, width: int, image: AnyImage | None) -> list[Tensor]:
    """The batches for the comparison; the first is the example. The others have other sizes and shapes."""

    def like_a_photograph(count: int, height: int, width: int) -> Tensor:
        coarse = torch.randn(count, 3, max(1, height // 16), max(1, width // 16), generator=generator)
        smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
        return smooth + 0.1 * torch.randn(count, 3, height, width, generator=generator)

    generator = torch.Generator().manual_seed(0)
    first = like_a_photograph(1, height, width)
    if image is not None:
        pixels = torch.from_numpy(np.array(to_image(image).resize((width, height)))).permute(2, 0, 1)[None] / 255
        first = (pixels - pixels.mean()) / pixels.std()
    other = (32 * max(1, height * 3 // 4 // 32), 32 * max(1, width * 5 // 4 // 32))
    odd = (height * 5 // 4 + 3, width * 3 // 4 + 2)  # sides that no stride divides
    return [first, like_a_photograph(2, *other), like_a_photograph(1, *odd)]


def _scenes(picture: Tensor) -> list[Tensor]:
    """Two images (3, H, W) in 0..1, as detectors take them."""
    return [(each / 4 + 0.5).clamp(0, 1) for each in (picture, picture.flip(-1))]


def _converted(network: nn.Module, example: Tensor, description: dict[str, Any], dynamic: bool) -> bytes:
    """The file's content."""
    try:
        import onnx
    except ImportError as error:
        raise InputError("exporting needs onnx: pip install 'dgmn[export]'") from error
    detects = isinstance(network, _Detector)
    outputs = network.outputs() if isinstance(network, _Detector) else ("logits",)
    axes = {0: "batch", 2: "height", 3: "width"} if dynamic else {0: "batch"}
    every = axes if description["task"] == "segmentation" else {0: "batch"}
    buffer = BytesIO()
    if detects:
        torch.onnx.register_custom_op_symbolic("aten::linspace", _linspace, OPSET)  # type: ignore[attr-defined] # public, not listed
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
                input_names=["image" if detects else "images"],
                output_names=list(outputs),
                dynamic_axes={name: {0: "objects"} for name in outputs}
                if detects
                else {"images": axes, "logits": every},
            )
    except Exception as error:  # whatever a network does that ONNX has no operator for
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(f"model: {type(network).__name__} has no form in ONNX: {reason}") from error
    finally:
        if detects:
            torch.onnx.unregister_custom_op_symbolic("aten::linspace", OPSET)  # type: ignore[attr-defined] # public, not listed
    model = onnx.load_from_string(buffer.getvalue())
    facts = {METADATA: json.dumps(description), "dgmn_version": version("dgmn"), "license": "Apache-2.0"}
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


def _compare(
    network: nn.Module, content: bytes, pictures: Sequence[Tensor]
) -> tuple[tuple[tuple[int, ...], ...], float, float, float]:
    """Sizes, error and both times; see `Exported`."""
    try:
        session = open_session(content)
        (given,) = session.get_inputs()
        results = [session.run(None, {given.name: images.numpy()}) for images in pictures]
    except InputError:
        raise
    except Exception as error:
        raise _DifferenceError(f"onnxruntime does not run it: {str(error).strip().splitlines()[0][:200]}") from error
    worst = 0.0
    for images, result in zip(pictures, results, strict=True):
        try:
            wanted = network(images)
        except Exception as error:  # whatever a network says about a size that it does not take
            raise _DifferenceError(f"PyTorch does not run it: {str(error).strip().splitlines()[0][:200]}") from error
        got = [torch.from_numpy(values) for values in result]
        if isinstance(wanted, tuple):
            distance = _distance(got, wanted, images.shape[-2:])
        elif got[0].shape == wanted.shape:
            distance = float((got[0] - wanted).abs().amax() / wanted.abs().amax().clamp_min(1e-30))
        else:
            raise _DifferenceError(f"onnxruntime gives {tuple(got[0].shape)} instead of {tuple(wanted.shape)}")
        if not distance <= LIMIT:
            raise _DifferenceError(f"onnxruntime's results differ by {distance:.1e}, more than {LIMIT:.0e}")
        worst = max(worst, distance)
    first = pictures[0].numpy()
    runs = (lambda: session.run(None, {given.name: first}), lambda: network(pictures[0]))
    times = [[_milliseconds(run) for run in runs] for _ in range(_ROUNDS)]
    ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    sizes = tuple((*images.shape[:-3], *images.shape[-2:]) for images in pictures)
    return sizes, worst, ours, theirs


def _distance(got: Sequence[Tensor], wanted: Sequence[Tensor], size: Sequence[int]) -> float:
    """How far any object of a kind is from the closest of the other: corners in images, scores, and masks.

    The order of the objects does not matter, because equal scores have none. Nor do objects at the end of the list,
    whose scores are those of objects that just did not get into it.
    """
    sides = torch.tensor([size[1], size[0]] * 2)

    def numbers(objects: Sequence[Tensor]) -> Tensor:
        boxes, scores, labels, *masks = objects
        # Other labels are a thousand images away.
        columns = [boxes / sides, scores[:, None], 1e3 * labels[:, None], *(mask.flatten(1) for mask in masks)]
        return torch.cat(columns, 1).double()

    if min(len(got[1]), len(wanted[1])) == 0:
        return 0.0 if len(got[1]) == len(wanted[1]) else math.inf
    one, other = numbers(got), numbers(wanted)
    distances = torch.cdist(one, other, p=torch.inf)
    lowest = max(float(got[1].min()), float(wanted[1].min())) + LIMIT
    nearest = [distances.amin(1 - dim)[objects[1] > lowest] for dim, objects in ((0, got), (1, wanted))]
    return max((float(x.max()) for x in nearest if len(x)), default=0.0)


def _milliseconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)
