"""Prediction with a trained or published classifier. Needs no lightning."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import nn
from typing_extensions import override

from dgmn.about import Preprocessing
from dgmn.classification.builders import classifier
from dgmn.classification.transforms import eval_transform, seen_part
from dgmn.errors import InputError, check_number
from dgmn.finite import check_scores
from dgmn.images import AnyImage
from dgmn.nodes import Point, SampledLayer, node_maps
from dgmn.pictures import captioned, inscribed
from dgmn.predictor import OnError, Predictor, Progress, Result, run


class ClassificationResult(Result):
    """The most probable classes of an image.

    Attributes:
        top: name and probability of each class, the most probable first.
    """

    def __init__(self, source: AnyImage, image: Image.Image, top: Sequence[tuple[str, float]]) -> None:
        super().__init__(source, image)
        self.top = tuple(top)

    def __str__(self) -> str:
        return "\n".join(f"{probability:6.1%}  {name}" for name, probability in self.top)

    @override
    def cells(self) -> tuple[str, ...]:
        return tuple(f"{name} {probability:.1%}" for name, probability in self.top)

    @override
    def to_dict(self) -> dict[str, Any]:
        top = [{"class": name, "probability": round(probability, 6)} for name, probability in self.top]
        return {**self.head(), "top": top}

    @override
    def draw(self, inside: bool = False) -> Image.Image:
        """The image with its classes below, or in its corner."""
        lines = [f"{name}  {probability:.1%}" for name, probability in self.top]
        return inscribed(self.image, lines, [None] * len(lines)) if inside else captioned(self.image, lines)


class ClassificationPredictor(Predictor):
    """Names what is in an image.

    Args:
        network: returns logits (B, classes).
        names: names of the classes.
        image_size: side of the image that the network gets.
        preprocessing: preprocessing of the images.
        device: device to compute on.
    """

    task: ClassVar[str] = "classification"
    batch_size: ClassVar[int] = 16

    def __init__(
        self,
        network: nn.Module,
        names: Sequence[str],
        image_size: int = 224,
        preprocessing: Preprocessing = Preprocessing(),  # noqa: B008 - a frozen value
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(network, names, device)
        self.image_size = image_size
        self.preprocessing = preprocessing
        self.transform = eval_transform(image_size, preprocessing)

    @classmethod
    @override
    def from_description(
        cls, description: Mapping[str, Any], device: str | torch.device = "cpu", network: nn.Module | None = None
    ) -> Self:
        # Older checkpoints hold `crop_pct` instead of the whole preprocessing.
        stored = description.get("preprocessing") or {"crop_pct": description.get("crop_pct")}
        preprocessing = Preprocessing.from_values(stored)
        arguments = {key: description[key] for key in ("model", "num_classes", "model_args")}
        network = network or classifier(**arguments, preprocessing=preprocessing)
        names = description["classes"] or [str(i) for i in range(description["num_classes"])]
        return cls(network, names, description["image_size"], preprocessing, device)

    @classmethod
    @override
    def published(cls, builder: str, backbone: str, device: str | torch.device = "cpu") -> Self:
        from timm.data import ImageNetInfo

        info = ImageNetInfo()
        names = [info.index_to_description(i).split(",")[0] for i in range(info.num_classes())]
        return cls(classifier(backbone, len(names)), names, device=device)

    @override
    def describe(self) -> dict[str, Any]:
        return {
            "classes": list(self.names),
            "image_size": self.image_size,
            "preprocessing": self.preprocessing.to_values(),
        }

    @override
    def predict(  # type: ignore[override] # accepts this task's options only
        self,
        images: Any,
        *,
        top: int = 5,
        batch_size: int | None = None,
        on_error: OnError | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """The most probable classes; see [`Predictor.predict`][dgmn.predictor.Predictor.predict].

        Args:
            images: one image or many, in any form that `Predictor.predict` takes.
            top: number of classes in a result.
            batch_size: images that the network gets at a time; None takes the class's own number.
            on_error: is told of an image that cannot be read, and why; None raises the error.
            progress: is told how many images are done.
        """
        check_number("top", top)
        return run(partial(self._predict, top), images, batch_size, self.batch_size, on_error, progress)

    def _predict(
        self, top: int, images: Sequence[tuple[AnyImage, Image.Image]], progress: Progress
    ) -> list[ClassificationResult]:
        pixels = torch.stack([self.transform(image) for _, image in images]).to(self.device)
        probabilities = self.network(pixels).float().softmax(1).cpu()
        check_scores(probabilities)
        best = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
        return [
            ClassificationResult(*image, [(self.names[i], p) for i, p in zip(labels, values, strict=True)])
            for image, labels, values in zip(images, best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    @override
    def columns(self, cells: int) -> tuple[str, ...]:
        return tuple(f"{rank + 1}." for rank in range(cells))

    @override
    def sample_layers(self, image: Image.Image, at: Point) -> list[SampledLayer]:
        """What the network samples at all positions of the centre crop that it gets.

        Raises:
            InputError: the centre crop cuts the point away, or the network samples no nodes.
        """
        side = self.image_size
        scale, (left, top) = seen_part(self.transform, image, side)
        inside = ((at[0] - left) / scale[0], (at[1] - top) / scale[1])
        if not all(0 <= number < side for number in inside):
            right, bottom = left + side * scale[0], top + side * scale[1]
            raise InputError(
                f"at must lie in the centre crop that the network sees, x {left:.0f} to {right:.0f} and "
                f"y {top:.0f} to {bottom:.0f}, got x = {at[0]:g}, y = {at[1]:g}"
            )
        found = node_maps(self.network, self.transform(image)[None].to(self.device))
        return [each.placed(scale, (left, top)) for each in found]
