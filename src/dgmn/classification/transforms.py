"""What happens to an image before the network sees it in evaluation and prediction."""

from typing import Any

from PIL import Image
from timm.data import create_transform

from dgmn.about import Preprocessing


def eval_transform(image_size: int, preprocessing: Preprocessing = Preprocessing()) -> Any:  # noqa: B008 - a frozen value
    """Resize to `image_size / crop_pct`, crop the centre, normalise."""
    return create_transform(image_size, is_training=False, **preprocessing.to_values())


def seen_part(transform: Any, image: Image.Image, image_size: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where the crop of [`eval_transform`][dgmn.classification.transforms.eval_transform] lies in an image.

    Returns:
        The scale (pixels of the image per pixel of the crop, along x and y), and the crop's upper left corner (x, y) in
            the image.
    """
    resized = transform.transforms[0](image)
    scale = (image.width / resized.width, image.height / resized.height)
    # Rounded as in torchvision's CenterCrop.
    left, top = (round((length - image_size) / 2) for length in resized.size)
    return scale, (left * scale[0], top * scale[1])
