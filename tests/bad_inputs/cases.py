"""What a case of the corpus is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INTERNAL = (AttributeError, AssertionError, ImportError, IndexError, KeyError, RecursionError, UnboundLocalError)
"""Errors that tell of a bug, not of the caller's mistake."""


@dataclass(frozen=True)
class World:
    """Where a case happens.

    Attributes:
        here: the case's own folder, and the working directory.
        checkpoint: gives the checkpoint of a small trained run by its kind, such as "classifier"; not to be changed.
    """

    here: Path
    checkpoint: Callable[[str], Path]

    def file(self, name: str, content: bytes | str) -> Path:
        """Writes a file into the case's folder, with the folders above it."""
        path = self.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


@dataclass(frozen=True)
class Case:
    """An input and what must hold.

    Attributes:
        id: the case's name, for `pytest -k`.
        make: makes the files and returns the arguments of the command line; for the Python API, makes the mistake.
        expected: regular expression that the error's message matches, or what is printed if `code` is 0 or 1.
        code: exit code. 2: a mistake of the user; 1: `validate-data` lists mistakes; 0: the input is odd, but right.
        alone: needs a process of its own, because it could fill the memory or wait for ever.
        written: files that may be there afterwards.
    """

    id: str
    make: Callable[[World], Any]
    expected: str
    code: int = 2
    alone: bool = False
    written: tuple[str, ...] = ()
