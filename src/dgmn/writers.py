"""Writers that add results to JSON files one by one."""

import json
import os
from abc import abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class JsonWriter(AbstractContextManager["JsonWriter"]):
    """Writes a JSON file with a list of entries; the file appears, complete, at the end of the `with` block.

    Args:
        file: path of the file. Until the end, a partial file beside it holds the entries.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._partial = file.with_name(f".{file.name}.partial")
        self.entries = 0

    def __enter__(self) -> Self:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._out = self._partial.open("w", encoding="utf-8")
        self._out.write(self.head())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Also after an error, so that earlier results are kept.
        with self._out:
            self._out.write(self.tail())
        os.replace(self._partial, self.file)

    def entry(self, content: Any) -> None:
        """Writes the next entry of the list."""
        self._out.write((",\n " if self.entries else "\n ") + json.dumps(content, allow_nan=False))
        self.entries += 1

    def head(self) -> str:
        """The text before the first entry."""
        return "["

    def tail(self) -> str:
        """The text after the last entry."""
        return "\n]\n"

    @abstractmethod
    def add(self, result: Any) -> None:
        """Writes a result."""


class ListWriter(JsonWriter):
    """Writes a list of the results' `to_dict` values."""

    def add(self, result: Any) -> None:
        self.entry(result.to_dict())
