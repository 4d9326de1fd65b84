"""Outlines of objects, drawn as masks: COCO, YOLO, Roboflow and LabelMe, as detection reads them."""

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dgmn.errors import InputError
from dgmn.images import load_annotated
from dgmn.objects import layouts as objects
from dgmn.objects.coco import decode_mask
from dgmn.objects.coco_set import CocoSet
from dgmn.segmentation.class_lists import NO_LABEL
from dgmn.segmentation.labels import BACKGROUND, Classes, named
from dgmn.segmentation.layouts.layout import Layout, Sample
from dgmn.segmentation.losses import IGNORED


class Outlines(Layout):
    """The objects of an image drawn in the order of the file, the later ones over the earlier ones.

    Pixels of no object are `background`, class 0; the categories follow in their order. A category with such a name is
    this class, and one called Void or Ignore is no label. Crowds are drawn, too.
    """

    source: ClassVar[type[objects.Layout]]
    boxes: ClassVar[bool] = False
    """Whether an object with a box and no outline fills the box."""

    def __init__(self, root: Path, **places: Any) -> None:
        super().__init__(root)
        self._objects = objects.parts_of(self.source(root, **places), {name: name for name in ("train", "val", "test")})
        self._sets: dict[str, tuple[CocoSet, list[str]]] = {}

    @classmethod
    def fits(cls, root: Path) -> bool:
        return cls.source.fits(root)

    def splits(self) -> list[str]:
        return self._objects.splits()

    def keep_split(self) -> str:
        return self._objects.keep() if isinstance(self._objects, objects.Divided) else ""

    def _set(self, part: str) -> tuple[CocoSet, list[str]]:
        """The objects of a split, and all that is wrong with them. They are read once."""
        if part not in self._sets:
            problems: list[str] = []
            self._sets[part] = self._objects.samples(part, True, problems), problems
        return self._sets[part]

    @cached_property
    def _categories(self) -> dict[int, str]:
        parts = self.splits()
        if not parts:
            raise InputError(f"data.root {self.root}: no part such as {self.files_told}")
        first, _ = self._set(min(parts, key=lambda part: ("val" not in part, part)))
        return dict(zip(first.ids, first.names, strict=True))

    @cached_property
    def classes(self) -> Classes:  # type: ignore[override] # the files are read when they are first needed
        names = [name for name in self._categories.values() if name.lower() not in (*BACKGROUND, *NO_LABEL)]
        try:
            return named(["background", *names])
        except InputError as error:
            raise InputError(f"{self.root}: {error}") from error

    @cached_property
    def _numbers(self) -> dict[int, int]:
        """The class of each category."""
        special = {**dict.fromkeys(BACKGROUND, 0), **dict.fromkeys(NO_LABEL, IGNORED)}
        number = {name: i for i, name in enumerate(self.classes.names)}
        return {key: special.get(name.lower(), number.get(name, 0)) for key, name in self._categories.items()}

    def mistakes(self, split: str) -> list[str]:
        return [problem for part in self.parts_of(split) for problem in self._set(part)[1]]

    def samples(self, split: str) -> list[Sample]:
        # Of images that are split here, mistakes are of none of the parts.
        divided = self._objects if isinstance(self._objects, objects.Divided) else None
        found = self.mistakes(split) if divided is None else divided.problems
        if found:
            more = f" (and {len(found) - 1} more: dgmn validate-data names them)" if len(found) > 1 else ""
            raise InputError(f"{found[0]}{more}")
        samples = []
        for part in self.parts_of(split):
            images, _ = self._set(part)
            if dict(zip(images.ids, images.names, strict=True)) != self._categories:
                raise InputError(f"{self._objects.source(part)}: other categories than in the other parts")
            samples += [Sample(entry.path, entry.path, entry) for entry in images.images]
        return samples

    def load(self, sample: Sample) -> Image.Image:
        return load_annotated(sample.image, sample.facts.size)

    def read_mask(self, sample: Sample) -> NDArray[np.uint8]:
        labels = np.zeros(sample.facts.size, np.uint8)
        for entry in sample.facts.objects:
            if not entry.get("segmentation") and self.boxes:
                x, y, width, height = entry["bbox"]
                corners = [x, y, x + width, y, x + width, y + height, x, y + height]
                entry = {**entry, "segmentation": entry.get("parts") or [corners]}
            try:
                mask = decode_mask(entry, sample.facts.size)
            except InputError as error:
                raise InputError(f"{sample.image}: {error}") from error
            labels[mask > 0] = self._numbers[entry["category_id"]]
        return labels


class CocoOutlines(Outlines):
    """COCO's polygons and run lengths.

    Args:
        root: folder of the dataset.
        images: folder with a part's images, below `root`; `{split}` stands for the part's name.
        annotations: file with a part's annotations, below `root`; `{split}` stands for the part's name.
    """

    name, title = "coco", "COCO"
    files_told = objects.CocoFiles.files_told
    source = objects.CocoFiles

    def __init__(self, root: Path, images: str | None = None, annotations: str | None = None) -> None:
        places = {"images": images, "annotations": annotations}
        super().__init__(root, **{key: value for key, value in places.items() if value is not None})

    @classmethod
    def fits(cls, root: Path) -> bool:
        return bool(objects.CocoFiles(root).splits())  # other files there may be panoptic, or captions


class YoloOutlines(Outlines):
    """YOLO's polygons."""

    name, title, files_told = "yolo", "YOLO", objects.Yolo.files_told
    source = objects.Yolo

    def __init__(self, root: Path) -> None:
        super().__init__(root)


class RoboflowOutlines(Outlines):
    """Roboflow's exports in COCO's format."""

    name, title, files_told = "roboflow", "Roboflow COCO", objects.Roboflow.files_told
    source = objects.Roboflow

    def __init__(self, root: Path) -> None:
        super().__init__(root)


class _LabelMe(objects.LabelMe):
    left_out = ()  # their pixels have no label, or are background


class LabelMeOutlines(Outlines):
    """LabelMe's polygons and rectangles."""

    name, title, files_told = "labelme", "LabelMe", objects.LabelMe.files_told
    source = _LabelMe
    boxes = True

    def __init__(self, root: Path) -> None:
        super().__init__(root)
