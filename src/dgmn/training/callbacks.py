"""Callbacks of training runs: every run has some, and recipes can name others."""

import random
import time
from functools import partial
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.trainer.states import TrainerFn
from timm.layers import DropPath
from typing_extensions import override

from dgmn.errors import InputError
from dgmn.layers import DGMN2Attention
from dgmn.layers.dgmn import DGMNMessage
from dgmn.nodes import stage_name
from dgmn.report import say
from dgmn.training.checkpoint import seen_batches
from dgmn_base.terminal import LINE_EVERY, counted, duration


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
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # Lightning does not, for the rest of an epoch

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        on = trainer.current_epoch >= self.start_epoch
        for name, module in _drop_paths(pl_module):
            module.drop_prob = self._rates[name] if on else 0.0

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for name, module in _drop_paths(pl_module):
            module.drop_prob = self._rates[name]


class FiniteTraining(L.Callback):
    """Ends a run whose loss or weights are no finite numbers, before they overwrite its checkpoints.

    With `16-mixed`, the loss of single steps may overflow, and Lightning skips these steps. Only a loss that overflows
    in many steps, one after the other, then ends the run.

    Raises:
        InputError: the numbers are not finite; the message says what to try.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._odd: Any = 0

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if loss is None:
            return
        # Counted on the device: to look at every loss would make a GPU wait.
        self._odd = self._odd + ~loss.detach().isfinite()
        self._steps += 1
        if self._steps % trainer.log_every_n_steps == 0:
            self._look_at_losses(trainer)

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._look(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look_at_scores(trainer)

    @override
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look_at_scores(trainer)

    def _look(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look_at_losses(trainer)
        if not all(bool(parameter.isfinite().all()) for parameter in pl_module.parameters()):
            raise _diverged(trainer, "weights of the network are no finite numbers")
        if any(bool(buffer.isnan().any()) for buffer in pl_module.buffers()):
            raise _diverged(trainer, "statistics of the network's norms are no numbers")

    def _look_at_losses(self, trainer: L.Trainer) -> None:
        odd = int(self._odd)
        overflows = trainer.precision == "16-mixed" and (odd < self._steps or odd < _OVERFLOWS)
        if odd and not overflows:
            raise _diverged(trainer, "the loss is no finite number")
        if odd < self._steps:
            self._steps, self._odd = 0, 0

    @staticmethod
    def _look_at_scores(trainer: L.Trainer) -> None:
        for name in ("val/loss", "test/loss"):
            value = trainer.callback_metrics.get(name)
            if value is not None and not bool(value.isfinite()):
                raise _diverged(trainer, f"{name} is no finite number")


def _diverged(trainer: L.Trainer, what: str) -> InputError:
    if trainer.state.fn != TrainerFn.FITTING:
        return InputError(f"{what}: take the weights of an earlier epoch, or another --trainer.precision")
    # That of the schedule's peak: the rate of the moment may be 0 at its end.
    rate = max(g.get("initial_lr", g["lr"]) for optimizer in trainer.optimizers for g in optimizer.param_groups)
    return InputError(
        f"{what} (epoch {trainer.current_epoch + 1}, step {trainer.global_step}): try a lower learning rate (it is "
        f"{rate:g}), --trainer.gradient_clip_val 1.0, or --trainer.precision 32-true; checkpoints of earlier epochs "
        "stay as they are"
    )


_OVERFLOWS = 50  # steps without a finite loss, one after the other, that end a run in 16-mixed


def _drop_paths(module: torch.nn.Module) -> list[tuple[str, DropPath]]:
    return [(name, part) for name, part in module.named_modules() if isinstance(part, DropPath)]


class WalkLengths(L.Callback):
    """Logs how far the nodes of a network walk, so that anybody sees whether its sampling is dynamic at all.

    During a training, every validation logs `walks/stage3` and the like: the mean length of Δd_j (eq. 4) in pixels of
    the map, over the layers of a stage and all positions and nodes of the first batch.
    """

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._lengths: dict[str, list[torch.Tensor]] = {}

    @override
    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx or trainer.state.fn != TrainerFn.FITTING:
            return
        for name, module in pl_module.named_modules():
            if isinstance(module, DGMN2Attention | DGMNMessage):
                watch = partial(self._see, stage_name(name))
                self._handles.append(module.register_forward_pre_hook(watch))

    def _see(self, stage: str, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        walks = module.predict_walks(inputs[0])
        if walks is not None:
            self._lengths.setdefault(stage, []).append(walks.norm(dim=-1).mean())

    @override
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        for stage, lengths in self._lengths.items():
            pl_module.log(f"walks/{stage}", torch.stack(lengths).mean(), batch_size=1, sync_dist=True)
        self._handles, self._lengths = [], {}


class LastEvaluation(L.Callback):
    """Lets a training that `max_steps` ends within an epoch evaluate, so that it has metrics and a best checkpoint."""

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if 0 < trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True


class BestTables(L.Callback):
    """Keeps the tables of the best evaluation, also those from before a run was continued.

    Attributes:
        tables: the tables, see `Task.tables`.
        epoch: the epoch of that evaluation, counted from 0.
        first: the number of epochs that were done before; above 0 in a continued run.
        seen: the batches of the next epoch that were seen before.
    """

    def __init__(self) -> None:
        self.tables: list[Any] = []
        self.epoch = 0
        self.first = self.seen = 0
        self._best: float | None = None

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.first, self.seen = trainer.current_epoch, seen_batches(trainer)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        task: Any = pl_module
        name, mode = task.monitor
        found = trainer.callback_metrics.get(name)
        if found is None:
            return
        value = float(found)
        if self._best is None or (value > self._best if mode == "max" else value < self._best):
            self._best, self.tables, self.epoch = value, list(task.tables()), trainer.current_epoch

    @override
    def state_dict(self) -> dict[str, Any]:
        tables = [[list(header), [[_plain(cell) for cell in row] for row in rows]] for header, rows in self.tables]
        return {"best": self._best, "tables": tables, "epoch": self.epoch}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best, tables, epoch = (state_dict.get(name) for name in ("best", "tables", "epoch"))
        if not (isinstance(best, float) and isinstance(epoch, int) and isinstance(tables, list)):
            return  # nothing was kept yet; and a file may hold anything
        if all(map(_is_table, tables)):
            self._best, self.tables, self.epoch = best, tables, epoch


def _is_table(table: object) -> bool:
    if not isinstance(table, list) or len(table) != 2 or not isinstance(table[1], list):
        return False
    return all(isinstance(row, list) and all(_plain(cell) is cell for cell in row) for row in (table[0], *table[1]))


def _plain(cell: object) -> object:
    """What a checkpoint may hold, and what prints the same."""
    return cell if isinstance(cell, str | int | float) else str(cell)


class StopEarly(EarlyStopping):
    """Ends a training whose metric has not improved for some evaluations.

    Args:
        metric: the name of the metric.
        mode: "max" or "min".
        patience: the number of evaluations.
    """

    def __init__(self, metric: str, mode: str, patience: int) -> None:
        super().__init__(metric, patience=patience, mode=mode)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A run may be continued with more patience.
        super().load_state_dict({**state_dict, "patience": self.patience})

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.wait_count >= self.patience:  # of a run that has ended, and is started again
            trainer.should_stop = True

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.wait_count >= self.patience:
            waited = counted(self.wait_count, "evaluation")
            say(f"{self.monitor} has not improved for {waited}: the training ends (patience)")


class ProgressLines(L.Callback):
    """Prints a line after every epoch, and every two minutes, where the output is no terminal.

    A line has the loss, the metric that chooses the best checkpoint, and the time that is left.

    Args:
        metric: the name of that metric.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self._start = self._said = 0.0
        self._first = self._total = 0

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = self._said = time.monotonic()
        self._first = trainer.global_step
        self._total = cast(Any, trainer.lightning_module).total_steps()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() - self._said >= LINE_EVERY:
            self._say(trainer, f", step {batch_idx + 1} of {trainer.num_training_batches}")

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._say(trainer, "")

    def _say(self, trainer: L.Trainer, where: str) -> None:
        self._said = time.monotonic()
        if not trainer.is_global_zero:
            return
        done = trainer.global_step
        values = {name: trainer.callback_metrics.get(name) for name in ("train/loss", self.metric)}
        shown = "".join(f", {name} {float(value):.4f}" for name, value in values.items() if value is not None)
        epochs = f" of {trainer.max_epochs}" if (trainer.max_epochs or 0) > 0 else ""
        if trainer.max_steps > 0:  # it ends the training, in whatever epoch
            epochs, where = "", f", step {done} of {trainer.max_steps}"
        left = ""
        if done > self._first:
            seconds = (self._said - self._start) * (self._total - done) / (done - self._first)
            timer = time_limit(trainer)
            if timer is not None:
                seconds = min(seconds, max(0.0, timer.time_remaining() or 0.0))
            left = f", {duration(seconds)} left"
        say(f"epoch {trainer.current_epoch + 1}{epochs}{where}{shown}{left}")


def time_limit(trainer: L.Trainer) -> Timer | None:
    """The clock of `max_time`; None if the training has no such limit."""
    timers = (callback for callback in trainer.callbacks if isinstance(callback, Timer))
    return next((timer for timer in timers if timer.time_remaining() is not None), None)


class EpochSeed(L.Callback):
    """Makes the random numbers of an epoch depend only on the run's seed, the epoch and the process.

    A run that is killed, and resumed from the end of an epoch, then continues as if it had never stopped: dropout,
    mixup and augmentation draw the same numbers. The checkpoint keeps the seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._continues = False

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._continues = stage == "fit"

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._continues and state_dict["seed"] != self.seed:
            say(f"continued with the seed of its start, {state_dict['seed']}, instead of {self.seed}")
        self.seed = state_dict["seed"]

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # Lightning does not, for the rest of an epoch

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
