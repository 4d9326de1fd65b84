"""Reads checkpoints without executing anything in them, and loads them strictly."""

import argparse
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils import swap_tensors

from dgmn.about import Preprocessing, about
from dgmn.errors import InputError, first_line
from dgmn.finite import check_weights
from dgmn.weights.description import check_description
from dgmn.weights.keys import match_keys, without_wrappers

# Entries of a file that hold weights, the first one first: plain weights before averages.
# mmcv's loader looks for `state_dict` only and silently loads nothing from a file with `model`.
_ENTRIES = ("state_dict", "model", "model_state_dict", "module", "state_dict_ema", "model_ema", "ema")

_EXPANDED = 2**32  # bytes that tensors may have beyond those of the file: some repeat one value everywhere


@dataclass(frozen=True)
class Checkpoint:
    """The weights in a file.

    Attributes:
        path: the file.
        state_dict: name to tensor.
        entry: the entry of the file that holds the weights; "" if they are the whole file.
        description: what a training run of ours wrote about the network; None for other files.
        others: further entries of the file that hold weights, for instance averages; they are left out.
    """

    path: Path
    state_dict: dict[str, Tensor]
    entry: str
    description: dict[str, Any] | None
    others: tuple[str, ...] = ()

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

    The weights may be the whole file, or an entry of it. Of several entries, the first of these is taken: `state_dict`,
    `model`, `model_state_dict`, `module`, and then the averages `state_dict_ema`, `model_ema`, `ema`. Lightning's
    callback for averages writes them into `state_dict`. What wrappers add to the names (DistributedDataParallel, FSDP,
    torch.compile, activation checkpoints, AveragedModel, timm's ModelEma) is removed.

    Raises:
        FileNotFoundError: no such file.
        InputError (a ValueError): the file is no checkpoint, is damaged, has no weights, would execute code, or says
            of itself what no training run writes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file")
    content = read_file(path)
    description = None
    if isinstance(content, Mapping) and "dgmn" in content:
        description = content["dgmn"]
        check_description(description, path)
    entries: list[str] = []
    others: tuple[str, ...] = ()
    while isinstance(content, Mapping) and len(entries) < 3:
        found = [name for name in _ENTRIES if isinstance(content.get(name), Mapping)]
        if not found:
            break
        others += tuple(".".join((*entries, name)) for name in found[1:])
        content = content[found[0]]
        entries.append(found[0])
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"checkpoint {path}: no weights in it (looked for names at the top, `state_dict`, `model`)")
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    check_tensors(tensors, path)
    try:
        return Checkpoint(path, without_wrappers(tensors), ".".join(entries), description, others)
    except InputError as error:
        raise InputError(f"checkpoint {path}: {error}") from error


def check_tensors(tensors: Any, path: Path) -> None:
    """Checks that weights from a file are plain tensors under names, with as many values as the file holds.

    Raises:
        InputError: they are not; the message names one.
    """
    if not isinstance(tensors, Mapping):
        raise InputError(f"checkpoint {path}: its weights must be names with tensors, got a {type(tensors).__name__}")
    left = path.stat().st_size + _EXPANDED
    for name, tensor in tensors.items():
        if not isinstance(name, str) or len(name) > 1000 or not name.isprintable():
            raise InputError(
                f"checkpoint {path}: names of weights are texts of up to 1000 characters, got {name!r:.60}"
            )
        if isinstance(tensor, Tensor):
            left -= tensor.numel() * tensor.itemsize
            wrong = _what_is_wrong(tensor) or (
                f"its shape {tuple(tensor.shape)} is beyond the file" if left < 0 else ""
            )
            if wrong:
                raise InputError(f"checkpoint {path}: {name:.200} must be a plain tensor of numbers, but {wrong}")


def _what_is_wrong(tensor: Tensor) -> str:
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_quantized:
        return f"it is a {'quantised' if tensor.is_quantized else type(tensor).__name__} tensor"
    if tensor.layout != torch.strided:
        return f"it is sparse ({tensor.layout})"
    if tensor.is_meta:
        return "it has no values (it was saved from the meta device)"
    if tensor.dtype not in _DTYPES:
        return f"its type is {tensor.dtype}"
    return ""


_DTYPES = frozenset(
    getattr(torch, name)
    for name in ["float16", "bfloat16", "float32", "float64", "bool", "uint8", "int8", "int16", "int32", "int64"]
)


def check_archive(path: Path) -> None:
    """Checks that the records of a PyTorch checkpoint, which is a ZIP file, do not unpack to more than the file.

    Raises:
        InputError: they do, or the file is damaged.
    """
    if not _is_archive(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise InputError(f"checkpoint {path}: damaged or not a PyTorch checkpoint ({error})") from error
    packed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
    if packed or sum(record.file_size for record in records) > path.stat().st_size:
        raise InputError(
            f"checkpoint {path}: not a PyTorch checkpoint: its records unpack to more than the file; "
            "PyTorch writes them uncompressed"
        )


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_file(path: Path) -> Any:
    """The content of a checkpoint, read without executing anything in it. Its tensors may be mapped from the file.

    Raises:
        InputError: the file is no checkpoint, is damaged, or would execute code.
    """
    if not path.stat().st_size:
        raise InputError(f"checkpoint {path}: damaged or no checkpoint (it is empty)")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # SafetensorError, or another for a type of numbers that it does not know
            raise InputError(f"checkpoint {path}: damaged or not a safetensors file ({first_line(error)})") from error
    check_archive(path)
    archive = _is_archive(path)
    if not archive and tarfile.is_tarfile(path):  # PyTorch would unpack it
        raise InputError(f"checkpoint {path}: damaged or not a PyTorch checkpoint (it is a TAR file)")
    try:
        # The official classification files hold their command line as an argparse.Namespace, which only stores values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Mapped, not read: a storage that claims to be larger than its record cannot reach beyond the file.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # a damaged file makes torch raise almost anything
        code = _code_in(path) if isinstance(error, pickle.UnpicklingError) else []
        if code:
            raise InputError(
                f"checkpoint {path}: it would execute code ({', '.join(code[:3])}), which is not allowed; "
                "save only its weights, best as .safetensors"
            ) from error
        # torch's own message advises the user to unpickle the file, which would execute its code.
        reason = "" if "weights_only" in str(error) else f" ({first_line(error)})"
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

    It finds the weights in the file (see [`read_checkpoint`][dgmn.weights.read_checkpoint]) and recognises their names
    (ours, or those of the official classifiers, detectors and segmenters). Weights without the modules of a
    `DGMNResNet`, a `dilated_fcn` or `dgmn.insert` fill everything except these modules.

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
        TypeError: `model` is no network, or `path` no path.
        FileNotFoundError: no such file.
        InputError (a ValueError): the file is no checkpoint, holds NaN, or is one of another model; the message lists
            the names or shapes. It is a `dgmn.weights.OtherClassesError` if only the number of classes differs.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(path, str | PathLike | Checkpoint):
        raise TypeError(f"path must be a path or the result of read_checkpoint, got {type(path).__name__}")
    checkpoint = path if isinstance(path, Checkpoint) else read_checkpoint(path)
    check_weights(checkpoint.state_dict, f"checkpoint {checkpoint.path}")
    try:
        match = match_keys(checkpoint.state_dict, model, reset_head=reset_head, allow_unknown=allow_unknown)
    except InputError as error:
        raise type(error)(f"checkpoint {checkpoint.path}: {error}") from error
    _make_room(model, match.state_dict)
    model.load_state_dict(match.state_dict, strict=not reset_head)
    origin = match.origin + (f" in {checkpoint.entry!r}" if checkpoint.entry else "")
    if checkpoint.others:
        origin += f"; also in the file, not taken: {', '.join(checkpoint.others)}"
    loaded = len(match.state_dict) - len(match.fresh)
    added = [part for part in about(model).added if any(name.startswith(part) for name in match.fresh)]
    modules = tuple(part.removesuffix(".").removesuffix(".module") for part in added)
    complete = not (modules or reset_head)
    return LoadReport(checkpoint.path, origin, loaded, match.ignored, match.fresh, modules, complete)


def _make_room(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Gives the tensors of a network that was built on the meta device memory on the CPU, for weights to fill.

    Raises:
        InputError: the weights do not fill all of them; the message names some.
    """
    tensors = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])
    empty = {name: tensor for name, tensor in tensors.items() if tensor.is_meta}
    if not empty:
        return
    left = [name for name in empty if name not in weights or weights[name].is_meta]
    left += [f"{name}.{key}" for name, module in model.named_modules() for key in _hidden(module)]
    if left:
        raise InputError(
            f"the network is on the meta device, and the weights do not fill all of it: {', '.join(left[:3])}"
            f"{' ...' if len(left) > 3 else ''}; build it on the CPU"
        )
    for tensor in {id(tensor): tensor for tensor in empty.values()}.values():
        # Swapped, so that tied weights stay tied.
        room = torch.empty_like(tensor, device="cpu")
        _swap(tensor, nn.Parameter(room, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else room)


_swap: Callable[[Tensor, Tensor], None] = swap_tensors


def _hidden(module: nn.Module) -> list[str]:
    """Attributes of a module with tensors on the meta device that are neither parameters nor buffers."""
    lists = {key: value if isinstance(value, list | tuple) else [value] for key, value in vars(module).items()}
    return [key for key, values in lists.items() if any(isinstance(x, Tensor) and x.is_meta for x in values)]
