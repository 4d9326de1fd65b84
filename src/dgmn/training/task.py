"""The LightningModule that all tasks extend: optimiser, schedule and the description in checkpoints."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from typing_extensions import override

from dgmn.about import about
from dgmn.errors import InputError, check_number
from dgmn.images import stacked
from dgmn.report import say
from dgmn.training.averaging import AveragedWeights
from dgmn.training.callbacks import FiniteTraining, StopEarly, WalkLengths, time_limit
from dgmn.training.checkpoint import reopen_epoch
from dgmn.training.class_weights import ClassWeights, check_class_weights, class_weight_tensor
from dgmn.training.parameters import decay_groups, freeze_parts, frozen_in_vain, layer_scales, multiplied
from dgmn.training.pictures import keep
from dgmn.training.schedules import advance, fingerprint
from dgmn.training.start import start_from
from dgmn.weights.description import check_description, check_names, without_sources
from dgmn.weights.shared import read_weights
from dgmn_base.terminal import counted

Table = tuple[Sequence[str], Sequence[Sequence[object]]]  # header and rows
ScheduleCallable = Callable[[Optimizer, int], LRScheduler]

_PICTURED = 4  # predictions that a validation draws


class Task(L.LightningModule):
    """Builds a network, loads the weights to start from, and trains it; each task's subclass adds the steps.

    Args:
        build: makes the network from `network_args` and the preprocessing of the weights to start from.
        network_args: plain values from which the network can be built again, among them `num_classes` and
            `model_args`; checkpoints store them.
        checkpoint: weights to start from: an official or own file, a run's folder (its best checkpoint is taken), or a
            folder of [`dgmn.save`][dgmn.sharing.save].
        optimizer: makes the optimiser from parameter groups.
        schedule: makes the schedule from the optimiser and the number of steps; the schedule advances at every step.
        lr_batch: total batch (over all devices and accumulated steps) that the learning rate was chosen for. With
            another total batch, the learning rate is scaled linearly. None: no scaling.
        decay_norms_and_biases: whether weight decay applies to all parameters, as in mmdet, mmseg, Deformable DETR and
            Sparse R-CNN. Otherwise it spares norms, biases and the parameters that the network names itself.
        lr_multipliers: factors on the learning rate of the parameters whose names contain the key, for instance
            `{backbone: 0.1}`. If several keys fit, the longest counts. The layers that predict walks are called
            `attn.offset` in DGMN2 and `walks` in the DGMN module.
        freeze: parts of the network that are not trained: names of modules or parameters, or globs such as
            `stages.*.downsample`, as [`insert`][dgmn.insert] takes them; one of them, or a list. Their batch norms keep
            their statistics, too.
        layer_decay: factor by which the learning rate of a layer is lower than that of the next one, for instance
            0.75. The layers are timm's; the head, or all that is behind a backbone, has the whole rate. It is
            multiplied with `lr_multipliers`. None: one rate for all.
        ema_decay: decay of averaged weights, for instance 0.9998; see
            [`AveragedWeights`][dgmn.training.AveragedWeights]. The average is validated, and checkpoints hold it. None:
            no average.
        patience: the training ends when the metric has not improved for so many evaluations. None: it never does.
        class_weights: weights of the classes in the training loss: a list in the order of the classes, or weights by
            name, where the others have 1. "balanced" gives each class a weight in inverse proportion to its share of
            the training data, so that their mean over the data is 1. Tasks whose loss has no classes have none.

    Attributes:
        name: name of the task, stored in checkpoints.
        monitor: the metric that chooses the best checkpoint, and "max" or "min".
        model: the network.
        filled: whether all weights came from a file, so that the network can be evaluated as it is.
        start: the weights that the training started from, in words; None if they were random.
    """

    name: str
    monitor: tuple[str, str]

    def __init__(
        self,
        build: Callable[..., nn.Module],
        network_args: dict[str, Any],
        checkpoint: Path | None,
        optimizer: OptimizerCallable,
        schedule: ScheduleCallable,
        lr_batch: int | None,
        decay_norms_and_biases: bool,
        lr_multipliers: Mapping[str, float] | None,
        freeze: Sequence[str] | str | None,
        layer_decay: float | None,
        ema_decay: float | None,
        patience: int | None,
        class_weights: ClassWeights = None,
    ) -> None:
        super().__init__()
        try:
            weights = None if checkpoint is None else read_weights(checkpoint)
        except InputError as error:
            raise InputError(f"--model.checkpoint: {error}") from error
        self.model = build(**network_args, preprocessing=None if weights is None else weights.preprocessing)
        self.network_args = {**network_args, "model_args": without_sources(network_args["model_args"] or {})}
        if weights is not None:
            self.filled = start_from(self.model, weights)
        else:  # timm's weights fill a whole classifier, but only the backbone of other networks
            self.filled = not about(self.model).backbone
        self.start: str | None = None
        if weights is not None or (network_args["model_args"] or {}).get("pretrained"):
            some = "" if self.filled else ", for a part of the network"
            # Checkpoints store it, so it is no whole path of this machine.
            file = "pretrained weights" if weights is None else Path(*weights.path.absolute().parts[-3:])
            self.start = f"{file}{some}"
        self.optimizer = optimizer
        self.schedule = schedule
        self.lr_batch = lr_batch
        self.decay_norms_and_biases = decay_norms_and_biases
        self.lr_multipliers = dict(lr_multipliers or {})
        multiplied([], self.model, self.lr_multipliers)  # names mistakes before the data is read
        self.layer_decay = layer_decay
        self._scales = {} if layer_decay is None else layer_scales(self.model, layer_decay)
        self.frozen = [freeze] if isinstance(freeze, str) else list(freeze or ())
        self._frozen_norms = freeze_parts(self.model, self.frozen)
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise InputError(f"model.ema_decay must be above 0 and below 1, got {ema_decay}")
        self.ema_decay = ema_decay
        if patience is not None:
            check_number("model.patience", patience)
        self.patience = patience
        check_class_weights(class_weights, network_args["num_classes"])
        if isinstance(class_weights, dict):  # YAML reads the name 0 as a number
            class_weights = {str(name): weight for name, weight in class_weights.items()}
        self.class_weights = class_weights
        self._weights: Tensor | None = None
        self._pictures: list[Image.Image] = []
        self._in_pictures: set[int] = set()  # classes
        self._settings = self._checked_settings()
        self._facts: dict[str, Any] = {}
        self._steps = 0

    def _checked_settings(self) -> dict[str, Any]:
        """The optimiser and the schedule as plain values, by which a continued run is compared with its start.

        Raises:
            InputError (a ValueError): a number is out of range.
        """
        if self.lr_batch is not None and self.lr_batch < 1:
            raise InputError(f"model.lr_batch must be at least 1, or null for no scaling, got {self.lr_batch}")
        try:
            probe = self.optimizer([nn.Parameter(torch.zeros(1))])
        except (TypeError, ValueError) as error:
            raise InputError(f"model.optimizer: {error}") from error
        settings = dict(probe.defaults)
        for name in ("lr", "weight_decay", "momentum"):
            value = settings.get(name, 0.0)
            if not isinstance(value, int | float | Tensor) or not 0 <= value < math.inf:
                raise InputError(f"model.optimizer: {name} must be a finite number of at least 0, got {value}")
        try:
            schedule = fingerprint(self.schedule, probe)
        except (TypeError, ValueError) as error:
            raise error if isinstance(error, InputError) else InputError(f"model.schedule: {error}") from error
        plain = {name: _plain(value) for name, value in settings.items()}
        return {"optimizer": type(probe).__name__, **plain, "schedule": schedule, "lr_batch": self.lr_batch}

    @override
    def configure_callbacks(self) -> list[L.Callback]:
        callbacks: list[L.Callback] = [FiniteTraining(), WalkLengths()]
        if self.ema_decay is not None:
            callbacks.append(AveragedWeights(self.ema_decay))
        if self.patience is not None:
            callbacks.append(StopEarly(*self.monitor, self.patience))
        return callbacks

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for norm in self._frozen_norms:
            norm.eval()
        return self

    @override
    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule
        if data is None:
            raise InputError(f"a {type(self).__name__} needs the data of its task: trainer.fit(task, data)")
        if data.names is not None:
            self.check_classes(data.names)
        if stage == "fit" and self.patience is not None and not self.trainer.limit_val_batches:
            raise InputError("model.patience: counts validations, and trainer.limit_val_batches is 0")
        if stage == "fit" and self.class_weights is not None:
            self._weights = class_weight_tensor(self.class_weights, data, self.network_args["num_classes"])

    @override
    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self._groups())
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("lr_multiplier", 1.0)
        if self.lr_batch is not None:
            self._scale_learning_rate(optimizer, self.lr_batch)
        self._steps = self.total_steps()
        schedule = self.schedule(optimizer, self._steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @override
    def on_fit_start(self) -> None:
        self._facts = self._training()
        # No run should train towards checkpoints that cannot be read.
        check_description(self._description(), Path(self.trainer.default_root_dir))
        if self.frozen and self.start is None:
            say(
                f"model.freeze: {', '.join(self.frozen)} will keep random weights: to start from trained ones, give "
                "--model.checkpoint FILE or --model.model_args.pretrained true"
            )
        for line in frozen_in_vain(self.model, self.lr_multipliers):
            say(line)
        if self._weights is not None:
            self._weights = self._weights.to(self.device)

    @override
    def on_train_start(self) -> None:
        # The optimiser of a continued run has the rate of its last step, which may be the end of a shorter schedule.
        schedule: Any = self.lr_schedulers()
        if isinstance(schedule, LambdaLR):
            factors = zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
            for group, rate, factor in factors:
                group["lr"] = rate * factor(schedule.last_epoch)

    def _groups(self) -> list[dict[str, Any]]:
        """The trained parameters, in groups of one learning rate and one weight decay."""
        groups = decay_groups(self.model, self.decay_norms_and_biases)
        return multiplied(groups, self.model, self.lr_multipliers, self._scales)

    @override
    def lr_scheduler_step(self, scheduler: LRScheduler, metric: Any) -> None:
        """Advances the schedule by one step; with `max_time` by more, so that it ends when the time does."""
        step, timer = scheduler.last_epoch + 1, time_limit(self.trainer)
        if timer is not None:
            elapsed, left = timer.time_elapsed(), timer.time_remaining() or 0.0
            share = min(1.0, elapsed / max(elapsed + left, 1e-9))
            step = max(step, int(share * self._steps))
            step = self.trainer.strategy.broadcast(step)  # the clocks of the processes differ
        advance(scheduler, step)

    def total_steps(self) -> int:
        """The optimiser's steps in the whole training, which its schedule needs.

        Raises:
            InputError: the trainer has neither a number of steps nor of epochs.
        """
        # Not trainer.estimated_stepping_batches: it starts the loader's workers before a resumed run knows its epoch.
        trainer = self.trainer
        unlimited = trainer.max_epochs is None or trainer.max_epochs < 0
        if unlimited and trainer.max_steps > 0:
            return int(trainer.max_steps)
        if (trainer.max_epochs or 0) < 0:
            raise InputError(f"trainer.max_epochs must be given for the schedule, got {trainer.max_epochs}")
        batches = len(trainer.datamodule.train_dataloader())
        limit = trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        steps: int = math.ceil(batches / trainer.accumulate_grad_batches) * (trainer.max_epochs or 1)
        return min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps

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
            devices = counted(trainer.world_size, "device")
            say(
                f"learning rate {given:g} is for a total batch of {lr_batch}; here it is {total} "
                f"({per_device} x {devices} x {trainer.accumulate_grad_batches} accumulated), "
                f"so it becomes {given * total / lr_batch:g}"
            )

    def check_classes(self, names: Sequence[str]) -> None:
        """Checks that the network has as many classes as the data, and that checkpoints may hold their names.

        Raises:
            InputError: the numbers differ, or a name does not fit; the message names some classes of the data.
        """
        check_names(names)
        num_classes = self.network_args["num_classes"]
        if len(names) != num_classes:
            some = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
            raise InputError(
                f"model.num_classes is {num_classes}, but the data has {counted(len(names), 'class')} ({some}): "
                f"give --model.num_classes {len(names)}"
            )

    def log_step(self, loss: Tensor, batch_size: int, parts: Mapping[str, Tensor] = MappingProxyType({})) -> Tensor:
        """Logs the loss of a training step, the parts that add up to it, and the learning rate; returns the loss.

        Steps are logged every `log_every_n_steps`, and `train/loss_epoch`, the mean over an epoch, after each.
        """
        self.log("train/loss", loss, prog_bar=True, batch_size=batch_size)
        self.log("train/loss_epoch", loss, on_step=False, on_epoch=True, batch_size=batch_size, sync_dist=True)
        for name, value in parts.items():
            self.log(f"train/{name}", value, batch_size=batch_size)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def wants_picture(self) -> bool:
        """Whether this validation should keep another picture."""
        return len(self._pictures) < _PICTURED and bool(self.trainer.is_global_zero)

    def keep_picture(self, picture: Image.Image, labels: Iterable[int] = ()) -> None:
        """Keeps the picture of a prediction; the run's folder gets one file with all pictures of a validation.

        Args:
            picture: the picture.
            labels: the classes in it, for the key below all pictures.
        """
        self._pictures.append(picture)
        self._in_pictures.update(labels)

    def key(self, labels: Sequence[int], width: int) -> Image.Image:
        """The colours of classes, at the width of the pictures that it is for."""
        raise NotImplementedError

    @override
    def on_validation_epoch_end(self) -> None:
        self.report("val")
        if self._pictures and self.trainer.state.fn == TrainerFn.FITTING:
            width = max(picture.width for picture in self._pictures)
            key = [self.key(sorted(self._in_pictures), width)] if self._in_pictures else []
            keep(self.trainer, stacked([*self._pictures, *key]))
        self._pictures.clear()
        self._in_pictures.clear()

    @override
    def on_test_epoch_end(self) -> None:
        self.report("test")

    def report(self, split: str) -> None:
        """Logs the metrics of a whole evaluation of "val" or "test", unless the steps log them."""

    def tables(self) -> list[Table]:
        """Results of the last evaluation beyond its metrics, for instance the score of every class."""
        return []

    def describe(self) -> dict[str, Any]:
        """Facts about the task that prediction needs, as plain values."""
        return {"task": self.name, **self.network_args}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["dgmn"] = self._description()

    def _description(self) -> dict[str, Any]:
        """What prediction and resuming need, as plain values."""
        facts = {"total_batch": self._total_batch(), "training": {**self._facts, "start": self.start}}
        return {**facts, **describe_run(self, self.trainer.datamodule)}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored = checkpoint.get("dgmn", {})
        expected = {**self.network_args, "classes": self.trainer.datamodule.describe().get("classes")}
        normalisation = about(self.model).preprocessing.to_values()
        was = stored.get("preprocessing") or {}
        expected |= {key: normalisation[key] for key in ("mean", "std")}
        _check_equal({**stored, **{key: was.get(key) for key in ("mean", "std")}}, expected)
        if self.trainer.state.fn == TrainerFn.FITTING:
            before = stored.get("training") or {}
            self.start = before.get("start", "weights that its checkpoint does not name")
            now = self._training()
            self._go_on(before, now, *reopen_epoch(checkpoint))
            self._compare_trainings(before, now)
            groups = _parameter_groups(checkpoint)
            here = self._groups()
            if groups and len(groups) != len(here):
                raise InputError(
                    f"the checkpoint has {len(groups)} groups of parameters, but here there are {len(here)}: "
                    "decay_norms_and_biases, lr_multipliers, freeze or layer_decay are not those of its training"
                )
            # The schedule, the number of steps and the learning rate depend on this batch. On another number of
            # devices, it is the product that must stay.
            advice = ": change batch_size or accumulate_grad_batches, devices count, too"
            _check_equal(stored, {"total_batch": self._total_batch()}, advice)
        else:
            then, here = stored.get("image_size"), self.trainer.datamodule.describe().get("image_size")
            if then is not None and here is not None and then != here:
                say(f"trained at {then} x {then} pixels, evaluated at {here} x {here}: give --data.image_size {then}")

    def _training(self) -> dict[str, Any]:
        """What a continued run needs to be the same, as plain values."""
        data = self.trainer.datamodule
        chosen = {
            "decay_norms_and_biases": self.decay_norms_and_biases,
            "lr_multipliers": self.lr_multipliers,
            "freeze": self.frozen,
            "layer_decay": self.layer_decay,
            "ema_decay": self.ema_decay,
            "class_weights": self.class_weights,
        }
        size = {"steps": self.total_steps(), "images": data.training_images, "num_workers": data.num_workers}
        size |= {"batch_size": data.batch_size, "devices": self.trainer.world_size}
        return {"kept": {**self._settings, **chosen}, **size, "root": str(getattr(data, "root", None))[:1000]}

    def _go_on(self, before: Mapping[str, Any], now: Mapping[str, Any], epochs: int, batches: int) -> None:
        """Says that a run goes on within an epoch.

        Raises:
            InputError: no epochs are left, or the batches have other sizes than those of the epoch that were seen.
        """
        most = self.trainer.max_epochs
        if most is not None and 0 <= most < epochs:
            raise InputError(f"trainer.max_epochs is {most}, but the run has done {epochs}: give more to go on")
        if not batches:
            return
        for name in ("batch_size", "devices"):
            if before.get(name, now[name]) != now[name]:
                raise InputError(
                    f"the run was ended within epoch {epochs + 1}: it goes on with {name} {before[name]}, not "
                    f"{now[name]}, or from a checkpoint of an epoch's end"
                )
        say(f"goes on within epoch {epochs + 1}, after {counted(batches, 'batch')} of it")

    @staticmethod
    def _compare_trainings(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Refuses what a continued run would not do, and says what it does otherwise.

        Raises:
            InputError: the optimiser or the schedule is another one; its state is that of the checkpoint.
        """
        for name, value in now["kept"].items():
            then = (before.get("kept") or {}).get(name, value)
            if then != value:
                shown = f": {name} was {then}, now it is {value}"
                if name == "schedule":
                    shown = ", but the schedule is another one"
                raise InputError(
                    f"a continued run keeps its optimiser and schedule{shown}. "
                    "Give the same, or start a new run from these weights with --model.checkpoint"
                )
        effects = {
            "steps": "training steps: from here on, the learning rate follows the schedule of the new number",
            "images": "training images: epochs have other images than in an uninterrupted run",
            "root": "as data.root: if it holds other images, this is another training",
            "num_workers": "data.num_workers: augmentation draws other numbers than in an uninterrupted run",
        }
        for name, effect in effects.items():
            if before.get(name, now[name]) != now[name]:
                say(f"continued with {now[name]} instead of {before[name]} {effect}")


def _check_equal(stored: Mapping[str, Any], here: Mapping[str, Any], advice: str = "") -> None:
    """Checks what a checkpoint says of its training; what it does not say may be anything.

    Raises:
        InputError: something is another one here.
    """
    for key, now in here.items():
        then = stored.get(key)
        if then is not None and now is not None and then != now:
            raise InputError(f"the checkpoint was trained with {key} {then}, but here it is {now}{advice}")


def _plain(value: Any) -> Any:
    """What a checkpoint may hold of an optimiser's setting."""
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _parameter_groups(checkpoint: dict[str, Any]) -> list[Any]:
    states = checkpoint.get("optimizer_states") or [{}]
    groups = states[0].get("param_groups", []) if isinstance(states, list) and isinstance(states[0], dict) else None
    if not isinstance(groups, list):
        raise InputError("the checkpoint holds no state of an optimiser that a training run has written")
    return groups


def describe_run(task: Task, data: Any) -> dict[str, Any]:
    """The description that checkpoints of a task and its data store, as plain values."""
    preprocessing = data.adapted(about(task.model).preprocessing).to_values()
    return {**task.describe(), "preprocessing": preprocessing, **data.describe()}
