"""A network in an ONNX file, computed by onnxruntime in the place of a network of PyTorch."""

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import clip_boxes_to_image

from dgmn.detection.regions import paste_masks
from dgmn.errors import InputError, first_line
from dgmn.weights.description import check_description

METADATA = "dgmn"
"""Name of the file's entry that holds what prediction needs beside the network, as JSON."""
_LONGEST = 10_000_000  # characters of that entry
_LARGEST = 10_000  # side of a detector's image
_OUR_NODE = b"\x3a\x04dgmn"  # the field "domain" of a node, as the file holds it


class OnnxNetwork(nn.Module):
    """A classifier or segmenter in an ONNX file, as predictors call it.

    To a file for one height and width, other images are resized to fit, keeping their aspect ratio, and padded; so they
    are seen as at another size.

    Args:
        session: onnxruntime's session of a file that `dgmn.export` wrote.
    """

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.session = session
        (given,) = session.get_inputs()
        self._input = given.name
        self._sides = given.shape[-2:]
        self._outputs = [output.name for output in session.get_outputs()]

    def forward(self, images: Tensor) -> Any:
        """Images (B, 3, H, W), preprocessed, to the logits of the network."""
        size = images.shape[-2:]
        fitted, inner = self.fitted(images)
        logits = self.run(fitted)["logits"]
        if logits.dim() == 4 and inner != tuple(size):
            logits = F.interpolate(logits[..., : inner[0], : inner[1]], size, mode="bilinear", align_corners=False)
        return logits

    def fitted(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images (B, 3, H, W) at the file's size, if it has one, and the height and width that they have therein."""
        size = images.shape[-2], images.shape[-1]
        if not all(type(side) is int for side in self._sides):
            return images, size
        scale = min(most / side for most, side in zip(self._sides, size, strict=True))
        height, width = (max(1, min(most, round(side * scale))) for most, side in zip(self._sides, size, strict=True))
        if (height, width) != size:
            images = F.interpolate(images.float(), (height, width), mode="bilinear", align_corners=False)
        return F.pad(images, (0, self._sides[1] - width, 0, self._sides[0] - height)), (height, width)

    def run(self, given: Tensor) -> dict[str, Tensor]:
        """What the file gives, by its names.

        Raises:
            InputError: onnxruntime does not compute it.
        """
        try:
            values = self.session.run(None, {self._input: given.float().cpu().numpy()})
        except Exception as error:  # of onnxruntime's own kinds
            raise InputError(f"onnxruntime does not compute this file: {first_line(error)}") from error
        return {name: torch.from_numpy(x).to(given.device) for name, x in zip(self._outputs, values, strict=True)}

    def extra_repr(self) -> str:
        sides = " x ".join(str(side) for side in self._sides)
        return f"images of {sides} pixels, onnxruntime on {self.session.get_providers()[0]}"


class OnnxDetector(OnnxNetwork):
    """A detector in an ONNX file, as predictors call it.

    Args:
        session: as above.
        classes: the number of classes that the file names.
    """

    def __init__(self, session: Any, classes: int) -> None:
        super().__init__(session)
        self.classes = classes

    def forward(self, images: Any) -> Any:
        """What a detector of PyTorch gives for a list of images (3, H, W) in 0..1."""
        return [self._found(image) for image in images]

    def _found(self, image: Tensor) -> dict[str, Tensor]:
        size = image.shape[-2], image.shape[-1]
        fitted, inner = self.fitted(image[None])
        found = self.run(fitted[0])
        labels = found["labels"]
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise InputError(f"this ONNX file finds objects of other classes than the {self.classes} that it names")
        if inner != size:
            found["boxes"] = clip_boxes_to_image(resize_boxes(found["boxes"], inner, size), size)
        if "masks" in found:
            found["masks"] = paste_masks(found["masks"], found["boxes"], size)
        return found


def onnxruntime_library() -> str:
    """The path of our operators for onnxruntime, which files of `dgmn.export(..., kernel=True)` need.

        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(dgmn.onnxruntime_library())
        session = onnxruntime.InferenceSession("model.onnx", options)

    The library needs neither PyTorch nor Python. It can be copied to where such a file runs, on an equal platform.

    Raises:
        InputError (a ValueError): dgmn was installed without a C++ compiler, so the library is missing.
    """
    path = Path(__file__).resolve().parent / "_onnxruntime.so"
    if not path.is_file():
        raise InputError(
            "files of dgmn export --kernel need dgmn's operators for onnxruntime, which were not built: install a C++ "
            "compiler, then dgmn again; or export without --kernel"
        )
    return str(path)


def open_session(content: str | bytes, threads: int = 0) -> Any:
    """onnxruntime's session of a file or its bytes, on the CPU.

    Raises:
        InputError: onnxruntime is not installed, or the file needs our operators and they were not built.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # since 1.29 it would tell Microsoft of every file it opens
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("ONNX files need onnxruntime: pip install 'dgmn[export]'") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about the graph's form, not about results
    options.intra_op_num_threads = threads or torch.get_num_threads()
    # Threads that spin while they wait take the cores from PyTorch's, which prepare the next image.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if _OUR_NODE in (content if isinstance(content, bytes) else Path(content).read_bytes()):
        options.register_custom_ops_library(onnxruntime_library())
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def read_onnx(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network in a file of `dgmn.export`, and the description of what it predicts.

    Raises:
        InputError: the file is no ONNX file, or none that `dgmn.export` wrote; the message names the field.
    """
    try:
        session = open_session(str(path))
    except InputError:
        raise
    except Exception as error:  # onnxruntime has errors of its own for every kind of damage
        raise InputError(f"{path}: onnxruntime cannot read this file: {first_line(error)}") from error
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if text is None or len(text) > _LONGEST:
        raise InputError(f"{path}: not a file of dgmn export: it does not say what it predicts")
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: what it says about its network is no JSON: {error}") from error
    check_description(description, path)
    detects = description["task"] == "detection"
    outputs_of = {output.name: output for output in session.get_outputs()}
    inputs, outputs = session.get_inputs(), outputs_of.keys()
    wanted = {"boxes", "scores", "labels"} if detects else {"logits"}
    if len(inputs) != 1 or len(inputs[0].shape) != (3 if detects else 4) or outputs - {"masks"} != wanted:
        raise InputError(f"{path}: its inputs and outputs are not those of a file of dgmn export")
    sides = inputs[0].shape[1:]
    if detects and not all(1 <= side <= _LARGEST if type(side) is int else type(side) is str for side in sides):
        raise InputError(f"{path}: takes images of {sides}; accepted any, or a height and a width in 1..{_LARGEST}")
    classes, given = description["num_classes"], outputs_of.get("logits")
    if given is not None and len(given.shape) > 1 and type(given.shape[1]) is int and given.shape[1] != classes:
        raise InputError(f"{path}: gives {given.shape[1]} classes, but names {classes}")
    return OnnxDetector(session, classes) if detects else OnnxNetwork(session), description
