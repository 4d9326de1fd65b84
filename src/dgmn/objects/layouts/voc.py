"""Pascal VOC's XML: a devkit, or files beside the images."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

from typing_extensions import override

from dgmn.errors import InputError
from dgmn.objects.coco_set import CocoSet
from dgmn.objects.layouts.described import Labels, Thing, exact
from dgmn.objects.layouts.layout import WHOLE
from dgmn.objects.layouts.marked import MarkedLayout, holds, parts_with
from dgmn.objects.layouts.xml_file import Element, read_xml
from dgmn_base.files import files_in, folders_in, images_in, is_file, is_hidden, is_image, numbered_lines
from dgmn_base.names import listed_names

_NUMBER = re.compile(r"[+-]?(\d{1,12}(\.\d{0,20})?|\.\d{1,20})", re.ASCII)
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Devkit:
    """A folder with annotations and images."""

    folder: Path
    annotations: Path
    images: Path

    @property
    def lists(self) -> list[Path]:
        """The lists of images, without those of a class: they have 1, -1 or 0 for each."""
        files = sorted((self.folder / "ImageSets" / "Main").glob("*.txt"))
        return [file for file in files if not _is_hidden_or_of_a_class(file)]

    @property
    def parts(self) -> list[str]:
        """The folders in that of the images; none if images lie in it, too."""
        inside = self.images.iterdir() if self.images.is_dir() else ()
        mixed = any(is_image(path) and not is_hidden(path.name) for path in inside)
        return [] if mixed or not self.images.is_dir() else folders_in(self.images)


@dataclass(frozen=True)
class _Part:
    """A part of a devkit: the images that a file lists, or else those whose names have a beginning."""

    devkit: _Devkit
    file: Path | None
    begins: str = ""


class Voc(MarkedLayout):
    """Pascal VOC: `Annotations`, `JPEGImages` and `ImageSets/Main/train.txt`, or XML files beside the images.

    Many put the same files into `annotations` and `images`. Without lists, the parts are the folders in `images`, or
    else the devkits by their names, or the part "all" of the only one.

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
    def _parts(self) -> dict[str, _Part]:
        """The parts of all devkits."""
        devkits = _devkits(self.root)
        found: dict[str, _Part] = {}
        for devkit in devkits:
            before = f"{devkit.folder.name}/" if len(devkits) > 1 else ""
            lists, folders = devkit.lists, devkit.parts
            found |= {f"{before}{file.stem}": _Part(devkit, file) for file in lists}
            if not lists and folders:
                found |= {f"{before}{name}": _Part(devkit, None, f"{name}/") for name in folders}
            elif not lists:
                found[before.rstrip("/") or WHOLE] = _Part(devkit, None)
        return found

    @override
    def splits(self) -> list[str]:
        return sorted(self._parts) or super().splits()

    @override
    def files(self, part: str) -> list[Path]:
        if not self._parts:
            return super().files(part)
        mine = self._parts[part]
        if mine.file is None:
            return files_in(mine.devkit.annotations / mine.begins, (self.suffix,))
        return [file for _, name in self._names(mine) if is_file(file := mine.devkit.annotations / f"{name}.xml")]

    def _names(self, part: _Part) -> list[tuple[int, str]]:
        """The names in the list of a part, each with its line."""
        images = _names_in(part.devkit.images, images_in(part.devkit.images))
        files = _names_in(part.devkit.annotations, files_in(part.devkit.annotations, (self.suffix,)))
        lines = listed_names(part.file, {**images, **files}) if part.file else ()
        return [(line, name or text) for line, text, name in lines]

    @override
    def class_list(self) -> list[str] | None:
        file = self.root / "labelmap.txt"  # CVAT's: name:colour:parts:actions
        if not file.is_file():
            return super().class_list()
        names = [line.partition(":")[0] for _, line in numbered_lines(file) if not line.startswith("#")]
        return [name for name in names if name != "background"]

    @override
    def pairs(self, part: str, problems: list[str]) -> list[tuple[Path, Path | None]]:
        if not self._parts:
            return super().pairs(part, problems)
        if part not in self._parts:
            devkit = next(iter(self._parts.values())).devkit
            raise self.no_part(part, str(devkit.folder / "ImageSets" / "Main" / f"{part.rpartition('/')[2]}.txt"))
        mine = self._parts[part]
        folder, annotations = mine.devkit.images, mine.devkit.annotations
        images = _names_in(folder, images_in(folder / mine.begins))
        if mine.file is None:
            of_image: dict[Path, Path | None] = dict.fromkeys(image for each in images.values() for image in each)
            for name, files in _names_in(annotations, self.files(part)).items():
                image = self._image(name, files[0], images, folder)
                if image is None:
                    problems.append(f"{files[0]}: no image {folder / name}.*")
                elif of_image.get(image) is not None:
                    problems.append(f"{files[0]}: {of_image[image]} has the objects of {image}, too")
                else:
                    of_image[image] = files[0]
            return sorted(of_image.items())
        pairs: list[tuple[Path, Path | None]] = []
        for line, name in self._names(mine):
            file = annotations / f"{name}.xml"
            if not is_file(file):
                lacks = f"annotations {file}" if name in images else f"image {folder / name}.*"
                problems.append(f"{mine.file}:{line}: no {lacks}")
                continue
            image = self._image(name, file, images, folder)
            if image is None:
                problems.append(f"{mine.file}:{line}: no image {folder / name}.*")
            else:
                pairs.append((image, file))
        return sorted(pairs)

    def _image(self, name: str, file: Path, images: Mapping[str, list[Path]], folder: Path) -> Path | None:
        """The image that a file of this name tells of: it has its name, or the one that the file gives."""
        there = images.get(name, [])
        if len(there) == 1:
            return there[0]
        given = (self.labels(file, (1, 1)).image or "").replace("\\", "/").rpartition("/")[2]
        if there:
            return next((image for image in there if image.name == given), there[0])
        place = (folder / name).with_name(given) if given else folder
        return place if is_image(place) else None

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
    right, bottom = max(right, left), max(bottom, top)  # a box beside the image has no pixel of it
    return Thing(where, name, [left, top, exact(right - left), exact(bottom - top)], crowd=difficult == "1")


def _names_in(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Files by their paths in a folder, without extensions."""
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(file.relative_to(folder).with_suffix("").as_posix(), []).append(file)
    return found


def _is_hidden_or_of_a_class(file: Path) -> bool:
    """Whether it is no list of images: a list of a class has 1, -1 or 0 behind each name."""
    lines = [] if is_hidden(file.name) else numbered_lines(file)
    columns = [text.split() for _, text in lines]
    return is_hidden(file.name) or (
        bool(columns) and all(len(each) == 2 and each[1] in ("1", "-1", "0") for each in columns)
    )


def _devkits(root: Path) -> list[_Devkit]:
    """The devkits: the root itself, or those in it or in its `VOCdevkit`."""
    for folder in (root, root / "VOCdevkit"):
        places: Sequence[Path] = [folder / name for name in folders_in(folder)] if folder.is_dir() else []
        found = [devkit for place in (folder, *places) if (devkit := _devkit(place))]
        if found:
            return found
    return []


def _devkit(folder: Path) -> _Devkit | None:
    if (folder / "Annotations").is_dir() and (folder / "ImageSets").is_dir():
        return _Devkit(folder, folder / "Annotations", folder / "JPEGImages")
    for names in product(("Annotations", "annotations"), ("JPEGImages", "images")):
        annotations, images = (folder / name for name in names)
        # COCO's files lie in annotations, too, and some file systems do not tell it from Annotations.
        if annotations.is_dir() and images.is_dir() and (names[1] == "JPEGImages" or _has_xml(annotations)):
            return _Devkit(folder, annotations, images)
    return None


def _has_xml(folder: Path) -> bool:
    return any(holds(place, ".xml") for place in (folder, *(folder / name for name in folders_in(folder))))
