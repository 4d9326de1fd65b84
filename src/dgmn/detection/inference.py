"""Detections of an image at several sizes and mirrored, joined into one result."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from dgmn.errors import InputError


@dataclass(frozen=True)
class Inference:
    """How the objects of an image are found.

    Attributes:
        sizes: short sides of the resized image, in pixels. The detections at all sizes are joined; none takes the
            network's own size.
        max_size: pixels of the long side at most, at any of `sizes`.
        flip: join the detections in the mirrored image, too.
        overlap: of detections of one class that overlap more than this, the best stays.

    Source: test-time augmentation in detectron2, with which Sparse R-CNN's code evaluates.
    """

    sizes: tuple[int, ...] = ()
    max_size: int = 4000
    flip: bool = False
    overlap: float = 0.5

    def __post_init__(self) -> None:
        if not all(type(size) is int and size >= 1 for size in self.sizes):
            raise InputError(f"inference.sizes must be whole numbers of at least 1, got {list(self.sizes)}")
        if self.max_size < max(self.sizes, default=1):
            raise InputError(f"inference.max_size must be at least the largest size, got {self.max_size}")
        if not 0 < self.overlap <= 1:
            raise InputError(f"inference.overlap must be above 0 and at most 1, got {self.overlap}")


def detect(network: nn.Module, images: Sequence[Tensor], inference: Inference) -> list[dict[str, Tensor]]:
    """The detections in every image, the highest score first.

    Args:
        network: a detector in evaluation mode, whose `transform` resizes the images.
        images: images (3, H, W) in 0..1, on the network's device.
        inference: at which sizes they are found.

    Returns:
        For every image, what the network gives: `boxes` in pixels of the image, `scores`, `labels` and, if it finds
        masks, `masks`. There are at most as many as the network finds at one size.
    """
    if not inference.sizes and not inference.flip:
        plain: list[dict[str, Tensor]] = network(list(images))
        return plain
    if inference.sizes and not hasattr(network, "transform"):
        raise InputError(f"inference.sizes: got {list(inference.sizes)}; accepted none: an ONNX file has its own size")
    passes = []
    for size in inference.sizes or (None,):
        resized = network if size is None else _resizing(network, size, inference.max_size)
        for mirrored in (False, True)[: 1 + inference.flip]:
            found = resized([image.flip(-1) if mirrored else image for image in images])
            if mirrored:
                found = [_mirrored(x, image.shape[-1]) for x, image in zip(found, images, strict=True)]
            passes.append(found)
    return [_joined(of_image, inference.overlap) for of_image in zip(*passes, strict=True)]


def _resizing(network: nn.Module, size: int, max_size: int) -> nn.Module:
    """The network with another size of its images. It stays as it is itself, since other threads may use it."""
    transform: Any = copy.copy(network.transform)
    transform.min_size, transform.max_size = (size,), max_size
    resized = copy.copy(network)
    resized._modules = {**network._modules, "transform": transform}
    return resized


def _mirrored(found: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    left, top, right, bottom = found["boxes"].unbind(1)
    back = {**found, "boxes": torch.stack([width - right, top, width - left, bottom], 1)}
    if "masks" in found:
        back["masks"] = found["masks"].flip(-1)
    return back


def _joined(passes: Sequence[dict[str, Tensor]], overlap: float) -> dict[str, Tensor]:
    together = {name: torch.cat([found[name] for found in passes]) for name in passes[0]}
    boxes, scores = together["boxes"].float(), together["scores"].float()
    keep = batched_nms(boxes, scores, together["labels"], overlap)[: max(len(found["scores"]) for found in passes)]
    return {name: values[keep] for name, values in together.items()}
