"""COCO's masks in PNG files: panoptic segmentation, and COCO-Stuff."""

import re
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgmn.errors import InputError
from dgmn.segmentation.class_lists import find_classes
from dgmn.segmentation.labels import Classes, looked_up, named, read_colors, read_mask
from dgmn.segmentation.layouts.layout import Layout, Sample
from dgmn.segmentation.losses import IGNORED
from dgmn_base.files import folders_in, images_in, listing, numbered_lines, read_json
from dgmn_base.names import by_name
from dgmn_base.terminal import counted

_STUFF = "stuffthingmaps"
# Ids of COCO-Stuff's list that COCO never used: 171 of 182 classes are left.
_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)


class Panoptic(Layout):
    """COCO's panoptic segmentation: `annotations/panoptic_train2017.json` and PNG files of the same name.

    A pixel's colour is the id of its segment, R + 256 G + 65536 B, and the JSON file gives the category of each. The
    classes are the categories in the order of their ids. 0 is no label.
    """

    name = "panoptic"
    title = "COCO panoptic"
    files_told = "annotations/panoptic_train2017.json and its PNG files"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._contents: dict[str, dict[str, Any]] = {}

    @staticmethod
    def fits(root: Path) -> bool:
        return any((root / "annotations").glob("panoptic_*.json"))

    def splits(self) -> list[str]:
        files = sorted((self.root / "annotations").glob("panoptic_*.json"))
        return [file.stem.removeprefix("panoptic_") for file in files]

    @cached_property
    def _ids(self) -> dict[int, str]:
        """The categories by their ids, from the first file."""
        parts = self.splits()
        if not parts:
            raise InputError(f"data.root {self.root}: expected {self.files_told}; {listing(self.root)}")
        return _categories(self._content(min(parts, key=lambda part: ("val" not in part, part))), self._file(parts[0]))

    @cached_property
    def classes(self) -> Classes:  # type: ignore[override] # the file is read when they are first needed
        try:
            return named([self._ids[number] for number in sorted(self._ids)])
        except InputError as error:
            raise InputError(f"{self.root / 'annotations'}: {error}") from error

    def samples(self, split: str) -> list[Sample]:
        samples = []
        for part in self.parts_of(split):
            file = self._file(part)
            content = self._content(part)
            if _categories(content, file) != self._ids:
                raise InputError(f"{file}: other categories than in {self._file(self.splits()[0])}")
            folder = next((f for f in (self.root / part, self.root / "images" / part) if f.is_dir()), self.root / part)
            masks = next((f for f in (file.with_suffix(""), self.root / file.stem) if f.is_dir()), file.with_suffix(""))
            names = {}
            for i, entry in enumerate(content["images"]):
                if not isinstance(entry, dict) or not _is_name(entry.get("file_name")) or "id" not in entry:
                    raise InputError(f"{file}: images[{i}] needs id, and file_name as text without ..")
                names[repr(entry["id"])] = entry["file_name"]
            there: set[str] = set()
            for i, entry in enumerate(content["annotations"]):
                if not isinstance(entry, dict) or not _is_name(entry.get("file_name")):
                    raise InputError(f"{file}: annotations[{i}] needs file_name as text without ..")
                if repr(entry.get("image_id")) not in names:
                    raise InputError(f"{file}: annotations[{i}]: the image_id {entry.get('image_id')!r} is of no image")
                facts = (f"{file}: annotations[{i}]", entry.get("segments_info"))
                name = names[repr(entry["image_id"])]
                if name in there:
                    raise InputError(f"{file}: annotations[{i}]: {name} has several, of which one would be learnt")
                there.add(name)
                image = folder / name
                samples.append(Sample(image, masks / entry["file_name"], facts))
            without = sorted({*names.values()} - there)
            if without:
                what = f"{counted(len(without), 'image')} without an annotation, such as {without[0]}"
                warnings.warn(f"{file}: {what}: left out", stacklevel=2)
        return sorted(samples, key=lambda sample: sample.image)

    def read_mask(self, sample: Sample) -> NDArray[np.uint8]:
        where, segments = sample.facts
        order = {number: i for i, number in enumerate(sorted(self._ids))}
        of_segment = {0: IGNORED}
        for i, segment in enumerate(segments if isinstance(segments, list) else [None]):
            facts = segment if isinstance(segment, dict) else {}
            number, category = facts.get("id"), facts.get("category_id")
            if type(number) is not int or not 0 < number < 2**24 or number in of_segment:
                raise InputError(
                    f"{where}: segments_info[{i}] needs an id of its own in 1..{2**24 - 1}, got {number!r}"
                )
            if type(category) is not int or category not in order:
                raise InputError(f"{where}: segments_info[{i}]: the category_id {category!r} is not declared")
            of_segment[number] = order[category]
        labels, odd = looked_up(read_colors(sample.mask), of_segment)
        if odd:
            raise InputError(f"{sample.mask}: holds the segment {odd[0]}, which {where} does not list")
        return labels

    def _file(self, part: str) -> Path:
        return self.root / "annotations" / f"panoptic_{part}.json"

    def _content(self, part: str) -> dict[str, Any]:
        if part not in self._contents:
            file = self._file(part)
            if not file.is_file():
                raise self.no_part(part, str(file))
            content = read_json(file)
            keys = ("images", "annotations", "categories")
            if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
                raise InputError(f"{file}: not COCO's panoptic format: it needs lists of {', '.join(keys)}")
            self._contents[part] = content
        return self._contents[part]


class Stuff(Layout):
    """COCO-Stuff: `train2017/*.jpg`, `stuffthingmaps/train2017/*.png` and `labels.txt`, as it is published.

    A line of `labels.txt` is an id and a name, `1: person`; a mask holds the id less one, and 255 is no label. The ids
    that COCO never used are left out, so 171 classes remain. `classes.txt` or `classes.json` gives other classes.
    """

    name = "stuff"
    title = "COCO-Stuff"
    files_told = f"{_STUFF}/train2017 and labels.txt"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        own, file = find_classes(root), root / "labels.txt"
        if own is not None:
            self.classes = own
            return
        if not file.is_file():
            raise InputError(f"data.root {root}: expected labels.txt with lines such as 1: person; {listing(root)}")
        names = {}
        for i, line in numbered_lines(file):
            match = re.fullmatch(r"(\d{1,3}):\s*(\S.*)", line, re.ASCII)
            if match is None or int(match[1]) in names or int(match[1]) > 255:
                raise InputError(f"{file}:{i}: a line is an id and a name, such as 1: person, got {line[:80]!r}")
            names[int(match[1])] = match[2]
        kept = {number: name for number, name in sorted(names.items()) if number not in (0, *_UNUSED)}
        try:
            self.classes = named(list(kept.values()), ids=[number - 1 for number in kept])
        except InputError as error:
            raise InputError(f"{file}: {error}") from error

    @staticmethod
    def fits(root: Path) -> bool:
        return (root / _STUFF).is_dir()

    def splits(self) -> list[str]:
        return folders_in(self.root / _STUFF) if self.fits(self.root) else []

    def samples(self, split: str) -> list[Sample]:
        samples = []
        for part in self.parts_of(split):
            masks = self.root / _STUFF / part
            folder = next((f for f in (self.root / part, self.root / "images" / part) if f.is_dir()), self.root / part)
            images = images_in(folder) if part else []
            if not images or not masks.is_dir():
                raise self.no_part(part, f"{folder}/*.jpg and {masks}/*.png")
            samples += [Sample(image, masks / f"{name}.png") for name, image in by_name(images, folder).items()]
        return samples

    def read_mask(self, sample: Sample) -> NDArray[np.uint8]:
        return read_mask(sample.mask, self.classes)


def _categories(content: dict[str, Any], file: Path) -> dict[int, str]:
    found: dict[int, str] = {}
    for i, entry in enumerate(content["categories"]):
        number, name = (entry.get(key) if isinstance(entry, dict) else None for key in ("id", "name"))
        if type(number) is not int or not isinstance(name, str) or number in found:
            raise InputError(f"{file}: categories[{i}] needs a name, and an id of its own as a whole number")
        found[number] = name
    return found


def _is_name(name: Any) -> bool:
    """Whether it is a file name that stays in its folder."""
    return isinstance(name, str) and "\0" not in name and ".." not in Path(name).parts and not Path(name).is_absolute()
