"""Finds the file that lists the classes of a dataset, and reads the lists of colours that tools write."""

import csv
import re
from pathlib import Path

from dgmn.errors import InputError
from dgmn.segmentation.labels import Classes, Color, named, read_classes
from dgmn_base.files import numbered_lines

NO_LABEL = ("void", "unlabelled", "unlabeled", "ignore", "__ignore__")
"""Names, in small letters, of what is no class: its pixels have no label."""

_LISTS = ("class_dict.csv", "class_dict_seg.csv", "label_colors.txt", "labelmap.txt")
_NUMBER = re.compile(r"\d{1,3}", re.ASCII)
_ROW = "a row is a name and its colour as three numbers of 0..255"


def find_classes(root: Path) -> Classes | None:
    """The classes that a file in a dataset's folder lists; None if there is no such file.

    It is `classes.json`, `classes.txt`, or a list of colours.
    """
    files = [root / name for name in ("classes.json", "classes.txt") if (root / name).is_file()]
    return read_classes(files[0]) if files else find_colors(root)


def find_colors(root: Path) -> Classes | None:
    """The classes in a list of colours (`class_dict.csv`, `label_colors.txt`, CVAT's `labelmap.txt`), or None."""
    files = [root / name for name in _LISTS if (root / name).is_file()]
    if len(files) > 1:
        raise InputError(f"data.root {root}: several lists of colours: {', '.join(file.name for file in files)}")
    return read_color_list(files[0]) if files else None


def read_color_list(path: Path) -> Classes:
    """Reads a list of classes and their colours in masks.

    A line holds a name and three numbers, in this order (`class_dict.csv`), the other way round (CamVid's
    `label_colors.txt`), or as `name:r,g,b:parts:actions` (CVAT's `labelmap.txt`). A line of titles and lines that begin
    with `#` are left out. If masks are greyscale instead, their values are the places in the list, from 0. What is
    called Void, Unlabelled or Ignore is no class: its pixels have no label.

    Raises:
        InputError: the file holds something else; the message names the line.
    """
    names: list[str] = []
    colors: list[Color] = []
    rows = [(i, line) for i, line in numbered_lines(path) if not line.startswith("#")]
    for place, (i, line) in enumerate(rows):
        name, numbers = _parts(line)
        if place == 0 and not any(map(_NUMBER.fullmatch, numbers)):
            continue  # titles
        if len(numbers) != 3 or not name or not all(_NUMBER.fullmatch(n) and int(n) < 256 for n in numbers):
            raise InputError(f"{path}:{i}: {_ROW}, got {line[:80]!r}")
        names.append(name)
        colors.append((int(numbers[0]), int(numbers[1]), int(numbers[2])))
    kept = [i for i, name in enumerate(names) if name.lower() not in NO_LABEL]
    rest = [i for i in range(len(names)) if i not in kept]
    try:
        return Classes(
            tuple(names[i] for i in kept),
            tuple(colors[i] for i in kept),
            tuple(kept),
            tuple(rest),
            True,
            tuple(dict.fromkeys(colors[i] for i in rest)),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_value_list(path: Path) -> Classes:
    """Reads Roboflow's `_classes.csv`: titles, and rows of a value in masks and the name of its class.

    What is called Void, Unlabelled or Ignore is no class: its pixels have no label.

    Raises:
        InputError: the file holds something else; the message names the line.
    """
    names: dict[int, str] = {}
    for i, line in numbered_lines(path)[1:]:
        value, *name = (part.strip() for part in next(csv.reader([line], skipinitialspace=True)))
        if not _NUMBER.fullmatch(value) or int(value) in names or not any(name):
            raise InputError(
                f"{path}:{i}: a row is a value of its own and a name, such as 0, background, got {line[:80]!r}"
            )
        names[int(value)] = ", ".join(name)
    kept = {value: name for value, name in names.items() if name.lower() not in NO_LABEL}
    try:
        return named(list(kept.values()), ids=list(kept), ignored=[value for value in names if value not in kept])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _parts(line: str) -> tuple[str, list[str]]:
    """The name in a line, and what should be its three numbers."""
    if line.count(":") >= 2:
        name, numbers = line.split(":")[:2]
        return name.strip(), [part.strip() for part in numbers.split(",")]
    if "," in line:
        parts = [part.strip() for part in next(csv.reader([line], skipinitialspace=True))]
        return ", ".join(parts[:-3]), parts[-3:]
    parts = line.split()
    if all(map(_NUMBER.fullmatch, parts[:3])):
        return " ".join(parts[3:]), parts[:3]
    return " ".join(parts[:-3]), parts[-3:]
