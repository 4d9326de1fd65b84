"""Prediction with a trained or published detector. Needs no lightning."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF
from typing_extensions import override

from dgmn.about import Preprocessing
from dgmn.detection.builders import BUILDERS
from dgmn.detection.categories import CATEGORIES
from dgmn.detection.inference import Inference, detect
from dgmn.detection.metrics import to_results
from dgmn.errors import InputError, check_share
from dgmn.finite import check_scores
from dgmn.images import AnyImage, Named, stacked
from dgmn.models.build import build_named
from dgmn.nodes import Point, SampledLayer, node_maps
from dgmn.objects.coco import mask_area
from dgmn.pictures import boxed, distinct_colors, inscribed, legend
from dgmn.predictor import OnError, Predictor, Progress, Result, run, with_tuples
from dgmn.writers import JsonWriter

Found = dict[str, Tensor]


class DetectionResult(Result):
    """The objects in an image, the highest score first.

    Attributes:
        boxes: x1, y1, x2, y2 in pixels, (N, 4), float32.
        scores: (N,), float32.
        labels: indices of their classes in the model's names, (N,), int64.
        names: names of their classes, (N,).
        masks: (N, H, W), bool, or None if the network predicts no masks.
    """

    def __init__(self, source: AnyImage, image: Image.Image, found: Found, predictor: "DetectionPredictor") -> None:
        super().__init__(source, image)
        self._found = found
        self._predictor = predictor
        self.boxes: NDArray[np.float32] = found["boxes"].float().numpy()
        self.scores: NDArray[np.float32] = found["scores"].float().numpy()
        self.labels: NDArray[np.int64] = found["labels"].numpy()
        self.names: NDArray[np.str_] = np.array(predictor.names, dtype=str)[self.labels]
        self.masks: NDArray[np.bool_] | None = found["masks"][:, 0].numpy() if "masks" in found else None

    def above(self, score: float) -> "DetectionResult":
        """The objects with at least this score."""
        keep = self._found["scores"] >= score
        found = {key: value[keep] for key, value in self._found.items()}
        return DetectionResult(self.source, self.image, found, self._predictor)

    def __len__(self) -> int:
        return len(self.scores)

    def __str__(self) -> str:
        objects = f"{len(self)} object{'' if len(self) == 1 else 's'}"
        return f"{objects}: {self._summary()}" if len(self) else objects

    def _summary(self, most: int = 6) -> str:
        """The classes, the most frequent first, with the best score of each."""
        counts = Counter(self.names.tolist()).most_common()
        parts = [f"{count} {name} ({self.scores[self.names == name].max():.0%})" for name, count in counts[:most]]
        return ", ".join(parts) + (f" and {len(counts) - most} more" if len(counts) > most else "")

    @override
    def cells(self) -> tuple[str, ...]:
        return str(len(self)), self._summary()

    @override
    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON.

        The `objects` have `name`, `score`, `box` (x1, y1, x2, y2) and, with masks, `mask` as COCO's run lengths.
        """
        objects = [
            {"name": name, "score": round(score, 6), "box": [round(corner, 2) for corner in box]}
            for name, score, box in zip(self.names.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        ]
        if self.masks is not None:
            for thing, row in zip(objects, self.to_coco(), strict=True):
                thing["mask"] = row["segmentation"]
        return {**self.head(), "width": self.image.width, "height": self.image.height, "objects": objects}

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """Annotations with scores in COCO's format, without ids of their own.

        Args:
            image_id: id of the image.
        """
        rows = to_results(image_id, self._found, self._predictor.category_ids)
        for row in rows:
            _, _, width, height = row["bbox"]
            row["area"] = mask_area(row["segmentation"]) if "segmentation" in row else width * height
            row["iscrowd"] = 0
        return rows

    def to_yolo(self) -> str:
        """The boxes as YOLO's labels, without scores: a line for each with its class, centre, width and height in 0..1.

        Boxes are cut off at the image's border; one without an area is left out. Masks are not in it, see `to_coco`.
        """
        size = np.array([self.image.width, self.image.height], np.float64)
        low = (self.boxes[:, :2] / size).clip(0, 1)
        high = (self.boxes[:, 2:] / size).clip(0, 1)
        rows = np.concatenate(((low + high) / 2, high - low), 1).tolist()
        return "".join(
            f"{label} {' '.join(f'{value:.9f}' for value in row)}\n"
            for label, row in zip(self.labels.tolist(), rows, strict=True)
            if min(row[2:]) > 0
        )

    def to_supervision(self) -> Any:
        """The objects as `supervision.Detections`, with the names of their classes as `class_name`.

        Raises:
            InputError (a ValueError): supervision is not installed.
        """
        try:
            from supervision import Detections
        except ImportError as error:
            raise InputError("to_supervision needs supervision: pip install supervision") from error
        data = {"class_name": self.names}
        return Detections(self.boxes, mask=self.masks, confidence=self.scores, class_id=self.labels, data=data)

    @override
    def draw(self, inside: bool = False) -> Image.Image:
        """The image with boxes, masks, names and scores.

        Where there is no room for a caption, the picture says how many are left out, and what the colours mean.
        """
        return drawn(self.image, self._found, self._predictor.names, inside)

    def boxed(self) -> Image.Image:
        """The image as in `draw`, and nothing below it."""
        return with_boxes(self.image, self._found, self._predictor.names)[0]


class DetectionPredictor(Predictor):
    """Finds the objects in an image.

    Args:
        network: takes a list of images (3, H, W) in 0..1, gives `boxes`, `scores`, `labels` and optionally `masks`.
        names: names of the classes.
        category_ids: ids of the classes, for results in COCO's format; None counts from 1.
        device: device to compute on.
        inference: at which sizes objects are found.
    """

    task: ClassVar[str] = "detection"

    def __init__(
        self,
        network: nn.Module,
        names: Sequence[str],
        category_ids: Sequence[int] | None = None,
        device: str | torch.device = "cpu",
        inference: Inference = Inference(),  # noqa: B008 - a frozen value
    ) -> None:
        super().__init__(network, names, device)
        self.inference = inference
        self.category_ids = tuple(range(1, len(names) + 1) if category_ids is None else category_ids)

    @classmethod
    @override
    def from_description(
        cls, description: Mapping[str, Any], device: str | torch.device = "cpu", network: nn.Module | None = None
    ) -> Self:
        arguments = {key: description[key] for key in ("model", "backbone", "num_classes", "model_args")}
        preprocessing = Preprocessing.from_values(description.get("preprocessing") or {})
        network = network or build_named(BUILDERS, **arguments, preprocessing=preprocessing)
        try:
            inference = Inference(**with_tuples(description.get("inference") or {}))
        except TypeError as error:
            raise InputError(f"inference in the checkpoint: {error}") from error
        return cls(network, description["classes"], description["category_ids"], device, inference)

    @classmethod
    @override
    def published(cls, builder: str, backbone: str, device: str | torch.device = "cpu") -> Self:
        network = build_named(BUILDERS, builder, backbone, len(CATEGORIES))
        return cls(network, tuple(CATEGORIES.values()), tuple(CATEGORIES), device)

    @override
    def describe(self) -> dict[str, Any]:
        return {
            "classes": list(self.names),
            "category_ids": list(self.category_ids),
            "inference": asdict(self.inference),
        }

    @override
    def predict(  # type: ignore[override] # takes only this task's options, by name
        self,
        images: Any,
        *,
        score: float = 0.3,
        batch_size: int | None = None,
        on_error: OnError | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """The objects in an image; see [`Predictor.predict`][dgmn.predictor.Predictor.predict].

        Args:
            images: see `Predictor.predict`.
            score: least score of an object.
            batch_size: images that the network gets at a time; None is 1. More images are padded to one size, which
                changes their results a little.
            on_error: see `Predictor.predict`.
            progress: see `Predictor.predict`.
        """
        check_share("score", score)
        return run(partial(self._predict, score), images, batch_size, self.batch_size, on_error, progress)

    def _predict(
        self, score: float, images: Sequence[tuple[AnyImage, Image.Image]], progress: Progress
    ) -> list[DetectionResult]:
        results = detect(self.network, [self._pixels(image) for _, image in images], self.inference)
        check_scores(*(found["scores"] for found in results))
        return [
            DetectionResult(*image, self._chosen(found, score), self)
            for image, found in zip(images, results, strict=True)
        ]

    @staticmethod
    def _chosen(found: Found, score: float) -> Found:
        order = found["scores"].argsort(descending=True, stable=True)
        order = order[found["scores"][order] >= score]
        return {key: value[order].cpu() for key, value in found.items()}

    def _pixels(self, image: Image.Image) -> Tensor:
        pixels: Tensor = TF.pil_to_tensor(image).to(self.device).float().div_(255)  # in place: it can be large
        return pixels

    @override
    def columns(self, cells: int) -> tuple[str, ...]:
        return "objects", "best score of each class"

    @override
    def sample_layers(self, image: Image.Image, at: Point) -> list[SampledLayer]:
        return node_maps(self.network, [self._pixels(image)])

    def categories(self) -> list[dict[str, Any]]:
        """The categories in COCO's format."""
        return [{"id": number, "name": name} for number, name in zip(self.category_ids, self.names, strict=True)]

    @override
    def writer(self, file: Path) -> JsonWriter:
        """Writes results in COCO's format."""
        return _CocoWriter(file, self.categories())


class _CocoWriter(JsonWriter):
    def __init__(self, file: Path, categories: list[dict[str, Any]]) -> None:
        super().__init__(file)
        self.categories = categories
        self.images: list[dict[str, Any]] = []

    @override
    def head(self) -> str:
        return f'{{"categories": {json.dumps(self.categories)},\n"annotations": ['

    @override
    def tail(self) -> str:
        return f'\n],\n"images": {json.dumps(self.images)}}}\n'

    @override
    def add(self, result: DetectionResult) -> None:
        number = len(self.images) + 1
        width, height = result.image.size
        facts = result.source.facts if isinstance(result.source, Named) else {}
        self.images.append({"id": number, "file_name": result.name, **facts, "width": width, "height": height})
        for row in result.to_coco(number):
            self.entry({"id": self.entries + 1, **row})


def drawn(image: Image.Image, found: Found, names: Sequence[str], inside: bool = False) -> Image.Image:
    """An image with detections: boxes, masks, names and scores. Where they overlap, the first are on top.

    If captions are left out, a key of the classes says so: below the image, or `inside` it, which keeps its size.
    """
    picture, left_out = with_boxes(image, found, names, enlarge=not inside)
    if not left_out:
        return picture
    counts = Counter(found["labels"].tolist()).most_common()
    colors = [distinct_colors(len(names))[label] for label, _ in counts]
    lines = [f"{names[label]} ({count})" for label, count in counts]
    total = len(found["labels"])
    note = f"{left_out} of {total} captions left out, for lack of room"
    if inside:
        return inscribed(picture, [note, *lines], [None, *colors])
    return stacked([picture, legend(lines, colors, picture.width, note)])


def with_boxes(image: Image.Image, found: Found, names: Sequence[str], enlarge: bool = True) -> tuple[Image.Image, int]:
    """An image with detections, or true objects, which have no scores; and the number of captions that are left out."""
    colors = distinct_colors(len(names))
    labels = found["labels"].tolist()
    scores = [f"  {score:.0%}" for score in found["scores"].tolist()] if "scores" in found else [""] * len(labels)
    captions = [f"{names[label]}{score}" for label, score in zip(labels, scores, strict=True)]
    masks = found["masks"][:, 0].cpu().numpy() if "masks" in found else None
    return boxed(image, found["boxes"].tolist(), captions, [colors[label] for label in labels], masks, enlarge)
