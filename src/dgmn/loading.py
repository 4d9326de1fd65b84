"""`dgmn.load`: makes a predictor from anything that holds a trained network."""

import os
import textwrap
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

import timm
import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from dgmn.errors import InputError, first_line
from dgmn.predictor import Predictor
from dgmn.weights import Checkpoint, ZooModel, fetch, find, load_checkpoint
from dgmn.weights.shared import HUB, fetch_shared, in_folder, read_weights

PREDICTORS = {
    "classification": "ClassificationPredictor",
    "detection": "DetectionPredictor",
    "segmentation": "SegmentationPredictor",
}
"""The predictor of every task, by name, so that only the wanted task is imported."""


def load(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    model: str | None = None,
    recipe: str | os.PathLike[str] | None = None,
    trust_code: Sequence[str] = (),
) -> Predictor:
    """Loads a trained network, ready to predict.

        model = dgmn.load("runs/x/checkpoints/best.ckpt")
        result = model.predict("street.jpg")
        result.draw().save("out.jpg")

    Args:
        source: a checkpoint of a run, a run's folder (its best checkpoint is taken), a folder that
            [`dgmn.save`][dgmn.sharing.save] wrote, a file of [`dgmn.export`][dgmn.exporting.export]; the name of a
            published model, for instance "mask_rcnn_dgmn2_tiny", see `dgmn zoo`; or "hf-hub:owner/name" for what
            [`dgmn.push_to_hub`][dgmn.sharing.push_to_hub] has uploaded. The last two are fetched at their first use.
        device: "cpu", "cuda" and so on; "auto": the fastest one available. An ONNX file runs on the CPU.
        model: name of the published model whose weights the file `source` holds; published files do not name their
            model.
        recipe: recipe that the file was trained with, for a file that does not describe its network.
        trust_code: packages beside torch, torchvision, timm and lightning whose classes the recipe may name.

    Returns:
        A [`ClassificationPredictor`][dgmn.classification.predictor.ClassificationPredictor],
        [`DetectionPredictor`][dgmn.detection.predictor.DetectionPredictor] or
        [`SegmentationPredictor`][dgmn.segmentation.predictor.SegmentationPredictor].

    Raises:
        InputError (a ValueError): nothing has this name, the file has no weights or does not describe its network, or
            the device is not available; the message says what is accepted.
        ConnectionError: a published model, or one of the hub, is not on this machine and cannot be fetched.
    """
    chosen = checked_device(device)
    path = _file(source)
    if path is not None and path.suffix.lower() == ".pt2":
        raise InputError(
            f"{path}: holds machine code, which dgmn does not run; if you trust the file, give it to "
            "torch._inductor.aoti_load_package (see docs/export.md)"
        )
    if path is not None and path.suffix.lower() == ".onnx":
        if model is not None or recipe is not None:
            raise InputError(f"{path}: an ONNX file says itself what it is: give no model and no recipe")
        from dgmn.onnx_network import read_onnx

        network, description = read_onnx(path)
        return predictor_of(description["task"]).from_description(description, "cpu", network)
    if model is not None or path is None:
        row = _published(os.fspath(source) if model is None else model)
        given = None if path is None else read_weights(path)
        own = None if given is None else given.description
        if own is not None and row.backbone not in (own["model"], own.get("backbone")):
            on = f" on {own['backbone']}" if own.get("backbone") else ""
            raise InputError(f"model {row.name}: {path} is of {own['model']}{on}, and says so itself: leave model out")
        predictor = predictor_of(row.task).published(row.builder, row.backbone, chosen)
        checkpoint = given or read_weights(fetch(row.name, predictor.network))
    else:
        checkpoint = read_weights(path)
        predictor = _described(checkpoint, recipe, trust_code, chosen)
    load_checkpoint(predictor.network, checkpoint)
    return predictor


def _published(name: str) -> ZooModel:
    try:
        return find(name)
    except InputError as error:
        if isinstance(name, str) and timm.is_model(name):
            raise InputError(
                f"{name}: a network without published weights; give a file that describes itself, or the recipe that "
                "it was trained with (-c, in Python recipe=)"
            ) from error
        raise


def _described(
    checkpoint: Checkpoint, recipe: str | os.PathLike[str] | None, trust_code: Sequence[str], device: torch.device
) -> Predictor:
    """The predictor that a checkpoint of a run, or its recipe, describes."""
    description = checkpoint.description
    if recipe is not None:
        from dgmn.cli import describe_recipe

        description = describe_recipe(os.fspath(recipe), trust_code)
    if description is None:
        raise InputError(
            f"{checkpoint.path} does not say what network it is for: give the published model's name (--model, in "
            "Python model=), or the recipe that it was trained with (-c, in Python recipe=)"
        )
    try:
        make = predictor_of(description["task"]).from_description
        # Once without memory, because buffers and what a network computes while it is built may be large, too.
        with suppress(NotImplementedError, RuntimeError, TypeError), _no_larger_than(checkpoint), torch.device("meta"):
            _check_buffers(make(description, "meta").network, checkpoint)
        with _no_larger_than(checkpoint):
            return make(description, device)
    except InputError as error:
        raise InputError(f"checkpoint {checkpoint.path}: {error}") from error
    except Exception as error:  # arguments of the right form can still be wrong for a network, in any way
        reason = textwrap.shorten(str(error), 200) or type(error).__name__
        raise InputError(f"checkpoint {checkpoint.path}: its network cannot be built: {reason}") from error


def _check_buffers(network: nn.Module, checkpoint: Checkpoint) -> None:
    """As `_no_larger_than`, for what is no parameter, for instance the masks of all windows of an image.

    Raises:
        InputError: they are far larger than the weights.
    """
    # A BEiT for images of 1024 x 1024 has 200 million numbers in buffers.
    if sum(buffer.numel() for buffer in network.buffers()) > _numbers(checkpoint) + 2**28:
        raise InputError("it describes a network that needs far more memory than its weights")


def _numbers(checkpoint: Checkpoint) -> int:
    return 2 * sum(tensor.numel() for tensor in checkpoint.state_dict.values()) + 2**24


@contextmanager
def _no_larger_than(checkpoint: Checkpoint) -> Iterator[None]:
    """Stops to build a network that cannot be the one whose weights these are: it may fill the memory, or take hours.

    Raises:
        InputError: the network has more than twice as many parameters as the file has tensors, or more than twice as
            many numbers, beside a few.
    """
    tensors = 2 * len(checkpoint.state_dict) + 1000
    numbers = _numbers(checkpoint)
    thread, count = threading.get_ident(), [0, 0]

    def check(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        if parameter is None or threading.get_ident() != thread:
            return
        count[0] += 1
        count[1] += parameter.numel()
        if count[0] > tensors or count[1] > numbers:
            raise InputError("it describes a network that is far larger than its weights")

    handle = register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        handle.remove()


def predictor_of(task: str) -> type[Predictor]:
    """The predictor of a task."""
    found: type[Predictor] = getattr(import_module(f"dgmn.{task}.predictor"), PREDICTORS[task])
    return found


def _file(source: str | os.PathLike[str]) -> Path | None:
    """The file, or folder to share, that `source` means; None if it is the name of a published model."""
    if isinstance(source, str) and source.startswith(HUB):
        return fetch_shared(source)
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        got = "nothing" if source == "" else type(source).__name__
        raise InputError(f"source must be a file, a folder or the name of a published model, got {got}")
    path = Path(source)
    if path.is_dir():
        return in_folder(path)
    if path.is_file():
        return path
    if path.suffix or len(path.parts) > 1:
        raise InputError(f"{path}: no such file")
    return None


def checked_device(device: str | torch.device) -> torch.device:
    """Checks that a device is available; "auto" gives the fastest one.

    Raises:
        InputError: the device is not available.
    """
    if device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        torch.zeros(1, device=device).cpu()  # the meta device holds no values
        return torch.device(device)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise InputError(f"device {device}: not available here ({first_line(error)})") from error
