"""Reads and checks annotations in COCO's format, and makes tensors of them."""

import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgmn.errors import InputError
from dgmn.images import MAX_PIXELS
from dgmn.objects.coco_set import CocoImage, CocoImages, CocoSet
from dgmn_base.files import read_json
from dgmn_base.names import find_named


def read_coco(file: Path, folder: Path, problems: list[str] | None = None, masks: bool = True) -> CocoSet:
    """Reads a file of annotations, such as `instances_train.json`; otherwise as `check_coco`."""
    # Python's search for cycles would look at millions of new objects again and again.
    enabled = gc.isenabled()
    gc.disable()
    try:
        return check_coco(load_annotations(file), file, folder, problems, masks)
    finally:
        if enabled:
            gc.enable()


def check_coco(
    content: dict[str, list[Any]], file: Path, folder: Path, problems: list[str] | None = None, masks: bool = True
) -> CocoSet:
    """Checks annotations in COCO's format.

    Category ids can have gaps: a label is an id's place among the sorted ids. Ids of annotations mean nothing. Boxes
    are cut off at the image's border. As in mmdet, boxes of less than a pixel are left out, because they cannot be
    learnt.

    Args:
        content: the annotations, from [`load_annotations`][dgmn.objects.coco.load_annotations] or made of another
            format.
        file: where they are from, for messages.
        folder: folder with the images.
        problems: a list that gets all mistakes, one line each; None raises the first mistake.
        masks: keep the segmentations.

    Raises:
        InputError: (without `problems`) an entry is wrong; the message names it.
    """
    found: list[str] = []

    def report(message: str) -> None:
        if problems is None:
            raise InputError(f"{file}: {message}")
        found.append(f"{file}: {message}")

    names = _categories(content["categories"], report)
    ids = tuple(sorted(names))
    images: dict[int | str, CocoImage] = {}
    rejected: set[Any] = set()
    entry_of: dict[Path, str] = {}
    for i, entry in enumerate(content["images"]):
        what = f"images[{i}]"
        if not _has(entry, {"id": (int, str), "file_name": (str,), "width": (int,), "height": (int,)}):
            report(
                f"{what} needs id as a whole number or text, width and height as whole numbers, and file_name as text, "
                f"got {_short(entry)}"
            )
            if isinstance(entry, dict) and isinstance(entry.get("id"), int | str):
                rejected.add(entry["id"])
        elif entry["id"] in images:
            report(f"{what}: the id {entry['id']} is there twice")
        elif (path := find_named(entry["file_name"], (folder,))) is None:
            report(f"{what}: no image {folder / entry['file_name']}")
            rejected.add(entry["id"])
        elif entry_of.setdefault(path, what) != what:
            report(f"{what}: {path} is the image of {entry_of[path]}, too")
            rejected.add(entry["id"])
        elif min(entry["width"], entry["height"]) < 1 or entry["width"] * entry["height"] > MAX_PIXELS:
            report(f"{what}: {_SIZES}, got {entry['width']} x {entry['height']}")
            rejected.add(entry["id"])
        else:
            size = (entry["height"], entry["width"])
            images[entry["id"]] = CocoImage(entry["id"], path, size)
    seen: set[Any] = set()
    number: Any = None

    def wrong(message: str) -> None:
        report(f"annotations[{i}]{'' if number is None else f' (id {_short(number)})'}{message}")

    for i, entry in enumerate(content["annotations"]):  # noqa: B007 - `wrong` names it
        number = None
        if not _has(entry, {"image_id": (int, str), "category_id": (int,)}):
            wrong(f" needs image_id as its image has it, and category_id as a whole number, got {_short(entry)}")
            continue
        number = entry.get("id")
        key = number if type(number) is int else json.dumps(number)
        if number is not None and key in seen:
            wrong(": this id is there twice")
        elif entry["image_id"] in rejected:
            continue  # one message for the image is enough
        elif entry["image_id"] not in images:
            wrong(f": the image_id {_short(entry['image_id'])} belongs to no image")
        elif entry["category_id"] not in names:
            wrong(f": the category_id {entry['category_id']} is not declared; there are {_short(list(ids))}")
        else:
            image = images[entry["image_id"]]
            box = _clipped(entry.get("bbox"), image.size)
            crowd = is_crowd(entry)
            if isinstance(box, str):
                wrong(f": {box}")
            elif crowd is None:
                wrong(f": iscrowd must be 0 or 1, got {_short(entry['iscrowd'])}")
            else:
                kept = ("id", "category_id", *(("segmentation", "parts") if masks else ()))
                facts = {key: entry[key] for key in kept if key in entry}
                here = image.left_out if min(box[2:]) < 1 else image.objects
                here.append({**facts, "bbox": box, "iscrowd": int(crowd)})
        seen.add(key)
    if not content["images"]:
        report("no images in it")
    if problems is not None:
        problems += found
    ordered = CocoImages(images[key] for key in sorted(images, key=order_of_ids))
    return CocoSet(ordered, tuple(names[key] for key in ids), ids)


def load_annotations(file: Path) -> dict[str, list[Any]]:
    """The content of a file in COCO's format: lists of images, annotations and categories, whose entries are unchecked.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file of annotations")
    content = read_json(file)
    keys = ("images", "annotations", "categories")
    if isinstance(content, dict):
        content.setdefault("annotations", [])  # files of test images have none
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise InputError(f"{file}: not in COCO's format: it needs lists of images, annotations and categories")
    for key, names in _WHOLE_NUMBERS.items():
        for entry in content[key]:
            for name in names if isinstance(entry, dict) else ():
                value = entry.get(name)
                if type(value) is float and value.is_integer():  # pandas and others write 640.0
                    entry[name] = int(value)
    return content


def order_of_ids(number: int | str) -> tuple[bool, int | str]:
    """Sorts ids of images: numbers first, then texts."""
    return isinstance(number, str), number


def is_crowd(entry: dict[str, Any]) -> bool | None:
    """Whether an annotation is of a crowd; a missing value or null is none. Returns None for anything but 0 or 1."""
    value = entry.get("iscrowd")
    if value is None:
        return False
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def _categories(entries: list[Any], report: Any) -> dict[int, str]:
    names: dict[int, str] = {}
    for i, entry in enumerate(entries):
        if not _has(entry, {"id": (int,), "name": (str,)}):
            report(f"categories[{i}] needs id as a whole number, and name as text, got {_short(entry)}")
        elif entry["id"] in names:
            report(f"categories[{i}]: the id {entry['id']} is there twice")
        elif entry["name"] in names.values():
            report(f"categories[{i}]: the name {entry['name']!r} is there twice")
        else:
            names[entry["id"]] = entry["name"]
    if not names:
        report("no categories in it")
    return names


def _clipped(box: Any, size: tuple[int, int]) -> list[float] | str:
    """The part of a box inside an image of `size` (height, width), or a message about what is wrong with the box."""
    # Larger numbers are mistakes. The comparison is also false for infinity and NaN.
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(x) and abs(x) < 1e9 for x in box):
        return f"bbox must be four numbers x, y, width, height, got {_short(box)}"
    x, y, width, height = box
    if width < 0 or height < 0:
        return f"bbox has a negative size, got {_short(box)}"
    left, top = max(x, 0), max(y, 0)
    return [left, top, min(x + width, size[1]) - left, min(y + height, size[0]) - top]


def to_target(image: CocoImage, ids: Sequence[int], masks: bool) -> dict[str, Tensor]:
    """The objects of an image as a detector takes them, without crowds.

    Args:
        image: the image with its annotations.
        ids: ids of the categories, in the order of the labels.
        masks: whether the masks are wanted, too.

    Returns:
        `boxes` (N, 4) as x1, y1, x2, y2 in pixels, `labels` (N,), and `masks` (N, H, W), uint8.

    Raises:
        InputError: a segmentation cannot be read; the message names the annotation.
    """
    objects = image.to_learn
    boxes = torch.tensor([entry["bbox"] for entry in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = {number: i for i, number in enumerate(ids)}
    target = {
        "boxes": boxes,
        "labels": torch.tensor([labels[entry["category_id"]] for entry in objects], dtype=torch.long),
    }
    if masks:
        decoded = [decode_mask(entry, image.size) for entry in objects]
        empty = np.zeros((0, *image.size), np.uint8)
        target["masks"] = torch.from_numpy(np.stack(decoded) if decoded else empty)
    return target


def decode_mask(entry: dict[str, Any], size: tuple[int, int]) -> Any:
    """The segmentation of an annotation, polygons or run lengths, as (H, W), uint8.

    Raises:
        InputError: there is no segmentation, it has another form, or a polygon lies far outside of the image.
    """
    counts = _run_lengths(mask_runs(entry, size))
    values = (np.arange(len(counts)) % 2).astype(np.uint8)
    return np.repeat(values, counts).reshape(size[1], size[0]).T


def mask_runs(entry: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """The segmentation of an annotation as run lengths in COCO's compressed form; otherwise as `decode_mask`."""
    from faster_coco_eval.core import mask as coco_mask

    what = f"annotation {entry.get('id')}: segmentation"
    segmentation = entry.get("segmentation")
    try:
        if isinstance(segmentation, list) and segmentation:
            # A point or a line beside real polygons covers nothing: tools leave it from a click too many.
            segmentation = [each for each in segmentation if not _covers_nothing(each)] or segmentation
            for polygon in segmentation:
                if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                    raise InputError(f"{what}: a polygon needs three points or more, as x, y, x, y and so on")
                # Drawing takes memory for every pixel that a polygon's border passes, also outside of the image.
                far = next((x for x in polygon if not (_is_number(x) and abs(x) <= _FAR * max(size))), None)
                if far is not None:
                    raise InputError(f"{what}: {_short(far)} in a polygon is no place in or near the image")
                points = np.asarray(polygon, float).reshape(-1, 2)
                border = np.abs(points - np.roll(points, 1, 0)).max(1).sum()
                if border > _BORDER * sum(size):
                    raise InputError(f"{what}: the border of a polygon is {border:.0f} pixels long")
            runs = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
        elif isinstance(segmentation, dict) and list(segmentation.get("size", ())) == list(size):
            counts = segmentation.get("counts")
            runs = {**segmentation, "size": list(size)}  # numbers such as 640.0 are whole, too
            if isinstance(counts, list):
                runs = coco_mask.frPyObjects({**runs, "counts": _whole_runs(counts)}, *size)
            _run_lengths(runs)
        else:
            raise InputError(f"{what} must be polygons, or run lengths of the image's size, got {_short(segmentation)}")
        found: dict[str, Any] = runs
        return found
    except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what} cannot be read ({error})") from error


def _whole_runs(counts: list[Any]) -> list[int]:
    """Run lengths as whole numbers."""
    odd = next((x for x in counts if not (_is_number(x) and x >= 0 and int(x) == x)), None)
    if odd is not None:
        raise ValueError(f"run lengths must be whole numbers of at least 0, got {_short(odd)}")
    return [int(x) for x in counts]


def _run_lengths(runs: dict[str, Any]) -> Any:
    """The lengths of the runs, down the columns. numpy repeats them faster than faster-coco-eval.

    Raises:
        ValueError: they do not fill the image.
    """
    from faster_coco_eval import mask_api_new_cpp

    counts = np.asarray(mask_api_new_cpp.toUncompressedRLE([runs])[0]["counts"], np.int64)
    height, width = runs["size"]
    if counts.min(initial=0) < 0 or counts.sum() != height * width:
        raise ValueError(f"the runs fill {counts.sum()} of {height * width} pixels")
    return counts


def mask_area(runs: dict[str, Any]) -> int:
    """The number of pixels of a mask, given as run lengths in COCO's compressed form."""
    from faster_coco_eval.core import mask as coco_mask

    return int(coco_mask.area(runs))


def encode_mask(mask: NDArray[Any]) -> dict[str, Any]:
    """A mask (H, W) as run lengths in COCO's compressed form."""
    from faster_coco_eval.core import mask as coco_mask

    counts = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return {"size": list(mask.shape), "counts": counts.decode() if isinstance(counts, bytes) else counts}


_WHOLE_NUMBERS = {
    "images": ("id", "width", "height"),
    "annotations": ("id", "image_id", "category_id"),
    "categories": ("id",),
}
_SIZES = f"the size must be at least 1 x 1, and at most {MAX_PIXELS:,} pixels"
_FAR = 10  # how many times the image's long side a polygon may lie away from its corner
_BORDER = 100  # how many times the image's height and width together a polygon's border may be long


def _has(entry: Any, fields: dict[str, tuple[type, ...]]) -> bool:
    return isinstance(entry, dict) and all(type(entry.get(name)) in kinds for name, kinds in fields.items())


def _covers_nothing(polygon: Any) -> bool:
    return isinstance(polygon, list) and len(polygon) in (0, 2, 4)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
