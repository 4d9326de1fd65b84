"""Folders of images and masks."""

import string
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dgmn.errors import InputError
from dgmn.segmentation.labels import find_classes, read_mask
from dgmn.segmentation.layouts.layout import Layout, Sample
from dgmn_base.files import folders_in, images_in, listing


class MaskFolders(Layout):
    """Folders of images, folders of masks, and `classes.txt` or `classes.json`.

    Args:
        root: folder of the dataset.
        images: folder of a split's images, below `root`; `{split}` is the name of the split.
        masks: path of an image's mask, below `root`; `{name}` is the image's path below `images`, without extension.
        palette_masks: accept masks with a palette; their indices are the class numbers, as in PASCAL VOC.
    """

    def __init__(
        self,
        root: Path,
        images: str = "images/{split}",
        masks: str = "masks/{split}/{name}.png",
        palette_masks: bool = False,
    ) -> None:
        super().__init__(root)
        _check_pattern("images", images, (), "images/{split}")
        _check_pattern("masks", masks, ("name",), "masks/{split}/{name}.png")
        classes = find_classes(root)
        if classes is None:
            raise InputError(
                f"data.root {root}: expected classes.txt with one name a line (the first is 0 in the masks), "
                f"or Cityscapes' leftImg8bit; {listing(root)}"
            )
        self.classes = classes
        self.images = images
        self.masks = masks
        self.palette_masks = palette_masks

    @staticmethod
    def fits(root: Path) -> bool:
        return find_classes(root) is not None

    def splits(self) -> list[str]:
        before, _, after = self.images.partition("{split}")
        folder = self.root / before
        names = folders_in(folder) if folder.is_dir() else []
        return [name for name in names if (self.root / f"{before}{name}{after}").is_dir()]

    def samples(self, split: str) -> list[Sample]:
        samples = []
        for part in split.split("+"):
            folder = self.root / self.images.format(split=part)
            files = images_in(folder)
            if not files:
                what = "is empty" if folder.is_dir() else "there is no such folder"
                raise InputError(f"data: no images for {part!r} in {folder}: {what}")
            for file in files:
                name = file.relative_to(folder).with_suffix("").as_posix()
                samples.append(Sample(file, self.root / self.masks.format(split=part, name=name)))
        masks = [sample.mask for sample in samples]
        shared = next((b for a, b in pairwise(masks) if a == b), None)
        if shared is not None:
            raise InputError(f"{shared}: the mask of two images that differ only in their extension")
        return samples

    def read_mask(self, path: Path) -> NDArray[np.uint8]:
        return read_mask(path, self.classes, self.palette_masks)


def _check_pattern(option: str, pattern: str, needed: tuple[str, ...], example: str) -> None:
    """Checks the fields of a pattern of `MaskFolders`.

    Raises:
        InputError: the pattern holds an unknown field, or lacks one that it needs.
    """
    try:
        # With its format: a width such as {name:>1000000000} would fill the memory.
        parts = string.Formatter().parse(pattern)
        fields = {f"{field}{form}{change or ''}" for _, field, form, change in parts if field is not None}
    except ValueError:
        fields = {"?"}
    accepted = {"split", *needed}
    if not fields <= accepted or not set(needed) <= fields:
        must = f" and must hold {{{needed[0]}}}" if needed else ""
        raise InputError(
            f"data.{option} may hold {', '.join(f'{{{name}}}' for name in sorted(accepted))}{must}, "
            f'for instance "{example}", got {pattern!r}'
        )
