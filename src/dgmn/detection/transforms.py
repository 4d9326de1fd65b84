"""Augmentation of images and their objects in training."""

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from dgmn.detection.resizing import resized_sides
from dgmn.objects.layouts import Target

_LONGEST = 8000  # pixels of a resized image's long side: a thin image must not fill the memory


def augmentation(hflip: float, crop: float) -> v2.Transform:
    """Randomly mirrors and crops images, together with their boxes and masks.

    Args:
        hflip: probability of mirroring an image.
        crop: probability of cropping an image; see [`DetrCrop`][dgmn.detection.transforms.DetrCrop].
    """
    return v2.Compose(
        [
            *([v2.RandomHorizontalFlip(hflip)] if hflip > 0 else []),
            # An object of which less than a pixel is left cannot be learnt.
            *([v2.RandomApply([DetrCrop(), v2.SanitizeBoundingBoxes(1.0)], crop)] if crop > 0 else []),
            v2.Identity(),
        ]
    )


class DetrCrop(v2.Transform):
    """Resizes an image to a short side of 400, 500 or 600 pixels, chosen at random, and takes a random part of it.

    The part's sides have 384 to 600 pixels. The network resizes it again.

    Source: the augmentation of DETR (https://arxiv.org/abs/2005.12872) and its relatives.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        before = flat_inputs[0].shape[-2:]
        sides = resized_sides(before, (400, 500, 600)[int(torch.randint(3, ()))], _LONGEST)
        begin, size = [], []
        for side in sides:
            low, high = min(side, 384), min(side, 600)
            size.append(int(torch.randint(low, high + 1, ())))
            begin.append(int(torch.randint(side - size[-1] + 1, ())))
        return {"sides": sides, "part": {"top": begin[0], "left": begin[1], "height": size[0], "width": size[1]}}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        resized = self._call_kernel(v2.functional.resize, inpt, list(params["sides"]), antialias=True)
        return self._call_kernel(v2.functional.crop, resized, **params["part"])


def transformed(transform: v2.Transform, image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Transforms an image (3, H, W) and its target together."""
    size = (image.shape[-2], image.shape[-1])
    boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)
    wrapped = {**target, "boxes": boxes}
    if "masks" in target:
        wrapped["masks"] = tv_tensors.Mask(target["masks"])
    out, wrapped = transform(tv_tensors.Image(image), wrapped)
    plain = {key: value.as_subclass(Tensor) if isinstance(value, Tensor) else value for key, value in wrapped.items()}
    return out.as_subclass(Tensor), plain
