"""Writes a network as a file, after another runtime has computed from it what PyTorch does."""

import copy
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgmn.about import Preprocessing
from dgmn.errors import InputError
from dgmn.exporting import int8 as quantisation
from dgmn.exporting import onnx_graph, package
from dgmn.exporting.comparison import DifferenceError, batches, compare, milliseconds, scene
from dgmn.exporting.int8 import Quantised
from dgmn.exporting.kernel_nodes import kernel_nodes
from dgmn.images import AnyImage, to_image
from dgmn.onnx_network import METADATA, OnnxNetwork, onnxruntime_library
from dgmn.ops.tracing import recorded_as
from dgmn.predictor import Predictor
from dgmn.sharing import check_licence, description_of
from dgmn_base.files import writing

RUNTIMES = {".onnx": "onnxruntime", ".pt2": "AOTInductor"}
"""What runs a file, by its ending."""
_DEFAULT = 512  # side of a segmenter's image that is predicted whole
_SCENE = (800, 1088)  # height and width of a detector's image, near COCO's usual


@dataclass(frozen=True)
class Exported:
    """What `export` wrote, and how it was checked.

    Attributes:
        path: the file.
        sizes: the images on which the runtime was compared with PyTorch: (B, H, W), of detectors (H, W).
        image: what they were made of.
        error: the largest difference of a result, relative to the largest of its kind: logits, or boxes, scores, labels
            and masks. Of a file in 8 bits: before it was quantised. None: a detector found nothing in the images.
        milliseconds: median time of the first size in the runtime.
        pytorch: the same in PyTorch, eager, with as many threads.
        fixed: why the file takes one height and width only; None if it takes any.
        int8: what quantisation has changed; None if the file is in float32.
    """

    path: Path
    sizes: tuple[tuple[int, ...], ...]
    image: str
    error: float | None
    milliseconds: float
    pytorch: float
    fixed: str | None
    int8: Quantised | None = None


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
    int8: bool = False,
    calibrate: str | os.PathLike[str] | None = None,
) -> Exported:
    """Writes the network of a predictor as an ONNX file, or as a package of AOTInductor.

        dgmn.export(dgmn.load("runs/x"), "model.onnx")

    An ONNX file, which `dgmn.load` and `dgmn predict` read, has standard operators only, unless `kernel` is true. A
    classifier's or segmenter's takes `images` (B, 3, H, W) in float32, normalised, and gives `logits`: of the classes,
    or of the classes at every pixel. A detector's takes an `image` (3, H, W) in 0..1, and gives `boxes` (N, 4) in its
    pixels, `scores`, `labels`, and `masks` (N, 1, 28, 28), each for its box.

    A package (`.pt2`) is machine code, for classifiers and segmenters, from images to logits as in ONNX. It runs with
    PyTorch alone: `torch._inductor.aoti_load_package("model.pt2")`.

    The metadata hold the names of the classes, the normalisation and all that prediction needs, as JSON under "dgmn".
    Before the file is kept, its runtime computes a picture at three sizes, and the results are compared.

    Args:
        model: a predictor of any task, from `dgmn.load`.
        path: the file to write, with the ending `.onnx` or `.pt2`.
        size: height and width of the example; None: the classifier's image size, a segmenter's window or 512, and
            800 x 1088 for a detector.
        dynamic: whether the file takes images of any height and width, where the network allows it. To other files,
            `dgmn.load` fits the images; a classifier's predicts at its own size. The batch may always have any size; a
            detector takes one image at a time, because each has its own number of objects.
        grid_sample: whether nodes are sampled by ONNX's GridSample; otherwise by its Gather, for runtimes without it.
        kernel: whether messages and their attention are nodes of our own, which run the CPU kernels. onnxruntime needs
            [`dgmn.onnxruntime_library`][dgmn.onnx_network.onnxruntime_library] for them; `dgmn.load` finds it itself.
        image: the picture for the comparison; None takes a photograph with digits painted on it.
        licence: what the metadata say under "license", for instance "MIT"; None says nothing.
        int8: whether the wide layers of a classifier or segmenter in ONNX are quantised to 8 bits.
        calibrate: for `int8`: a folder of images like those that the file will get.

    Returns:
        What was written and how it compares.

    Raises:
        InputError (a ValueError): an argument is wrong, the network has no form of this kind, the results differ by
            more than a thousandth, or quantisation loses too much. Nothing is written then.
    """
    path = Path(path)
    if not isinstance(model, Predictor) or isinstance(model.network, OnnxNetwork):
        raise InputError(f"model: got {model!r}; accepted a predictor of a network in PyTorch, from dgmn.load")
    images = _checked(path, model.task, grid_sample, kernel, int8, calibrate)
    if kernel:
        onnxruntime_library()
    if licence is not None:
        check_licence(licence)
    description = description_of(model)
    height, width = _checked_size(size) if size is not None else _default_size(description)
    picture, what = scene() if image is None else (to_image(image), "the given image")
    network = copy.deepcopy(model.network).cpu().float().eval()
    detects = model.task == "detection"
    if detects:
        network = onnx_graph.Detector(network).eval()
    if model.task == "classification" and not dynamic:
        if height != width:
            raise InputError(f"size: got {height} x {width}; accepted a square, to which a classifier's images are cut")
        description["image_size"] = height
    if detects:  # the file has the network's own size inside
        description["inference"] = {**description["inference"], "sizes": ()}
    preprocessing = None if detects else Preprocessing.from_values(description["preprocessing"])
    given = batches(picture, height, width, preprocessing)
    of_one_size = [x for x in given if x.shape[-2:] == given[0].shape[-2:]]
    fixed = None if dynamic else "as asked"
    facts = {METADATA: json.dumps(description), "dgmn_version": version("dgmn")}
    if licence is not None:
        facts["license"] = licence  # as others spell it
    runtime, form = RUNTIMES[path.suffix], onnx_graph if path.suffix == ".onnx" else package
    recorded = kernel_nodes(onnx_graph.OPSET) if kernel else recorded_as("grid_sample" if grid_sample else "gathers")
    with recorded, torch.no_grad():
        for open_sizes in (True, False) if dynamic else (False,):
            try:
                content = form.converted(network, given[0], facts, open_sizes, model.task)
                if not grid_sample and b"GridSample" in content:
                    name = type(model.network).__name__
                    raise InputError(
                        f"grid_sample: got False; accepted True, because {name} samples with GridSample itself"
                    )
                compared = compare(
                    network, partial(form.opened, content), given if open_sizes else of_one_size, runtime
                )
                break
            except DifferenceError as difference:
                if not open_sizes:
                    raise InputError(f"{path}: is not written: {difference}") from difference
                fixed = f"at other sizes than its own, {difference}"
        told = {**vars(compared), "image": what, "fixed": fixed}
        if fixed is not None and model.task == "classification" and (height, width) != (description["image_size"],) * 2:
            raise InputError(
                f"size: got {height} x {width}; accepted {description['image_size']}, at which the images are "
                f"predicted, because the file is for one size ({fixed})"
            )
        if images is not None:
            content, told["int8"], told["milliseconds"] = _quantised(content, description, images, given[0])
    with writing(path) as file:
        file.write(content)
    return Exported(path, **told)


def _quantised(
    content: bytes, description: dict[str, Any], images: Path, example: Tensor
) -> tuple[bytes, Quantised, float]:
    """The content in 8 bits, what has changed, and its time."""
    small, changed = quantisation.quantise(content, description, images)
    runs = [onnx_graph.opened(each) for each in (content, small)]
    before, after = milliseconds(*(partial(run, example) for run in runs))
    return small, Quantised(**changed, megabytes=len(content) / 1e6, milliseconds=before), after


def _checked(
    path: Path, task: str, grid_sample: bool, kernel: bool, int8: bool, calibrate: str | os.PathLike[str] | None
) -> Path | None:
    """The folder of images for `int8`.

    Raises:
        InputError: options do not go together, or with this task.
    """
    if path.suffix not in RUNTIMES:
        raise InputError(f"out: got {path}; accepted a file that ends with {' or '.join(RUNTIMES)}")
    if path.suffix == ".pt2" and task == "detection":
        raise InputError(
            f"out: got {path}; a detector is written as .onnx only: how many objects it finds depends on the image, "
            "which torch.export does not trace"
        )
    if path.suffix == ".pt2" and (int8 or kernel or not grid_sample):
        raise InputError(f"{'int8' if int8 else 'kernel' if kernel else 'grid_sample'}: is for .onnx, got {path}")
    if kernel and not grid_sample:
        raise InputError("kernel: got True with grid_sample=False; accepted without it, since it samples by itself")
    if int8 != (calibrate is not None):
        raise InputError(f"calibrate: got {calibrate}; int8 needs a folder of images, and nothing else does")
    if calibrate is None:
        return None
    if task == "detection":
        raise InputError(
            "int8: is for classifiers and segmenters; small differences of scores decide which objects a detector "
            "keeps, and what it loses would have to be measured on boxes"
        )
    folder = Path(calibrate)
    if not folder.is_dir():
        raise InputError(f"calibrate: got {folder}; there is no such folder")
    return folder


def _checked_size(size: Sequence[int]) -> tuple[int, int]:
    right = isinstance(size, Sequence) and len(size) == 2
    if not right or not all(type(side) is int and 1 <= side <= 10_000 for side in size):
        raise InputError(f"size: got {size!r}; accepted a height and a width in 1..10000")
    return size[0], size[1]


def _default_size(description: dict[str, Any]) -> tuple[int, int]:
    if description["task"] == "classification":
        return (description["image_size"],) * 2
    if description["task"] == "detection":
        return _SCENE
    inference = description["inference"]
    side = inference["crop"] if inference["mode"] == "slide" else _DEFAULT
    return side, side
