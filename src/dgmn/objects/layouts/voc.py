"""Pascal VOC's XML: a devkit, or files beside the images."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from typing_extensions import override

from dgmn.errors import InputError
from dgmn.objects.coco_set import CocoSet
from dgmn.objects.layouts.described import Labels, Thing, exact
from dgmn.objects.layouts.marked import MarkedLayout, parts_with
from dgmn.objects.layouts.xml_file import Element, read_xml
from dgmn_base.files import find_listed, folders_in, images_in, is_file, numbered_lines

_NUMBER = re.compile(r"[+-]?(\d{1,12}(\.\d{0,20})?|\.\d{1,20})", re.ASCII)
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class Voc(MarkedLayout):
    """Pascal VOC: `Annotations`, `JPEGImages` and `ImageSets/Main/train.txt`, or XML files beside the images.

    Coordinates are those of pixels, which count from 1: a box from 1 to the width covers the image. So x is xmin - 1,
    and the width is xmax - xmin + 1, as in detectron2. Objects with `difficult` are crowds: neither learnt nor counted,
    as in VOC's own evaluation.
    """

    name = "voc"
    title = "Pascal VOC"
    files_told = "Annotations, JPEGImages and ImageSets/Main, or train/*.xml"
    suffix = ".xml"

    @staticmethod
    @override
    def fits(root: Path) -> bool:
        return bool(_devkits(root) or parts_with(root, ".xml"))

    @cached_property
    def _lists(self) -> dict[str, tuple[Path, Path]]:
        """The folder and the list of images of every part of a devkit."""
        devkits = _devkits(self.root)
        found = {}
        for devkit in devkits:
            for file in sorted((devkit / "ImageSets" / "Main").glob("*.txt")):
                if not re.fullmatch(r".+_(train|val|trainval|test)", file.stem):  # of a class: ids with 1, -1 or 0
                    found[f"{devkit.name}/{file.stem}" if len(devkits) > 1 else file.stem] = devkit, file
        return found

    @override
    def splits(self) -> list[str]:
        return sorted(self._lists) if _devkits(self.root) else super().splits()

    @override
    def files(self, part: str) -> list[Path]:
        if not _devkits(self.root):
            return super().files(part)
        devkit, _ = self._lists[part]
        return [file for _, name in self._names(part) if is_file(file := _annotation(devkit, name))]

    def _images(self, part: str) -> dict[str, Path]:
        """The images of a part's devkit by their names, which have no extension."""
        folder = self._lists[part][0] / "JPEGImages"
        return {image.relative_to(folder).with_suffix("").as_posix(): image for image in images_in(folder)}

    def _names(self, part: str) -> list[tuple[int, str]]:
        """The names in the list of a part, each with its line."""
        images = self._images(part)
        return [(line, find_listed(text, images) or text) for line, text in numbered_lines(self._lists[part][1])]

    @override
    def class_list(self) -> list[str] | None:
        file = self.root / "labelmap.txt"  # CVAT's: name:colour:parts:actions
        if not file.is_file():
            return super().class_list()
        names = [line.partition(":")[0] for _, line in numbered_lines(file) if not line.startswith("#")]
        return [name for name in names if name != "background"]

    @override
    def pairs(self, part: str, problems: list[str]) -> list[tuple[Path, Path | None]]:
        devkits = _devkits(self.root)
        if not devkits:
            return super().pairs(part, problems)
        if part not in self._lists:
            raise self.no_part(part, str(devkits[0] / "ImageSets" / "Main" / f"{part.rpartition('/')[2]}.txt"))
        devkit, names = self._lists[part]
        images = self._images(part)
        pairs: list[tuple[Path, Path | None]] = []
        for line, name in self._names(part):
            file = _annotation(devkit, name)
            if name not in images:
                problems.append(f"{names}:{line}: no image {devkit / 'JPEGImages' / name}.*")
            elif not is_file(file):
                problems.append(f"{names}:{line}: no annotations {file}")
            else:
                pairs.append((images[name], file))
        return sorted(pairs)

    @override
    def samples(self, split: str, masks: bool, problems: list[str] | None = None) -> CocoSet:
        if masks:
            raise InputError("data.masks: Pascal VOC's XML has boxes only, no masks")
        return super().samples(split, masks, problems)

    @override
    def parsed(self, file: Path) -> Labels:
        try:
            root = read_xml(file)
        except InputError as error:
            return Labels(problems=[str(error)])
        if root.tag != "annotation":
            return Labels(problems=[f"{file}:{root.line}: not Pascal VOC's XML: it begins with <{root.tag}>"])
        sides = [root.value("size", side) or "" for side in ("height", "width")]
        known = all(re.fullmatch(r"[1-9]\d{0,8}", side, re.ASCII) for side in sides)  # some tools write 0
        labels = Labels(size=(int(sides[0]), int(sides[1])) if known else None, image=root.value("filename"))
        for element in root.children:
            if element.tag == "object":
                thing = _thing(element, f"{file}:{element.line}")
                if isinstance(thing, str):
                    labels.problems.append(thing)
                else:
                    labels.objects.append(thing)
        return labels


def _thing(element: Element, where: str) -> Thing | str:
    """An object, or a message about what is wrong with it."""
    name = element.value("name")
    if name is None:
        return f"{where}: an object without a name"
    if element.find("bndbox") is None:
        other = " (<robndbox> is a turned one)" if element.find("robndbox") else ""
        return f"{where}: {name!r} has no bndbox{other}"
    texts = [element.value("bndbox", corner) for corner in _CORNERS]
    if not all(text and _NUMBER.fullmatch(text) for text in texts):
        return f"{where}: bndbox needs xmin, ymin, xmax and ymax as numbers, got {', '.join(map(str, texts))}"
    left, top, right, bottom = (float(text or 0) for text in texts)
    if right < left or bottom < top:
        return f"{where}: bndbox must have xmin <= xmax and ymin <= ymax, got {', '.join(map(str, texts))}"
    difficult = element.value("difficult") or "0"
    if difficult not in ("0", "1"):
        return f"{where}: difficult must be 0 or 1, got {difficult!r}"
    left, top = max(left - 1, 0), max(top - 1, 0)  # tools that count from 0 write 0
    return Thing(where, name, [left, top, exact(right - left), exact(bottom - top)], crowd=difficult == "1")


def _devkits(root: Path) -> list[Path]:
    """The folders with `Annotations`: the root itself, or those in it or in its `VOCdevkit`."""
    for folder in (root, root / "VOCdevkit"):
        places: Sequence[Path] = [folder / name for name in folders_in(folder)] if folder.is_dir() else []
        found = [place for place in (folder, *places) if _is_devkit(place)]
        if found:
            return found
    return []


def _is_devkit(folder: Path) -> bool:
    # Some file systems do not tell Annotations from COCO's annotations.
    return (folder / "Annotations").is_dir() and ((folder / "JPEGImages").is_dir() or (folder / "ImageSets").is_dir())


def _annotation(devkit: Path, name: str) -> Path:
    return devkit / "Annotations" / f"{name}.xml"
