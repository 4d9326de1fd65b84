"""`dgmn.save` and `dgmn.push_to_hub`: a folder with everything that a trained network needs to predict elsewhere."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from dgmn.about import about
from dgmn.classification.builders import check_image_size
from dgmn.errors import InputError
from dgmn.finite import check_weights
from dgmn.loading import predictor_of
from dgmn.models.build import built_as
from dgmn.pictures import distinct_colors
from dgmn.predictor import Predictor
from dgmn.segmentation.labels import default_colors
from dgmn.weights import match_keys
from dgmn.weights.description import check_fields
from dgmn.weights.keys import without_wrappers
from dgmn.weights.shared import CONFIG, WEIGHTS, to_safetensors
from dgmn_base.files import writing
from dgmn_base.terminal import counted

CARD = "README.md"
_PIPELINES = {
    "classification": "image-classification",
    "detection": "object-detection",
    "segmentation": "image-segmentation",
}


def save(
    model: Predictor | nn.Module,
    folder: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    image_size: int | None = None,
    category_ids: Sequence[int] | None = None,
    colors: Sequence[tuple[int, int, int]] | None = None,
    inference: Mapping[str, Any] | None = None,
    licence: str | None = None,
) -> Path:
    """Writes a network into a folder: `model.safetensors`, `config.json`, and a model card if there is none.

        dgmn.save(dgmn.load("runs/x"), "shared")
        dgmn.save(retinanet("dgmn2_tiny", 2), "shared", classes=["cat", "dog"])

    [`dgmn.load`][dgmn.loading.load] reads the folder. A classifier's folder is also one of timm
    (`timm.create_model("local-dir:shared", pretrained=True)`) and of transformers (`AutoModelForImageClassification`),
    unless [`dgmn.insert`][dgmn.models.insert.insert] put modules into it.

    Args:
        model: a predictor, which knows everything else; or a network, from timm or a builder of
            `dgmn.detection` or `dgmn.segmentation`. It is not changed.
        folder: where to write; files of these names are replaced, but for the model card.
        classes: names of the classes, in the order of the outputs. A classifier can do without.
        image_size: classification: side of the images; None: what timm knows of the network.
        category_ids: detection: ids of the classes in COCO's format; None counts from 1.
        colors: segmentation: colours of the classes, each three numbers in 0..255.
        inference: detection and segmentation: fields of the task's `Inference`, for instance `{"mode": "slide"}`.
        licence: licence of the weights, for the model card, as the hub names it, for instance "apache-2.0"; None says
            nothing.

    Returns:
        The folder.

    Raises:
        InputError (a ValueError): it is not known how the network was built, its weights are not those of a network
            that is built so (for instance because it is fused), or an argument is wrong or missing; the message names
            it. Nothing is written then.
    """
    given = {
        "classes": classes,
        "image_size": image_size,
        "category_ids": category_ids,
        "colors": colors,
        "inference": inference,
    }
    if licence is not None:
        check_licence(licence)
    network = model.network if isinstance(model, Predictor) else model
    description = description_of(model, given)
    check_weights(network.state_dict(), f"model: {type(network).__name__}")
    again = _built_again(description)
    weights = _weights(network, again)
    description = {**description, **again.describe(), "classes": description["classes"]}
    files = {
        WEIGHTS: to_safetensors(weights),
        CONFIG: _json(_config(network, description)),
        CARD: _card(description, licence).encode(),
    }
    folder = Path(folder)
    for name, content in files.items():
        if name != CARD or not (folder / name).exists():  # a card that someone has written stays
            with writing(folder / name) as file:
                file.write(content)
    return folder


def push_to_hub(
    model: Predictor | nn.Module,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload a network of dgmn",
    **facts: Any,
) -> str:
    """Uploads what [`dgmn.save`][dgmn.sharing.save] writes to a repository on the Hugging Face Hub.

    Args:
        model: as for `save`.
        repo_id: for instance "me/street-signs"; made if there is none.
        private: whether a new repository is private; None: what its owner has chosen.
        token: access token; None takes that of `hf auth login`.
        commit_message: what the repository's history says.
        **facts: further arguments of `save`, for instance `classes` or `licence`.

    Returns:
        The address of the commit.

    Raises:
        InputError (a ValueError): as for `save`; nothing is uploaded then. Errors of the hub are huggingface_hub's own.
    """
    from huggingface_hub import HfApi

    with TemporaryDirectory() as folder:
        save(model, folder, **facts)
        api = HfApi(token=token)
        repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        card = api.file_exists(repository, CARD)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=commit_message,
            ignore_patterns=[CARD] if card else None,  # a card that someone has written stays
        )
    return str(commit.commit_url)


def check_licence(licence: object) -> None:
    """Checks the name of a licence.

    Raises:
        InputError: it is no name, or longer than any.
    """
    if not isinstance(licence, str) or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+() -]{0,99}", licence) is None:
        raise InputError(f"licence: got {licence!r}; accepted the name of a licence, for instance Apache-2.0 or MIT")


def description_of(model: Predictor | nn.Module, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The description that a run's checkpoint would have, checked.

    Args:
        model: a predictor, or a network.
        given: what the user gave, which counts more than what a predictor knows; None for what was not given.

    Raises:
        InputError: it is not known how the network was built, or an argument is wrong or missing.
    """
    network = model.network if isinstance(model, Predictor) else model
    known = model.describe() if isinstance(model, Predictor) else {}
    built = built_as(network) if isinstance(network, nn.Module) else None
    if built is None:
        raise InputError(
            f"model: got a {type(network).__name__}; accepted a predictor from dgmn.load, a classifier from "
            "timm.create_model, or a network from a builder of dgmn.detection or dgmn.segmentation"
        )
    word, count = about(network), built["num_classes"]
    task = "detection" if word.images == "list" else "segmentation" if word.backbone else "classification"
    channels = built["model_args"].get("in_chans", 3)
    if channels != 3:
        raise InputError(f"model: takes images of {counted(channels, 'channel')}; dgmn.load predicts images of 3")
    size = (given or {}).get("image_size") or known.get("image_size")
    own: dict[str, Any] = {
        "classification": {"classes": None, "image_size": _image_size(network, built["model_args"], size)},
        "detection": {"category_ids": list(range(1, count + 1)), "inference": {}},
        "segmentation": {"colors": distinct_colors(count), "inference": {}},
    }[task]
    description = {"task": task, **built, "preprocessing": word.preprocessing.to_values(), **own, **known}
    for name, value in (given or {}).items():
        if value is not None:
            if name not in ("classes", *own):
                raise InputError(f"{name}: got {value!r}; this is a network for {task}, which accepts no {name}")
            description[name] = value
    check_fields(description, "")
    if task == "classification":
        check_image_size(network, description["image_size"])
    if task == "segmentation" and "colors" not in known and (given or {}).get("colors") is None:
        description["colors"] = default_colors(description["classes"])  # now that the names are checked
    return description


def _image_size(network: Any, model_args: Mapping[str, Any], known: Any) -> Any:
    """The side of the images: the only one that the network takes, or the known one, or that of its weights."""
    size = model_args.get("img_size") or known or getattr(network, "pretrained_cfg", {}).get("input_size", 224)
    if not isinstance(size, list | tuple):
        return size
    if size[-2] != size[-1]:
        taken = f"{size[-2]} x {size[-1]}"
        raise InputError(
            f"model: takes images of {taken}; dgmn.load predicts classes of square images: give image_size"
        )
    return size[-1]


def _built_again(description: Mapping[str, Any]) -> Predictor:
    """A predictor from the description, without the numbers of its weights, so the random generator stays as it is."""
    try:
        with torch.device("meta"):
            return predictor_of(description["task"]).from_description(description, "meta")
    except (InputError, TypeError) as error:
        raise InputError(f"model: {description['model']} cannot be built again: {error}") from error


def _weights(network: nn.Module, again: Predictor) -> dict[str, Tensor]:
    """The weights of a network under the names that they have in the one that was built again."""
    try:
        match = match_keys(without_wrappers(network.state_dict()), again.network)
    except InputError as error:
        kind = type(network).__name__
        raise InputError(f"model: its weights do not fill a {kind} that is built as it was: {error}") from error
    return {name: tensor for name, tensor in match.state_dict.items() if name not in match.fresh}


def _config(network: Any, description: Mapping[str, Any]) -> dict[str, Any]:
    if not _is_timm_s(description):
        return {"library_name": "dgmn", "dgmn": dict(description)}
    from timm.models import filter_pretrained_cfg

    size, count = description["image_size"], description["num_classes"]
    cfg = filter_pretrained_cfg(network.pretrained_cfg, remove_source=True)
    # These are about other weights, or about other sizes of the image.
    others = ("architecture", "label_descriptions", "label_names", "label_offset", "pool_size", "state_dict", "tag")
    cfg = {name: value for name, value in cfg.items() if name not in others and not name.startswith("test_")}
    images = {**description["preprocessing"], "input_size": (3, size, size), "num_classes": count, "custom_load": False}
    args, names = description["model_args"], description["classes"]
    return {
        "library_name": "dgmn",
        "architecture": description["model"],
        "num_classes": count,
        "num_features": network.num_features,
        **({"label_names": names} if names else {}),
        **({"model_args": args} if args else {}),
        "pretrained_cfg": {**cfg, **images},
    }


def _is_timm_s(description: Mapping[str, Any]) -> bool:
    """Whether timm can build the network itself: it knows nothing of modules that were inserted."""
    return description["task"] == "classification" and "insert" not in (description["model_args"] or {})


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _card(description: Mapping[str, Any], licence: str | None) -> str:
    task, model = description["task"], description["model"]
    what = f"`{model}`" + (f" on `{description['backbone']}`" if "backbone" in description else "")
    others = ""
    if _is_timm_s(description):
        others = """
timm and transformers read this folder, too, after `import dgmn`:

```python
timm.create_model("local-dir:FOLDER", pretrained=True)
transformers.AutoModelForImageClassification.from_pretrained("FOLDER")
```
"""
    return f"""\
---
{f"license: {licence}" + chr(10) if licence else ""}library_name: dgmn
pipeline_tag: {_PIPELINES[task]}
tags:
- dgmn
- {_PIPELINES[task]}
---
# {model}

A network for {task} with {counted(description["num_classes"], "class")}: {what}, of the library dgmn (dynamic graph
message passing networks). `config.json` names the classes.

```python
import dgmn

model = dgmn.load("hf-hub:USER/NAME")  # or the path of this folder
print(model.predict("image.jpg"))
```
{others}
Write here what the network was trained on, and how well it does.
"""
