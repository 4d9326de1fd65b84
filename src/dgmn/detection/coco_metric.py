"""Average precision over all images and processes of an evaluation."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from typing_extensions import override

from dgmn.detection.metrics import average_precision, to_results

Scores = dict[str, tuple[dict[str, float], dict[int, float]]]

NAMES = {"bbox": "box", "segm": "mask"}


class CocoMetric(Metric):
    """[`average_precision`][dgmn.detection.metrics.average_precision] of boxes and, if wanted, of masks.

    Args:
        truth: annotations in COCO's format, a file or its content.
        category_ids: category ids of the annotations, in the order of the labels.
        masks: whether masks are evaluated, too.
        most: number of detections per image that count.

    Attributes:
        results: all detections as COCO's test server takes them; `compute` sets it.
    """

    full_state_update = False
    lines: list[Tensor]

    def __init__(
        self, truth: Path | dict[str, Any], category_ids: Sequence[int], masks: bool = False, most: int = 100
    ) -> None:
        super().__init__()
        self.truth = truth
        self.category_ids = tuple(category_ids)
        self.kinds = ("bbox", "segm") if masks else ("bbox",)
        self.most = most
        self.results: list[dict[str, Any]] = []
        # Each tensor is a line of JSON in bytes: processes exchange tensors, and masks and ids have no other such form.
        self.add_state("lines", default=[], dist_reduce_fx="cat")

    @override
    def update(self, image_ids: Sequence[int], found: Sequence[dict[str, Tensor]]) -> None:
        """Adds images: their ids in the annotations, and what a detector found in each."""
        pairs = zip(image_ids, found, strict=True)
        results = [row for number, here in pairs for row in to_results(number, here, self.category_ids)]
        line = json.dumps([list(image_ids), results]) + "\n"
        self.lines.append(torch.frombuffer(bytearray(line.encode()), dtype=torch.uint8).to(self.device))

    @override
    def compute(self) -> Scores:
        """The scores and the AP of every category id, for "box" and, if wanted, "mask"; see `average_precision`."""
        lines = bytes(dim_zero_cat(self.lines).cpu().numpy()).splitlines() if len(self.lines) else []
        parts = [json.loads(line) for line in lines]
        seen = [number for ids, _ in parts for number in ids]
        self.results = [row for _, results in parts for row in results]
        return {NAMES[kind]: average_precision(self.truth, self.results, kind, seen, self.most) for kind in self.kinds}
