"""Training and evaluation of detectors."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF
from typing_extensions import override

from dgmn.about import about
from dgmn.detection.builders import BUILDERS
from dgmn.detection.coco_metric import CocoMetric
from dgmn.detection.inference import Inference, detect
from dgmn.detection.metrics import write_results
from dgmn.detection.predictor import with_boxes
from dgmn.errors import InputError
from dgmn.models.build import build_named
from dgmn.pictures import distinct_colors, legend, side_by_side
from dgmn.training.schedules import MultiStep
from dgmn.training.task import ScheduleCallable, Table, Task

_DRAWN = 0.3  # least score of a detection that is drawn
_WIDTH = 640  # of each half of a picture


class DetectionTask(Task):
    """Trains a detector on any timm backbone.

    Args:
        model: one of `dgmn.detection.builders.BUILDERS`, for instance "retinanet", "mask_rcnn", "deformable_detr".
        backbone: name for `timm.create_model`: one of ours, or any other to compare with.
        num_classes: number of categories in the data.
        model_args: more arguments for the network, for instance `min_size: 400`.
        checkpoint: official or own weights to start from: a detector's, or a classifier's for the backbone.
        inference: at which sizes images are evaluated.
        optimizer: see [`Task`][dgmn.training.Task].
        schedule: see `Task`.
        lr_batch: see `Task`.
        decay_norms_and_biases: see `Task`.
        lr_multipliers: see `Task`.
        freeze: see `Task`.
        layer_decay: see `Task`.
        ema_decay: see `Task`.
        patience: see `Task`.
    """

    name = "detection"
    monitor = ("val/box_AP", "max")

    def __init__(
        self,
        model: str = "retinanet",
        backbone: str = "dgmn2_tiny",
        num_classes: int = 80,
        model_args: dict[str, Any] | None = None,
        checkpoint: Path | None = None,
        inference: Inference = Inference(),  # noqa: B008 - the command line shows its defaults
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=1e-4),
        schedule: ScheduleCallable = MultiStep,
        lr_batch: int | None = 16,
        decay_norms_and_biases: bool = False,
        lr_multipliers: dict[str, float] | None = None,
        freeze: list[str] | str | None = None,
        layer_decay: float | None = None,
        ema_decay: float | None = None,
        patience: int | None = None,
    ) -> None:
        network_args = {"model": model, "backbone": backbone, "num_classes": num_classes, "model_args": model_args}
        build = partial(build_named, BUILDERS)
        settings = (optimizer, schedule, lr_batch, decay_norms_and_biases, lr_multipliers)
        super().__init__(build, network_args, checkpoint, *settings, freeze, layer_decay, ema_decay, patience)
        self.inference = inference
        self.masks = about(self.model).masks
        self.metrics: dict[str, CocoMetric] = {}
        self._rows: list[tuple[object, ...]] = []

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.trainer.precision in ("16-true", "bf16-true"):
            half = self.trainer.precision.removesuffix("-true")
            raise InputError(f"trainer.precision: {half}-true rounds boxes to whole pixels; take {half}-mixed")
        data = self.trainer.datamodule
        if self.masks and not data.masks:
            raise InputError(f"{self.network_args['model']} needs masks: give --data.masks true")
        most = self.network_args["model_args"].get("detections_per_img") or 100
        for split in ("test",) if stage == "test" else ("val",):
            self.metrics[split] = CocoMetric(data.truth(split), data.categories.ids, self.masks, most)

    @override
    def training_step(self, batch: tuple[list[Tensor], list[dict[str, Any]]], batch_idx: int) -> Tensor:
        images, targets = batch
        losses: dict[str, Tensor] = self.model(images, targets)
        return self.log_step(torch.stack(list(losses.values())).sum(), len(images), losses)

    @override
    def validation_step(self, batch: tuple[list[Tensor], list[dict[str, Any]]], batch_idx: int) -> None:
        for image, target, found in zip(*batch, self._evaluate(batch, "val"), strict=True):
            if self.wants_picture():
                likely = {key: value[found["scores"] >= _DRAWN] for key, value in found.items()}
                self._draw(image, self.trainer.datamodule.truth_of("val", target["image_id"]), likely)

    def _draw(self, image: Tensor, truth: dict[str, Any], found: dict[str, Tensor]) -> None:
        names, picture = self.trainer.datamodule.names, TF.to_pil_image(image.float().cpu())
        objects = {
            "labels" if len(truth["labels"]) else "labels: none": truth,
            f"prediction{'' if len(found['labels']) else ': nothing found'} above {_DRAWN}": found,
        }
        parts = {title: with_boxes(picture, each, names)[0] for title, each in objects.items()}
        there = (*truth["labels"].tolist(), *found["labels"].tolist())
        self.keep_picture(side_by_side(parts, _WIDTH), there)

    @override
    def key(self, labels: Sequence[int], width: int) -> Image.Image:
        names = self.trainer.datamodule.names
        colors = distinct_colors(len(names))
        return legend([names[i] for i in labels], [colors[i] for i in labels], width)

    @override
    def test_step(self, batch: tuple[list[Tensor], list[dict[str, Any]]], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: tuple[list[Tensor], list[dict[str, Any]]], split: str) -> list[dict[str, Tensor]]:
        images, targets = batch
        # A batch is empty if all its images were left out.
        results = detect(self.model, images, self.inference) if images else []
        self.metrics[split].update([target["image_id"] for target in targets], results)
        return results

    @override
    def report(self, split: str) -> None:
        metric = self.metrics[split]
        scores = metric.compute()
        for name, (values, _) in scores.items():
            for key, value in values.items():
                if value >= 0 or key == "AP":  # -1: there are no objects of this size
                    self.log(f"{split}/{name}_{key}", value, prog_bar=key == "AP", sync_dist=True)
        data = self.trainer.datamodule
        self._rows = [
            (name, *(f"{by[number]:.1%}" if by[number] >= 0 else "-" for _, by in scores.values()))
            for name, number in zip(data.names, data.categories.ids, strict=True)
            if all(number in by for _, by in scores.values())  # with ids as labels, some numbers have no category
        ]
        if split == "test" and self.trainer.is_global_zero:
            write_results(metric.results, Path(self.trainer.default_root_dir) / "results.json")
        metric.reset()

    @override
    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "inference": asdict(self.inference)}

    @override
    def tables(self) -> list[Table]:
        header = ("category", "box AP", "mask AP")[: 2 + self.masks]
        return [(header, self._rows)] if self._rows else []
