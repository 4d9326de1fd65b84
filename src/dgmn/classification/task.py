"""Training and evaluation of classifiers."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from timm.data import Mixup
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from typing_extensions import override

from dgmn.classification.builders import check_image_size, classifier
from dgmn.classification.confusion import confusion_tables
from dgmn.errors import InputError
from dgmn.pictures import prediction_grid
from dgmn.processes import mean_divisor
from dgmn.training.class_weights import ClassWeights
from dgmn.training.pictures import denormalise
from dgmn.training.schedules import WarmupCosine
from dgmn.training.task import ScheduleCallable, Table, Task

_CONFUSED = 2000  # classes up to which the confusion matrix is kept: it then needs 32 MB
_TILES = 16  # predictions in the picture of a validation


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
        freeze: parts that are not trained; see [`Task`][dgmn.training.Task].
        layer_decay: lower learning rates of early layers; see [`Task`][dgmn.training.Task].
        ema_decay: decay of averaged weights; see [`Task`][dgmn.training.Task].
        patience: when the training ends early; see [`Task`][dgmn.training.Task].
        class_weights: weights of the classes in the training loss; see [`Task`][dgmn.training.Task].
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
        freeze: list[str] | str | None = None,
        layer_decay: float | None = None,
        ema_decay: float | None = None,
        patience: int | None = None,
        class_weights: ClassWeights = None,
    ) -> None:
        for name, value in {"mixup": mixup, "cutmix": cutmix}.items():
            if value is None or not 0 <= value < math.inf:
                raise InputError(f"model.{name} must be a finite number of at least 0, got {value}")
        if label_smoothing is None or not 0 <= label_smoothing < 1:
            raise InputError(f"model.label_smoothing must be at least 0 and below 1, got {label_smoothing}")
        network_args = {"model": model, "num_classes": num_classes, "model_args": model_args}
        settings = (optimizer, schedule, lr_batch, decay_norms_and_biases, lr_multipliers)
        more = (freeze, layer_decay, ema_decay, patience, class_weights)
        super().__init__(classifier, network_args, checkpoint, *settings, *more)
        self.label_smoothing = label_smoothing
        self.mixup = (
            Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes) if mixup or cutmix else None
        )
        shares = {1, 5} if num_classes > 5 else {1}  # the best five of five classes are always right
        metrics = MetricCollection(
            {f"top{k}": MulticlassAccuracy(num_classes, top_k=k, average="micro") for k in sorted(shares)}
        )
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.test_loss = MeanMetric(nan_strategy="disable")
        self.confusion: Metric | None = None
        if num_classes <= _CONFUSED:
            self.confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)
        self._tables: list[Table] = []
        self._tiles: list[tuple[Image.Image, tuple[str, float], str]] = []

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        batch_size = self.trainer.datamodule.batch_size
        size = self.trainer.datamodule.describe().get("image_size")
        if isinstance(size, int):
            check_image_size(self.model, size)
        if stage == "fit" and self.mixup is not None and batch_size % 2:
            raise InputError(f"data.batch_size must be even for mixup and cutmix, got {batch_size}")

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        if self.mixup is not None:
            images, targets = self.mixup(images, labels)
            loss = F.cross_entropy(self.model(images).float(), targets, self._weights)
        else:
            logits = self.model(images).float()
            loss = self._loss(logits, labels)
        return self.log_step(loss, len(images))

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self._weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        losses = F.cross_entropy(logits, labels, self._weights, reduction="sum", label_smoothing=self.label_smoothing)
        least = torch.finfo(losses.dtype).tiny
        divisor = mean_divisor(self._weights[labels].sum(), losses, least)
        return losses * (divisor > least) / divisor  # a batch may have only labels without weight

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        logits = self._evaluate(batch, "val", self.val_metrics, self.val_loss)
        if self.trainer.state.fn == TrainerFn.FITTING and self.trainer.is_global_zero:
            self._keep_tiles(batch, logits, batch_idx)

    def _keep_tiles(self, batch: tuple[Tensor, Tensor], logits: Tensor, batch_idx: int) -> None:
        """Keeps images from all over the validation set, which is often in the order of the classes."""
        data = self.trainer.datamodule
        names = data.names or [str(i) for i in range(self.network_args["num_classes"])]
        every = max(1, int(self.trainer.num_val_batches[0]) * data.batch_size // _TILES)
        first = batch_idx * data.batch_size
        for i in range(-first % every, len(logits), every):
            share, label = logits[i].softmax(-1).max(-1)
            picture = denormalise(batch[0][i], data.preprocessing)
            self._tiles.append((picture, (names[int(label)], float(share)), names[int(batch[1][i])]))

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test", self.test_metrics, self.test_loss)

    def _evaluate(
        self, batch: tuple[Tensor, Tensor], split: str, metrics: MetricCollection, mean_loss: MeanMetric
    ) -> Tensor:
        images, labels = batch
        logits: Tensor = self.model(images).float()
        metrics.update(logits, labels)
        mean_loss.update(F.cross_entropy(logits, labels, reduction="none"))
        self.log_dict(metrics, prog_bar=True, on_step=False, on_epoch=True)
        self.log(f"{split}/loss", mean_loss, prog_bar=True, on_step=False, on_epoch=True)
        if self.confusion is not None:
            self.confusion.update(logits, labels)
        return logits

    @override
    def report(self, split: str) -> None:
        if self._tiles:
            pictures, predictions, truth = zip(*self._tiles, strict=True)
            self.keep_picture(prediction_grid(pictures, predictions, truth))
            self._tiles.clear()
        if self.confusion is not None:
            matrix = self.confusion.compute()  # summed over all processes
            self.confusion.reset()
            names = self.trainer.datamodule.names or [str(i) for i in range(len(matrix))]
            self._tables = confusion_tables(matrix, names)

    @override
    def tables(self) -> list[Table]:
        return self._tables
