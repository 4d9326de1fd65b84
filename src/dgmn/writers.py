"""Writing results to JSON while they come."""

import json
import os
from abc import abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class JsonWriter(AbstractContextManager["JsonWriter"]):
    """A file of JSON that holds a list of entries; it is in its place, whole, when the writer is left.

    Args:
        file: where it will be. Until then, what is written stands beside it.
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
        # Also after an error: what was found before is kept.
        with self._out:
            self._out.write(self.tail())
        os.replace(self._partial, self.file)

    def entry(self, content: Any) -> None:
        """Writes the next entry of the list."""
        self._out.write((",\n " if self.entries else "\n ") + json.dumps(content))
        self.entries += 1

    def head(self) -> str:
        """What stands before the first entry."""
        return "["

    def tail(self) -> str:
        """What stands behind the last one."""
        return "\n]\n"

    @abstractmethod
    def add(self, result: Any) -> None:
        """Writes a result."""


class ListWriter(JsonWriter):
    """A list of what the results say of themselves."""

    def add(self, result: Any) -> None:
        self.entry(result.to_dict())
