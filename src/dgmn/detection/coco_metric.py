"""Average precision over all images and processes of an evaluation."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dgmn.detection.metrics import average_precision, to_results
from dgmn.processes import from_first, to_first

Scores = dict[str, tuple[dict[str, float], dict[int, float]]]

NAMES = {"bbox": "box", "segm": "mask"}


class CocoMetric:
    """[`average_precision`][dgmn.detection.metrics.average_precision] of boxes and, if wanted, of masks.

    Of several processes, each keeps what it has found. The first one gets all detections and reads the annotations.

    Args:
        truth: annotations in COCO's format, a file or its content.
        category_ids: category ids of the annotations, in the order of the labels.
        masks: whether masks are evaluated, too.
        most: number of detections per image that count.

    Attributes:
        results: all detections as COCO's test server takes them; `compute` sets it in the first process.
    """

    def __init__(
        self, truth: Path | dict[str, Any], category_ids: Sequence[int], masks: bool = False, most: int = 100
    ) -> None:
        self.truth = truth
        self.category_ids = tuple(category_ids)
        self.kinds = ("bbox", "segm") if masks else ("bbox",)
        self.most = most
        self.results: list[dict[str, Any]] = []
        self._lines: list[bytes] = []  # in JSON, a tenth of what the same takes as objects of Python

    def update(self, image_ids: Sequence[int], found: Sequence[dict[str, Tensor]]) -> None:
        """Adds images: their ids in the annotations, and what a detector found in each."""
        pairs = zip(image_ids, found, strict=True)
        results = [row for number, here in pairs for row in to_results(number, here, self.category_ids)]
        self._lines.append(json.dumps([list(image_ids), results]).encode())

    def compute(self) -> Scores:
        """The scores and the AP of every category id, for "box" and, if wanted, "mask"; see `average_precision`.

        All processes must call it, and all get the scores.
        """
        gathered = to_first(self._lines)
        scores: Scores = from_first(self._score(gathered) if gathered else None)
        return scores

    def _score(self, gathered: Sequence[Sequence[bytes]]) -> Scores:
        parts = [json.loads(line) for lines in gathered for line in lines]
        seen = [number for ids, _ in parts for number in ids]
        self.results = [row for _, results in parts for row in results]
        return {NAMES[kind]: average_precision(self.truth, self.results, kind, seen, self.most) for kind in self.kinds}

    def reset(self) -> None:
        """Forgets all images."""
        self.results, self._lines = [], []
