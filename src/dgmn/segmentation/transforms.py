"""What happens to images and masks before the network sees them."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from dgmn.about import Preprocessing
from dgmn.errors import InputError
from dgmn.images import MAX_PIXELS
from dgmn.segmentation.inference import scaled_size
from dgmn.segmentation.losses import IGNORED


@dataclass(frozen=True)
class Augmentation:
    """Training augmentation as mmseg defines it. The defaults are the paper's for Cityscapes.

    Attributes:
        crop: (height, width) of the random crop. Smaller images are padded, and their masks with 255.
        scale: range of the random factor that the image is resized by, keeping its aspect ratio.
        fit: (height, width) that the image is fitted into before `scale`; None keeps its own size.
        max_share: draw up to ten crops, until each class fills less than this share of the labelled pixels; 1 keeps the
            first.
        hflip: probability of a horizontal flip.
        distortion: change brightness, contrast, saturation and hue at random.
    """

    crop: tuple[int, int] = (769, 769)
    scale: tuple[float, float] = (0.5, 2.0)
    fit: tuple[int, int] | None = None
    max_share: float = 0.75
    hflip: float = 0.5
    distortion: bool = True

    def __post_init__(self) -> None:
        if self.fit is not None and min(self.fit) < 1:
            raise InputError(f"data.augmentation.fit must be a height and a width of at least 1, got {list(self.fit)}")
        if min(self.crop) < 1 or not 0 < self.scale[0] <= self.scale[1]:
            raise InputError(
                "data.augmentation: crop must be a height and a width of at least 1 and scale a range above 0, "
                f"got {list(self.crop)} and {list(self.scale)}"
            )
        if not 0 < self.max_share <= 1 or not 0 <= self.hflip <= 1:
            raise InputError(
                f"data.augmentation: max_share and hflip must be in 0..1, got {self.max_share} and {self.hflip}"
            )

    def transform(self, preprocessing: Preprocessing = Preprocessing()) -> v2.Transform:  # noqa: B008 - a frozen value
        """The transform of an image and its mask, together, in training."""
        return v2.Compose(
            [
                RandomScale(self.scale, self.fit),
                ClassCrop(self.crop, self.max_share),
                v2.RandomHorizontalFlip(self.hflip),
                *([PhotometricDistortion()] if self.distortion else []),
                normalise(preprocessing),
                PadTo(self.crop),  # 0 is the mean colour of the normalised image
            ]
        )


def normalise(preprocessing: Preprocessing = Preprocessing()) -> v2.Transform:  # noqa: B008 - a frozen value
    """The transform of 8-bit images to floats, normalised by a network's mean and standard deviation."""
    to_float = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)
    return v2.Compose([to_float, v2.Normalize(preprocessing.mean, preprocessing.std, inplace=True)])


class RandomScale(v2.Transform):
    """Resizes by a random factor, keeping the aspect ratio; torchvision's `RandomResize` takes sizes instead.

    An image gets at most `MAX_PIXELS` pixels, unless `fit` asks for more.
    """

    def __init__(self, scale: tuple[float, float], fit: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.fit = fit

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = flat_inputs[0].shape[-2:]
        factor = float(torch.empty(()).uniform_(*self.scale))
        if self.fit is None:
            factor = min(factor, math.sqrt(MAX_PIXELS / (height * width)))
        return {"size": list(scaled_size(height, width, factor, self.fit))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if params["size"] == [1, 1]:  # PyTorch's 8-bit kernel fails an assertion at this size
            return self._call_kernel(TF.center_crop, inpt, output_size=params["size"])
        # The original training resizes without antialiasing.
        return self._call_kernel(TF.resize, inpt, size=params["size"], antialias=False)


class ClassCrop(v2.Transform):
    """A random crop in which no class fills too large a share, if one is found in ten draws."""

    def __init__(self, size: tuple[int, int], max_share: float) -> None:
        super().__init__()
        self.size = size
        self.max_share = max_share

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = flat_inputs[0].shape[-2:]
        crop = (min(self.size[0], height), min(self.size[1], width))
        mask = next((x for x in flat_inputs if isinstance(x, tv_tensors.Mask)), None)
        for _ in range(10):
            top, left = (int(torch.randint(0, n - c + 1, ())) for n, c in zip((height, width), crop, strict=True))
            if (
                mask is None
                or self.max_share >= 1
                or self._varied(mask[..., top : top + crop[0], left : left + crop[1]])
            ):
                break
        return {"top": top, "left": left, "height": crop[0], "width": crop[1]}

    def _varied(self, mask: Tensor) -> bool:
        counts = torch.bincount(mask.flatten(), minlength=256)[:IGNORED]
        return bool((counts > 0).sum() > 1 and counts.max() < self.max_share * counts.sum())

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(TF.crop, inpt, **params)


class PadTo(v2.Transform):
    """Pads to a size on the right and at the bottom: images with 0, masks with 255."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        height, width = inpt.shape[-2:]
        padding = [0, 0, max(0, self.size[1] - width), max(0, self.size[0] - height)]
        fill = IGNORED if isinstance(inpt, tv_tensors.Mask) else 0
        return self._call_kernel(TF.pad, inpt, padding=padding, fill=fill) if any(padding) else inpt


class PhotometricDistortion(v2.Transform):
    """Changes brightness, contrast, saturation and hue, each with probability 0.5, as SSD and mmseg define them.

    Brightness adds -32 to 32 (of 255). Contrast multiplies by 0.5 to 1.5, before or after saturation (0.5 to 1.5) and
    hue (up to a tenth of the circle). torchvision's transform scales the brightness, mixes with grey, and permutes the
    channels.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        ranges = {"brightness": (-32.0, 32.0), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-0.1, 0.1)}
        drawn = {name: float(torch.empty(()).uniform_(*limits)) for name, limits in ranges.items()}
        drawn = {name: value for name, value in drawn.items() if torch.rand(()) < 0.5}
        return {**drawn, "contrast_first": bool(torch.rand(()) < 0.5)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        x = inpt.as_subclass(Tensor).float()
        x = (x + params.get("brightness", 0.0)).clamp(0, 255)
        if params["contrast_first"]:
            x = (x * params.get("contrast", 1.0)).clamp(0, 255)
        if "saturation" in params:
            value, span = x.amax(-3, keepdim=True), x.amax(-3, keepdim=True) - x.amin(-3, keepdim=True)
            # Scales the distances from the largest channel, the value of HSV. They cannot exceed it.
            factor = torch.minimum(x.new_tensor(params["saturation"]), value / span.clamp(min=1e-3))
            x = value - (value - x) * factor
        if "hue" in params:
            x = TF.adjust_hue(x / 255, params["hue"]) * 255
        if not params["contrast_first"]:
            x = (x * params.get("contrast", 1.0)).clamp(0, 255)
        return tv_tensors.wrap(x.round().to(torch.uint8), like=inpt)
