"""The split of a dataset without parts: it goes by a hash of the names, and a file keeps it."""

import csv
import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any

from dgmn.errors import InputError
from dgmn_base.files import read_text, writing
from dgmn_base.terminal import counted

SPLIT = "split.csv"
"""The file that keeps the split of a folder."""

VAL = ("val", "valid", "validation")
PARTS = {"train": "train", "training": "train", "test": "test", **dict.fromkeys(VAL, "val")}
"""How the parts may be called in a file, and what they are."""

_TITLES = {"train": "training", "val": "validation", "test": "test"}

FILE_TITLES = ("file", "filename", "file_name", "image", "image_path", "path", "filepath")
PART_TITLES = ("split", "part", "set", "subset")
_SEPARATORS = ",;\t"  # between columns: Excel writes what the country uses


def for_validation(groups: Mapping[str, str], share: float) -> set[str]:
    """The names that are for validation: of every group a share, of two or more names at least one, never all.

    Args:
        groups: the group of every name.
        share: the share of the names of each group.
    """
    of_group: defaultdict[str, list[str]] = defaultdict(list)
    for name, group in groups.items():
        of_group[group].append(name)
    chosen: set[str] = set()
    for names in of_group.values():
        order = sorted(names, key=_place_in_order)
        chosen |= set(order[: min(max(1, round(share * len(names))), len(names) - 1)])
    return chosen


def _place_in_order(name: str) -> tuple[str, str]:
    """A hash of a file's name without folders: random, but the same on every machine and in every layout.

    New images change little of the order.
    """
    alone = unicodedata.normalize("NFC", PurePosixPath(name).name)  # file systems of macOS write é as two characters
    return hashlib.sha256(alone.encode(errors="surrogateescape")).hexdigest(), name


def check_split(file: Path, source: Path, there: Set[object], kept: Mapping[Any, str]) -> str:
    """What is to be said about a split that was kept, in one line.

    Args:
        file: the file that keeps it.
        source: where the images are from.
        there: the images that are there.
        kept: the part of every image in the file.

    Raises:
        InputError: it names images that are not there any more.
    """
    new, gone = ([*sorted(map(_named, each))] for each in (there - kept.keys(), kept.keys() - there))
    if gone:
        many = f"{counted(len(gone), 'image')} that {source} lacks, such as {gone[0]}"
        raise InputError(f"{file}: it names {many}: remove their rows, or delete this file to split anew")
    sizes = Counter(kept.values())
    parts = [f"{sizes[part]:,} for {title}" for part, title in _TITLES.items() if sizes[part]]
    told = f"split as {file} says, {', '.join(parts)}"
    if new:
        told += f"; in no part, for want of a row in this file: {counted(len(new), 'image')}, such as {new[0]}"
    return told


def _named(image: object) -> str:
    return str(image[0] if isinstance(image, tuple) else image)


def write_split(file: Path, rows: Sequence[Sequence[str]], told: str) -> str:
    """Writes a split; returns what is to be said about it, in one line."""
    text = StringIO()
    odd = any("\r" in cell for row in rows for cell in row)  # otherwise it would end a line
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL).writerows(rows)
    try:
        with writing(file) as out:
            out.write(text.getvalue().encode(errors="surrogateescape"))
    except InputError as error:
        return f"{told}; it is the same for the same files, but not written down ({error})"
    return f"{told}, written to {file}"


def table_reader(file: Path) -> Any:
    """The rows of a table, as of `csv.reader`; what its first line has most of is between the columns.

    Or what the line before it says: Excel reads and writes `sep=;`. A split holds names as the system has them, which
    need not be text.
    """
    text = read_text(file, errors="surrogateescape" if file.name == SPLIT else "strict")
    first = text.partition("\n")[0]
    said = first.rstrip("\r").removeprefix("sep=") if first.startswith("sep=") else ""
    if said not in tuple(_SEPARATORS):
        return csv.reader(StringIO(text, newline=""), delimiter=max(_SEPARATORS, key=first.count), strict=True)
    reader = csv.reader(StringIO(text, newline=""), delimiter=said, strict=True)
    next(reader)
    return reader


def as_written_or_stripped(name: str, folder: Path) -> str:
    """A file's name in a table without the space around it, unless the space is part of the name."""
    stripped = name.strip()
    return name if name != stripped and (folder / name).is_file() else stripped


def read_split(file: Path) -> dict[str, str]:
    """The part, "train", "val" or "test", of every file name in a split; other columns are left.

    Raises:
        InputError: the file holds something else; the message names the line.
    """
    reader = table_reader(file)
    found: dict[str, str] = {}
    try:
        titles = [title.strip().lower() for title in next(reader, [])]
        name, part = (next((titles.index(t) for t in of if t in titles), -1) for of in (FILE_TITLES, PART_TITLES))
        if min(name, part) < 0:
            raise InputError(f"{file}: its first line must name the columns file and split, got {titles[:5]}")
        for row in filter(any, reader):
            where = f"{file}:{reader.line_num}"
            if len(row) != len(titles):
                raise InputError(f"{where}: {counted(len(row), 'column')}, the first line has {len(titles)}")
            if row[part].strip().lower() not in PARTS:
                raise InputError(f"{where}: {titles[part]} must be train, val or test, got {row[part][:40]!r}")
            image = as_written_or_stripped(row[name], file.parent)
            if image in found:
                raise InputError(f"{where}: {image} is there twice")
            found[image] = PARTS[row[part].strip().lower()]
    except csv.Error as error:
        raise InputError(f"{file}:{reader.line_num}: not CSV ({error})") from error
    return found
