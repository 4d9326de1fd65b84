"""Messages of a run, and the findings of `dgmn validate-data` about a dataset."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from PIL import Image

from dgmn.errors import InputError
from dgmn_base.terminal import counted

Item = TypeVar("Item")
Result = TypeVar("Result")

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # where launchers put the number of this process


def say(message: str) -> None:
    """Prints a line, but only in the first process of a run."""
    if dist.is_available() and dist.is_initialized():
        rank = dist.get_rank()
    else:
        rank = next((int(os.environ[name]) for name in _RANKS if name in os.environ), 0)
    if rank == 0:
        print(message, flush=True)


@dataclass
class DataReport:
    """The state of a dataset.

    Attributes:
        header: header of a table of counts.
        rows: rows of that table.
        problems: one line per problem, with the file and what was expected.
        notes: one line for each thing that may be meant so, such as a class that the validation lacks.
        samples: some images with their annotations drawn in.
        told: what the dataset is, in one line.
        legend: draws, at a given width, the legend of the classes in the samples.
    """

    header: tuple[str, ...] = ()
    rows: list[tuple[object, ...]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    samples: list[Image.Image] = field(default_factory=list)
    told: str = ""
    legend: Callable[[int], Image.Image] | None = None


def alike(names: Iterable[str]) -> list[str]:
    """A note for every group of names of classes that differ in capitals or spaces only."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault("".join(name.split()).casefold(), []).append(name)
    several = (", ".join(map(repr, group)) for group in groups.values() if len(group) > 1)
    return [f"the classes {each} differ in capitals or spaces only: are they one?" for each in several]


def in_several(parts: Mapping[str, Set[Path]], groups: Iterable[Sequence[Path]]) -> list[str]:
    """A note for every two parts that share images: the same files, or copies.

    Args:
        parts: the images of every part.
        groups: those that are equal, from `equal_files`.
    """
    first = {path: group[0] for group in groups for path in group}
    notes = []
    for one, other in combinations(parts, 2):
        known = {first.get(path, path) for path in parts[one]}
        again = [path for path in parts[other] if first.get(path, path) in known]
        if again:
            of = f"{len(again):,} of the {counted(len(parts[other]), 'image')} in {other}"
            shared = f"are also in {one}, such as {min(again)}" if len(again) > 1 else f"is also in {one}: {again[0]}"
            notes.append(f"{of} {shared}; the metrics are too good then")
    return notes


def equal_files(*parts: Iterable[Path]) -> list[list[Path]]:
    """Groups of files that hold the same bytes. Only files of equal size and equal ends are read."""
    groups = [sorted(set().union(*parts))]
    for key in (_size, _end, _digest):
        flat = [(i, path) for i, group in enumerate(groups) for path in group]
        alike: dict[tuple[int, Any], list[Path]] = {}
        for (i, path), value in in_threads(partial(_key, key), flat):
            alike.setdefault((i, value), []).append(path)
        groups = [group for group in alike.values() if len(group) > 1]
    return groups


def _key(key: Callable[[Path], Any], item: tuple[int, Path]) -> Any:
    try:
        return key(item[1])
    except OSError:
        return item[1]  # what cannot be read equals nothing


def _size(path: Path) -> int:
    return path.stat().st_size


def _end(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(_size(path) - 4096, 0))
        return file.read()


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def read_all(
    items: Sequence[Item], read: Callable[[Item], Result], problems: list[str], progress: Callable[[int], None]
) -> Iterable[tuple[Item, Result]]:
    """Reads items in threads and yields each item with its result, in order.

    An item that cannot be read adds a line to `problems` instead.

    Args:
        items: the items to read.
        read: reads one item; may raise InputError.
        problems: gets the messages.
        progress: called with the number of items that are done.
    """

    def attempt(item: Item) -> Result | InputError:
        try:
            return read(item)
        except InputError as error:
            return error

    for done, (item, result) in enumerate(in_threads(attempt, items), 1):
        progress(done)
        if isinstance(result, InputError):
            problems.append(str(result))
        else:
            yield item, result


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
    """Items with what `work` gives for each, in order. Only a few results wait: images could fill the memory."""
    ahead = 2 * (os.cpu_count() or 1) + 4
    with ThreadPoolExecutor() as pool:
        waiting: deque[tuple[Item, Future[Result]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
