"""Average precision as COCO defines it."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgmn.errors import InputError
from dgmn.objects.coco import encode_mask, is_crowd, load_annotations, mask_runs, order_of_ids
from dgmn_base.files import writing

_STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def to_results(image_id: int | str, found: dict[str, Tensor], ids: Sequence[int]) -> list[dict[str, Any]]:
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
    images: Iterable[int | str] | None = None,
    most: int = 100,
) -> tuple[dict[str, float], dict[int, float]]:
    """COCO's average precision. It is computed by faster-coco-eval, which gives the same numbers as pycocotools.

    It does not depend on ids: images, categories and annotations are numbered anew. What tools leave out has a meaning:
    without `iscrowd`, an object is no crowd; without a positive `area`, the area of the box says whether it is small,
    medium or large; in the evaluation of masks, a crowd without a segmentation is its box.

    Args:
        annotations: file or content in COCO's format.
        results: detections of all images, from [`to_results`][dgmn.detection.metrics.to_results].
        kind: "bbox" or "segm".
        images: ids of the images that count; None for all images of the file.
        most: number of detections per image that count, those with the highest scores; COCO counts 100.

    Returns:
        AP, AP50, AP75, APs, APm, APl in 0..1, or -1 where there is nothing to find; and the AP of every category id.

    Raises:
        InputError (a ValueError): `kind` is neither, the annotations cannot be read, or a result is of an image that is
            not in the file, or holds a number that is not finite.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    if kind not in ("bbox", "segm"):
        raise InputError(f'kind must be "bbox" or "segm", got {kind!r}')
    content = annotations if isinstance(annotations, dict) else load_annotations(annotations)
    of_image, of_category = (_numbered(entry["id"] for entry in content[name]) for name in ("images", "categories"))
    truth = COCO(
        {
            "images": [{**entry, "id": of_image[entry["id"]]} for entry in content["images"]],
            "categories": [{**entry, "id": of_category[entry["id"]]} for entry in content["categories"]],
            "annotations": _truth(content, kind, of_image, of_category),
        }
    )
    evaluation = COCOeval_faster(truth, truth.loadRes(_found(results, kind, of_image, of_category)), kind)
    evaluation.params.maxDets = [min(1, most), min(10, most), most]
    if images is not None:
        evaluation.params.imgIds = sorted(of_image[number] for number in images)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    # precision: (overlaps, recalls, categories, sizes of objects, most detections)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    by_category = {}
    for i, category in enumerate(of_category):  # the new numbers have the same order
        known = precision[:, :, i][precision[:, :, i] > -1]
        by_category[category] = float(known.mean()) if known.size else -1.0
    return dict(zip(_STATISTICS, map(float, evaluation.stats[:6]), strict=True)), by_category


def _numbered(ids: Iterable[Any]) -> dict[Any, int]:
    """Numbers from 1, in the order of the ids: pycocotools takes an annotation 0 for none."""
    return {number: place for place, number in enumerate(sorted(ids, key=order_of_ids), 1)}


def _truth(
    content: dict[str, list[Any]], kind: str, of_image: dict[Any, int], of_category: dict[Any, int]
) -> list[dict[str, Any]]:
    """The annotations as the evaluation needs them, numbered anew."""
    sizes = {entry["id"]: (entry.get("height"), entry.get("width")) for entry in content["images"]}
    truth = []
    for i, entry in enumerate(content.get("annotations", [])):
        try:
            image, category, (left, top, width, height) = entry["image_id"], entry["category_id"], entry["bbox"]
            facts: dict[str, Any] = {"id": i + 1, "image_id": of_image[image], "category_id": of_category[category]}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"annotations[{i}] needs a known image_id and category_id, and a bbox ({error})"
            ) from error
        crowd, area = is_crowd(entry), entry.get("area")
        if crowd is None:
            raise InputError(f"annotations[{i}]: iscrowd must be 0 or 1, got {entry['iscrowd']!r}")
        if isinstance(area, bool) or not isinstance(area, int | float) or not 0 < area < math.inf:
            area = width * height
        facts |= {"bbox": list(entry["bbox"]), "iscrowd": int(crowd), "area": area}
        if kind == "segm":
            if crowd and not entry.get("segmentation"):
                tall, wide = sizes[image]
                right, bottom, left, top = min(left + width, wide), min(top + height, tall), max(left, 0), max(top, 0)
                entry = {**entry, "segmentation": [[left, top, right, top, right, bottom, left, bottom]]}
            facts["segmentation"] = mask_runs(entry, sizes[image])
        truth.append(facts)
    return truth


def _found(
    results: list[dict[str, Any]], kind: str, of_image: dict[Any, int], of_category: dict[Any, int]
) -> list[dict[str, Any]]:
    """The detections as the evaluation needs them, numbered as the annotations."""
    unknown = {result["image_id"] for result in results} - of_image.keys()
    if unknown:
        raise InputError(f"results of the image {min(unknown, key=order_of_ids)}, which is not in the annotations")
    # Copies, because loadRes writes into them. If a mask had a box with it, it would get the box's area.
    found = []
    for result in results:
        numbers = (result["score"], *(result["bbox"] if kind == "bbox" else ()))
        if not all(map(math.isfinite, numbers)):
            raise InputError(f"results of the image {result['image_id']}: a score or a box is not finite: {numbers}")
        if result["category_id"] in of_category:
            shape = {"bbox": list(result["bbox"])} if kind == "bbox" else {"segmentation": {**result["segmentation"]}}
            numbered = {"image_id": of_image[result["image_id"]], "category_id": of_category[result["category_id"]]}
            found.append({**numbered, "score": result["score"], **shape})
    return found


def write_results(results: list[dict[str, Any]], file: Path) -> None:
    """Writes results for COCO's test server."""
    with writing(file) as out:
        out.write((json.dumps(results, allow_nan=False) + "\n").encode())
