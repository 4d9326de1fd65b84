"""Training and evaluation of segmenters."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from PIL import Image
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix
from typing_extensions import override

from dgmn.models.build import build_named
from dgmn.pictures import comparison, legend
from dgmn.segmentation.builders import BUILDERS
from dgmn.segmentation.inference import Inference, predict_labels
from dgmn.segmentation.labels import Color, painted_colors
from dgmn.segmentation.losses import IGNORED, PixelLoss
from dgmn.segmentation.metrics import scores
from dgmn.training.class_weights import ClassWeights
from dgmn.training.pictures import denormalise
from dgmn.training.schedules import Polynomial
from dgmn.training.task import ScheduleCallable, Table, Task


class SegmentationTask(Task):
    """Trains a network of [`dgmn.segmentation`][dgmn.segmentation.semantic_fpn] on any timm backbone.

    Args:
        model: "semantic_fpn", "setr_naive", "setr_pup", "setr_mla" or "dilated_fcn".
        backbone: name for `timm.create_model`: one of our networks, or any other for comparison.
        num_classes: number of classes in the data.
        model_args: more arguments for the network, for instance `channels: 64` or
            `backbone_args: {drop_path_rate: 0.1}`.
        checkpoint: weights to start from, official or your own, of a segmenter or a classifier. A classifier's weights
            fill the backbone.
        loss: loss of the pixels.
        inference: how images are predicted in validation and test.
        optimizer: makes the optimiser; see [`Task`][dgmn.training.Task].
        schedule: makes the schedule of the learning rate; see [`Task`][dgmn.training.Task].
        lr_batch: total batch that the learning rate is for; see [`Task`][dgmn.training.Task].
        decay_norms_and_biases: what weight decay applies to; see [`Task`][dgmn.training.Task].
        lr_multipliers: factors on the learning rate of single layers; see [`Task`][dgmn.training.Task].
        freeze: parts that are not trained; see [`Task`][dgmn.training.Task].
        layer_decay: lower learning rates of early layers; see [`Task`][dgmn.training.Task].
        ema_decay: decay of averaged weights; see [`Task`][dgmn.training.Task].
        patience: when the training ends early; see [`Task`][dgmn.training.Task].
        class_weights: weights of the classes in the loss of the pixels; see [`Task`][dgmn.training.Task].
    """

    name = "segmentation"
    monitor = ("val/miou", "max")

    def __init__(
        self,
        model: str = "semantic_fpn",
        backbone: str = "dgmn2_tiny",
        num_classes: int = 19,
        model_args: dict[str, Any] | None = None,
        checkpoint: Path | None = None,
        loss: PixelLoss = PixelLoss(),  # noqa: B008 - the command line shows its defaults
        inference: Inference = Inference(),  # noqa: B008 - the command line shows its defaults
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=1e-4),
        schedule: ScheduleCallable = Polynomial,
        lr_batch: int | None = 8,
        decay_norms_and_biases: bool = False,
        lr_multipliers: dict[str, float] | None = None,
        freeze: list[str] | str | None = None,
        layer_decay: float | None = None,
        ema_decay: float | None = None,
        patience: int | None = None,
        class_weights: ClassWeights = None,
    ) -> None:
        network_args = {"model": model, "backbone": backbone, "num_classes": num_classes, "model_args": model_args}
        build = partial(build_named, BUILDERS)
        settings = (optimizer, schedule, lr_batch, decay_norms_and_biases, lr_multipliers)
        more = (freeze, layer_decay, ema_decay, patience, class_weights)
        super().__init__(build, network_args, checkpoint, *settings, *more)
        self.loss = loss
        self.inference = inference
        self.val_confusion: Metric = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORED)
        self.test_confusion: Metric = self.val_confusion.clone()
        self._rows: list[tuple[object, ...]] = []

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, masks = batch
        return self.log_step(self.loss(self.model(images), masks, self._weights), len(images))

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        labels = self._evaluate(batch, self.val_confusion)
        if self.wants_picture():
            data = self.trainer.datamodule
            image = denormalise(batch[0][0], data.preprocessing)
            truth, predicted = batch[1][0].cpu().numpy(), labels.cpu().numpy().astype(np.uint8)
            there = {*np.unique(truth).tolist(), *np.unique(predicted).tolist()} - {IGNORED}
            self.keep_picture(comparison(image, truth, predicted, self._colors), there)

    @property
    def _colors(self) -> Sequence[Color | None]:
        data = self.trainer.datamodule
        return painted_colors(data.names, data.layout.classes.colors)

    @override
    def key(self, labels: Sequence[int], width: int) -> Image.Image:
        names, colors = self.trainer.datamodule.names, self._colors
        return legend([names[i] for i in labels], [colors[i] for i in labels], width)

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, self.test_confusion)

    def _evaluate(self, batch: tuple[Tensor, Tensor], confusion: Metric) -> Tensor:
        images, masks = batch  # one image, at its own size
        labels = predict_labels(self.model, images[0], self.inference).to(self.device)
        confusion.update(labels[None], masks)
        return labels

    @override
    def report(self, split: str) -> None:
        confusion = self.val_confusion if split == "val" else self.test_confusion
        result = scores(confusion.compute())  # summed over all processes
        confusion.reset()
        self.log(f"{split}/miou", result.miou, prog_bar=True, sync_dist=True)
        self.log(f"{split}/accuracy", result.accuracy, sync_dist=True)
        self._rows = [
            (name, *("-" if value != value else f"{value:.2%}" for value in values))
            for name, *values in zip(self.trainer.datamodule.names, result.iou, result.recall, strict=True)
        ]

    @override
    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "inference": asdict(self.inference)}

    @override
    def tables(self) -> list[Table]:
        return [(("class", "IoU", "recall"), self._rows)] if self._rows else []
