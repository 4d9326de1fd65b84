"""Reading checkpoints, never executing what is in them, and loading them strictly."""

import argparse
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dgmn.about import Preprocessing, about
from dgmn.errors import InputError
from dgmn.weights.keys import match_keys

_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile


@dataclass(frozen=True)
class Checkpoint:
    """The weights in a file.

    Attributes:
        path: the file.
        state_dict: name to tensor.
        entry: what they were under in the file, "" for nothing.
        description: what a training run of ours wrote of the network, None in other files.
    """

    path: Path
    state_dict: dict[str, Tensor]
    entry: str
    description: dict[str, Any] | None

    @property
    def preprocessing(self) -> Preprocessing | None:
        """Of the images that a training run of ours trained the weights with; None where the file does not say."""
        values = (self.description or {}).get("preprocessing")
        return Preprocessing.from_values(values) if values else None


@dataclass(frozen=True)
class LoadReport:
    """What [`load_checkpoint`][dgmn.load_checkpoint] loaded; prints as one line.

    Attributes:
        path: the file.
        origin: whose names it has, and where in the file they were.
        loaded: tensors that the network got.
        ignored: names of the file that the network has no place for.
        fresh: names that the file lacks because it is of a plain network, without the modules of this one, or of one
            with frozen norms; they stay as they were.
        modules: beginnings of those of them that belong to modules.
        complete: whether every weight of the network is from the file.
    """

    path: Path
    origin: str
    loaded: int
    ignored: tuple[str, ...]
    fresh: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    complete: bool = True

    def __str__(self) -> str:
        text = f"loaded {self.loaded} tensors from {self.path} ({self.origin})"
        if self.ignored:
            parts = sorted({key.split(".")[0] for key in self.ignored})
            text += f"; left out {len(self.ignored)} that this model has no place for ({', '.join(parts)})"
        if self.modules:
            more = f" and {len(self.modules) - 3} more" if len(self.modules) > 3 else ""
            text += f"; {len(self.fresh)} that the file lacks start anew ({', '.join(self.modules[:3])}{more})"
        return text


def read_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """Reads the weights of a `.safetensors` file or a PyTorch checkpoint, without executing anything in it.

    The weights may be the file's content or its entry `state_dict` or `model`; `module.` in front of every name
    (from DistributedDataParallel) is removed.

    Raises:
        FileNotFoundError: no such file.
        InputError (a ValueError): not a checkpoint, damaged, without weights, or one that would execute code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file")
    content = _read_file(path)
    entry = ""
    description = None
    if isinstance(content, Mapping):
        description = content.get("dgmn")
        # mmcv's loader looks for `state_dict` only and silently loads nothing from a file with `model`.
        for name in ("state_dict", "model"):
            if isinstance(content.get(name), Mapping):
                content, entry = content[name], name
                break
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"checkpoint {path}: no weights in it (looked for names at the top, `state_dict`, `model`)")
    state_dict = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    for wrapper in _WRAPPERS:
        if all(key.startswith(wrapper) for key in state_dict):
            state_dict = {key.removeprefix(wrapper): value for key, value in state_dict.items()}
    return Checkpoint(path, state_dict, entry, description if isinstance(description, dict) else None)


def _read_file(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(f"checkpoint {path}: damaged or not a safetensors file ({error})") from error
    try:
        # The official classification files hold their command line as an argparse.Namespace, which only stores.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise almost anything
        code = _code_in(path) if isinstance(error, pickle.UnpicklingError) else []
        if code:
            raise InputError(
                f"checkpoint {path}: it would execute code ({', '.join(code[:3])}), which is not allowed; "
                "save only its weights, best as .safetensors"
            ) from error
        # torch's own message advises to unpickle it.
        reason = "" if "weights_only" in str(error) else f" ({_first_line(error)})"
        raise InputError(f"checkpoint {path}: damaged or not a PyTorch checkpoint{reason}") from error


def _code_in(path: Path) -> list[str]:
    """What a checkpoint would execute, as far as that can be read from it."""
    try:
        return list(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # damaged, or of the format before zip files
        return []


def load_checkpoint(
    model: nn.Module, path: str | PathLike[str] | Checkpoint, *, reset_head: bool = False, allow_unknown: bool = False
) -> LoadReport:
    """Loads an official or own checkpoint into a network, strictly: an unknown or missing name is an error.

    Finds by itself where the weights are in the file (plain, `model`, `state_dict`, with `module.` in front) and
    whose names they have (ours, the official classifiers', detectors' and segmenters'). Weights without the modules of
    a `DGMNResNet` or `dilated_fcn` fill all but these.

    Args:
        model: the network to fill: a classifier, or a backbone from `timm.create_model(..., features_only=True)`.
            Unchanged if an error is raised.
        path: `.safetensors`, or a PyTorch checkpoint (read with `weights_only=True`, never executed); or what
            [`read_checkpoint`][dgmn.weights.read_checkpoint] read there.
        reset_head: leave the classifier as it is, to train it on other classes.
        allow_unknown: leave out what the network has no place for; the report names it. What the network needs must be
            in the file all the same.

    Returns:
        What was loaded and left out; printing it says so in one line.

    Raises:
        FileNotFoundError: no such file.
        InputError (a ValueError): not a checkpoint, or one of another model; the message lists the names or shapes.
            `dgmn.weights.OtherClassesError` if it is of this model with another number of classes.
    """
    checkpoint = path if isinstance(path, Checkpoint) else read_checkpoint(path)
    try:
        match = match_keys(checkpoint.state_dict, model, reset_head=reset_head, allow_unknown=allow_unknown)
    except InputError as error:
        raise type(error)(f"checkpoint {checkpoint.path}: {error}") from error
    model.load_state_dict(match.state_dict, strict=not reset_head)
    origin = match.origin + (f" in {checkpoint.entry!r}" if checkpoint.entry else "")
    loaded = len(match.state_dict) - len(match.fresh)
    added = [part for part in about(model).added if any(name.startswith(part) for name in match.fresh)]
    modules = tuple(part.removesuffix(".").removesuffix(".module") for part in added)
    complete = not (modules or reset_head)
    return LoadReport(checkpoint.path, origin, loaded, match.ignored, match.fresh, modules, complete)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
