"""Folders of a network to share: `model.safetensors` with its weights, `config.json` with what it is.

A classifier's folder has timm's layout, so timm and transformers read it, too. For other tasks, `config.json` has the
entry `dgmn`, with the description that a run's checkpoint has.
"""

import re
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from dgmn.about import Preprocessing
from dgmn.errors import InputError
from dgmn.weights.description import check_description
from dgmn.weights.load import Checkpoint, read_checkpoint
from dgmn_base.files import read_json
from dgmn_base.runs import checkpoint_in

WEIGHTS, CONFIG = "model.safetensors", "config.json"
HUB = "hf-hub:"
"""What stands before the name of a network on the Hugging Face Hub, as in timm. Only users may name one: what a file
says about its network must not make this machine fetch anything."""
_LARGEST = 2**24  # bytes of a config.json
_ON_HUB = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")  # owner/name, and a revision


def is_shared(folder: Path) -> bool:
    """Whether a folder holds a network that was saved to be shared."""
    return all((folder / name).is_file() for name in (WEIGHTS, CONFIG))


def in_folder(folder: Path) -> Path:
    """What holds the weights in a folder: the checkpoint of a run, the best or else the last; or the folder to share.

    Raises:
        InputError (a ValueError): it holds neither.
    """
    found = folder if is_shared(folder) else checkpoint_in(folder)
    if found is None:
        raise InputError(
            f"{folder}: not a run's folder: it has neither checkpoints/best.ckpt nor checkpoints/last.ckpt; nor a "
            f"folder of dgmn.save: it has no {WEIGHTS} with {CONFIG}"
        )
    return found


def read_weights(path: Path) -> Checkpoint:
    """Reads a checkpoint, that of a run's folder, or a folder to share.

    Raises:
        FileNotFoundError: no such file.
        InputError (a ValueError): a folder holds no network, or a file is damaged; see `read_checkpoint`.
    """
    found = in_folder(path) if path.is_dir() else path
    return read_shared(found) if found.is_dir() else read_checkpoint(found)


def fetch_shared(address: str) -> Path:
    """The folder of a network on the Hugging Face Hub. What this machine lacks is downloaded, once.

    Args:
        address: "hf-hub:owner/name", or "hf-hub:owner/name@revision" with a branch, tag or commit.

    Raises:
        InputError (a ValueError): the address has another form, nothing on the hub has it, or that is no network.
        ConnectionError: the network is not on this machine, and the hub does not answer.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match = _ON_HUB.fullmatch(address.removeprefix(HUB))
    if match is None:
        raise InputError(f"{address}: accepted {HUB}owner/name, or {HUB}owner/name@revision")
    try:
        folder = Path(snapshot_download(match[1], revision=match[2], allow_patterns=[WEIGHTS, CONFIG]))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise InputError(f"{address}: nothing on the hub has this name; what is private needs hf auth login") from error
    except RemoteEntryNotFoundError as error:  # of older versions; newer ones leave out what is not there
        raise _no_network(address) from error
    except (HfHubHTTPError, OSError) as error:
        raise ConnectionError(f"{address}: cannot be fetched: {textwrap.shorten(str(error), 200)}") from error
    if not is_shared(folder):
        raise _no_network(address)
    return folder


def _no_network(address: str) -> InputError:
    return InputError(f"{address}: not a repository of dgmn.push_to_hub: it has no {WEIGHTS} with {CONFIG}")


def read_shared(folder: Path) -> Checkpoint:
    """Reads a folder to share: the weights, and what it says about its network, which is checked field by field.

    Raises:
        InputError (a ValueError): a file is damaged, or says of itself what no network is.
    """
    path = folder / CONFIG
    if path.stat().st_size > _LARGEST:
        raise InputError(f"{path}: has {path.stat().st_size:,} bytes; at most {_LARGEST:,} are read")
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path}: must be a dict in JSON, got a {type(config).__name__}")
    description = config["dgmn"] if "dgmn" in config else _of_timm(config, path)
    check_description(description, path)
    weights = read_checkpoint(folder / WEIGHTS)
    return Checkpoint(weights.path, weights.state_dict, weights.entry, description, weights.others)


def _of_timm(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The description of a classifier from timm's `config.json`, not checked yet."""
    images = config.get("pretrained_cfg")
    size = images.get("input_size") if isinstance(images, dict) else None
    if "architecture" not in config or not isinstance(images, dict) or not isinstance(size, list) or len(size) != 3:
        raise InputError(
            f"{path}: does not describe a network; accepted the entry dgmn, or timm's architecture, num_classes and "
            "pretrained_cfg with input_size, as dgmn.save writes them"
        )
    if size[0] != 3 or size[1] != size[2]:
        raise InputError(f"{path}: input_size: got {size}; accepted square images of 3 channels")
    args = config.get("model_args")
    if isinstance(args, dict):  # timm writes the number of classes here, too
        args = {name: value for name, value in args.items() if name != "num_classes"}
    return {
        "task": "classification",
        "model": config["architecture"],
        "num_classes": config.get("num_classes"),
        "model_args": args,
        "classes": config.get("label_names"),
        "image_size": size[-1],
        "preprocessing": {name: images[name] for name in asdict(Preprocessing()) if images.get(name) is not None},
    }


def to_safetensors(weights: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> bytes:
    """The content of a `.safetensors` file; `facts` are written into its header."""
    # Some networks have one tensor under several names, which safetensors refuses.
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in weights.items()}
    content: bytes = save(plain, {"format": "pt", **(facts or {})})  # transformers asks for the format
    return content
