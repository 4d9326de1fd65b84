"""Fetches and keeps the published models' weights."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from dgmn.errors import InputError
from dgmn.finite import check_weights
from dgmn.report import say
from dgmn.weights.keys import match_keys
from dgmn.weights.load import read_checkpoint
from dgmn.weights.shared import to_safetensors
from dgmn_base.files import writing
from dgmn_base.terminal import Progress
from dgmn_base.zoo import ZooModel, find

LARGEST = 2**32
"""Bytes that a published file may have; 110 million parameters and the states of their optimiser are 1.3e9."""

_ATTEMPTS = 5  # at a download that is cut again and again
_SILENCE = 60  # seconds that the server may send nothing


def cache_folder() -> Path:
    """The folder of the fetched weights: `DGMN_HOME`, else `dgmn` in `XDG_CACHE_HOME`, else `~/.cache/dgmn`."""
    if os.environ.get("DGMN_HOME"):
        return Path(os.environ["DGMN_HOME"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dgmn"


def cached_files() -> list[Path]:
    """The converted weights of published models on this machine, those of the same name once."""
    # Earlier versions kept them in torch.hub's folder.
    folders = (Path(torch.hub.get_dir()) / "dgmn", cache_folder())
    found = {path.name: path for folder in folders for path in folder.glob("*.safetensors") if path.is_file()}
    return [found[name] for name in sorted(found)]


def cached_file(name: str) -> Path | None:
    """The converted weights of a published model, None if they were not fetched."""
    return next((path for path in cached_files() if path.stem == name), None)


def fetch(name: str, network: nn.Module | None = None) -> Path:
    """The converted weights of a published model. What this machine lacks is downloaded, once.

    Args:
        name: as for [`download`][dgmn.weights.download].
        network: as for `download`.

    Raises:
        InputError (a ValueError): as `download`.
        ConnectionError: as `download`.
    """
    model = find(name)
    path = cached_file(model.name)
    if path is None:
        with _alone(model):
            path = cached_file(model.name)  # another process may have fetched it meanwhile
            if path is None:
                path = _downloaded(model, network)
    return path


def download(name: str, file: str | PathLike[str] | None = None, network: nn.Module | None = None) -> Path:
    """Fetches a published checkpoint, verifies it and keeps its weights as safetensors.

    It verifies that the file can be read without executing anything, has at most 4 GiB, and holds all names and shapes
    of the network. A file that fails leaves nothing behind. After a cut connection, the next call goes on from there.

    Args:
        name: name of a row in [`ZOO`][dgmn.weights.ZOO].
        file: the published file, if you already have it; None downloads it.
        network: the network that the weights must fill; None: the row's classifier, or the backbone of another network.

    Returns:
        The path of the `.safetensors` in the cache.

    Raises:
        InputError (a ValueError): there is no such row, the file is not that model or too large, or gdown is missing.
        ConnectionError: no network, or the file is gone or over its quota.
    """
    model = find(name)
    with _alone(model):
        return _downloaded(model, network) if file is None else _converted(model, Path(file), network)


def check_cached(path: Path) -> ZooModel:
    """Checks that a file of the cache is as it was written, and returns its row.

    Raises:
        InputError (a ValueError): it is not; the message begins with the file.
    """
    from safetensors import safe_open

    model = find(path.stem)
    weights = read_checkpoint(path).state_dict
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata() or {}
    if metadata.get("model") != model.name:
        raise InputError(f"{path}: it was written for {metadata.get('model')}, not for {model.name}")
    # Files of earlier versions have no such entry.
    if metadata.get("content", _digest(weights)) != _digest(weights):
        raise InputError(f"{path}: its numbers are not those that were written; fetch it again")
    return model


@contextmanager
def _alone(model: ZooModel) -> Iterator[None]:
    """Keeps other processes from fetching the same model; the operating system ends this when the process dies."""
    from filelock import FileLock, Timeout

    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".{model.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is fetching {model.name}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _downloaded(model: ZooModel, network: nn.Module | None) -> Path:
    partial = cache_folder() / f".{model.name}"
    partial.mkdir(exist_ok=True)
    try:
        path = _converted(model, _fetched(model, partial / "original.pth"), network)
    except InputError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(partial, ignore_errors=True)
    return path


def _converted(model: ZooModel, file: Path, network: nn.Module | None) -> Path:
    target = cache_folder() / f"{model.name}.safetensors"
    if file.is_file() and file.stat().st_size > LARGEST:
        raise InputError(f"{file}: has {file.stat().st_size:,} bytes; a published file has at most {LARGEST:,}")
    weights = read_checkpoint(file).state_dict
    try:
        match_keys(weights, _network(model) if network is None else network)
    except InputError as error:
        raise InputError(f"{file} is not the published {model.name}: {error}") from error
    check_weights(weights, str(file))
    facts = {"model": model.name, "source": model.url, "sha256": _sha256(file), "content": _digest(weights)}
    with writing(target) as out:
        out.write(to_safetensors(weights, facts))
    return target


def _fetched(model: ZooModel, target: Path) -> Path:
    """Downloads a file, or the rest of it, if an earlier download was cut.

    Raises:
        InputError: gdown is missing, or the file is too large.
        ConnectionError: the file, or a part of it, cannot be had now.
    """
    by_hand = f"get it by hand from {model.url}, then: dgmn zoo download {model.name} --file FILE"
    try:
        import gdown
    except ImportError as error:
        raise InputError(f"{model.name}: fetching it needs gdown (pip install gdown); or {by_hand}") from error
    shown, moved = Progress(), False

    def watch(done: int, total: int | None) -> None:
        nonlocal moved
        moved = True
        if max(done, total or 0) > LARGEST:
            raise InputError(f"{model.url}: larger than a published file, which has at most {LARGEST:,} bytes")
        if total:
            shown.show(done / 1e6, total / 1e6, f"MB of {model.name}")

    options = {"quiet": True, "use_cookies": False, "resume": True, "timeout": _SILENCE, "progress": watch}
    for attempt in range(1, _ATTEMPTS + 1):
        moved = False
        try:
            gdown.download(id=model.file_id, output=str(target), **options)
            break
        except InputError:
            raise
        except Exception as error:  # gdown raises its own errors, those of requests, and OSError
            refused = type(error) is gdown.exceptions.DownloadError and not moved  # to go on from the middle
            if attempt == _ATTEMPTS or not (moved or refused):
                raise ConnectionError(f"{model.name} could not be downloaded ({_reason(error)}); {by_hand}") from error
            if refused:
                for part in target.parent.iterdir():
                    part.unlink()
    return target


def _reason(error: Exception) -> str:
    """The message of an error as one line; gdown's have several, and advice about its own command."""
    # Of a machine that cannot be reached, requests wraps the reason into its own objects.
    text = re.sub(r"^\w+\(host='([^']+)'.*\b(\w+Error)\(.*?: (.*?)['\"]?\)+$", r"\1: \3", str(error))
    text = " ".join(text.partition("You may still be able")[0].split())
    return text[:300] or type(error).__name__


def _network(model: ZooModel) -> nn.Module:
    import timm

    with torch.device("meta"):
        network: nn.Module = timm.create_model(model.backbone, features_only=model.task != "classification")
    return network


def _digest(weights: Mapping[str, Tensor]) -> str:
    """A digest of names, types, shapes and numbers, whatever the order."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
