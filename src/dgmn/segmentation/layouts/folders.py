"""Folders of images and masks."""

import string
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dgmn.errors import InputError
from dgmn.segmentation.class_lists import find_classes, read_value_list
from dgmn.segmentation.labels import Classes, named, read_mask
from dgmn.segmentation.layouts.layout import Layout, Sample
from dgmn_base.files import folders_in, images_in, listing
from dgmn_base.names import by_name, listed_names

IMAGES, MASKS = "images/{split}", "masks/{split}/{name}.png"
PATTERNS = (
    (IMAGES, MASKS),
    (IMAGES, "labels/{split}/{name}.png"),
    ("img_dir/{split}", "ann_dir/{split}/{name}.png"),  # mmseg
    ("{split}/images", "{split}/masks/{name}.png"),
    ("{split}", "{split}_labels/{name}_L.png"),  # CamVid on Kaggle
    ("{split}", "{split}_labels/{name}.png"),
    ("{split}", "{split}annot/{name}.png"),  # SegNet's CamVid, and CVAT
    ("701_StillsRaw_full", "LabeledApproved_full/{name}_L.png"),  # CamVid as it was published
)
"""Where images and masks lie, as it is found by looking."""

_CAMVID = (
    *("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian"),
    "Bicyclist",
)
_VALUES = "_classes.csv"
_PARTS = ("train", "val", "test")


class MaskFolders(Layout):
    """Folders of images, folders of masks, and `classes.txt`, `classes.json` or a list of colours.

    Args:
        root: folder of the dataset.
        images: folder of a split's images, below `root`; `{split}` is the name of the split. Without `{split}`, a text
            file such as `train.txt` names the images of a split. None looks for the folders in `PATTERNS`.
        masks: path of an image's mask, below `root`; `{name}` is the image's path below `images`, without extension.
        palette_masks: accept masks with a palette; their indices are the class numbers, as in PASCAL VOC.
    """

    name = "folders"
    title = "Folders"
    files_told = "images/train, masks/train and classes.txt or class_dict.csv"

    def __init__(
        self, root: Path, images: str | None = None, masks: str | None = None, palette_masks: bool = False
    ) -> None:
        super().__init__(root)
        found = _look(root)
        if images is None and masks is None and found is not None:
            images, masks = found
        self.images = images or IMAGES
        self.masks = masks or MASKS
        _check_pattern("images", self.images, (), IMAGES)
        _check_pattern("masks", self.masks, ("name",), MASKS)
        self.classes = self.find_classes()
        self.palette_masks = palette_masks

    @staticmethod
    def fits(root: Path) -> bool:
        return _look(root) is not None and find_classes(root) is not None

    def find_classes(self) -> Classes:
        """The classes of the dataset."""
        classes = find_classes(self.root)
        if classes is None:
            raise InputError(
                f"data.root {self.root}: expected classes.txt with one name a line (the first is 0 in the masks), "
                f"or a list of colours such as class_dict.csv; {listing(self.root)}"
            )
        return classes

    def splits(self) -> list[str]:
        return _splits(self.root, self.images, self.masks) or _splits(self.root, self.images, "{name}")

    def samples(self, split: str) -> list[Sample]:
        samples = []
        for part in self.parts_of(split):
            folder = self.root / self.images.format(split=part)
            files = images_in(folder)
            if not files:
                what = "is empty" if folder.is_dir() else "there is no such folder"
                raise InputError(f"data: no images for {part!r} in {folder}: {what}")
            name_of = {file: file.relative_to(folder).with_suffix("").as_posix() for file in files}
            mask_of = {file: self.root / self.masks.format(split=part, name=name) for file, name in name_of.items()}
            files = sorted(mask_of.keys() - set(mask_of.values()))  # masks may lie beside their images
            if "{split}" not in self.images:
                files = self._listed(part, by_name(files, folder))
            samples += [Sample(file, mask_of[file]) for file in files]
        masks = [sample.mask for sample in samples]
        shared = next((b for a, b in pairwise(masks) if a == b), None)
        if shared is not None:
            raise InputError(f"{shared}: the mask of two images that differ only in their extension")
        return samples

    def _listed(self, part: str, of_name: dict[str, Path]) -> list[Path]:
        """The images that `train.txt` names, with or without folders and extensions."""
        file = self.root / f"{part}.txt"
        if not file.is_file():
            raise InputError(f"data: no {file}: all images are in one folder, so it must name those of {part!r}")
        files = []
        for line, text, name in listed_names(file, of_name):
            if name is None:
                raise InputError(f"{file}:{line}: no image {text[:80]}")
            files.append(of_name[name])
        return sorted(files)

    def read_mask(self, sample: Sample) -> NDArray[np.uint8]:
        return read_mask(sample.mask, self.classes, self.palette_masks)


class SegNet(MaskFolders):
    """CamVid as in SegNet's tutorial: `train`, `trainannot` and so on; 11 in the masks is no label."""

    name = "segnet"
    title = "SegNet's CamVid"
    files_told = "train and trainannot, without a list of classes"

    def __init__(self, root: Path) -> None:
        super().__init__(root, "{split}", "{split}annot/{name}.png")

    @staticmethod
    def fits(root: Path) -> bool:
        return bool(_splits(root, "{split}", "{split}annot/{name}.png")) and find_classes(root) is None

    def find_classes(self) -> Classes:
        return named(_CAMVID, ignored=(len(_CAMVID),))


class RoboflowMasks(MaskFolders):
    """Roboflow's masks: `train/NAME.jpg`, `train/NAME_mask.png`, and `_classes.csv` in every part.

    `val` also finds `valid`. A list of classes beside the parts, such as `classes.txt`, counts more than theirs.
    """

    name = "roboflow_masks"
    title = "Roboflow's masks"
    files_told = "train/_classes.csv and train/NAME_mask.png"

    def __init__(self, root: Path) -> None:
        super().__init__(root, "{split}", "{split}/{name}_mask.png")

    @staticmethod
    def fits(root: Path) -> bool:
        return bool(_roboflow_parts(root))

    def splits(self) -> list[str]:
        return _roboflow_parts(self.root)

    def find_classes(self) -> Classes:
        found = [(self.root / part / _VALUES, read_value_list(self.root / part / _VALUES)) for part in self.splits()]
        if not found:
            raise InputError(f"data.root {self.root}: expected {self.files_told}; {listing(self.root)}")
        odd = next((file for file, classes in found if classes != found[0][1]), None)
        if odd is not None:
            raise InputError(f"{odd}: other classes than in {found[0][0]}")
        return find_classes(self.root) or found[0][1]

    def samples(self, split: str) -> list[Sample]:
        parts = self.splits()
        valid = "valid" if "val" not in parts and "valid" in parts else "val"
        return super().samples("+".join(valid if part == "val" else part for part in self.parts_of(split)))


def _roboflow_parts(root: Path) -> list[str]:
    """The parts with a list of values and with masks: exports for classifiers have such a list, too."""
    parts = [name for name in folders_in(root) if (root / name / _VALUES).is_file()]
    return [name for name in parts if any((root / name).glob("*_mask.png"))]


def _look(root: Path) -> tuple[str, str] | None:
    """The patterns whose folders are there, with images as masks, and if several are, those whose names fit, too."""
    there = [patterns for patterns in PATTERNS if any(_first(root, patterns[1], s) for s in _splits(root, *patterns))]
    return next((patterns for patterns in there if _names_fit(root, *patterns)), there[0] if there else None)


def _first(root: Path, pattern: str, split: str) -> Path | None:
    """The first image of a split in the folder of a pattern, of images or masks."""
    folder = pattern.partition("{name}")[0] if "{name}" in pattern else f"{pattern}/"
    return next(iter(images_in(root / folder.rpartition("/")[0].replace("{split}", split))), None)


def _splits(root: Path, images: str, masks: str) -> list[str]:
    """The splits whose folders of images and masks are there."""
    before, here, after = images.partition("{split}")
    folder = root / before
    names = folders_in(folder) if here and folder.is_dir() else []
    if not here and folder.is_dir():
        names = [name for name in _PARTS if (root / f"{name}.txt").is_file()] or ["train"]
    above = masks.partition("{name}")[0].rpartition("/")[0]
    return [
        name
        for name in names
        if (root / f"{before}{name if here else ''}{after}").is_dir()
        and (root / above.replace("{split}", name)).is_dir()
    ]


def _names_fit(root: Path, images: str, masks: str) -> bool:
    """Whether the first image of a split has its mask."""
    for split in _splits(root, images, masks):
        first = _first(root, images, split)
        if first is not None:
            name = first.relative_to(root / images.replace("{split}", split)).with_suffix("").as_posix()
            return (root / masks.format(split=split, name=name)).is_file()
    return False


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
