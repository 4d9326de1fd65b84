"""A network in an ONNX file, computed by onnxruntime in the place of a network of PyTorch."""

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from dgmn.detection.regions import paste_masks
from dgmn.errors import InputError
from dgmn.weights.description import check_description

METADATA = "dgmn"
"""Name of the file's entry that holds what prediction needs beside the network, as JSON."""
_LONGEST = 10_000_000  # characters of that entry
_LARGEST = 10_000  # side of a detector's image


class OnnxNetwork(nn.Module):
    """A network in an ONNX file, as predictors call it.

    Args:
        session: onnxruntime's session of a file that `dgmn.export` wrote.
    """

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.session = session
        (given,) = session.get_inputs()
        self._input = given.name
        self._sides = given.shape[2:]

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), preprocessed, to the logits of the network."""
        (logits,) = self.session.run(None, {self._input: images.float().cpu().numpy()})
        return torch.from_numpy(logits).to(images.device)

    def extra_repr(self) -> str:
        sides = " x ".join(str(side) for side in self._sides)
        return f"images of {sides} pixels, onnxruntime on {self.session.get_providers()[0]}"


class OnnxDetector(nn.Module):
    """A detector in an ONNX file, as predictors call it.

    The file takes images of one height and width. Others are resized to fit, keeping their aspect ratio, and padded; so
    they are found as at another size of the network.

    Args:
        session: onnxruntime's session of a file that `dgmn.export` wrote.
    """

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.session = session
        (given,) = session.get_inputs()
        self._input = given.name
        self._size = given.shape[1], given.shape[2]

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """What a detector of PyTorch gives for images (3, H, W) in 0..1."""
        return [self._found(image) for image in images]

    def _found(self, image: Tensor) -> dict[str, Tensor]:
        height, width = image.shape[-2:]
        scale = min(self._size[0] / height, self._size[1] / width)
        inner = (
            max(1, min(self._size[0], round(height * scale))),
            max(1, min(self._size[1], round(width * scale))),
        )
        given = image.float().cpu()
        if inner != (height, width):
            given = F.interpolate(given[None], inner, mode="bilinear", align_corners=False)[0]
        given = F.pad(given, (0, self._size[1] - inner[1], 0, self._size[0] - inner[0]))
        values = self.session.run(None, {self._input: given.numpy()})
        names = (output.name for output in self.session.get_outputs())
        found = {name: torch.from_numpy(value).to(image.device) for name, value in zip(names, values, strict=True)}
        if inner != (height, width):
            ratio = found["boxes"].new_tensor([width / inner[1], height / inner[0]])
            found["boxes"] = clip_boxes_to_image(found["boxes"] * ratio.repeat(2), (height, width))
        if "masks" in found:
            found["masks"] = paste_masks(found["masks"], found["boxes"], (height, width))
        return found

    def extra_repr(self) -> str:
        height, width = self._size
        return f"images of {height} x {width} pixels, onnxruntime on {self.session.get_providers()[0]}"


def open_session(content: str | bytes, threads: int = 0) -> Any:
    """onnxruntime's session of a file or its bytes, on the CPU.

    Raises:
        InputError: onnxruntime is not installed.
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
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(f"{path}: onnxruntime cannot read this file: {reason}") from error
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if text is None or len(text) > _LONGEST:
        raise InputError(f"{path}: not a file of dgmn export: it does not say what it predicts")
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: what it says about its network is no JSON: {error}") from error
    check_description(description, path)
    detects = description["task"] == "detection"
    inputs, outputs = session.get_inputs(), {output.name for output in session.get_outputs()}
    wanted = {"boxes", "scores", "labels"} if detects else {"logits"}
    if len(inputs) != 1 or len(inputs[0].shape) != (3 if detects else 4) or outputs - {"masks"} != wanted:
        raise InputError(f"{path}: its inputs and outputs are not those of a file of dgmn export")
    sides = inputs[0].shape[1:]
    if detects and not all(type(side) is int and 1 <= side <= _LARGEST for side in sides):
        raise InputError(f"{path}: takes images of {sides}; accepted a height and a width in 1..{_LARGEST}")
    return OnnxDetector(session) if detects else OnnxNetwork(session), description
