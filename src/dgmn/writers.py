"""Writers that add results to JSON files one by one."""

import json
from abc import abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dgmn_base.files import writing


class JsonWriter(AbstractContextManager["JsonWriter"]):
    """Writes a JSON file with a list of entries; the file appears, complete, at the end of the `with` block.

    Args:
        file: path of the file. Until the end, a partial file beside it holds the entries.

    Raises:
        InputError: the file cannot be written; there is then no new file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.entries = 0

    def __enter__(self) -> Self:
        self._writing = writing(self.file)
        self._out = self._writing.__enter__()
        self._write(self.head())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._out.closed:  # it could not be written
            return
        # Also after an error, so that earlier results are kept.
        self._write(self.tail())
        self._writing.__exit__(None, None, None)

    def entry(self, content: Any) -> None:
        """Writes the next entry of the list."""
        self._write((",\n " if self.entries else "\n ") + json.dumps(content, allow_nan=False))
        self.entries += 1

    def _write(self, text: str) -> None:
        try:
            self._out.write(text.encode())
        except OSError as error:
            self._writing.__exit__(type(error), error, error.__traceback__)

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
