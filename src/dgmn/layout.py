"""What all layouts of data have in common: one object says how a dataset lies on disk."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from dgmn_base.files import check_root


class DataLayout(ABC):
    """How a dataset lies on disk. Tasks add how its samples are listed and read, and its classes named.

    Args:
        root: its folder.

    Raises:
        InputError: the folder is not of this layout.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @staticmethod
    @abstractmethod
    def fits(root: Path) -> bool:
        """Whether a folder looks like this layout."""

    @abstractmethod
    def splits(self) -> list[str]:
        """The names of the parts that are there."""


Layout = TypeVar("Layout", bound=DataLayout)


def find_layout(layouts: Sequence[type[Layout]], root: Path, options: dict[str, Any]) -> Layout:
    """The layout of a folder.

    Args:
        layouts: of a task; the first that fits is taken, and where none does, the last one says what is missing.
        root: the folder.
        options: of the layouts; each takes those that it knows.

    Raises:
        InputError: there is no such folder, or no layout fits it.
    """
    check_root(root)
    layout = next((layout for layout in layouts if layout.fits(root)), layouts[-1])
    known = inspect.signature(layout).parameters
    return layout(root, **{name: value for name, value in options.items() if name in known})
