"""What a run tells its user, and what `dgmn validate-data` finds in a dataset."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch.distributed as dist
from PIL import Image

from dgmn.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # where launchers say which process this is


def say(message: str) -> None:
    """Prints a line, once for all processes of a run."""
    if dist.is_available() and dist.is_initialized():
        rank = dist.get_rank()
    else:
        rank = next((int(os.environ[name]) for name in _RANKS if name in os.environ), 0)
    if rank == 0:
        print(message)


@dataclass
class DataReport:
    """The state of a dataset.

    Attributes:
        header, rows: a table of counts.
        problems: one line each, naming the file and what was expected.
        samples: some images, with what is annotated on them drawn in.
        legend: of the classes that the samples are drawn in.
    """

    header: tuple[str, ...] = ()
    rows: list[tuple[object, ...]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    samples: list[Image.Image] = field(default_factory=list)
    legend: Callable[[int], Image.Image] | None = None  # at a width


def read_all(
    items: Sequence[Item], read: Callable[[Item], Result], problems: list[str], progress: Callable[[int], None]
) -> Iterable[tuple[Item, Result]]:
    """Reads items in threads and yields each with what was read, in order.

    What cannot be read becomes a line of `problems`.

    Args:
        items: what to read.
        read: reads one; raises InputError.
        problems: gets the messages.
        progress: is told how many are done.
    """

    def attempt(item: Item) -> Result | InputError:
        try:
            return read(item)
        except InputError as error:
            return error

    with ThreadPoolExecutor() as pool:
        for done, (item, result) in enumerate(zip(items, pool.map(attempt, items), strict=True), 1):
            progress(done)
            if isinstance(result, InputError):
                problems.append(str(result))
            else:
                yield item, result
