"""Checks what a checkpoint says about its network, field by field: the file may be from anyone."""

import math
import re
import reprlib
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dgmn.errors import InputError

# Arguments of timm that make something else than a classifier.
_OUTPUTS = frozenset(["features_only", "feature_cls", "out_indices"])
# timm's arguments and settings that fetch weights or read a file.
_SOURCES = frozenset(
    [
        "cache_dir",
        "checkpoint_path",
        "custom_load",
        "file",
        "hf_hub_filename",
        "hf_hub_id",
        "pretrained",
        "pretrained_cfg",
        "source",
        "state_dict",
        "url",
    ]
)
_DEEPEST = 10
_MOST_VALUES = 100_000
_LONGEST = 1000  # characters of a text

Check = Callable[[Any], bool]
Field = tuple[str, Check]  # what is accepted, in words, and whether a value is


def without_sources(arguments: Any) -> Any:
    """Arguments of a network without those that fetch weights: a checkpoint has all weights."""
    if not isinstance(arguments, Mapping):
        return arguments
    return {name: without_sources(value) for name, value in arguments.items() if name not in _SOURCES}


def check_description(description: Any, path: Path) -> None:
    """Checks the entry `dgmn` of a checkpoint: every field that prediction or a continued run reads.

    Raises:
        InputError: a field is missing, or has another type, length or range than a training run writes.
    """
    if not isinstance(description, dict):
        raise InputError(
            f"checkpoint {path}: dgmn: got {_shown(description)}; accepted a dict, as a training run writes it"
        )
    check_fields(description, f"checkpoint {path}: dgmn.")


def check_fields(description: Mapping[str, Any], whose: str) -> None:
    """Checks the fields of a description; `whose` is what messages put before the name of a field.

    Raises:
        InputError: as for `check_description`.
    """
    task = description.get("task")
    if type(task) is not str or task not in _TASKS:
        raise InputError(f"{whose}task: got {_shown(task)}; accepted one of {', '.join(_TASKS)}")
    for name, fields in (("preprocessing", _PREPROCESSING), ("inference", _INFERENCE.get(task, {}))):
        inner = description.get(name)
        _check_fields(inner if isinstance(inner, dict) else {}, fields, f"{whose}{name}.")
    _check_fields(description, {**_COMMON, **_TASKS[task]}, whose, complete=True)
    _check_fields(description, _OPTIONAL, whose)
    classes = description["num_classes"]
    for name in ("classes", "category_ids", "colors"):
        values = description.get(name)
        if values is not None and len(values) != classes:
            raise InputError(f"{whose}{name}: got {len(values)} values; accepted {classes}, one for every class")


def _check_fields(values: Mapping[str, Any], fields: Mapping[str, Field], whose: str, complete: bool = False) -> None:
    for name, (accepted, fits) in fields.items():
        if name not in values:
            if complete:
                raise InputError(f"{whose}{name}: is missing; accepted {accepted}")
        elif not fits(values[name]):
            raise InputError(f"{whose}{name}: got {_shown(values[name])}; accepted {accepted}")


def _shown(value: Any) -> str:
    if not isinstance(value, str | bool | float | list | tuple | dict | None) and type(value) is not int:
        return f"a {type(value).__name__}"
    try:
        text = ascii(reprlib.repr(value))[1:-1]
    except Exception:  # a whole number of thousands of digits, or a text that cannot be written
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _whole(least: int, most: int) -> Field:
    return f"a whole number in {least}..{most}", lambda value: type(value) is int and least <= value <= most


def _number(least: float, most: float) -> Field:
    return f"a number in {least:g}..{most:g}", lambda value: type(value) in (int, float) and least <= value <= most


def _one_of(*names: str) -> Field:
    return f"one of {', '.join(names)}", lambda value: type(value) is str and value in names


def _some(part: Field, least: int = 0, most: int = 100_000) -> Field:
    lengths = f"{least}" if least == most else f"{least} to {most}"

    def fits(value: Any) -> bool:
        return type(value) in (list, tuple) and least <= len(value) <= most and all(part[1](each) for each in value)

    return f"a list of {lengths} values, each {part[0]}", fits


def _or_none(field: Field) -> Field:
    return f"None, or {field[0]}", lambda value: value is None or field[1](value)


def _is_text(value: Any) -> bool:
    return type(value) is str and len(value) <= _LONGEST


def _is_name(value: Any) -> bool:
    """Whether a text may be shown in a terminal, where control characters do things."""
    return _is_text(value) and not any(unicodedata.category(letter) == "Cc" for letter in value)


def check_names(names: Iterable[object]) -> None:
    """Checks that a checkpoint may hold the names of classes.

    Raises:
        InputError: it may not; the message shows the name.
    """
    for name in names:
        if not _is_name(name):
            raise InputError(f"data: got the class name {str(name)[:80]!r}; accepted {_NAME[0]}")


def _is_network(value: Any) -> bool:
    return _is_text(value) and re.fullmatch(r"\w[\w.-]*", value) is not None


def _plain(value: Any) -> bool:
    """Whether a value is a number, a text or None, or lists and dicts of these."""
    count, left = 0, [(value, 0)]
    while left:
        part, depth = left.pop()
        count += 1
        if isinstance(part, dict):
            if not all(map(_is_text, part)):
                return False
            part = list(part.values())
        if type(part) in (list, tuple):
            if len(part) + count > _MOST_VALUES or depth == _DEEPEST:
                return False
            left += [(inner, depth + 1) for inner in part]
        elif type(part) is int:
            if abs(part) >= 2**63:
                return False
        elif not (part is None or type(part) in (bool, float) or _is_text(part)) or count > _MOST_VALUES:
            return False
    return True


def _is_harmless(value: Any) -> bool:
    """Whether no argument fetches weights, changes what a network gives, or is no number. The value is plain."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return ":" not in value and "/" not in value
    if isinstance(value, dict):
        named = any(name in _SOURCES | _OUTPUTS and inner not in (None, False) for name, inner in value.items())
        return not named and all(map(_is_harmless, value.values()))
    return not isinstance(value, list | tuple) or all(map(_is_harmless, value))


_PLAIN_DICT: Field = ("a dict of plain values", lambda value: isinstance(value, dict) and _plain(value))
_FLAG: Field = ("True or False", lambda value: type(value) is bool)
_TEXT: Field = (f"a text of at most {_LONGEST} characters", _is_text)
_NAME: Field = (f"a text of at most {_LONGEST} characters without control characters", _is_name)
_SIDE = _whole(1, 10_000)  # pixels; a square of it has as many as an image may have
_NETWORK_SIDE = _whole(1, 4_096)  # of what a classifier always gets; at 10,000 the smallest network takes 6 GB
_COLOR = _some(_whole(0, 255), 3, 3)
_ARGUMENTS: Field = (
    "None, or a dict of plain, finite values, none of which names weights, a file, an address or other outputs",
    lambda value: value is None or (isinstance(value, dict) and _plain(value) and _is_harmless(value)),
)
_NETWORK: Field = ("the name of a network, without a scheme such as hf-hub:", _is_network)

_COMMON = {"model": _NETWORK, "model_args": _ARGUMENTS, "num_classes": _whole(1, 100_000)}
_OPTIONAL = {
    "preprocessing": _or_none(_PLAIN_DICT),
    "inference": _or_none(_PLAIN_DICT),
    "total_batch": _whole(1, 2**40),
    "crop_pct": _or_none(_number(0.01, 2)),
    "training": ("a dict of plain values", lambda x: _PLAIN_DICT[1](x) and isinstance(x.get("kept", {}), dict)),
}
_PREPROCESSING = {
    "mean": _some(_number(-1e6, 1e6), 3, 3),
    "std": _some(_number(1e-6, 1e6), 3, 3),
    "interpolation": _one_of("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random"),
    "crop_pct": _or_none(_number(0.01, 2)),
    "crop_mode": _one_of("center", "squash", "border"),
}
_INFERENCE = {
    "detection": {
        "sizes": _some(_SIDE, 0, 100),
        "max_size": _SIDE,
        "flip": _FLAG,
        "overlap": _number(1e-6, 1),
    },
    "segmentation": {
        "mode": _one_of("whole", "slide"),
        **dict.fromkeys(("crop", "stride", "tile"), _SIDE),
        "scales": _some(_number(0.01, 100), 1, 100),
        "flip": _FLAG,
        "fit": _or_none(_some(_SIDE, 2, 2)),
        "batch_size": _whole(1, 1024),
    },
}
_TASKS: dict[str, dict[str, Field]] = {
    "classification": {"classes": _or_none(_some(_NAME)), "image_size": _NETWORK_SIDE},
    "detection": {
        "backbone": _NETWORK,
        "classes": _some(_NAME),
        "category_ids": _some(_whole(-(2**63), 2**63 - 1)),
    },
    "segmentation": {
        "backbone": _NETWORK,
        "classes": _some(_NAME),
        "colors": _some(_COLOR),
        "inference": _PLAIN_DICT,
    },
}
