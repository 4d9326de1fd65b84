"""Pascal VOC's masks: a devkit, and what CVAT and LabelMe write in its form."""

import glob
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dgmn.errors import InputError
from dgmn.segmentation.class_lists import NO_LABEL, find_classes
from dgmn.segmentation.labels import Classes, named, read_mask
from dgmn.segmentation.layouts.layout import Layout, Sample
from dgmn_base.files import folders_in, images_in, numbered_lines
from dgmn_base.names import by_name, listed_names

_VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_BORDER = (224, 224, 192)  # the colour of 255 in VOC's palette


class Voc(Layout):
    """Pascal VOC: `JPEGImages`, `SegmentationClass` and `ImageSets/Segmentation/train.txt`.

    Masks have a palette, whose indices are the class numbers; 255 is no label. With `labelmap.txt`, as CVAT writes it,
    the colours of pixels are those of the classes. Several devkits, such as VOC2007 and VOC2012, may lie in the folder
    or its `VOCdevkit`; a split is then `VOC2012/train`. In a devkit without lists, as LabelMe's converter writes it,
    the split is all images.

    Args:
        root: folder of the dataset.
        labels: folder of the masks, for instance "SegmentationClassAug".
    """

    name = "voc"
    title = "Pascal VOC"
    files_told = "JPEGImages, SegmentationClass and ImageSets/Segmentation"
    palette_masks = True

    def __init__(self, root: Path, labels: str = "SegmentationClass") -> None:
        super().__init__(root)
        self.labels = labels
        self.devkits = _devkits(root, glob.escape(labels))
        if not self.devkits:
            raise InputError(f"data.root {root}: expected a folder with JPEGImages and {labels}")
        self.classes = self._find_classes()

    @staticmethod
    def fits(root: Path) -> bool:
        return bool(_devkits(root, "SegmentationClass*"))

    def _find_classes(self) -> Classes:
        for folder in (self.root, *self.devkits):
            own = find_classes(folder)
            if own is not None:
                return replace(own, ignored_colors=tuple({*own.ignored_colors, _BORDER} - {*own.colors}))
            listed = folder / "class_names.txt"  # of LabelMe's converter
            if listed.is_file():
                try:
                    return named([name for _, name in numbered_lines(listed) if name not in NO_LABEL])
                except InputError as error:
                    raise InputError(f"{listed}: {error}") from error
        return named(_VOC)

    @cached_property
    def _lists(self) -> dict[str, tuple[Path, Path | None]]:
        """The devkit and the list of images of every split."""
        found: dict[str, tuple[Path, Path | None]] = {}
        for devkit in self.devkits:
            files = sorted((devkit / "ImageSets" / "Segmentation").glob("*.txt"))
            for file in files:
                found[f"{devkit.name}/{file.stem}" if len(self.devkits) > 1 else file.stem] = devkit, file
            if not files:
                found[devkit.name] = devkit, None
        return found

    def splits(self) -> list[str]:
        return sorted(self._lists)

    def samples(self, split: str) -> list[Sample]:
        samples = []
        for part in self.parts_of(split):
            if part not in self._lists:
                folder = self.devkits[0] / "ImageSets" / "Segmentation"
                raise self.no_part(part, str(folder / f"{part.rpartition('/')[2]}.txt"))
            devkit, names = self._lists[part]
            folder, masks = devkit / "JPEGImages", devkit / self.labels
            images = by_name(images_in(folder), folder)
            wanted = [(0, name, name) for name in images] if names is None else listed_names(names, images)
            for line, text, name in wanted:
                if name is None:
                    raise InputError(f"{names}:{line}: no image {folder / text[:80]}.*")
                mask = masks / f"{name}.png"
                flat = masks / mask.name  # images may lie in folders of their own
                samples.append(Sample(images[name], flat if flat.is_file() and not mask.is_file() else mask))
        return sorted(samples, key=lambda sample: sample.image)

    def read_mask(self, sample: Sample) -> NDArray[np.uint8]:
        return read_mask(sample.mask, self.classes, palette=not self.classes.by_color)


def _devkits(root: Path, labels: str) -> list[Path]:
    """The folders with masks: the root itself, or those in it or in its `VOCdevkit`."""
    for folder in (root, root / "VOCdevkit"):
        places = [folder, *(folder / name for name in folders_in(folder))] if folder.is_dir() else []
        found = [place for place in places if (place / "JPEGImages").is_dir() and any(place.glob(labels))]
        if found:
            return found
    return []
