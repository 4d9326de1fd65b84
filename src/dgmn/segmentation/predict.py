"""Prediction with a trained or published segmenter. Needs no lightning."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF

from dgmn.models.build import build_named
from dgmn.nodes import Point, SampledNodes, check_point, sampled_nodes
from dgmn.segmentation.cityscapes import CITYSCAPES
from dgmn.segmentation.inference import Inference, count_windows, predict_labels, window_around
from dgmn.segmentation.networks import BUILDERS
from dgmn.segmentation.transforms import normalise
from dgmn.training.images import load_image
from dgmn.weights import find, load_checkpoint


class SegmentationPredictor:
    """A network with what it needs to name what is at every pixel.

    Args:
        network: (B, 3, H, W), normalised, to logits (B, classes, H, W).
        classes: their names.
        colors: to draw them in.
        inference: how images are predicted.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: Sequence[str],
        colors: Sequence[tuple[int, int, int]],
        inference: Inference = Inference(),  # noqa: B008 - a frozen value
    ) -> None:
        self.network = network.eval()
        self.classes = tuple(classes)
        self.colors = tuple(colors)
        self.inference = inference

    @classmethod
    def from_description(cls, description: dict[str, Any], checkpoint: Path) -> "SegmentationPredictor":
        """From what a checkpoint of a run says of itself (its entry `dgmn`), and its weights."""
        network = build_named(
            BUILDERS, *(description[key] for key in ("model", "backbone", "num_classes", "model_args"))
        )
        load_checkpoint(network, checkpoint)
        colors = [(r, g, b) for r, g, b in description["colors"]]
        return cls(network, description["classes"], colors, Inference(**description["inference"]))

    @classmethod
    def from_zoo(cls, name: str, checkpoint: Path | None = None) -> "SegmentationPredictor":
        """A published segmenter, from a file or from what `dgmn zoo download` fetched."""
        model = find(name, "segmentation")
        network = BUILDERS[model.builder](model.backbone, len(CITYSCAPES.names))
        load_checkpoint(network, checkpoint or model.file)
        return cls(network, CITYSCAPES.names, CITYSCAPES.colors, Inference("slide"))

    def predict(
        self,
        path: Path,
        device: str | torch.device = "cpu",
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.uint8]:
        """The class of every pixel of an image, (H, W).

        Args:
            path: of the image.
            device: to compute on.
            progress: is told how many windows are done, and how many there are.

        Raises:
            InputError: the image cannot be read; the message names it.
        """
        network = self.network.to(device)
        image = _pixels(load_image(path), device)
        height, width = image.shape[-2:]
        total, done = count_windows(height, width, self.inference), 0

        def watched(images: Tensor) -> Tensor:
            nonlocal done
            logits: Tensor = network(images)
            done += len(images)
            if progress is not None:
                progress(done, total)
            return logits

        with torch.inference_mode():
            return predict_labels(watched, image, self.inference).numpy()

    def nodes(self, image: Image.Image, at: Point, device: str | torch.device = "cpu") -> list[SampledNodes]:
        """What the network samples for the point `at` of an image; see [`sampled_nodes`][dgmn.nodes.sampled_nodes].

        At the image's own size, or that of `inference.fit`. Where the network gets windows of it, in the window that
        has the point most in its middle.
        """
        check_point(at, image.width, image.height)
        pixels = _pixels(image, device)
        (top, left), (height, width), scaled = window_around(at, pixels, self.inference)
        scale = (image.width / scaled.shape[-1], image.height / scaled.shape[-2])
        part = scaled[None, :, top : top + height, left : left + width]
        found = sampled_nodes(self.network.to(device), part, (at[0] / scale[0] - left, at[1] / scale[1] - top))
        return [each.placed(scale, (left * scale[0], top * scale[1])) for each in found]


def _pixels(image: Image.Image, device: str | torch.device) -> Tensor:
    pixels = tv_tensors.Image(TF.pil_to_tensor(image.convert("RGB")))
    out: Tensor = normalise()(pixels).as_subclass(Tensor).to(device)
    return out
