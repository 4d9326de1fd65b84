"""Samplers that choose the images of an epoch and group them into batches."""

from collections.abc import Hashable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any, cast

import torch
from torch.utils.data import Sampler
from typing_extensions import override


class GroupedBatches(Sampler[list[int]]):
    """Makes batches of images of one group, for instance wide or tall images, so that batches need little padding.

    At the end of an epoch, the remaining images of all groups are joined into batches. An epoch thus has as many
    batches as without groups.

    Args:
        sampler: gives the indices of an epoch's images.
        groups: the group of every image of the set.
        batch_size: images per batch.
    """

    def __init__(self, sampler: Sampler[int], groups: Sequence[Hashable], batch_size: int) -> None:
        self.sampler = sampler  # Lightning looks here for set_epoch
        self.groups = groups
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(cast(Sized, self.sampler)) // self.batch_size

    @override
    def __iter__(self) -> Iterator[list[int]]:
        waiting: dict[Hashable, list[int]] = {}
        for index in self.sampler:
            batch = waiting.setdefault(self.groups[index], [])
            batch.append(index)
            if len(batch) == self.batch_size:
                yield waiting.pop(self.groups[index])
        rest = [index for batch in waiting.values() for index in batch]
        for start in range(0, len(rest) - self.batch_size + 1, self.batch_size):
            yield rest[start : start + self.batch_size]


class RestOfEpoch(Sampler[list[int]]):
    """Leaves out the batches of one epoch that a run has seen, where it was cut off; all other epochs are whole.

    Args:
        batches: makes the batches of an epoch; has a `sampler` that knows its epoch.
        seen: the number of batches that were seen in the epoch in which the sampler is now.
    """

    def __init__(self, batches: Any, seen: int) -> None:
        self.batches = batches
        self.sampler = batches.sampler  # Lightning looks here for set_epoch
        self.seen = seen
        self.epoch = self.sampler.epoch

    def __len__(self) -> int:
        return len(self.batches)  # Lightning counts the batches of a whole epoch

    @override
    def __iter__(self) -> Iterator[list[int]]:
        yield from islice(self.batches, self.seen if self.sampler.epoch == self.epoch else 0, None)


class StepSampler(Sampler[int]):
    """Gives every epoch a fixed number of steps, whatever the size of the set; for trainings that count iterations.

    The sampler passes through the set again and again, each time in another order. An epoch is the next `steps`
    batches of this stream. Its images depend only on its number and the seed, so that a run can be resumed.

    Args:
        size: number of images in the set.
        steps: batches per epoch on each device.
        batch_size: images per batch on each device.
        seed: seed of the random orders.
        rank: number of this process; each process gets other images.
        replicas: number of processes.
    """

    def __init__(self, size: int, steps: int, batch_size: int, seed: int, rank: int = 0, replicas: int = 1) -> None:
        self.size = size
        self.length = steps * batch_size
        self.seed = seed
        self.rank = rank
        self.replicas = replicas
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    @override
    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.length * self.replicas
        passed, order = -1, torch.empty(0, dtype=torch.long)
        for position in range(first + self.rank, first + self.length * self.replicas, self.replicas):
            number, place = divmod(position, self.size)
            if number != passed:
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
                passed, order = number, torch.randperm(self.size, generator=generator)
            yield int(order[place])
