"""A dataset whose tool wrote all images as one part: it is split into training and validation images."""

from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from dgmn.errors import InputError
from dgmn.objects.coco import load_annotations
from dgmn.objects.coco_set import CocoImage, CocoSet
from dgmn.objects.layouts.layout import Layout
from dgmn.split import SPLIT, check_split, for_validation, read_split, write_split
from dgmn_base.names import find_named
from dgmn_base.terminal import counted


class Divided(Layout):
    """The only part of another layout, split into training and validation images.

    The split goes by a hash of the file names, and is the same on every machine. Images are grouped by the rarest of
    their classes, and of each group a share is for validation. `split.csv` in the folder keeps it.

    Args:
        layout: reads the images.
        part: the name of its part, by which all images are found, too.
        names: what "train", "val" and "test" are called. If the test is called as the validation, it is that, and no
            part has the images for the test.
        share: share of the images that are for validation.
    """

    def __init__(self, layout: Layout, part: str, names: Mapping[str, str], share: float = 0.2) -> None:
        super().__init__(layout.root)
        self.name, self.title = layout.name, layout.title
        self._layout = layout
        self._part = part
        self._part_called: dict[str, str] = {}
        for each, name in names.items():
            self._part_called.setdefault(name, each)
        self._share = share
        self._file = layout.root / SPLIT
        self._sets: dict[bool, tuple[CocoSet, list[str]]] = {}

    @staticmethod
    @override
    def fits(root: Path) -> bool:
        return False  # another layout is found first

    @override
    def source(self, split: str) -> Path:
        return self._layout.source(self._part)

    def _set(self, masks: bool) -> tuple[CocoSet, list[str]]:
        """All images, and all that is wrong with them. They are read once."""
        if masks not in self._sets:
            problems: list[str] = []
            self._sets[masks] = self._layout.samples(self._part, masks, problems), problems
        return self._sets[masks]

    @property
    def problems(self) -> list[str]:
        """All that is wrong with the images and their objects, of all parts together."""
        return self._set(masks=True)[1]

    @cached_property
    def parts(self) -> tuple[dict[str, str], str]:
        """The part of every image by its name, and what is to be said about the split, in one line."""
        coco, _ = self._set(masks=False)
        named = dict(zip(coco.ids, coco.names, strict=True))
        classes = {self._name(image): [named[e["category_id"]] for e in image.to_learn] for image in coco.images}
        uses = Counter(name for each in classes.values() for name in each)
        groups = {image: min(each, key=lambda name: (uses[name], name), default="") for image, each in classes.items()}
        if self._file.is_file():
            kept = {self._spelled(name, groups): part for name, part in read_split(self._file).items()}
            return kept, check_split(self._file, self.root, set(groups), kept)
        images = Counter(groups.values())
        few = {group for group, number in images.items() if number * self._share < 1}  # these are one group
        validation = for_validation({n: "" if g in few else g for n, g in groups.items()}, self._share)
        if not validation:
            raise InputError(f"{self.source('')}: {counted(len(groups), 'image')}; to split them, it needs two or more")
        counts = f"{len(groups) - len(validation)} training and {counted(len(validation), 'validation image')}"
        parts = {name: "val" if name in validation else "train" for name in groups}
        return parts, f"{len(groups)} images without parts split into {counts}"

    def keep(self) -> str:
        """Writes the split down, unless it is; returns what is to be said about it, in one line."""
        parts, told = self.parts
        if self._file.is_file():
            return told
        return write_split(self._file, [("file", "split"), *parts.items()], told)

    @override
    def splits(self) -> list[str]:
        there = set(self.parts[0].values())
        return [name for name, part in self._part_called.items() if part in there]

    @override
    def samples(self, split: str, masks: bool, problems: list[str] | None = None) -> CocoSet:
        coco, found = self._set(masks)
        if problems is None and found:
            self._layout.samples(self._part, masks)  # raises the first mistake
        if problems is not None and (split == self._part or self._part_called.get(split) == "train"):
            problems += found  # told once
        if split == self._part and split not in self._part_called:
            return coco
        if split not in self.splits():
            raise self.no_part(split, f"its images in {self._file}")
        parts, wanted = self.parts[0], self._part_called[split]
        mine = np.fromiter((parts.get(self._name(image)) == wanted for image in coco.images), bool, len(coco.images))
        return replace(coco, images=coco.images[mine])

    @override
    def truth(self, split: str) -> dict[str, Any]:
        truth = self._layout.truth(self._part)
        content = load_annotations(truth) if isinstance(truth, Path) else truth
        ids = {image.id for image in self.samples(split, masks=False).images}
        return {
            **content,
            "images": [entry for entry in content["images"] if entry["id"] in ids],
            "annotations": [entry for entry in content["annotations"] if entry["image_id"] in ids],
        }

    def _spelled(self, name: str, known: Container[str]) -> str:
        """The name of an image as it is here; tools and editors may have changed its spelling."""
        found = None if name in known else find_named(name, (self.root,))
        here = name if found is None else found.relative_to(self.root).as_posix()
        return here if here in known else name

    def _name(self, image: CocoImage) -> str:
        path = image.path
        return (path.relative_to(self.root) if path.is_relative_to(self.root) else path).as_posix()


def parts_of(layout: Layout, names: Mapping[str, str], share: float = 0.2) -> Layout:
    """The layout itself, or, if all images are one part, the layout with its parts for training and validation.

    Args:
        layout: reads the images.
        names: what "train", "val" and "test" are called. Who calls the only part so for validation gets all of it.
        share: share of the images that are for validation.
    """
    parts = layout.splits()
    if len(parts) != 1 or parts[0] not in layout.undivided or names["val"] in (parts[0], names["train"]):
        return layout
    return Divided(layout, parts[0], names, share)
