"""The base of all dataset layouts: a layout object knows how a dataset is stored on disk."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from dgmn.errors import InputError
from dgmn_base.errors import did_you_mean
from dgmn_base.files import check_root, listing


class DataLayout(ABC):
    """How a dataset is stored on disk; each task adds how to list and read its samples and name its classes.

    Args:
        root: folder of the dataset.

    Raises:
        InputError: the folder does not have this layout.
    """

    name: str
    """The name for `--data.layout`."""
    title: str
    """The name in messages."""
    files_told: ClassVar[str]
    """The files that show this layout, for messages."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @staticmethod
    @abstractmethod
    def fits(root: Path) -> bool:
        """Whether a folder looks like this layout."""

    @abstractmethod
    def splits(self) -> list[str]:
        """The names of the splits that the dataset has."""

    def parts_of(self, split: str) -> list[str]:
        """The splits that are meant: `train+val` is both, unless one is called so."""
        return [split] if "+" not in split or split in self.splits() else split.split("+")


Layout = TypeVar("Layout", bound=DataLayout)


def find_layout(
    layouts: Sequence[type[Layout]],
    root: Path,
    name: str | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Layout:
    """Finds the layout of a folder.

    Args:
        layouts: the layouts of a task.
        root: the folder.
        name: name of the layout; None looks into the folder.
        options: options of the layouts; None stands for none. An option that some layouts do not have says that it is
            one of the others.

    Raises:
        InputError: there is no such folder or layout, none fits the folder, or several do.
    """
    check_root(root)
    given = {key: value for key, value in options.items() if value is not None}
    known = {layout.name: layout for layout in layouts}
    if name is not None:
        if name not in known:
            hint = did_you_mean(name, known, f"; there are {', '.join(known)}")
            raise InputError(f"data.layout {name!r}: no such layout{hint}")
        odd = next((option for option in given if option not in _options(known[name])), None)
        if odd is not None:
            owners = " or ".join(key for key, layout in known.items() if odd in _options(layout))
            raise InputError(f"data.{odd} is for the layout {owners}, data.layout is {name}")
        return known[name](root, **given)
    able = [layout for layout in layouts if given.keys() <= _options(layout)]
    if not able:
        raise InputError(f"{' and '.join(f'data.{option}' for option in given)}: no layout has all of these")
    if len(able) == 1:
        return able[0](root, **given)
    fitting = [layout for layout in able if layout.fits(root)]
    if len(fitting) > 1:
        what = " or ".join(f"{layout.title} ({layout.files_told})" for layout in fitting)
        choice = " or ".join(f"--data.layout {layout.name}" for layout in fitting)
        raise InputError(f"data.root {root}: it could be {what}: choose with {choice}")
    if not fitting and given:
        return able[0](root, **given)  # files elsewhere than a layout expects them
    if not fitting:
        what = "; ".join(f"{layout.title}: {layout.files_told}" for layout in layouts)
        raise InputError(f"data.root {root}: no known layout ({what}); {listing(root)}")
    return fitting[0](root, **given)


def _options(layout: type[DataLayout]) -> set[str]:
    return set(inspect.signature(layout).parameters) - {"root"}
