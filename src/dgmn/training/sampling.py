"""Which images an epoch has."""

from collections.abc import Hashable, Iterator, Sequence, Sized
from typing import cast

import torch
from torch.utils.data import Sampler
from typing_extensions import override


class GroupedBatches(Sampler[list[int]]):
    """Batches of images of one group, for instance wide or tall ones, so that little of a batch is padding.

    What is left of the groups at the end of an epoch is put together, so that an epoch has as many batches as without
    groups.

    Args:
        sampler: of images.
        groups: of every image of the set.
        batch_size: images of a batch.
    """

    def __init__(self, sampler: Sampler[int], groups: Sequence[Hashable], batch_size: int) -> None:
        self.sampler = sampler  # where Lightning looks for set_epoch
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


class StepSampler(Sampler[int]):
    """Epochs of a fixed number of steps, whatever the size of the set: for trainings that count iterations.

    The set is passed through again and again, every time in another order; an epoch is the next `steps` batches
    of that stream. What an epoch has depends on its number and the seed only, so that a run can be resumed.

    Args:
        size: images in the set.
        steps: batches of an epoch on each device.
        batch_size: of each device.
        seed: of the orders.
        rank, replicas: this process and how many there are; each gets other images.
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
