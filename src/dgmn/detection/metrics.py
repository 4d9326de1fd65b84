"""Average precision as COCO defines it."""

import json
from collections.abc import Iterable, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgmn.detection.coco import encode_mask
from dgmn.errors import InputError

_STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def to_results(image_id: int, found: dict[str, Tensor], ids: Sequence[int]) -> list[dict[str, Any]]:
    """Detections of an image as COCO's test server takes them.

    Args:
        image_id: id of the image in the file of annotations.
        found: `boxes` (N, 4) as x1, y1, x2, y2, `scores`, `labels`, and optionally `masks` (N, 1, H, W), bool.
        ids: category ids in the order of the labels.
    """
    boxes = found["boxes"].cpu().double()
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    rows = zip(boxes.tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True)
    results = [
        {"image_id": image_id, "category_id": ids[label], "bbox": box, "score": score} for box, score, label in rows
    ]
    if "masks" in found:
        for result, mask in zip(results, found["masks"].cpu().numpy(), strict=True):
            result["segmentation"] = encode_mask(mask[0])
    return results


def average_precision(
    annotations: Path | dict[str, Any],
    results: list[dict[str, Any]],
    kind: str = "bbox",
    images: Iterable[int] | None = None,
    most: int = 100,
) -> tuple[dict[str, float], dict[int, float]]:
    """COCO's average precision. It is computed by faster-coco-eval, which gives the same numbers as pycocotools.

    Args:
        annotations: file or content in COCO's format.
        results: detections of all images, from [`to_results`][dgmn.detection.metrics.to_results].
        kind: "bbox" or "segm".
        images: ids of the images that count; None for all images of the file.
        most: number of detections per image that count, those with the highest scores; COCO counts 100.

    Returns:
        AP, AP50, AP75, APs, APm, APl in 0..1, or -1 where there is nothing to find; and the AP of every category id.

    Raises:
        InputError (a ValueError): `kind` is neither, or a result is of an image that is not in the file.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    if kind not in ("bbox", "segm"):
        raise InputError(f'kind must be "bbox" or "segm", got {kind!r}')
    content = annotations if isinstance(annotations, dict) else json.loads(annotations.read_text(encoding="utf-8"))
    truth = COCO({**content, "annotations": [_with_area(entry) for entry in content.get("annotations", [])]})
    unknown = {result["image_id"] for result in results} - set(truth.imgs)
    if unknown:
        raise InputError(f"results of the image {min(unknown)}, which is not in the annotations")
    # Copies, because loadRes writes into them. If a mask had a box with it, it would get the box's area.
    fields = ("image_id", "category_id", "score", "bbox" if kind == "bbox" else "segmentation")
    copies = [{name: copy(result[name]) for name in fields} for result in results]
    evaluation = COCOeval_faster(truth, truth.loadRes(copies), kind)
    evaluation.params.maxDets = [1, 10, most]
    if images is not None:
        evaluation.params.imgIds = sorted(images)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    # precision: (overlaps, recalls, categories, sizes of objects, most detections)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    by_category = {}
    for i, category in enumerate(evaluation.params.catIds):
        known = precision[:, :, i][precision[:, :, i] > -1]
        by_category[int(category)] = float(known.mean()) if known.size else -1.0
    return dict(zip(_STATISTICS, map(float, evaluation.stats[:6]), strict=True)), by_category


def _with_area(entry: dict[str, Any]) -> dict[str, Any]:
    """The annotation with an area, which decides whether the object is small, medium or large.

    A missing area would count as small, so the area of the box takes its place.
    """
    return entry if "area" in entry else {**entry, "area": entry["bbox"][2] * entry["bbox"][3]}


def write_results(results: list[dict[str, Any]], file: Path) -> None:
    """Writes results for COCO's test server."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results) + "\n")
