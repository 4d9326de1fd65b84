"""Reads checkpoints without executing anything in them, and loads them strictly."""

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
from dgmn.finite import check_weights
from dgmn.weights.keys import match_keys

_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile


@dataclass(frozen=True)
class Checkpoint:
    """The weights in a file.

    Attributes:
        path: the file.
        state_dict: name to tensor.
        entry: the entry of the file that holds the weights; "" if they are the whole file.
        description: what a training run of ours wrote about the network; None for other files.
    """

    path: Path
    state_dict: dict[str, Tensor]
    entry: str
    description: dict[str, Any] | None

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How a training run of ours prepared the images for these weights; None if the file does not say."""
        values = (self.description or {}).get("preprocessing")
        return Preprocessing.from_values(values) if values else None


@dataclass(frozen=True)
class LoadReport:
    """What [`load_checkpoint`][dgmn.load_checkpoint] loaded; prints as one line.

    Attributes:
        path: the file.
        origin: whose names the file has, and the entry of the file that holds them.
        loaded: number of tensors that the network got from the file.
        ignored: names in the file that the network has no place for.
        fresh: names that the file lacks, because its network has no such modules or has frozen norms. These weights
            stay as they were.
        modules: prefixes of the names in `fresh` that belong to modules.
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

    The weights may be the whole file, or its entry `state_dict` or `model`. A prefix `module.`
    (DistributedDataParallel) or `_orig_mod.` (torch.compile) of all names is removed.

    Raises:
        FileNotFoundError: no such file.
        InputError (a ValueError): the file is no checkpoint, is damaged, has no weights, or would execute code.
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
        # The official classification files hold their command line as an argparse.Namespace, which only stores values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise almost anything
        code = _code_in(path) if isinstance(error, pickle.UnpicklingError) else []
        if code:
            raise InputError(
                f"checkpoint {path}: it would execute code ({', '.join(code[:3])}), which is not allowed; "
                "save only its weights, best as .safetensors"
            ) from error
        # torch's own message advises the user to unpickle the file, which would execute its code.
        reason = "" if "weights_only" in str(error) else f" ({_first_line(error)})"
        raise InputError(f"checkpoint {path}: damaged or not a PyTorch checkpoint{reason}") from error


def _code_in(path: Path) -> list[str]:
    """What a checkpoint would execute, as far as its content tells."""
    try:
        return list(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # damaged, or in the format that PyTorch had before zip files
        return []


def load_checkpoint(
    model: nn.Module, path: str | PathLike[str] | Checkpoint, *, reset_head: bool = False, allow_unknown: bool = False
) -> LoadReport:
    """Loads an official or own checkpoint into a network, strictly: an unknown or missing name is an error.

    It finds the weights in the file (the whole file, or `model` or `state_dict` in it, also with the prefix `module.`)
    and recognises their names (ours, or those of the official classifiers, detectors and segmenters). Weights without
    the modules of a `DGMNResNet` or `dilated_fcn` fill everything except these modules.

    Args:
        model: the network to fill: a classifier, or a backbone from `timm.create_model(..., features_only=True)`.
            Unchanged if an error is raised.
        path: a `.safetensors` file or a PyTorch checkpoint (read with `weights_only=True`, never executed); or the
            result of [`read_checkpoint`][dgmn.weights.read_checkpoint].
        reset_head: leave the classifier as it is, to train it on other classes.
        allow_unknown: leave out the names that the network has no place for; the report lists them. The file must
            still have all names that the network needs.

    Returns:
        What was loaded and what was left out; it prints as one line.

    Raises:
        FileNotFoundError: no such file.
        InputError (a ValueError): the file is no checkpoint, holds NaN, or is one of another model; the message lists
            the names or shapes. It is a `dgmn.weights.OtherClassesError` if only the number of classes differs.
    """
    checkpoint = path if isinstance(path, Checkpoint) else read_checkpoint(path)
    check_weights(checkpoint.state_dict, f"checkpoint {checkpoint.path}")
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
