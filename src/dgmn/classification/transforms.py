"""What happens to an image before the network sees it in evaluation and prediction."""

from typing import Any

from timm.data import create_transform


def eval_transform(image_size: int, crop_pct: float) -> Any:
    """Resize the short side to `image_size / crop_pct` (bicubic), crop the centre, normalise as for ImageNet."""
    return create_transform(image_size, is_training=False, crop_pct=crop_pct, interpolation="bicubic")
