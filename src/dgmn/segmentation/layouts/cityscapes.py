"""Cityscapes as its archives unpack."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dgmn.errors import InputError
from dgmn.segmentation.cityscapes import CITYSCAPES, CITYSCAPES_IDS
from dgmn.segmentation.class_lists import find_classes
from dgmn.segmentation.labels import read_mask
from dgmn.segmentation.layouts.layout import Layout, Sample
from dgmn_base.files import folders_in, images_in

_TYPES = (".png", ".jpg")


class Cityscapes(Layout):
    """The folders `leftImg8bit` and `gtFine` or `gtCoarse`.

    A `classes.json` or `classes.txt` beside them gives other classes than those of Cityscapes.

    Args:
        root: folder of the dataset.
        labels: "gtFine" or "gtCoarse".
        palette_masks: accept masks with a palette; their indices are the class numbers.
    """

    name = "cityscapes"
    title = "Cityscapes"
    files_told = "leftImg8bit and gtFine"

    def __init__(self, root: Path, labels: str = "gtFine", palette_masks: bool = False) -> None:
        super().__init__(root)
        if labels not in ("gtFine", "gtCoarse"):
            raise InputError(f'data.labels must be "gtFine" or "gtCoarse", got {labels!r}')
        self.palette_masks = palette_masks
        own = find_classes(root)
        self.labels = labels
        self.classes = own or CITYSCAPES
        self._by_ids = own or CITYSCAPES_IDS

    @staticmethod
    def fits(root: Path) -> bool:
        return (root / "leftImg8bit").is_dir()

    def splits(self) -> list[str]:
        return folders_in(self.root / "leftImg8bit")

    def samples(self, split: str) -> list[Sample]:
        samples = []
        for part in self.parts_of(split):
            folder = self.root / "leftImg8bit" / part
            images = [
                path
                for path in images_in(folder)
                if path.stem.endswith("_leftImg8bit") and path.parent.parent == folder and path.suffix.lower() in _TYPES
            ]
            if not images:
                there = ", ".join(self.splits()) or "nothing"
                raise InputError(f"{folder}: expected <city>/*_leftImg8bit.png, found none; leftImg8bit has {there}")
            samples += [Sample(image, self._mask_of(image, part)) for image in images]
        return samples

    def _mask_of(self, image: Path, part: str) -> Path:
        folder = self.root / self.labels / part / image.parent.name
        stem = f"{image.stem.removesuffix('_leftImg8bit')}_{self.labels}"
        train_ids, ids = (folder / f"{stem}_{kind}.png" for kind in ("labelTrainIds", "labelIds"))
        return ids if ids.is_file() and not train_ids.is_file() else train_ids

    def read_mask(self, sample: Sample) -> NDArray[np.uint8]:
        classes = self._by_ids if sample.mask.stem.endswith("_labelIds") else self.classes
        return read_mask(sample.mask, classes, self.palette_masks)
