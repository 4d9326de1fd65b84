"""Callbacks of training runs: every run has some, and recipes can name others."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch
from timm.layers import DropPath
from typing_extensions import override

from dgmn.report import say


class DropPathSchedule(L.Callback):
    """Turns stochastic depth off for the first epochs, then restores the rates that the network was built with.

    Args:
        start_epoch: first epoch with stochastic depth, counted from 0.
    """

    def __init__(self, start_epoch: int) -> None:
        self.start_epoch = start_epoch
        self._rates: dict[str, float] = {}

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._rates = {name: module.drop_prob for name, module in _drop_paths(pl_module)}
        if not any(self._rates.values()):
            say("DropPathSchedule: this network has no stochastic depth; give it a drop_path_rate")

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        on = trainer.current_epoch >= self.start_epoch
        for name, module in _drop_paths(pl_module):
            module.drop_prob = self._rates[name] if on else 0.0

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for name, module in _drop_paths(pl_module):
            module.drop_prob = self._rates[name]


def _drop_paths(module: torch.nn.Module) -> list[tuple[str, DropPath]]:
    return [(name, part) for name, part in module.named_modules() if isinstance(part, DropPath)]


class EpochSeed(L.Callback):
    """Makes the random numbers of an epoch depend only on the run's seed, the epoch and the process.

    A run that is killed, and resumed from the end of an epoch, then continues as if it had never stopped: dropout,
    mixup and augmentation draw the same numbers. The checkpoint keeps the seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seed = state_dict["seed"]

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seed = epoch_seed(self.seed, trainer.current_epoch, trainer.global_rank)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        generator = getattr(trainer.train_dataloader, "generator", None)
        if generator is not None:  # it seeds the workers, which start later
            generator.manual_seed(seed)


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """A 32-bit seed for one epoch of one process."""
    return int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1)[0])


def run_seed(trainer: L.Trainer) -> int:
    """The seed of the run, also after resuming."""
    return next((c.seed for c in trainer.callbacks if isinstance(c, EpochSeed)), 0)
