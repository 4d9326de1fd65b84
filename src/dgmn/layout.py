"""The base of all dataset layouts: a layout object knows how a dataset is stored on disk."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from dgmn_base.files import check_root


class DataLayout(ABC):
    """How a dataset is stored on disk; each task adds how to list and read its samples and name its classes.

    Args:
        root: folder of the dataset.

    Raises:
        InputError: the folder does not have this layout.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @staticmethod
    @abstractmethod
    def fits(root: Path) -> bool:
        """Whether a folder looks like this layout."""

    @abstractmethod
    def splits(self) -> list[str]:
        """The names of the splits that the dataset has."""


Layout = TypeVar("Layout", bound=DataLayout)


def find_layout(layouts: Sequence[type[Layout]], root: Path, options: dict[str, Any]) -> Layout:
    """Finds the layout of a folder.

    Args:
        layouts: layouts of a task; the first that fits is taken. If none fits, the last one says what is missing.
        root: the folder.
        options: options of the layouts; each layout takes those that it knows.

    Raises:
        InputError: there is no such folder, or no layout fits it.
    """
    check_root(root)
    layout = next((layout for layout in layouts if layout.fits(root)), layouts[-1])
    known = inspect.signature(layout).parameters
    return layout(root, **{name: value for name, value in options.items() if name in known})
