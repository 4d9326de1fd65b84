"""Training and evaluation of detectors."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.cli import OptimizerCallable
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF
from typing_extensions import override

from dgmn.detection.metrics import average_precision, to_results, write_results
from dgmn.detection.networks import BUILDERS
from dgmn.detection.predict import drawn
from dgmn.errors import InputError
from dgmn.models.build import build_named
from dgmn.training.schedules import MultiStep
from dgmn.training.start import start_from
from dgmn.training.task import ScheduleCallable, Table, Task
from dgmn.visualize import stacked

_PICTURED = 4  # images of a validation that are drawn
_DRAWN = 0.3  # score from which on a detection is drawn


class DetectionTask(Task):
    """Trains a detector on any timm backbone.

    Args:
        model: one of `dgmn.detection.networks.BUILDERS`, for instance "retinanet", "mask_rcnn", "deformable_detr".
        backbone: name for `timm.create_model`: ours or any other, so that they can be compared.
        num_classes: categories of the data.
        model_args: more arguments for the network, for instance `min_size: 400`.
        checkpoint: weights to start from, official or own: of a detector, or of a classifier for the backbone.
        optimizer, schedule, lr_batch: see [`Task`][dgmn.training.Task].
        lr_multipliers: of the learning rate of the parameters whose names contain the key, for instance
            `{backbone: 0.1}`; of several keys that fit the longest counts.
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
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=1e-4),
        schedule: ScheduleCallable = MultiStep,
        lr_batch: int | None = 16,
        lr_multipliers: dict[str, float] | None = None,
    ) -> None:
        network = build_named(BUILDERS, model, backbone, num_classes, model_args)
        network_args: dict[str, Any] = {
            "model": model,
            "backbone": backbone,
            "num_classes": num_classes,
            # What only starts a training is not needed to build its network again.
            "model_args": {k: v for k, v in (model_args or {}).items() if k != "pretrained"},
        }
        super().__init__(network, network_args, optimizer, schedule, lr_batch)
        self.lr_multipliers = lr_multipliers or {}
        self.filled = checkpoint is not None and start_from(network, checkpoint)
        self.detections = network_args["model_args"].get("detections_per_img") or 100
        self.kinds = ("bbox", "segm") if model == "mask_rcnn" else ("bbox",)
        self._results: list[dict[str, Any]] = []
        self._seen: list[int] = []
        self._rows: list[tuple[object, ...]] = []
        self._pictures: list[Image.Image] = []

    @override
    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule
        if data is None:
            raise InputError("a DetectionTask is trained with a DetectionData: trainer.fit(task, data)")
        self.check_classes(data.classes)
        if "segm" in self.kinds and not data.masks:
            raise InputError("mask_rcnn needs masks: give --data.masks true")

    @override
    def training_step(self, batch: tuple[list[Tensor], list[dict[str, Any]]], batch_idx: int) -> Tensor:
        images, targets = batch
        losses: dict[str, Tensor] = self.model(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images))
        for name, value in losses.items():
            self.log(f"train/{name}", value, batch_size=len(images))
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    @override
    def validation_step(self, batch: tuple[list[Tensor], list[dict[str, Any]]], batch_idx: int) -> None:
        results = self._evaluate(batch)
        if len(self._pictures) < _PICTURED and self.trainer.is_global_zero:
            names = self.trainer.datamodule.classes
            for image, found in list(zip(batch[0], results, strict=True))[: _PICTURED - len(self._pictures)]:
                likely = {key: value[found["scores"] >= _DRAWN] for key, value in found.items()}
                self._pictures.append(drawn(TF.to_pil_image(image.float().cpu()), likely, names))

    @override
    def test_step(self, batch: tuple[list[Tensor], list[dict[str, Any]]], batch_idx: int) -> None:
        self._evaluate(batch)

    def _evaluate(self, batch: tuple[list[Tensor], list[dict[str, Any]]]) -> list[dict[str, Tensor]]:
        images, targets = batch
        if not images:  # all of them were left out
            return []
        results: list[dict[str, Tensor]] = self.model(images)
        ids = self.trainer.datamodule.describe()["category_ids"]
        for found, target in zip(results, targets, strict=True):
            self._seen.append(target["image_id"])
            self._results += to_results(target["image_id"], found, ids)
        return results

    @override
    def on_validation_epoch_end(self) -> None:
        self._report("val")
        if self._pictures and self.trainer.state.fn == "fit":
            folder = Path(self.trainer.default_root_dir) / "pictures"
            folder.mkdir(parents=True, exist_ok=True)
            stacked(self._pictures).save(folder / f"epoch_{self.current_epoch:04d}.jpg", quality=90)
        self._pictures.clear()

    @override
    def on_test_epoch_end(self) -> None:
        results = self._report("test")
        if self.trainer.is_global_zero:
            write_results(results, Path(self.trainer.default_root_dir) / "results.json")

    def _report(self, split: str) -> list[dict[str, Any]]:
        results, seen = self._of_all_processes(self._results), self._of_all_processes(self._seen)
        self._results, self._seen = [], []
        data = self.trainer.datamodule
        by_kind = {}
        for kind in self.kinds:
            name = {"bbox": "box", "segm": "mask"}[kind]
            scores, by_kind[name] = average_precision(data.annotation_file(split), results, kind, seen, self.detections)
            for metric, value in scores.items():
                if value >= 0 or metric == "AP":  # there are objects of this size
                    self.log(f"{split}/{name}_{metric}", value, prog_bar=metric == "AP", sync_dist=True)
        ids = data.describe()["category_ids"]
        self._rows = [
            (name, *(f"{by[number]:.1%}" if by[number] >= 0 else "-" for by in by_kind.values()))
            for name, number in zip(data.classes, ids, strict=True)
        ]
        return results

    def _of_all_processes(self, mine: list[Any]) -> list[Any]:
        if self.trainer.world_size == 1:
            return mine
        parts: list[Any] = [None] * self.trainer.world_size
        dist.all_gather_object(parts, mine)
        return [entry for part in parts for entry in part]

    @override
    def tables(self) -> list[Table]:
        header = ("category", "box AP", "mask AP")[: len(self.kinds) + 1]
        return [(header, self._rows)] if self._rows else []
