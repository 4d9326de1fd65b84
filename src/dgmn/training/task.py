"""The LightningModule that all tasks extend: optimiser, schedule and the description in checkpoints."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from dgmn.about import about
from dgmn.errors import InputError
from dgmn.images import save_image, stacked
from dgmn.report import say
from dgmn.training.callbacks import FiniteTraining, WalkLengths
from dgmn.training.schedules import fingerprint
from dgmn.training.start import start_from
from dgmn.weights import read_checkpoint
from dgmn.weights.description import without_sources

Table = tuple[Sequence[str], Sequence[Sequence[object]]]  # header and rows
ScheduleCallable = Callable[[Optimizer, int], LRScheduler]

_PICTURED = 4  # predictions that a validation draws


class Task(L.LightningModule):
    """Builds a network, loads the weights to start from, and trains it; each task's subclass adds the steps.

    Args:
        build: makes the network from `network_args` and the preprocessing of the weights to start from.
        network_args: plain values from which the network can be built again, among them `num_classes` and
            `model_args`; checkpoints store them.
        checkpoint: file of weights to start from, official or own.
        optimizer: makes the optimiser from parameter groups.
        schedule: makes the schedule from the optimiser and the number of steps; the schedule advances at every step.
        lr_batch: total batch (over all devices and accumulated steps) that the learning rate was chosen for. With
            another total batch, the learning rate is scaled linearly. None: no scaling.
        decay_norms_and_biases: whether weight decay applies to all parameters, as in mmdet, mmseg, Deformable DETR and
            Sparse R-CNN. Otherwise it spares norms, biases and the parameters that the network names itself.
        lr_multipliers: factors on the learning rate of the parameters whose names contain the key, for instance
            `{backbone: 0.1}`. If several keys fit, the longest counts. The layers that predict walks are called
            `attn.offset` in DGMN2 and `walks` in the DGMN module.

    Attributes:
        name: name of the task, stored in checkpoints.
        monitor: the metric that chooses the best checkpoint, and "max" or "min".
        model: the network.
        filled: whether all weights came from a file, so that the network can be evaluated as it is.
        from_scratch: whether no weights are loaded, neither from a file nor published ones.
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
    ) -> None:
        super().__init__()
        weights = None if checkpoint is None else read_checkpoint(checkpoint)
        self.model = build(**network_args, preprocessing=None if weights is None else weights.preprocessing)
        self.network_args = {**network_args, "model_args": without_sources(network_args["model_args"] or {})}
        self.from_scratch = weights is None and not (network_args["model_args"] or {}).get("pretrained")
        if weights is not None:
            self.filled = start_from(self.model, weights)
        else:  # timm's weights fill a whole classifier, but only the backbone of other networks
            self.filled = not about(self.model).backbone
        self.optimizer = optimizer
        self.schedule = schedule
        self.lr_batch = lr_batch
        self.decay_norms_and_biases = decay_norms_and_biases
        self.lr_multipliers = dict(lr_multipliers or {})
        multiplied([], self.model, self.lr_multipliers)  # names mistakes before the data is read
        self._pictures: list[Image.Image] = []
        self._settings = self._checked_settings()
        self._facts: dict[str, Any] = {}

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
        settings: dict[str, Any] = {name: list(x) if isinstance(x, tuple) else x for name, x in probe.defaults.items()}
        for name in ("lr", "weight_decay", "momentum"):
            value = settings.get(name, 0.0)
            if not 0 <= value < math.inf:
                raise InputError(f"model.optimizer: {name} must be a finite number of at least 0, got {value}")
        try:
            schedule = fingerprint(self.schedule, probe)
        except (TypeError, ValueError) as error:
            raise error if isinstance(error, InputError) else InputError(f"model.schedule: {error}") from error
        return {"optimizer": type(probe).__name__, **settings, "schedule": schedule, "lr_batch": self.lr_batch}

    @override
    def configure_callbacks(self) -> list[L.Callback]:
        return [FiniteTraining(), WalkLengths()]

    @override
    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule
        if data is None:
            raise InputError(f"a {type(self).__name__} needs the data of its task: trainer.fit(task, data)")
        if data.names is not None:
            self.check_classes(data.names)

    @override
    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(multiplied(self._decay_groups(), self.model, self.lr_multipliers))
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("lr_multiplier", 1.0)
        if self.lr_batch is not None:
            self._scale_learning_rate(optimizer, self.lr_batch)
        schedule = self.schedule(optimizer, self.total_steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @override
    def on_fit_start(self) -> None:
        self._facts = self._training()

    def _decay_groups(self) -> list[dict[str, Any]]:
        """The trained parameters; those without weight decay are a group of their own."""
        if self.decay_norms_and_biases:
            return [{"params": [p for p in self.model.parameters() if p.requires_grad]}]
        groups: list[dict[str, Any]] = param_groups_weight_decay(
            self.model, no_weight_decay_list=about(self.model).undecayed
        )
        for group in groups:
            if group["weight_decay"]:
                del group["weight_decay"]  # so that the optimiser's own weight decay applies
        return groups

    def total_steps(self) -> int:
        """The optimiser's steps in the whole training, which its schedule needs.

        Raises:
            InputError: the trainer has neither a number of steps nor of epochs.
        """
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
        """Checks that the network has as many classes as the data.

        Raises:
            InputError: the numbers differ; the message names some classes of the data.
        """
        num_classes = self.network_args["num_classes"]
        if len(names) != num_classes:
            some = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
            raise InputError(
                f"model.num_classes is {num_classes}, but the data has {len(names)} classes ({some}): "
                f"give --model.num_classes {len(names)}"
            )

    def log_step(self, loss: Tensor, batch_size: int, parts: Mapping[str, Tensor] = MappingProxyType({})) -> Tensor:
        """Logs the loss of a training step, the parts that add up to it, and the learning rate; returns the loss."""
        self.log("train/loss", loss, prog_bar=True, batch_size=batch_size)
        for name, value in parts.items():
            self.log(f"train/{name}", value, batch_size=batch_size)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def wants_picture(self) -> bool:
        """Whether this validation should keep another picture."""
        return len(self._pictures) < _PICTURED and bool(self.trainer.is_global_zero)

    def keep_picture(self, picture: Image.Image) -> None:
        """Keeps the picture of a prediction; the run's folder gets one file with all pictures of a validation."""
        self._pictures.append(picture)

    @override
    def on_validation_epoch_end(self) -> None:
        self.report("val")
        if self._pictures and self.trainer.state.fn == TrainerFn.FITTING:
            picture = Path(self.trainer.default_root_dir) / "pictures" / f"epoch_{self.current_epoch:04d}.jpg"
            save_image(stacked(self._pictures), picture, quality=90)
        self._pictures.clear()

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
        # What prediction and resuming need, as plain values.
        facts = {"total_batch": self._total_batch(), "training": self._facts}
        checkpoint["dgmn"] = {**facts, **describe_run(self, self.trainer.datamodule)}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored = checkpoint.get("dgmn", {})
        expected = {**self.network_args, "classes": self.trainer.datamodule.describe().get("classes")}
        if self.trainer.state.fn == TrainerFn.FITTING:
            # The schedule, the number of steps and the learning rate depend on this batch.
            expected["total_batch"] = self._total_batch()
            self._compare_trainings(stored.get("training") or {})
            groups = _parameter_groups(checkpoint)
            here = multiplied(self._decay_groups(), self.model, self.lr_multipliers)
            if groups and len(groups) != len(here):
                raise InputError(
                    f"the checkpoint has {len(groups)} groups of parameters, but here there are {len(here)}: "
                    "decay_norms_and_biases or lr_multipliers are not those of its training"
                )
        normalisation = about(self.model).preprocessing.to_values()
        was = stored.get("preprocessing") or {}
        pairs = [(key, stored.get(key), here) for key, here in expected.items()]
        pairs += [(key, was.get(key), normalisation[key]) for key in ("mean", "std")]
        for key, then, here in pairs:
            if then is not None and here is not None and then != here:
                raise InputError(f"the checkpoint was trained with {key} {then}, but here it is {here}")

    def _training(self) -> dict[str, Any]:
        """What a continued run needs to be the same, as plain values."""
        data = self.trainer.datamodule
        chosen = {"decay_norms_and_biases": self.decay_norms_and_biases, "lr_multipliers": self.lr_multipliers}
        size = {"steps": self.total_steps(), "images": data.training_images, "num_workers": data.num_workers}
        return {"kept": {**self._settings, **chosen}, **size, "root": str(getattr(data, "root", None))}

    def _compare_trainings(self, before: Mapping[str, Any]) -> None:
        """Refuses what a continued run would not do, and says what it does otherwise.

        Raises:
            InputError: the optimiser or the schedule is another one; its state is that of the checkpoint.
        """
        now = self._training()
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


def multiplied(
    groups: Sequence[dict[str, Any]], model: nn.Module, multipliers: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Splits parameter groups by the multiplier of their learning rate.

    Each group holds its multiplier in `lr_multiplier`. Groups with multiplier 1 come first.

    Raises:
        InputError (a ValueError): a key is in no parameter's name, or a multiplier is below 0 or not finite.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    for key, value in multipliers.items():
        if not 0 <= value < math.inf:
            raise InputError(f"lr_multipliers: {key!r} must be a finite number of at least 0, got {value}")
        if not any(key in name for name in names.values()):
            some = ", ".join(sorted({".".join(name.split(".")[:2]) for name in names.values()})[:8])
            raise InputError(f"lr_multipliers: {key!r} is in no parameter's name; they begin with {some} ...")
    keys = sorted(multipliers, key=len, reverse=True)
    split: dict[tuple[float, int], dict[str, Any]] = {}
    for i, group in enumerate(groups):
        for parameter in group["params"]:
            factor = next((multipliers[key] for key in keys if key in names[parameter]), 1.0)
            empty = {**group, "params": [], "lr_multiplier": factor}
            split.setdefault((factor, i), empty)["params"].append(parameter)
    # The first group's learning rate is the one that is logged.
    return [split[place] for place in sorted(split, key=lambda place: (place[0] != 1.0, place[1]))]
