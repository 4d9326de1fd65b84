"""Which file a name in a list, table or annotation means."""

import os
import unicodedata
from collections.abc import Container, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from dgmn_base.errors import InputError
from dgmn_base.files import EXTENSIONS, is_file, numbered_lines

_LONGEST = 4096  # characters of a path


def find_named(name: str, folders: Sequence[Path]) -> Path | None:
    """The file that a list or a file of annotations names; None if there is none.

    Tools write a path as their machine had it. So, where there is no file of this very name, `\\` stands for `/` and
    `%C3%A9` for é, an é may be one character or two, the extension may be in capitals or in small letters, and folders
    at its beginning may be missing here.

    Args:
        name: the name.
        folders: where it may be, in order.
    """
    found = next((path for folder in folders if is_file(path := folder / name)), None)
    if found is not None:
        return found
    slashed = name.replace("\\", "/")
    spelled = [unicodedata.normalize(form, each) for each in (slashed, unquote(slashed)) for form in ("NFC", "NFD")]
    cased = [stem + case(end) for stem, end in map(os.path.splitext, spelled) for case in (str.lower, str.upper)]
    spellings = dict.fromkeys((*spelled, *cased))
    found = next((path for each in spellings for folder in folders if is_file(path := folder / each)), None)
    if found is not None or len(name) > _LONGEST:
        return found
    tails = (
        each.split("/", start)[start]
        for start in range(1, slashed.count("/") + 1)
        for each in spellings
        if each.count("/") >= start
    )
    return next((path for each in tails if each for folder in folders if is_file(path := folder / each)), None)


def by_name(files: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Files by their paths in a folder, without extensions.

    Raises:
        InputError: two differ only in their extension.
    """
    found: dict[str, Path] = {}
    for file in files:
        other = found.setdefault(file.relative_to(folder).with_suffix("").as_posix(), file)
        if other is not file:
            raise InputError(f"{other}: {file.name} differs only in the extension: which one is meant?")
    return found


def listed_names(file: Path, names: Container[str]) -> list[tuple[int, str, str | None]]:
    """The lines of a list: number, text, and what it means of `names`, as of `find_listed`. Of equal lines, the first.

    Raises:
        InputError: two lines with other texts mean the same; folders that tell them apart may be missing here.
    """
    lines: list[tuple[int, str, str | None]] = []
    first: dict[str, tuple[int, str]] = {}
    for line, text in numbered_lines(file):
        name = find_listed(text, names)
        before, other = first.setdefault(text if name is None else name, (line, text))
        if plain_name(other) != plain_name(text):
            raise InputError(f"{file}:{line}: {text[:80]} is {name}, as is {other[:80]} in line {before}")
        if before == line:
            lines.append((line, text, name))
    return lines


def find_listed(text: str, names: Container[str]) -> str | None:
    """The one of `names`, paths without extension, that a line of a list means; None if it means none of them.

    Tools write the name with or without folders, extension and quotes.
    """
    name = text.strip('"').replace("\\", "/")
    path = PurePosixPath(name)
    spellings = (
        unicodedata.normalize(form, each)
        for each in (name, str(path.with_suffix("")) if path.name else "", path.stem)
        for form in ("NFC", "NFD")
    )
    return next((each for each in (text, *spellings) if each in names), None)


def plain_name(text: str) -> str:
    """A name in a list without what tools spell differently: quotes, `\\`, a leading `./` and the extension."""
    path = os.path.normpath(text.strip('"').replace("\\", "/"))
    stem, extension = os.path.splitext(path)
    return stem if extension.lower() in EXTENSIONS else path
