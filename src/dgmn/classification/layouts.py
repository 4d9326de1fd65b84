"""How labelled images lie on disk: folders of classes, with and without parts, and a CSV file."""

import csv
import os
import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from typing_extensions import override

from dgmn.errors import InputError
from dgmn.images import load_image
from dgmn.split import (
    FILE_TITLES,
    PART_TITLES,
    PARTS,
    SPLIT,
    VAL,
    as_written_or_stripped,
    check_split,
    for_validation,
    table_reader,
    write_split,
)
from dgmn_base.files import EXTENSIONS, folders_in, images_in, is_hidden, listing
from dgmn_base.names import find_named
from dgmn_base.terminal import counted

_LABEL = ("label", "class", "category", "target", "class_name", "labels", "classes")
_TABLES = (".csv", ".tsv")
_SEVERAL = "one label per image is trained here, several are not"


class ClassFolders(ImageFolder):
    """torchvision's folders of classes, without hidden files and folders.

    Args:
        root: the folder with a folder for each class.
        known: classes that give the numbers, if the folder has no others; it may lack some of them.
        options: those of torchvision.
    """

    def __init__(self, root: str | Path, known: Sequence[str] = (), **options: Any) -> None:
        self._known = known
        super().__init__(root, **options)

    @override
    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        names = folders_in(Path(directory))
        names = list(self._known) if names and {*names} <= {*self._known} else names
        return names, {name: i for i, name in enumerate(names)}

    @staticmethod
    @override
    def make_dataset(directory: str | Path, class_to_idx: dict[str, int], *_: Any, **__: Any) -> list[tuple[str, int]]:
        of_class = {name: images_in(Path(directory, name)) for name in class_to_idx}
        empty = [name for name, images in of_class.items() if not images and Path(directory, name).is_dir()]
        if empty:
            raise InputError(
                f"data.root: no images in {directory} for the classes {', '.join(empty[:5])} "
                f"({', '.join(sorted(EXTENSIONS))})"
            )
        return [(str(image), class_to_idx[name]) for name, images in of_class.items() for image in images]


class LabelledFiles(Dataset[tuple[Image.Image, int]]):
    """Images with the numbers of their classes, as torchvision's `ImageFolder`."""

    def __init__(self, classes: Sequence[str], samples: Sequence[tuple[str, int]]) -> None:
        self.classes = list(classes)
        self.samples = list(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.samples[index]
        return load_image(path), label


@dataclass
class Listed:
    """The images of a list, or of folders without parts.

    Attributes:
        source: where they are listed.
        rows: file name below the folder of `source`, label and part of every image.
        split: the file that keeps the split; None if the source has parts itself.
        told: what is worth saying about them, in one line.
    """

    source: Path
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    split: Path | None = None
    told: str = ""

    def part(self, part: str) -> LabelledFiles:
        """The images of "train", "val" or "test"; without test images, "test" is "val"."""
        folder = self.source if self.source.is_dir() else self.source.parent
        classes = sorted({label for _, label, _ in self.rows})
        number = {name: i for i, name in enumerate(classes)}
        wanted = "val" if part == "test" and not any(row[2] == "test" for row in self.rows) else part
        samples = [(str(folder / file), number[label]) for file, label, part in self.rows if part == wanted]
        if not samples:
            raise InputError(f"{self.source}: no {part} images in it")
        return LabelledFiles(classes, samples)

    def keep(self) -> str:
        """Writes the split down, unless it is; returns what is to be said about it, in one line."""
        if self.split is None or self.split.is_file():
            return self.told
        return write_split(self.split, [("file", "label", "split"), *self.rows], self.told)


def listed(root: Path, val_share: float) -> Listed | None:
    """The images of a CSV file, or of folders of classes without parts; None if the folder has parts.

    Args:
        root: the folder, or a CSV file.
        val_share: share of the images of each class that are for validation, where the data does not say it.

    Raises:
        InputError: a list holds something else, or it could be one of several; the message names it.
    """
    if not root.is_dir() and root.suffix.lower() not in _TABLES:
        return None
    if root.is_dir():
        if (root / "train").is_dir() and folders_in(root / "train"):
            return None
        tables = [file for file in sorted(root.iterdir()) if file.suffix.lower() in _TABLES and file.is_file()]
        tables = [file for file in tables if not is_hidden(file.name)]
        tables = [file for file in tables if file.name != SPLIT and not file.name.endswith(f".{SPLIT}")]
        others = [file for file in tables if _has_columns(file)]
        if len(others) > 1:
            choice = " or ".join(map(str, others))
            raise InputError(f"data.root {root}: several lists of images; choose with --data.root {choice}")
        if others:
            return _of_table(others[0], val_share)
        classes = folders_in(root)
        if set(classes) & set(PARTS):
            return None
        if len(classes) < 2 or not images_in(root):
            if tables:
                raise _no_columns(tables[0])
            return None
        found = ClassFolders.make_dataset(root, {name: i for i, name in enumerate(classes)})
        pairs = [(Path(file).relative_to(root).as_posix(), classes[i]) for file, i in found]
        return _with_split(root, pairs, root / SPLIT, val_share)
    return _of_table(root, val_share)


def _of_table(file: Path, val_share: float) -> Listed:
    own, of_folder = file.with_suffix(f".{SPLIT}"), file.with_name(SPLIT)
    split = of_folder if of_folder.is_file() and not own.is_file() else own
    rows = _read_table(file)
    if all(part is not None for _, _, part in rows):
        return Listed(file, [(name, label, part or "") for name, label, part in rows])
    return _with_split(file, [(name, label) for name, label, _ in rows], split, val_share)


def _with_split(source: Path, pairs: list[tuple[str, str]], split: Path, val_share: float) -> Listed:
    if split.is_file():
        rows = [(name, label, part or "train") for name, label, part in _read_table(split, kept=True)]
        told = check_split(split, source, set(pairs), {row[:2]: row[2] for row in rows})
        return Listed(source, rows, split, f"data: {told}")
    of_class = Counter(label for _, label in pairs)
    alone = next((label for label, number in of_class.items() if number < 2), None)
    if alone is not None:
        raise InputError(f"{source}: the class {alone} has one image; to split a class, it needs two or more")
    validation = for_validation(dict(pairs), val_share)
    rows = [(name, label, "val" if name in validation else "train") for name, label in pairs]
    counts = f"{len(rows) - len(validation)} training and {counted(len(validation), 'validation image')}"
    images = f"{counted(len(rows), 'image')} of {counted(len(of_class), 'class')}"
    return Listed(source, rows, split, f"data: {images} split into {counts}")


def _columns(titles: Sequence[str]) -> tuple[int, int, int] | None:
    """The columns of files, labels and parts (-1: none); None if files or labels have none."""
    small = [title.strip().lower() for title in titles]
    file, label, part = (
        next((small.index(n) for n in names if n in small), -1) for names in (FILE_TITLES, _LABEL, PART_TITLES)
    )
    return (file, label, part) if min(file, label) >= 0 else None


def _titles(file: Path) -> list[str]:
    try:
        return next(table_reader(file), [])
    except csv.Error as error:
        raise InputError(f"{file}: not CSV ({error})") from error


def _no_columns(file: Path) -> InputError:
    """The error about a table without the columns that are needed."""
    titles = _titles(file)
    names_files = _columns([*titles, _LABEL[0]]) is not None
    several = f"; of a column for each class, none is read: {_SEVERAL}" if names_files and len(titles) > 2 else ""
    return InputError(
        f"{file}: its first line must name the columns file (or {', '.join(FILE_TITLES[1:])}) and label (or "
        f"{', '.join(_LABEL[1:])}), got {textwrap.shorten(', '.join(titles), 200)}{several}"
    )


def _has_columns(file: Path) -> bool:
    try:
        titles = _titles(file)
    except InputError:
        return False
    return any(title.strip().lower() in FILE_TITLES for title in titles)


def _read_table(file: Path, kept: bool = False) -> list[tuple[str, str, str | None]]:
    """File, label and part of every row; the part is None if no column says it.

    Args:
        file: the table.
        kept: it is a split that we wrote, and that somebody may have changed.
    """
    reader = table_reader(file)
    rows: list[tuple[str, str, str | None]] = []
    first: dict[str, tuple[int, str, str]] = {}
    try:
        titles: list[str] = next(reader, [])
        columns = _columns(titles)
        if columns is None:
            raise _no_columns(file)
        for row in reader:
            if not any(row):
                continue
            where = f"{file}:{reader.line_num}"
            if len(row) != len(titles):
                raise InputError(f"{where}: {counted(len(row), 'column')}, the first line has {len(titles)}")
            name = as_written_or_stripped(row[columns[0]], file.parent)
            # In a split that was kept, labels are names of folders.
            label = row[columns[1]] if kept and name == row[columns[0]] else row[columns[1]].strip()
            part = row[columns[2]].strip().lower() if columns[2] >= 0 else None
            if not name or not label:
                raise InputError(f"{where}: a row needs a file and a label")
            if part is not None and part not in PARTS:
                raise InputError(f"{where}: {titles[columns[2]].strip()} must be train, val or test, got {part[:40]!r}")
            image = find_named(name, (file.parent,))
            if image is None:
                raise InputError(f"{where}: no image {file.parent / name}")
            here = os.path.relpath(image, file.parent)
            line, before, other = first.setdefault(here, (reader.line_num, label, name))
            told = name if other == name else f"{name}, of which there is only {here},"
            if before != label:
                raise InputError(f"{where}: {told} is {label!r} here and {before!r} in line {line}: {_SEVERAL}")
            if line != reader.line_num:
                raise InputError(f"{where}: {told} is there twice, first in line {line}")
            rows.append((here, label, None if part is None else PARTS[part]))
    except csv.Error as error:
        raise InputError(f"{file}:{reader.line_num}: not CSV ({error})") from error
    if not rows:
        raise InputError(f"{file}: no images in it")
    joined = None if kept else _joined_label({label for _, label, _ in rows})
    if joined is not None:
        raise InputError(f"{file}: the label {joined!r} seems to be several: {_SEVERAL}")
    return rows


def _joined_label(labels: Iterable[str]) -> str | None:
    """A label that is made of others, such as `cat|dog`; names may hold the signs between them: `tench, Tinca`."""
    parts = {label: [part.strip() for part in re.split(r"[|;,]", label)] for label in labels}
    users: defaultdict[str, int] = defaultdict(int)
    for each in parts.values():
        for part in set(each):
            users[part] += 1
    return next((label for label, each in parts.items() if len(each) > 1 and all(users[p] > 1 for p in each)), None)


def part_folder(root: Path, split: str) -> Path:
    """The folder of a part with its folders of classes; without `test`, `val`, also called `valid`, is for the test.

    Raises:
        InputError: there is no such folder.
    """
    names = {"val": VAL, "test": ("test", *VAL)}.get(split, (split,))
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    if folder is None:
        wanted = f"expected {split}/<class>/*.jpg in it, or <class>/*.jpg, or a CSV of file and label"
        if not root.is_dir():
            raise InputError(f"data.root {root}: there is no such folder; {wanted}")
        raise InputError(f"data.root {root}: {wanted}; {listing(root)}")
    if not folders_in(folder):
        raise InputError(f"data.root: {folder} has no folders of classes, {listing(folder)}")
    return folder
