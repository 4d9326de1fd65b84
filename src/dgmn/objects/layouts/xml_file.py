"""Reads small XML files, without entities, which could fill the memory."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from dgmn.errors import InputError
from dgmn_base.files import read_bytes

_LARGEST = 2**24  # bytes
_MOST = 200_000  # elements: each takes hundreds of bytes
_DEEPEST = 50


@dataclass
class Element:
    """An element, the line where it begins, its text and the elements in it."""

    tag: str
    line: int
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    def find(self, *path: str) -> "Element | None":
        """The first element at a path below this one."""
        found: Element | None = self
        for tag in path:
            found = None if found is None else next((child for child in found.children if child.tag == tag), None)
        return found

    def value(self, *path: str) -> str | None:
        """The text of the first element at a path; None if there is no such element, or no text."""
        found = self.find(*path)
        return (found.text.strip() or None) if found else None


def read_xml(file: Path) -> Element:
    """The root element of a file.

    Raises:
        InputError: it is no XML, has a DOCTYPE, is too large or too deep; the message names the file and the line.
    """
    parser = expat.ParserCreate()
    top = Element("", 0)
    around = [top]
    count = itertools.count(1)

    def start(tag: str, attributes: dict[str, str]) -> None:
        if len(around) > _DEEPEST:
            raise InputError(f"{file}:{parser.CurrentLineNumber}: elements are nested more than {_DEEPEST} deep")
        if next(count) > _MOST:
            raise InputError(f"{file}:{parser.CurrentLineNumber}: more than {_MOST:,} elements")
        element = Element(tag, parser.CurrentLineNumber)
        around[-1].children.append(element)
        around.append(element)

    def end(tag: str) -> None:
        element = around.pop()
        element.text = "".join(texts.pop(id(element), ()))

    def text(part: str) -> None:
        if part.strip():
            texts.setdefault(id(around[-1]), []).append(part)

    def refuse(*of_doctype: object) -> None:
        raise InputError(
            f"{file}:{parser.CurrentLineNumber}: a DOCTYPE is not read: its entities could fill the memory"
        )

    texts: dict[int, list[str]] = {}
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(read_bytes(file, _LARGEST), True)
    except expat.ExpatError as error:
        raise InputError(f"{file}:{error.lineno}: not XML ({expat.ErrorString(error.code)})") from error
    except (LookupError, ValueError) as error:  # an encoding that Python does not know, or of several bytes
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: not XML in a known encoding ({error})") from error
    return top.children[0]
