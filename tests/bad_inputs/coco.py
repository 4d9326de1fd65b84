"""Bad annotations in COCO's format, for `dgmn validate-data` and `dgmn fit`."""

import json
import re
from collections.abc import Callable
from typing import Any

from bad_inputs.cases import Case, World
from bad_inputs.images import encoded

RECIPE = "recipes/detection/finetune_coco_format.yaml"
TRAIN = "data/annotations/instances_train.json"


def content() -> dict[str, Any]:
    """Two images of 40 x 30 with two objects."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (1, 2)],
        "categories": [{"id": 3, "name": "car"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {
                **{"id": i, "image_id": i, "category_id": 3, "bbox": [5, 6, 10, 8], "iscrowd": 0},
                "segmentation": [[5, 6, 15, 6, 15, 14, 5, 14]],
            }
            for i in (1, 2)
        ],
    }


def dataset(world: World, train: bytes | None = None) -> None:
    for split in ("train", "val"):
        for i in (1, 2):
            world.file(f"data/{split}/{i}.png", encoded("PNG"))
        world.file(f"data/annotations/instances_{split}.json", json.dumps(content()))
    if train is not None:
        world.file(TRAIN, train)


def validate() -> list[str]:
    return ["validate-data", "-c", RECIPE, "--data.root", "data", "--data.masks", "true"]


def fit() -> list[str]:
    return [
        *("fit", "-c", RECIPE, "--data.root", "data", "--data.masks", "true", "--model.model", "mask_rcnn"),
        *("--model.backbone", "dgmn2_nano", "--data.num_workers", "0", "--trainer.accelerator", "cpu"),
        *("--trainer.default_root_dir", "run", "--data.batch_size", "2"),
    ]


def text_of(value: Any) -> bytes:
    """JSON; a `bytes` in it stands as it is, so that it can be what `json.dumps` does not write."""
    parts: list[bytes] = []

    def keep(part: Any) -> str:
        parts.append(part)
        return f"@{len(parts) - 1}@"

    text = json.dumps(value, default=keep)
    for i, part in enumerate(parts):
        text = text.replace(f'"@{i}@"', part.decode())
    return text.encode()


HUGE = b"1" + b"0" * 400
LONG = b"1" + b"0" * 5000  # more digits than Python converts
NESTED = b"[" * 500 + b"]" * 500
ODD: dict[str, Any] = {
    "null": None,
    "text": "x",
    "list": [],
    "object": {},
    "true": True,
    "half": 1.5,
    "nan": float("nan"),
    "inf": float("inf"),
    "1e400": b"1e400",
    "nested": NESTED,
}

_NEEDS = r"images\[0\] needs id as a whole number or text"
_SIZE = r"images\[0\].*(the size must be at least 1 x 1|needs id as)"
_BOX = r"annotations\[0\] \(id 1\): bbox"
_PLACE = r"annotations\[0\].*(needs image_id|belongs to no image)"
_CATEGORY = r"annotations\[0\].*(needs image_id|is not declared)"
_NAMES = r"categories\[0\] needs id as a whole number, and name as text"
_CROWD = r"annotations\[0\] \(id 1\): iscrowd must be 0 or 1"
_MASK = "annotation 1: segmentation"
MISSING = object()

# The path of a value, what it is replaced by, and what is told.
Change = tuple[tuple[Any, ...], dict[str, Any], str]
NUMBERS = {"zero": 0, "negative": -5, "huge": HUGE}
CHANGES: list[Change] = [
    (("images", 0, "id"), {k: v for k, v in ODD.items() if k != "text"} | {"missing": MISSING}, _NEEDS),
    (("images", 0, "file_name"), {k: v for k, v in ODD.items() if k != "text"} | {"missing": MISSING}, _NEEDS),
    (
        ("images", 0, "file_name"),
        {"elsewhere": "../../x.png", "absolute": "/dev/zero", "empty": "", "newline": "a\nb.png", "long": "x" * 5000},
        r"images\[0\]: no image ",
    ),
    (("images", 0, "file_name"), {"surrogate": "\ud800.png", "zero-byte": "a\0.png"}, r"images\[0\]"),
    (("images", 0, "width"), {**ODD, **NUMBERS, "missing": MISSING}, _SIZE),
    (("images", 0, "height"), {**NUMBERS, "large": 10**8}, _SIZE),
    (("images", 0, "width"), {"other": 41}, r"1\.png: 40 x 30 pixels, the annotations say 41 x 30"),
    (("images", 0), ODD, r"images\[0\] needs"),
    (("images", 1, "id"), {"twice": 1}, r"images\[1\]: the id 1 is there twice"),
    (("annotations", 0, "image_id"), {**ODD, **NUMBERS, "missing": MISSING}, _PLACE),
    (("annotations", 0, "category_id"), {**ODD, **NUMBERS, "missing": MISSING}, _CATEGORY),
    (("annotations", 1, "id"), {"twice": 1}, r"annotations\[1\] \(id 1\): this id is there twice"),
    (("annotations", 0, "bbox"), {**ODD, "missing": MISSING, "three": [1, 2, 3], "five": [1, 2, 3, 4, 5]}, _BOX),
    (
        ("annotations", 0, "bbox", 2),
        {**{k: v for k, v in ODD.items() if k != "half"}, "negative": -5, "huge": HUGE},
        _BOX,
    ),
    (("annotations", 0, "bbox", 0), {"minus-huge": b"-" + HUGE}, _BOX),
    (("annotations", 0, "iscrowd"), {k: v for k, v in ODD.items() if k not in ("null", "true")}, _CROWD),
    (("annotations", 0, "iscrowd"), {"two": 2, "huge": HUGE}, _CROWD),
    (("annotations", 0), ODD, r"annotations\[0\] needs"),
    (("annotations", 0, "segmentation"), {**ODD, "missing": MISSING}, _MASK),
    (
        ("annotations", 0, "segmentation"),
        {
            "two-points": [[1, 2, 3, 4]],
            "odd-points": [[1, 2, 3, 4, 5, 6, 7]],
            "far": [[0, 0, 1e8, 0, 5, 5]],
            "point-huge": [[0, 0, HUGE, 0, 5, 5]],
            "point-nan": [[0, 0, float("nan"), 0, 5, 5]],
            "point-text": [["x"] * 6],
            "long-border": [[-390, 0, 390, 390] * 1000],
            "runs-of-other-size": {"size": [3, 4], "counts": [12]},
            "runs-of-huge-size": {"size": [10**6, 10**6], "counts": [10**12]},
            "runs-too-short": {"size": [30, 40], "counts": [5]},
            "runs-too-long": {"size": [30, 40], "counts": [10**12]},
            "runs-negative": {"size": [30, 40], "counts": [-5, 1205]},
            "runs-huge": {"size": [30, 40], "counts": [HUGE]},
            "runs-half": {"size": [30, 40], "counts": [600.5, 599.5]},
            "runs-nan": {"size": [30, 40], "counts": [float("nan")]},
            "runs-text-garbage": {"size": [30, 40], "counts": "~" * 1000},
            "runs-text-empty": {"size": [30, 40], "counts": ""},
            "runs-text-not-ascii": {"size": [30, 40], "counts": "\u00e9\U0001f600"},
            "runs-text-long": {"size": [30, 40], "counts": "0" * 5_000_000},
            "runs-missing": {"size": [30, 40]},
            "runs-null": {"size": [30, 40], "counts": None},
            "size-null": {"size": None, "counts": [1200]},
            "size-of-three": {"size": [30, 40, 1], "counts": [1200]},
        },
        _MASK,
    ),
    (("categories", 0, "id"), {**ODD, "missing": MISSING}, _NAMES),
    (("categories", 0, "name"), {k: v for k, v in ODD.items() if k != "text"} | {"missing": MISSING}, _NAMES),
    (("categories", 0), ODD, r"categories\[0\] needs"),
    (("categories", 1, "id"), {"twice": 3}, r"categories\[1\]: the id 3 is there twice"),
    (("categories", 1, "name"), {"twice": "car"}, r"categories\[1\]: the name 'car' is there twice"),
    (("categories",), {"empty": []}, "no categories in it"),
]
_FORMAT = "not in COCO's format"
_NO_JSON = "not JSON"
FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"not JSON \(it is empty\)"),
    "text": (b"no annotations", _NO_JSON),
    "cut": (text_of(content())[:300], _NO_JSON),
    "list": (text_of([content()]), _FORMAT),
    "number": (b"3", _FORMAT),
    "null": (b"null", _FORMAT),
    "empty-object": (b"{}", _FORMAT),
    "images-missing": (b'{"annotations": [], "categories": []}', _FORMAT),
    "images-an-object": (text_of({**content(), "images": {}}), _FORMAT),
    "images-null": (text_of({**content(), "images": None}), _FORMAT),
    "annotations-a-text": (text_of({**content(), "annotations": "none"}), _FORMAT),
    "annotations-null": (text_of({**content(), "annotations": None}), _FORMAT),
    "categories-missing": (b'{"images": [], "annotations": []}', _FORMAT),
    "nested": (b"[" * 1_000_000, _NO_JSON),
    "nested-objects": (b'{"a":' * 200_000, _NO_JSON),
    "long-number": (b'{"images": [' + LONG + b"]}", _NO_JSON),
    "utf-16": (json.dumps(content()).encode("utf-16"), _NO_JSON),
    "utf-32": (json.dumps(content()).encode("utf-32"), _NO_JSON),
    "latin-1": (text_of(content()).replace(b"car", b"gr\xfcn"), _NO_JSON),
    "binary": (bytes(range(256)), _NO_JSON),
    "gzip": (b"\x1f\x8b\x08" + bytes(99), _NO_JSON),
    "python": (str(content()).encode(), _NO_JSON),
    "comma": (text_of(content())[:-1] + b",}", _NO_JSON),
    "comment": (b"// annotations\n" + text_of(content()), _NO_JSON),
    "two-values": (text_of(content()) * 2, _NO_JSON),
}


def _changed(path: tuple[Any, ...], value: Any) -> bytes:
    whole = content()
    here: Any = whole
    for key in path[:-1]:
        here = here[key]
    if value is MISSING:
        del here[path[-1]]
    else:
        here[path[-1]] = value
    return text_of(whole)


def _command(train: bytes, command: Callable[[], list[str]]) -> Callable[[World], list[str]]:
    def arguments(world: World) -> list[str]:
        dataset(world, train)
        return command()

    return arguments


ROWS = [
    ("-".join(map(str, path)) + f"-{kind}", _changed(path, value), told)
    for path, values, told in CHANGES
    for kind, value in values.items()
]
CASES = [
    *(Case(f"coco-{name}", _command(train, validate), rf"\n  data/.*({told})", code=1) for name, train, told in ROWS),
    *(
        Case(f"training-coco-{name}", _command(train, fit), rf"data/.*({told})")
        for name, train, told in ROWS[::15]
        if "surrogate" not in name
    ),
    *(
        Case(f"coco-file-{name}", _command(train, validate), rf"{re.escape(TRAIN)}: .*({told})", 1, name == "nested")
        for name, (train, told) in FILES.items()
    ),
]
