"""What happens to an image before the network sees it in evaluation and prediction."""

import math
from typing import Any

from PIL import Image
from timm.data import create_transform
from torchvision.transforms import Compose

from dgmn.about import Preprocessing


def eval_transform(image_size: int, preprocessing: Preprocessing = Preprocessing()) -> Any:  # noqa: B008 - a frozen value
    """Resize to `image_size / crop_pct`, crop the centre, normalise."""
    steps = create_transform(image_size, is_training=False, **preprocessing.to_values()).transforms
    return Compose([_Middle(_LONG if preprocessing.crop_mode == "center" else math.inf), *steps])


_LONG = 32  # how many times as long as wide the part is that is resized


class _Middle:
    """Cuts off the ends of a thin image, far outside of the centre crop: after resizing, they could fill the memory."""

    def __init__(self, longest: float) -> None:
        self.longest = longest

    def __call__(self, image: Image.Image) -> Image.Image:
        most = self.longest * min(image.size)
        if max(image.size) <= most:
            return image
        width, height = (int(min(side, most)) for side in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))


def seen_part(transform: Any, image: Image.Image, image_size: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where the crop of [`eval_transform`][dgmn.classification.transforms.eval_transform] lies in an image.

    Returns:
        The scale (pixels of the image per pixel of the crop, along x and y), and the crop's upper left corner (x, y) in
            the image.
    """
    cut, resize, *_ = transform.transforms
    part = cut(image)
    resized = resize(part)
    scale = (part.width / resized.width, part.height / resized.height)
    # Rounded as in torchvision's CenterCrop.
    left, top = (round((length - image_size) / 2) for length in resized.size)
    return scale, (
        left * scale[0] + (image.width - part.width) // 2,
        top * scale[1] + (image.height - part.height) // 2,
    )
