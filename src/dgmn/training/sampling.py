"""Which images an epoch has."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler
from typing_extensions import override


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
