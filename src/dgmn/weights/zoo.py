"""Fetches and keeps the published models' weights."""

import hashlib
import tempfile
from os import PathLike
from pathlib import Path

import torch
from safetensors.torch import save

from dgmn.errors import InputError
from dgmn.weights.keys import match_keys
from dgmn.weights.load import read_checkpoint
from dgmn_base.files import writing
from dgmn_base.zoo import ZooModel, find


def cache_folder() -> Path:
    """The folder of the downloads. It is in torch.hub's folder, so `TORCH_HOME` moves it."""
    return Path(torch.hub.get_dir()) / "dgmn"


def cached_file(name: str) -> Path | None:
    """The converted weights of a published model, None if it was not downloaded."""
    path = cache_folder() / f"{name}.safetensors"
    return path if path.is_file() else None


def downloaded_file(model: ZooModel) -> Path:
    """The converted weights that `dgmn zoo download` fetched.

    Raises:
        InputError (a ValueError): the weights are not downloaded.
    """
    path = cached_file(model.name)
    if path is None:
        raise InputError(
            f"{model.name} is not downloaded yet: dgmn zoo download {model.name}, or give its file as --ckpt_path"
        )
    return path


def download(name: str, file: str | PathLike[str] | None = None) -> Path:
    """Fetches a published checkpoint, verifies it and keeps its weights as safetensors.

    It verifies that the file can be read without executing anything, and that the backbone in it has all names and
    shapes of the row's backbone. If a step fails, no file is left behind.

    Args:
        name: name of a row in [`ZOO`][dgmn.weights.ZOO].
        file: the published file, if you already have it; None downloads it.

    Returns:
        The path of the `.safetensors` in the cache.

    Raises:
        InputError (a ValueError): there is no such row, or the file is not that model.
        ImportError: gdown is not installed.
        ConnectionError: no network, or the file is gone or over its quota.
    """
    model = find(name)
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{model.name}.safetensors"
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{model.name}-") as temporary:
        original = Path(file) if file is not None else _fetch(model, Path(temporary) / "original.pth")
        state_dict = read_checkpoint(original).state_dict
        _verify(model, state_dict, original)
        metadata = {"format": "pt", "model": model.name, "source": model.url, "sha256": _sha256(original)}
        # Some upstream files hold one tensor under several names, which safetensors refuses.
        converted = save({key: value.clone().contiguous() for key, value in state_dict.items()}, metadata)
    with writing(target) as out:
        out.write(converted)
    return target


def _fetch(model: ZooModel, target: Path) -> Path:
    try:
        import gdown
    except ImportError as error:
        raise ImportError("downloading needs gdown: pip install 'dgmn[zoo]'") from error
    try:
        gdown.download(id=model.file_id, output=str(target), quiet=False)
    except Exception as error:  # gdown raises its own errors, those of requests, and OSError
        reason = str(error).strip().split("\n")[0][:200]
        raise ConnectionError(
            f"{model.name} could not be downloaded from {model.url}: {reason}; "
            f"if you get the file in another way: dgmn zoo download {model.name} --file FILE"
        ) from error
    return target


def _verify(model: ZooModel, state_dict: dict[str, torch.Tensor], path: Path) -> None:
    import timm

    with torch.device("meta"):
        network = timm.create_model(model.backbone, features_only=model.task != "classification")
    try:
        match_keys(state_dict, network)
    except InputError as error:
        raise InputError(f"{path} is not the published {model.name}: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
