"""Prediction with a trained or published detector. Needs no lightning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from dgmn.detection.categories import CATEGORIES
from dgmn.detection.coco import mask_area
from dgmn.detection.metrics import to_results
from dgmn.detection.networks import BUILDERS
from dgmn.models.build import build_named
from dgmn.nodes import Point, SampledNodes, sampled_nodes
from dgmn.training.images import load_image
from dgmn.visualize import boxed, distinct_colors
from dgmn.weights import find, load_checkpoint

Found = dict[str, Tensor]


class DetectionPredictor:
    """A network with what it needs to name what it finds.

    Args:
        network: takes a list of images (3, H, W) in 0..1, gives `boxes`, `scores`, `labels` and perhaps `masks`.
        classes: names of the labels.
        category_ids: of the labels, for results in COCO's format.
    """

    def __init__(self, network: nn.Module, classes: Sequence[str], category_ids: Sequence[int]) -> None:
        self.network = network.eval()
        self.classes = tuple(classes)
        self.category_ids = tuple(category_ids)

    @classmethod
    def from_description(cls, description: dict[str, Any], checkpoint: Path) -> "DetectionPredictor":
        """From what a checkpoint of a run says of itself (its entry `dgmn`), and its weights."""
        arguments = (description[key] for key in ("model", "backbone", "num_classes", "model_args"))
        network = build_named(BUILDERS, *arguments)
        load_checkpoint(network, checkpoint)
        return cls(network, description["classes"], description["category_ids"])

    @classmethod
    def from_zoo(cls, name: str, checkpoint: Path | None = None) -> "DetectionPredictor":
        """A published detector, from a file or from what `dgmn zoo download` fetched.

        Raises:
            InputError (a ValueError): no such detector, or it was not downloaded.
        """
        model = find(name, "detection")
        network = build_named(BUILDERS, model.builder, model.backbone, len(CATEGORIES))
        load_checkpoint(network, checkpoint or model.file)
        return cls(network, tuple(CATEGORIES.values()), tuple(CATEGORIES))

    def predict(self, image: Path | Image.Image, threshold: float = 0.05, device: str | torch.device = "cpu") -> Found:
        """What is in an image.

        Args:
            image: or its path.
            threshold: least score.
            device: to compute on.

        Returns:
            `boxes` (N, 4) as x1, y1, x2, y2 in pixels, `scores` and `labels` (N,), the highest score first, and of
            networks with masks `masks` (N, 1, H, W), bool; on the CPU.

        Raises:
            InputError: the image cannot be read; the message names it.
        """
        picture = image if isinstance(image, Image.Image) else load_image(image)
        with torch.inference_mode():
            found: Found = self.network.to(device)([_pixels(picture, device)])[0]
        order = found["scores"].argsort(descending=True, stable=True)
        order = order[found["scores"][order] >= threshold]
        return {key: value[order].cpu() for key, value in found.items()}

    def nodes(self, image: Image.Image, at: Point, device: str | torch.device = "cpu") -> list[SampledNodes]:
        """What the network samples for the point `at` of an image; see [`sampled_nodes`][dgmn.nodes.sampled_nodes]."""
        return sampled_nodes(self.network.to(device), [_pixels(image, device)], at)

    def draw(self, image: Image.Image, found: Found) -> Image.Image:
        """The image with what was found in it."""
        return drawn(image, found, self.classes)

    def to_coco(self, image_id: int, found: Found) -> list[dict[str, Any]]:
        """What was found in an image, as annotations with scores in COCO's format, without ids."""
        results = to_results(image_id, found, self.category_ids)
        for result in results:
            _, _, width, height = result["bbox"]
            result["area"] = mask_area(result["segmentation"]) if "segmentation" in result else width * height
            result["iscrowd"] = 0
        return results

    def categories(self) -> list[dict[str, Any]]:
        """As COCO's format has them."""
        return [{"id": number, "name": name} for number, name in zip(self.category_ids, self.classes, strict=True)]


def _pixels(image: Image.Image, device: str | torch.device) -> Tensor:
    pixels: Tensor = TF.pil_to_tensor(image.convert("RGB")).to(device).float() / 255
    return pixels


def drawn(image: Image.Image, found: Found, names: Sequence[str]) -> Image.Image:
    """An image with detections: boxes, masks, names and scores; the first stand out where they overlap."""
    colors = distinct_colors(len(names))
    labels = found["labels"].tolist()
    captions = [f"{names[label]}  {score:.0%}" for label, score in zip(labels, found["scores"].tolist(), strict=True)]
    masks = found["masks"][:, 0].cpu().numpy() if "masks" in found else None
    return boxed(image, found["boxes"].tolist(), captions, [colors[label] for label in labels], masks)
