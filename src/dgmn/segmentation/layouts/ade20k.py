"""ADE20K as its archive unpacks (ADEChallengeData2016)."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dgmn.errors import InputError
from dgmn.segmentation.class_lists import find_classes
from dgmn.segmentation.labels import Classes, named, read_mask
from dgmn.segmentation.layouts.layout import Layout, Sample
from dgmn_base.files import folders_in, images_in, listing, numbered_lines

_FOLDER = "ADEChallengeData2016"
_SYNONYMS = {"train": "training", "val": "validation"}


class Ade20k(Layout):
    """ADE20K: `images/training`, `annotations/training` and `objectInfo150.txt`.

    In the masks, 0 is no label, and a class is its number in the list, from 1. `train` also finds `training`, and `val`
    finds `validation`. `classes.txt` or `classes.json` gives other classes; the first name of `classes.txt` is then 1.
    """

    name = "ade20k"
    title = "ADE20K"
    files_told = "images/training, annotations/training and objectInfo150.txt"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.folder = _folder(root)
        self.classes = self._find_classes()

    @staticmethod
    def fits(root: Path) -> bool:
        return (_folder(root) / "annotations" / "training").is_dir()

    def _find_classes(self) -> Classes:
        own, names = find_classes(self.folder), self.folder / "objectInfo150.txt"
        if own is not None:
            listed = (self.folder / "classes.json").is_file()
            return own if listed else _from_one(own.names)
        if not names.is_file():
            raise InputError(
                f"data.root {self.folder}: expected ADE20K's objectInfo150.txt, or classes.txt with one name "
                f"a line (the first is 1 in the masks); {listing(self.folder)}"
            )
        found: list[str] = []
        for i, line in numbered_lines(names)[1:]:
            # Idx Ratio Train Val Stuff Name; a name is all words for the thing, the usual one first.
            match = re.fullmatch(r"(\d+)(?:\s+\S+){4}\s+(\S.*)", line, re.ASCII)
            if match is None or match[1] != str(len(found) + 1):
                raise InputError(f"{names}:{i}: a line is Idx, Ratio, Train, Val, Stuff and Name, got {line[:80]!r}")
            found.append(match[2])
        short = [name.split(",")[0].strip() for name in found]
        unique = [name if short.count(name) == 1 else whole for name, whole in zip(short, found, strict=True)]
        try:
            return _from_one(unique)
        except InputError as error:
            raise InputError(f"{names}: {error}") from error

    def splits(self) -> list[str]:
        folder = self.folder / "images"
        return [name for name in folders_in(folder) if (self.folder / "annotations" / name).is_dir()]

    def samples(self, split: str) -> list[Sample]:
        samples = []
        for part in self.parts_of(split):
            names = (part, _SYNONYMS.get(part, part))
            folder = next((place for name in names if (place := self.folder / "images" / name).is_dir()), None)
            images = images_in(folder) if folder and folder != self.folder / "images" else []
            if folder is None or not images:
                raise self.no_part(part, str(self.folder / "images" / names[1] / "*.jpg"))
            masks = self.folder / "annotations" / folder.name
            samples += [Sample(image, (masks / image.relative_to(folder)).with_suffix(".png")) for image in images]
        return samples

    def read_mask(self, sample: Sample) -> NDArray[np.uint8]:
        return read_mask(sample.mask, self.classes)


def _from_one(names: Sequence[str]) -> Classes:
    return named(names, ids=range(1, len(names) + 1), ignored=(0,))


def _folder(root: Path) -> Path:
    return root / _FOLDER if (root / _FOLDER).is_dir() else root
