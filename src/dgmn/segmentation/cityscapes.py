"""Cityscapes: its 19 classes, its folders, and what its test server takes."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dgmn.errors import InputError
from dgmn.segmentation.labels import Classes, named

# Name, number in `_labelIds` masks, colour, in the order of the train ids: the table of cityscapesscripts.
_LABELS = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
_NAMES, _IDS, _COLORS = (tuple(column) for column in zip(*_LABELS, strict=True))

CITYSCAPES = named(_NAMES, _COLORS)
"""As `_labelTrainIds` masks have them."""

CITYSCAPES_IDS = Classes(_NAMES, _COLORS, _IDS, tuple(i for i in range(34) if i not in _IDS))
"""As `_labelIds` masks have them."""


def find_samples(root: Path, split: str, labels: str) -> list[tuple[Path, Path]]:
    """The images of a split and their masks, which need not exist.

    Args:
        root: folder with `leftImg8bit` and `gtFine` or `gtCoarse`, as they unpack.
        split: "train", "val", "test", "train_extra", or several, "train+val".
        labels: "gtFine" or "gtCoarse".

    Raises:
        InputError: no such split, or no image in it.
    """
    samples = []
    for part in split.split("+"):
        folder = root / "leftImg8bit" / part
        images = sorted(path for path in folder.glob("*/*_leftImg8bit.*") if path.suffix.lower() in (".png", ".jpg"))
        if not images:
            there = ", ".join(sorted(p.name for p in (root / "leftImg8bit").iterdir())) or "nothing"
            raise InputError(f"{folder}: expected <city>/*_leftImg8bit.png, found none; leftImg8bit has {there}")
        samples += [(image, _mask_of(image, root / labels / part / image.parent.name, labels)) for image in images]
    return samples


def _mask_of(image: Path, folder: Path, labels: str) -> Path:
    stem = f"{image.stem.removesuffix('_leftImg8bit')}_{labels}"
    train_ids, ids = (folder / f"{stem}_{kind}.png" for kind in ("labelTrainIds", "labelIds"))
    return ids if ids.is_file() and not train_ids.is_file() else train_ids


def submission_name(image: Path) -> str:
    """The name of a result for the test server, which finds the image by city, sequence and frame.

    Raises:
        InputError: the image has no name as Cityscapes gives them.
    """
    match = re.fullmatch(r"(.+_\d{6}_\d{6})(_leftImg8bit)?", image.stem)
    if match is None:
        raise InputError(f"{image}: the test server needs names like berlin_000000_000019_leftImg8bit.png")
    return f"{match[1]}_pred_labelIds.png"


def to_label_ids(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Train ids to the numbers that the test server takes."""
    table = np.zeros(256, np.uint8)
    table[: len(_IDS)] = _IDS
    return table[labels]
