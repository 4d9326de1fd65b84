"""The LightningModule that all tasks extend: optimiser, schedule and what a checkpoint says of itself."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from dgmn.errors import InputError
from dgmn.training.messages import say
from dgmn.training.schedules import WarmupCosine

Table = tuple[Sequence[str], Sequence[Sequence[object]]]  # header and rows
ScheduleCallable = Callable[[Optimizer, int], LRScheduler]


class Task(L.LightningModule):
    """Trains `self.model`; tasks add the steps.

    Args:
        model: the network.
        network_args: plain values that build the network again; they stand in the checkpoints.
        optimizer: makes the optimiser from parameter groups. Norms, biases and what the network's
            `no_weight_decay` names are not decayed.
        schedule: makes the schedule from the optimiser and the number of steps; called after every step.
        lr_batch: total batch (of all devices and accumulated steps) that the learning rate belongs to; with
            another one it is scaled linearly. None leaves it as it is.

    Attributes:
        name: of the task, for the checkpoints.
        monitor: the metric that chooses the best checkpoint, and "max" or "min".
        filled: whether all weights came from a file, so that the network can be evaluated as it is.
        lr_multipliers: of the learning rate of the parameters whose names contain the key; the longest key that fits
            counts.
    """

    name: str
    monitor: tuple[str, str]

    def __init__(
        self,
        model: nn.Module,
        network_args: dict[str, Any],
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.05),
        schedule: ScheduleCallable = WarmupCosine,
        lr_batch: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.network_args = network_args
        self.optimizer = optimizer
        self.schedule = schedule
        self.lr_batch = lr_batch
        self.filled = True
        self.lr_multipliers: Mapping[str, float] = {}

    @override
    def configure_optimizers(self) -> Any:
        groups = param_groups_weight_decay(self.model, no_weight_decay_list=_no_weight_decay(self.model))
        for group in groups:
            if group["weight_decay"]:
                del group["weight_decay"]  # so that the optimiser's own applies
        optimizer = self.optimizer(multiplied(groups, self.model, self.lr_multipliers))
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("lr_multiplier", 1.0)
        if self.lr_batch is not None:
            self._scale_learning_rate(optimizer, self.lr_batch)
        schedule = self.schedule(optimizer, self._total_steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _total_steps(self) -> int:
        # Not trainer.estimated_stepping_batches: it starts the loader's workers before a resumed run knows its epoch.
        trainer = self.trainer
        if trainer.max_steps > 0:
            return int(trainer.max_steps)
        if (trainer.max_epochs or 0) < 0:
            raise InputError(f"trainer.max_epochs must be given for the schedule, got {trainer.max_epochs}")
        batches = len(trainer.datamodule.train_dataloader())
        limit = trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        steps: int = math.ceil(batches / trainer.accumulate_grad_batches) * (trainer.max_epochs or 1)
        return steps

    def _total_batch(self) -> int:
        trainer = self.trainer
        total: int = trainer.datamodule.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        return total

    def _scale_learning_rate(self, optimizer: Optimizer, lr_batch: int) -> None:
        trainer = self.trainer
        per_device, total = trainer.datamodule.batch_size, self._total_batch()
        given = optimizer.param_groups[0]["lr"]
        for group in optimizer.param_groups:
            group["lr"] *= total / lr_batch
        if total != lr_batch:
            say(
                f"learning rate {given:g} is for a total batch of {lr_batch}; here it is {total} "
                f"({per_device} x {trainer.world_size} device(s) x {trainer.accumulate_grad_batches} accumulated), "
                f"so it becomes {given * total / lr_batch:g}"
            )

    def check_classes(self, names: Sequence[str]) -> None:
        """That the network has as many classes as the data.

        Raises:
            InputError: it has not; the message names some of them.
        """
        num_classes = self.network_args["num_classes"]
        if len(names) != num_classes:
            some = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
            raise InputError(
                f"model.num_classes is {num_classes}, but the data has {len(names)} classes ({some}): "
                f"give --model.num_classes {len(names)}"
            )

    def tables(self) -> list[Table]:
        """What the last evaluation tells beyond its metrics, for instance the score of every class."""
        return []

    def describe(self) -> dict[str, Any]:
        """What prediction needs to know of the task, as plain values."""
        return {"task": self.name, **self.network_args}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # What prediction and resuming need, as plain values.
        checkpoint["dgmn"] = {
            "total_batch": self._total_batch(),
            **self.describe(),
            **self.trainer.datamodule.describe(),
        }

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored = checkpoint.get("dgmn", {})
        expected = {**self.network_args, "classes": self.trainer.datamodule.describe().get("classes")}
        if self.trainer.state.fn == TrainerFn.FITTING:
            # Its schedule, its number of steps and its learning rate belong to this batch.
            expected["total_batch"] = self._total_batch()
        for key, here in expected.items():
            if stored.get(key) is not None and here is not None and stored[key] != here:
                raise InputError(f"the checkpoint was trained with {key} {stored[key]}, but here it is {here}")


def multiplied(
    groups: Sequence[dict[str, Any]], model: nn.Module, multipliers: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Parameter groups split by the multiplier of their learning rate, in `lr_multiplier`; those without one first.

    Raises:
        InputError (a ValueError): a key that is in no parameter's name, or a multiplier below 0.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    for key, value in multipliers.items():
        if value < 0 or not any(key in name for name in names.values()):
            some = ", ".join(sorted({".".join(name.split(".")[:2]) for name in names.values()})[:8])
            raise InputError(
                f"lr_multipliers: {key!r} is in no parameter's name; they begin with {some} ..."
                if value >= 0
                else f"lr_multipliers: {key!r} must be at least 0, got {value}"
            )
    keys = sorted(multipliers, key=len, reverse=True)
    split: dict[tuple[float, int], dict[str, Any]] = {}
    for i, group in enumerate(groups):
        for parameter in group["params"]:
            factor = next((multipliers[key] for key in keys if key in names[parameter]), 1.0)
            empty = {**group, "params": [], "lr_multiplier": factor}
            split.setdefault((factor, i), empty)["params"].append(parameter)
    # The first group's learning rate is the one that is logged.
    return [split[place] for place in sorted(split, key=lambda place: (place[0] != 1.0, place[1]))]


def _no_weight_decay(model: nn.Module) -> tuple[str, ...]:
    names = getattr(model, "no_weight_decay", None)
    return tuple(names()) if callable(names) else ()
