"""Prediction with a trained or published segmenter. Needs no lightning."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF
from typing_extensions import override

from dgmn.about import Preprocessing
from dgmn.errors import check_flag
from dgmn.images import AnyImage, stacked
from dgmn.models.build import build_named
from dgmn.nodes import Point, SampledLayer, node_maps
from dgmn.pictures import inscribed, legend, overlay
from dgmn.predictor import OnError, Predictor, Progress, Result, run, with_tuples
from dgmn.segmentation.builders import BUILDERS
from dgmn.segmentation.cityscapes import CITYSCAPES
from dgmn.segmentation.inference import (
    PAPER_SCALES,
    Inference,
    count_windows,
    predict_labels,
    predict_probabilities,
    window_around,
)
from dgmn.segmentation.labels import Color, paint, painted_colors
from dgmn.segmentation.transforms import normalise

_LARGEST = 2000  # pixels of the longer side of a picture


class SegmentationResult(Result):
    """The class of every pixel of an image.

    Attributes:
        labels: class numbers, (H, W), uint8: indices into the model's names.
        probabilities: probabilities of the classes, (classes, H, W), float32; None if they were not asked for.
    """

    def __init__(
        self,
        source: AnyImage,
        image: Image.Image,
        labels: NDArray[np.uint8],
        probabilities: NDArray[np.float32] | None,
        predictor: "SegmentationPredictor",
    ) -> None:
        super().__init__(source, image)
        self.labels = labels
        self.probabilities = probabilities
        self._predictor = predictor

    @property
    def shares(self) -> dict[str, float]:
        """The share of the image that each class fills, the largest first. Classes that do not occur are left out.

        Classes of the same name are one.
        """
        names = self._predictor.names
        counts: Counter[str] = Counter()
        for name, count in zip(names, np.bincount(self.labels.ravel(), minlength=len(names)).tolist(), strict=True):
            counts[name] += count
        return {name: count / self.labels.size for name, count in counts.most_common() if count}

    def __str__(self) -> str:
        return ", ".join(f"{name} {share:.1%}" for name, share in self.shares.items())

    @override
    def cells(self) -> tuple[str, ...]:
        cells = [f"{name} {share:.1%}" for name, share in self.shares.items()][:_COLUMNS]
        return (*cells, *[""] * (_COLUMNS - len(cells)))

    @override
    def to_dict(self) -> dict[str, Any]:
        return {**self.head(), "shares": {name: round(share, 6) for name, share in self.shares.items()}}

    def label_image(self) -> Image.Image:
        """The labels as an image with a palette: its indices are the labels, its colours those of the classes."""
        return paint(self.labels, self._predictor.colors)

    @override
    def draw(self, inside: bool = False) -> Image.Image:
        """The image with the colours of its classes over it, and a legend below, or in its corner."""
        names, colors = self._predictor.names, self._predictor.painted_colors
        picture = overlay(self.image, self.labels, colors)
        if inside:
            shades = dict(zip(names, colors, strict=True))
            return inscribed(picture, list(self.shares), [shades[name] for name in self.shares])
        picture.thumbnail((_LARGEST, _LARGEST))
        present = np.flatnonzero(np.bincount(self.labels.ravel(), minlength=len(names)))
        key = legend([names[i] for i in present], [colors[i] for i in present], picture.width)
        return stacked([picture, key])


_COLUMNS = 5


class SegmentationPredictor(Predictor):
    """Names the class of every pixel of an image.

    Args:
        network: maps preprocessed images (B, 3, H, W) to logits (B, classes, H, W).
        names: names of the classes.
        colors: colours of the classes in pictures.
        inference: how images are predicted.
        preprocessing: preprocessing of the images.
        device: device to compute on.
    """

    task: ClassVar[str] = "segmentation"

    def __init__(
        self,
        network: nn.Module,
        names: Sequence[str],
        colors: Sequence[Color],
        inference: Inference = Inference(),  # noqa: B008 - a frozen value
        preprocessing: Preprocessing = Preprocessing(),  # noqa: B008 - a frozen value
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(network, names, device)
        self.colors = tuple(colors)
        self.painted_colors = painted_colors(names, colors)
        self.inference = inference
        self.preprocessing = preprocessing
        self._normalise = normalise(preprocessing)

    @classmethod
    @override
    def from_description(
        cls, description: Mapping[str, Any], device: str | torch.device = "cpu", network: nn.Module | None = None
    ) -> Self:
        arguments = {key: description[key] for key in ("model", "backbone", "num_classes", "model_args")}
        preprocessing = Preprocessing.from_values(description.get("preprocessing") or {})
        network = network or build_named(BUILDERS, **arguments, preprocessing=preprocessing)
        colors = [(r, g, b) for r, g, b in description["colors"]]
        inference = Inference(**with_tuples(description["inference"]))
        return cls(network, description["classes"], colors, inference, preprocessing, device)

    @classmethod
    @override
    def published(cls, builder: str, backbone: str, device: str | torch.device = "cpu") -> Self:
        network = build_named(BUILDERS, builder, backbone, len(CITYSCAPES.names))
        return cls(network, CITYSCAPES.names, CITYSCAPES.colors, Inference("slide"), device=device)

    @override
    def describe(self) -> dict[str, Any]:
        return {
            "classes": list(self.names),
            "colors": [list(color) for color in self.colors],
            "inference": asdict(self.inference),
            "preprocessing": self.preprocessing.to_values(),
        }

    @override
    def predict(  # type: ignore[override] # accepts this task's options only
        self,
        images: Any,
        *,
        probabilities: bool = False,
        multi_scale: bool = False,
        batch_size: int | None = None,
        on_error: OnError | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """The class of every pixel; see [`Predictor.predict`][dgmn.predictor.Predictor.predict].

        Args:
            images: one image or many, in any form that `Predictor.predict` takes.
            probabilities: also give the probability of every class at every pixel. All of them must fit into memory.
            multi_scale: average over six scales and their mirror images, as the paper does.
            batch_size: images that are read at a time. The network gets them one by one, each at its own size.
            on_error: is told of an image that cannot be read, and why; None raises the error.
            progress: is told how many images are done.
        """
        check_flag("probabilities", probabilities)
        check_flag("multi_scale", multi_scale)
        inference = replace(self.inference, scales=PAPER_SCALES, flip=True) if multi_scale else self.inference
        predict = partial(self._predict, inference, probabilities)
        return run(predict, images, batch_size, self.batch_size, on_error, progress)

    def _predict(
        self,
        inference: Inference,
        wanted: bool,
        images: Sequence[tuple[AnyImage, Image.Image]],
        progress: Progress,
    ) -> list[SegmentationResult]:
        results = []
        for i, (source, image) in enumerate(images):
            pixels = self._pixels(image)
            total, done = count_windows(image.height, image.width, inference), 0

            def watched(windows: Tensor, i: int = i, total: int = total) -> Tensor:
                nonlocal done
                logits: Tensor = self.network(self._preprocessed(windows))
                done += len(windows)
                progress((i + done / total) / len(images))
                return logits

            probabilities = None
            if wanted:
                found = predict_probabilities(watched, pixels, inference).cpu()
                labels, probabilities = found.argmax(0).to(torch.uint8), found.numpy()
            else:
                labels = predict_labels(watched, pixels, inference)
            results.append(SegmentationResult(source, image, labels.numpy(), probabilities, self))
        return results

    def _pixels(self, image: Image.Image) -> Tensor:
        """The image (3, H, W), uint8: as floats, a large one would fill the memory."""
        pixels: Tensor = TF.pil_to_tensor(image).to(self.device)
        return pixels

    def _preprocessed(self, windows: Tensor) -> Tensor:
        """Parts of an image as the network takes them; resized parts are floats in 0..255."""
        pixels = tv_tensors.Image(windows / 255 if windows.is_floating_point() else windows)
        out: Tensor = self._normalise(pixels).as_subclass(Tensor)
        return out

    @override
    def columns(self, cells: int) -> tuple[str, ...]:
        return tuple(f"{rank + 1}." for rank in range(cells))

    @override
    def sample_layers(self, image: Image.Image, at: Point) -> list[SampledLayer]:
        """What the network samples at all positions of the image, at its own size or that of `inference.fit`.

        If the network gets windows of the image, the window whose middle is closest to the point is used.
        """
        (top, left), (height, width), scaled = window_around(at, self._pixels(image), self.inference)
        scale = (image.width / scaled.shape[-1], image.height / scaled.shape[-2])
        part = self._preprocessed(scaled[None, :, top : top + height, left : left + width])
        found = node_maps(self.network, part)
        return [each.placed(scale, (left * scale[0], top * scale[1])) for each in found]

    @override
    def part(self, image: Image.Image, at: Point) -> Hashable:
        return window_around(at, self._pixels(image), self.inference)[:2]
