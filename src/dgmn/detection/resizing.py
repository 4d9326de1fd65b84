"""Resizes images and their objects to the size that a detector works at, as mmdet and detectron2 do."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from dgmn.errors import check_number
from dgmn.ops.tracing import is_exporting, is_jit_tracing


class Resize(GeneralizedRCNNTransform):
    """torchvision's normalisation, resizing and padding, with sides rounded to the nearest pixel.

    In training, a target also gets `padded_size`, the height and width of its own image after padding. The images of a
    batch are padded to the largest of them; the losses must not take what lies beyond an image's own padding.

    Args:
        min_size: pixels of the short side. If several are given, training takes one at random for every image, and
            evaluation takes the last.
        max_size: pixels of the long side at most.
        image_mean: mean of each channel.
        image_std: standard deviation of each channel.
        size_divisible: the padded sides are multiples of this number.
        antialias: average over the pixels that become one, as Pillow does; otherwise sample them, as OpenCV does.
        bgr: whether the network takes blue first; mean and standard deviation then have this order, too.
    """

    def __init__(
        self,
        min_size: int | tuple[int, ...],
        max_size: int,
        image_mean: list[float],
        image_std: list[float],
        size_divisible: int = 32,
        antialias: bool = False,
        bgr: bool = False,
    ) -> None:
        for number in min_size if isinstance(min_size, list | tuple) else [min_size]:
            check_number("min_size", number)
        check_number("max_size", max_size)
        super().__init__(min_size, max_size, image_mean, image_std, size_divisible)
        self.antialias = antialias
        self.bgr = bgr

    def normalize(self, image: Tensor) -> Tensor:
        """Leaves the image as it is: `resize` normalises it, because several large copies could fill the memory."""
        return image

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        before = (image.shape[-2], image.shape[-1])
        short: int = self.torch_choice(self.min_size) if self.training else self.min_size[-1]
        after = resized_sides(before, short, self.max_size)
        if self.antialias and is_exporting():
            resized = averaged(image[None], after)
        else:
            resized = F.interpolate(image[None], after, mode="bilinear", align_corners=False, antialias=self.antialias)
        image = super().normalize(resized[0].flip(-3) if self.bgr else resized[0])
        if target is None:
            return image, None
        step = self.size_divisible
        padded = torch.tensor([-(-side // step) * step for side in after], device=image.device)
        target = {**target, "boxes": resize_boxes(target["boxes"], before, after), "padded_size": padded}
        if "masks" in target:
            target["masks"] = F.interpolate(target["masks"][:, None].float(), after)[:, 0].byte()
        return image, target


def resized_sides(size: Sequence[int], short: int, longest: int) -> tuple[int, int]:
    """Height and width of an image whose short side becomes `short`, or less, so that no side exceeds `longest`.

    Sides are rounded to the nearest pixel, and have at least one.

    Source: mmcv's `rescale_size` and detectron2's `ResizeShortestEdge`. They give the same sizes, except that rounding
        errors decide about exact halves.
    """
    if is_jit_tracing():
        return _traced_sides(size, short, longest)
    scale = min(short / min(size), longest / max(size))
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    return height, width


def _traced_sides(size: Sequence[Any], short: int, longest: int) -> tuple[Any, Any]:
    """The same with tensors, which torch.jit.trace has for sizes, so that a graph works for other sizes, too."""
    height, width = (torch.as_tensor(side).double() for side in size)
    scale = torch.minimum(short / torch.minimum(height, width), longest / torch.maximum(height, width))
    height, width = ((side * scale + 0.5).floor().clamp(min=1).long() for side in (height, width))
    return height, width


def averaged(image: Tensor, size: tuple[int, int]) -> Tensor:
    """`F.interpolate` with `antialias`, as products with constants: ONNX's own form is less exact in onnxruntime.

    Args:
        image: (..., H, W).
        size: height and width of the result.
    """
    down, across = (_shares(side, after) for side, after in zip(image.shape[-2:], size, strict=True))
    out: Tensor = down.to(image) @ image @ across.to(image).T
    return out


def _shares(side: int, after: int) -> Tensor:
    """The share of every pixel in every pixel of the result, (after, side): a triangle around its centre."""
    scale = torch.as_tensor(side).double() / after
    centers = (torch.arange(after).double() + 0.5)[:, None] * scale
    shares = (1 - (torch.arange(side).double() + 0.5 - centers).abs() / scale.clamp(min=1)).clamp(min=0)
    return shares / shares.sum(1, keepdim=True)
