"""Prediction with a trained or published classifier. Needs no lightning."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from dgmn.classification.transforms import eval_transform, seen_part
from dgmn.errors import InputError
from dgmn.nodes import Point, SampledNodes, check_point, sampled_nodes
from dgmn.training.images import load_image
from dgmn.weights import find, load_checkpoint


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, best first: (name, probability)."""

    path: Path
    top: tuple[tuple[str, float], ...]


class Classifier:
    """A network with what it needs to name what is in an image.

    Args:
        network: gives logits (B, classes).
        classes: their names; None for numbers.
        image_size: side of the image that the network gets.
        crop_pct: share of the resized image that the centre crop keeps.
    """

    def __init__(self, network: nn.Module, classes: Sequence[str] | None, image_size: int, crop_pct: float) -> None:
        self.network = network.eval()
        self.classes = classes
        self.image_size = image_size
        self.transform = eval_transform(image_size, crop_pct)

    @classmethod
    def from_description(cls, description: dict[str, Any], checkpoint: Path) -> "Classifier":
        """From what a checkpoint of a run says of itself (its entry `dgmn`), and its weights."""
        network = timm.create_model(
            description["model"], num_classes=description["num_classes"], **description["model_args"]
        )
        load_checkpoint(network, checkpoint)
        return cls(network, description["classes"], description["image_size"], description["crop_pct"])

    @classmethod
    def from_zoo(cls, name: str, checkpoint: Path | None = None) -> "Classifier":
        """A published classifier, from a file or from what `dgmn zoo download` fetched."""
        model = find(name, "classification")
        network = timm.create_model(model.backbone)
        load_checkpoint(network, checkpoint or model.file)
        from timm.data import ImageNetInfo

        info = ImageNetInfo()
        return cls(network, [info.index_to_description(i).split(",")[0] for i in range(info.num_classes())], 224, 0.875)

    def predict(
        self, paths: Sequence[Path], top: int = 5, batch_size: int = 16, device: str | torch.device = "cpu"
    ) -> Iterator[Prediction]:
        """Yields the predictions of images in their order.

        Raises:
            InputError: an image cannot be read; the message names it.
        """
        network = self.network.to(device)
        loader = DataLoader(_Images(paths, self.transform), batch_size=batch_size)
        done = 0
        for images in loader:
            with torch.inference_mode():
                probabilities = network(images.to(device)).float().softmax(dim=-1).cpu()
            best = probabilities.topk(min(top, probabilities.shape[-1]))
            for scores, labels in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                names = tuple((self._name(label), score) for label, score in zip(labels, scores, strict=True))
                yield Prediction(paths[done], names)
                done += 1

    def nodes(self, image: Image.Image, at: Point, device: str | torch.device = "cpu") -> list[SampledNodes]:
        """What the network samples for the point `at` of an image; see [`sampled_nodes`][dgmn.nodes.sampled_nodes].

        Raises:
            InputError: also for a point that the centre crop cuts away.
        """
        check_point(at, image.width, image.height)
        side = self.image_size
        scale, (left, top) = seen_part(self.transform, image, side)
        inside = ((at[0] - left) / scale[0], (at[1] - top) / scale[1])
        if not all(0 <= number < side for number in inside):
            right, bottom = left + side * scale[0], top + side * scale[1]
            raise InputError(
                f"at must lie in the centre of the image that the network sees, x {left:.0f} to {right:.0f} and "
                f"y {top:.0f} to {bottom:.0f}, got x = {at[0]:g}, y = {at[1]:g}"
            )
        found = sampled_nodes(self.network.to(device), self.transform(image)[None].to(device), inside)
        return [each.placed(scale, (left, top)) for each in found]

    def _name(self, label: int) -> str:
        return str(label) if self.classes is None else self.classes[label]


class _Images(Dataset[torch.Tensor]):
    def __init__(self, paths: Sequence[Path], transform: Callable[..., torch.Tensor]) -> None:
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(load_image(self.paths[index]))
