"""Cityscapes: its 19 classes, and the names and numbers that its test server takes."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dgmn.errors import InputError
from dgmn.segmentation.labels import Classes, named

# Name, number in `_labelIds` masks and colour, in the order of the train ids, from cityscapesscripts' table.
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
"""The classes as `_labelTrainIds` masks number them."""

CITYSCAPES_IDS = Classes(_NAMES, _COLORS, _IDS, tuple(i for i in range(34) if i not in _IDS))
"""The classes as `_labelIds` masks number them."""


def submission_name(image: Path) -> str:
    """The file name of a result for the test server, which finds the image by city, sequence and frame.

    Raises:
        InputError: the image is not named as in Cityscapes.
    """
    match = re.fullmatch(r"(.+_\d{6}_\d{6})(_leftImg8bit)?", image.stem)
    if match is None:
        raise InputError(f"{image}: the test server needs names like berlin_000000_000019_leftImg8bit.png")
    return f"{match[1]}_pred_labelIds.png"


def to_label_ids(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Converts train ids to the numbers that the test server takes."""
    table = np.zeros(256, np.uint8)
    table[: len(_IDS)] = _IDS
    return table[labels]
