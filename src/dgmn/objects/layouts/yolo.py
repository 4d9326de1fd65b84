"""YOLO's labels: a text file for every image, and `data.yaml` or Darknet's files with the parts and classes."""

import os
import re
import unicodedata
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from typing_extensions import override

from dgmn.errors import InputError
from dgmn.objects.layouts.described import DescribedLayout, Labels, Thing, around, exact
from dgmn.objects.layouts.layout import WHOLE
from dgmn_base.files import EXTENSIONS, folders_in, images_in, is_hidden, is_image, numbered_lines, read_text
from dgmn_base.names import find_named, plain_name
from dgmn_base.recipes import check_size
from dgmn_base.terminal import counted

_NUMBER = re.compile(r"[+-]?(\d{1,40}(\.\d{0,40})?|\.\d{1,40})([eE][+-]?\d{1,3})?", re.ASCII)
_BEYOND = 0.01  # so far outside of 0..1 a rounded value may lie, as in Ultralytics' code
_MOST_CLASSES = 10_000
_PEEK = 4096  # bytes of the first line of labels
_DEEPEST = 50  # folders of a path
_PARTS = ("train", "val", "valid", "validation", "test")
_LISTS = ("classes.txt", "obj.names", "labels.txt")


class Yolo(DescribedLayout):
    """YOLO: `data.yaml` with `train`, `val`, `test` and `names`, images, and a file of labels for each.

    As in Ultralytics' code, the labels of `images/a.jpg` are `labels/a.txt`: the last folder `images` of a path becomes
    `labels`. If there is no such file, the labels lie beside the image. An image without a file of labels is empty.
    Instead of `data.yaml`, Darknet's `obj.data` will do, or `classes.txt` beside the folders `images` and `labels`.
    LabelImg and `dgmn predict --labels` write it into `labels`. Without folders of parts, as Label Studio and LabelImg
    leave them, all images are the part "all".
    """

    name = "yolo"
    title = "YOLO"
    files_told = "data.yaml, obj.data, or classes.txt with images/train and labels/train"
    undivided = (WHOLE, "train")  # CVAT writes all images as train

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        files = _descriptions(root)
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise InputError(f"data.root {root}: {names} could all be meant: name the right one data.yaml")
        self.file = files[0] if files else _list_of_classes(root)
        self.facts: dict[str, Any] = _facts(files[0]) if files else {}

    @staticmethod
    @override
    def fits(root: Path) -> bool:
        return bool(_descriptions(root)) or (_list_of_classes(root) is not None and bool(_folders(root)))

    @override
    def source(self, split: str) -> Path:
        return self.file or self.root

    @cached_property
    def classes(self) -> Sequence[str]:
        names, number = self.facts.get("names"), self.facts.get("nc")
        if self.file and self.file.suffix == ".data" and isinstance(names, str):
            raise InputError(f"{self.file}: names: no file {names!r}, neither below {self.root}")
        if isinstance(names, Path):
            names = [name for _, name in numbered_lines(names)]
        if names is None and not self.facts and self.file:
            names = [name for _, name in numbered_lines(self.file)]
        if number is not None and (type(number) is not int or not 0 < number <= _MOST_CLASSES):
            raise InputError(f"{self.file}: nc must be a whole number in 1..{_MOST_CLASSES}, got {number!r}")
        if names is None:
            if number is None:
                raise InputError(f"{self.source('')}: it needs names, the list of classes")
            return [f"class_{i}" for i in range(number)]
        if isinstance(names, dict):
            names = _in_order(names, self.source(""))
        if not isinstance(names, list) or not names:
            raise InputError(f"{self.file}: names must be a list, or numbers with names, got {names!r}")
        wrong = [name for name in names if not isinstance(name, str | int | float) or isinstance(name, bool)]
        if wrong:
            raise InputError(f"{self.file}: names holds {wrong[0]!r}; put names such as yes, no and null into quotes")
        if number is not None and number != len(names):
            raise InputError(f"{self.file}: nc is {number}, but names has {len(names)}")
        return [str(name) for name in names]

    @cached_property
    def _extra(self) -> int:
        """The number of values after a box: those of key points, which are not read."""
        shape = self.facts.get("kpt_shape")
        if shape is None:
            return 0
        if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and 0 < n < 10_000 for n in shape):
            raise InputError(f"{self.file}: kpt_shape must be two whole numbers, got {shape!r}")
        return int(shape[0] * shape[1])

    @override
    def splits(self) -> list[str]:
        if not self.facts:
            return _folders(self.root)
        return [part for part in _PARTS if self.facts.get(part)]

    @override
    def pairs(self, part: str, problems: list[str]) -> list[tuple[Path, Path | None]]:
        part = next((name for name in _synonyms(part) if name in self.splits()), part)
        if part not in self.splits():
            where = f"{part}: in {self.file}" if self.facts else f"images/{part} or {part}/images"
            raise self.no_part(part, where)
        if not self.facts:
            folders = (self.root / "images" / part, self.root / part / "images")
            images = [image for folder in folders for image in images_in(folder)]
            alone = _without_parts(self.root)
            images = images or (alone if part == WHOLE else [])
            if alone and part != WHOLE:
                what = f"{len(alone)} images with labels are in no part, such as {alone[0].name}"
                warnings.warn(f"{self.root}: {what}: they lie beside {', '.join(self.splits())}", stacklevel=2)
        else:
            entries = self.facts[part] if isinstance(self.facts[part], list) else [self.facts[part]]
            images = [image for entry in entries for image in self._images(part, entry, problems)]
        pairs = [(image, labels_of(image)) for image in sorted(set(images))]
        if pairs and part != "test" and not any(file for _, file in pairs):
            place = _places_of_labels(pairs[0][0])[0]
            problems.append(f"{self.source(part)}: {part}: none of {len(pairs)} images has labels; no {place}")
        return _with_other_spellings(pairs, problems)

    def _images(self, part: str, entry: Any, problems: list[str]) -> list[Path]:
        """The images that an entry of a part stands for: a folder, a list in a text file, or an image."""
        if not isinstance(entry, str) or not entry:
            raise InputError(f"{self.file}: {part} must be a folder, a text file with paths, or a list of these")
        place = self._place(entry)
        if place is None:
            raise InputError(f"{self.file}: {part}: no folder or file {entry!r}, neither below {self.root}")
        if place.is_dir():
            return images_in(place)
        if is_image(place):
            return [place]
        images: list[Path] = []
        first: dict[Path, tuple[int, str]] = {}
        for line, name in numbered_lines(place):
            image = find_named(name, (place.parent, *self._bases))
            before, other = (
                (line, name) if image is None else first.setdefault(Path(os.path.normpath(image)), (line, name))
            )
            if image is None:
                problems.append(f"{place}:{line}: no image {name}")
            elif not is_image(image):
                problems.append(f"{place}:{line}: {name} is no image of a known format")
            elif plain_name(other) != plain_name(name):  # folders that tell them apart may be missing here
                problems.append(f"{place}:{line}: {name} is {image}, as is {other} in line {before}")
            elif before == line:
                images.append(image)
        return images

    @property
    def _bases(self) -> list[Path]:
        """The folders that paths start from: `path` of data.yaml, unless it is of another machine, and the root."""
        path = self.facts.get("path")
        return [*([self.root / path] if isinstance(path, str) and path else []), self.root]

    def _place(self, entry: str) -> Path | None:
        for base in self._bases:
            found = {os.path.realpath(place): place for place in _near(entry, [base]) if _exists(place)}
            # Roboflow writes ../train/images and means train/images. The other folder may be there, too.
            if len(found) > 1 and entry.startswith(".."):
                places = " or ".join(found)
                raise InputError(f"{self.file}: {entry!r} could be {places}: write the whole path")
            if found:
                return next(iter(found.values()))
        return None

    @override
    def labels(self, file: Path, size: tuple[int, int]) -> Labels:
        labels = Labels()
        for line, text in numbered_lines(file):
            thing = self._thing(text.split(), f"{file}:{line}", size)
            if isinstance(thing, str):
                labels.problems.append(thing)
            else:
                labels.objects.append(thing)
        return labels

    def _thing(self, parts: list[str], where: str, size: tuple[int, int]) -> Thing | str:
        """The object of a line, or a message about what is wrong with it."""
        wrong = next((part for part in parts if not _NUMBER.fullmatch(part)), None)
        if wrong is not None:
            return f"{where}: {wrong[:40]!r} is no number; a line is a class and then x, y, width, height"
        number, *values = map(float, parts)
        if not (0 <= number < len(self.classes) and number.is_integer()):
            return f"{where}: class {parts[0][:40]} is not in 0..{len(self.classes) - 1}"
        if self._extra:
            if len(values) != 4 + self._extra:
                return f"{where}: a box with key points has {5 + self._extra} values, got {len(parts)}"
            values = values[:4]
        if len(values) == 5:
            return f"{where}: 6 values, as in predictions with a score; labels have 5 or, for a polygon, 7 and more"
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            return (
                f"{where}: {len(parts)} values; a class and a box are 5, a class and a polygon are 7, 9, 11 and so on"
            )
        far = next((value for value in values if not -_BEYOND <= value <= 1 + _BEYOND), None)
        if far is not None:
            return f"{where}: {far:g} is not in 0..1; values are shares of the image's width and height, not pixels"
        height, width = size
        category = self.classes[int(number)]
        if len(values) > 4:
            polygon = [exact(value * (height if i % 2 else width)) for i, value in enumerate(values)]
            return Thing(where, category, around([polygon]), [polygon])
        x, y, wide, tall = values
        if wide < 0 or tall < 0:
            return f"{where}: width and height must not be negative, got {wide:g} and {tall:g}"
        box = ((x - wide / 2) * width, (y - tall / 2) * height, wide * width, tall * height)
        return Thing(where, category, [exact(value) for value in box])


def labels_of(image: Path) -> Path | None:
    """The file with the labels of an image; None if there is none."""
    return next((file for file in _places_of_labels(image) if file.is_file()), None)


def _with_other_spellings(pairs: list[tuple[Path, Path | None]], problems: list[str]) -> list[tuple[Path, Path | None]]:
    """Gives images without labels those whose file spells the name differently: `%C3%A9` for é, or é as two characters.

    Labels of no image are a problem if there are images without labels: their names may have been changed.
    """
    found: dict[Path, Path] = {}
    lost: list[Path] = []
    alone: dict[Path, dict[str, Path]] = {}
    for image, labels in pairs:
        if labels is None:
            alone.setdefault(image.parent, {})[_spelling(image.stem)] = image
    for folder, images in alone.items():
        paths = [path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS]
        stems = {name for path in paths for name in (path.stem, path.name)}
        for place in dict.fromkeys(path.parent for path in _places_of_labels(next(iter(images.values())))):
            files = sorted(place.glob("*.txt")) if place.is_dir() else ()
            for file in (file for file in files if file.stem not in stems and not is_hidden(file.name)):
                if _spelling(file.stem) in images:
                    found.setdefault(images[_spelling(file.stem)], file)
                elif _holds_numbers(file):
                    lost.append(file)
    empty = sum(map(len, alone.values())) - len(found)
    if lost and empty:
        more = f" (and {counted(len(lost) - 1, 'more file')} of labels without an image)" if len(lost) > 1 else ""
        images_are = "1 image has" if empty == 1 else f"{empty} images have"
        problems.append(f"{lost[0]}: no image {lost[0].stem}.*{more}, while {images_are} no labels")
    return [(image, labels or found.get(image)) for image, labels in pairs]


def _spelling(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(name))


def _holds_numbers(file: Path) -> bool:
    """Whether a text begins as labels do, and not as a list of classes or images."""
    with file.open("rb") as source:
        parts = source.readline(_PEEK).decode(errors="replace").split()
    return len(parts) > 4 and all(map(_NUMBER.fullmatch, parts[:5]))


def _places_of_labels(image: Path) -> list[Path]:
    """Where the labels of an image may be; `images` can be a link.

    If a.jpg and a.png lie in one folder, those of a.jpg are in `a.jpg.txt`: `dgmn predict --labels` writes them so.
    """
    path = os.path.abspath(image)
    parts = [place.rpartition(f"{os.sep}images{os.sep}") for place in (path, os.path.realpath(image))]
    swapped = [f"{before}{os.sep}labels{os.sep}{after}" for before, found, after in parts if found]
    return [Path(name) for place in (*swapped, path) for name in (f"{os.path.splitext(place)[0]}.txt", f"{place}.txt")]


def _descriptions(root: Path) -> list[Path]:
    """The files that may describe the dataset: `data.yaml`, or else all others that look like it."""
    named = [root / name for name in ("data.yaml", "data.yml") if (root / name).is_file()]
    if named:
        return named
    files = sorted(file for file in root.iterdir() if not is_hidden(file.name) and file.is_file())
    found = [file for file in files if file.suffix.lower() in (".yaml", ".yml") and _describes(file)]
    return found or [file for file in files if file.suffix == ".data" and _describes(file)]


def _list_of_classes(root: Path) -> Path | None:
    places = (folder / name for folder in (root, root / "labels") for name in _LISTS)
    return next((place for place in places if place.is_file()), None)


def _describes(file: Path) -> bool:
    try:
        facts = _facts(file)
    except InputError:
        return False
    return ("names" in facts or "nc" in facts) and any(part in facts for part in _PARTS)


def _facts(file: Path) -> dict[str, Any]:
    """What a description says.

    Raises:
        InputError: it is no description; the message names the file and, where it is known, the line.
    """
    text = read_text(file, 2**20)
    if file.suffix == ".data":  # Darknet's: key = value
        lines = (line.partition("=") for _, line in numbered_lines(file) if not line.startswith("#"))
        facts: Any = {name.strip().lower(): value.strip() for name, found, value in lines if found}
        names = facts.get("names")
        near = _near(names, [file.parent]) if names else ()
        facts["names"] = next((path for path in near if _exists(path)), names)
        number = facts.get("classes")
        facts["nc"] = int(number) if number and number.isdecimal() and len(number) < 9 else number
        return {"val" if name == "valid" else name: value for name, value in facts.items()}
    import yaml

    try:
        check_size(text, str(file))
        facts = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        if isinstance(error, InputError):
            raise
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{file}{line}: not YAML ({getattr(error, 'problem', None) or error})") from error
    if not isinstance(facts, dict) or not facts:
        raise InputError(f"{file}: it needs train, val and names, as Ultralytics' data.yaml has them")
    return facts


def _in_order(names: dict[Any, Any], file: Path) -> list[Any]:
    """The names of classes that are numbered; the numbers may be texts."""
    numbers = [int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 9 else key for key in names]
    if any(type(number) is not int for number in numbers) or sorted(numbers) != list(range(len(numbers))):
        raise InputError(f"{file}: names must number the classes from 0 to {len(numbers) - 1}, each once")
    return [name for _, name in sorted(zip(numbers, names.values(), strict=True), key=lambda pair: pair[0])]


def _synonyms(part: str) -> Sequence[str]:
    return (part, "valid", "validation") if part == "val" else (part,)


def _folders(root: Path) -> list[str]:
    """The parts of a dataset without a description: `images/train` or `train/images`, where there are labels."""
    folder = root / "images"
    inside = folders_in(folder) if folder.is_dir() and (root / "labels").is_dir() else []
    parts = (name for name in folders_in(root) if all((root / name / each).is_dir() for each in ("images", "labels")))
    return sorted({*inside, *parts}) or ([WHOLE] if _without_parts(root) else [])


def _without_parts(root: Path) -> list[Path]:
    """The images of a dataset without parts, in `images` beside `labels` or, with their labels, in the root itself."""
    for folder in (root / "images", root):
        inside = sorted(folder.iterdir()) if folder.is_dir() else ()
        images = [path for path in inside if is_image(path) and not is_hidden(path.name)]
        if any(file is not None and _holds_numbers(file) for file in map(labels_of, images)):
            return images
    return []


def _near(name: str, bases: Sequence[Path]) -> list[Path]:
    """Where the path in a file may be: as it stands, without leading `..`, and without CVAT's leading `data`.

    Of a path from the top of another machine's disk, folders at the beginning may be missing here.
    """
    names = [name, *([name.replace("\\", "/")] if "\\" in name else [])]
    for stripped in (re.sub(r"^(\.\./)+", "", names[-1]), re.sub(r"^data/", "", names[-1])):
        names += [stripped] if stripped not in names else []
    slashed = name.replace("\\", "/")
    if re.match(r"/|[a-zA-Z]:/", slashed):
        names += [slashed.split("/", start)[start] for start in range(1, min(slashed.count("/"), _DEEPEST) + 1)]
    return [base / each for each in names if each for base in bases]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False
