"""Training and evaluation of classifiers."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from timm.data import Mixup
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from dgmn.classification.builders import classifier
from dgmn.errors import InputError
from dgmn.training.schedules import WarmupCosine
from dgmn.training.task import ScheduleCallable, Task


class ClassificationTask(Task):
    """Trains any timm classifier.

    Args:
        model: name for `timm.create_model`: one of our networks, or any other for comparison.
        num_classes: number of classes in the data.
        model_args: more arguments for the network, for instance `drop_path_rate: 0.1`.
        checkpoint: weights to start from, official or your own. Their classifier is left out if it has other classes.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of cutmix; 0 for none. With both, every batch gets one of them.
        label_smoothing: share of the target that is spread over all classes.
        optimizer: makes the optimiser; see [`Task`][dgmn.training.Task].
        schedule: makes the schedule of the learning rate; see [`Task`][dgmn.training.Task].
        lr_batch: total batch that the learning rate is for; see [`Task`][dgmn.training.Task].
        decay_norms_and_biases: what weight decay applies to; see [`Task`][dgmn.training.Task].
        lr_multipliers: factors on the learning rate of single layers; see [`Task`][dgmn.training.Task].
    """

    name = "classification"
    monitor = ("val/top1", "max")

    def __init__(
        self,
        model: str = "dgmn2_tiny",
        num_classes: int = 1000,
        model_args: dict[str, Any] | None = None,
        checkpoint: Path | None = None,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        label_smoothing: float = 0.1,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.05),
        schedule: ScheduleCallable = WarmupCosine,
        lr_batch: int | None = 1024,
        decay_norms_and_biases: bool = False,
        lr_multipliers: dict[str, float] | None = None,
    ) -> None:
        for name, value in {"mixup": mixup, "cutmix": cutmix}.items():
            if value is None or not 0 <= value < math.inf:
                raise InputError(f"model.{name} must be a finite number of at least 0, got {value}")
        if label_smoothing is None or not 0 <= label_smoothing < 1:
            raise InputError(f"model.label_smoothing must be at least 0 and below 1, got {label_smoothing}")
        network_args = {"model": model, "num_classes": num_classes, "model_args": model_args}
        settings = (optimizer, schedule, lr_batch, decay_norms_and_biases, lr_multipliers)
        super().__init__(classifier, network_args, checkpoint, *settings)
        self.label_smoothing = label_smoothing
        self.mixup = (
            Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes) if mixup or cutmix else None
        )
        top5 = min(5, num_classes)
        metrics = MetricCollection(
            {
                "top1": MulticlassAccuracy(num_classes, average="micro"),
                "top5": MulticlassAccuracy(num_classes, top_k=top5, average="micro"),
            }
        )
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.test_loss = MeanMetric(nan_strategy="disable")

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        batch_size = self.trainer.datamodule.batch_size
        if stage == "fit" and self.mixup is not None and batch_size % 2:
            raise InputError(f"data.batch_size must be even for mixup and cutmix, got {batch_size}")

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        if self.mixup is not None:
            images, targets = self.mixup(images, labels)
            loss = F.cross_entropy(self.model(images), targets)
        else:
            loss = F.cross_entropy(self.model(images), labels, label_smoothing=self.label_smoothing)
        return self.log_step(loss, len(images))

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val", self.val_metrics, self.val_loss)

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test", self.test_metrics, self.test_loss)

    def _evaluate(
        self, batch: tuple[Tensor, Tensor], split: str, metrics: MetricCollection, mean_loss: MeanMetric
    ) -> None:
        images, labels = batch
        logits = self.model(images).float()
        metrics.update(logits, labels)
        mean_loss.update(F.cross_entropy(logits, labels, reduction="none"))
        self.log_dict(metrics, prog_bar=True, on_step=False, on_epoch=True)
        self.log(f"{split}/loss", mean_loss, prog_bar=True, on_step=False, on_epoch=True)
