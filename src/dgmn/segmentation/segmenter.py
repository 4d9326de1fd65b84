"""What all segmentation networks share."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from dgmn.about import About
from dgmn.errors import InputError
from dgmn.ops.tracing import surely_equal
from dgmn.segmentation.official import official_segmenter


class Segmenter(nn.Module):
    """A backbone and a decode head. The logits are resized to the image.

    Args:
        backbone: returns a list of maps (B, C_i, H_i, W_i), the finest first.
        head: takes that list and returns logits (B, classes, h, w). Its last layer is `classifier`.

    Shape:
        Images (B, 3, H, W), normalised, to logits (B, classes, H, W).
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return resize(self.head(self.backbone(images)), images.shape[-2:])

    def about(self) -> About:
        return About(classifier=("head.classifier.",), backbone="backbone", official=official_segmenter)


def checked_classes(num_classes: int) -> int:
    if not isinstance(num_classes, int) or not 2 <= num_classes <= 255:
        raise InputError(
            "num_classes must be a whole number in 2..255, as masks have 8 bits and 255 is no class, "
            f"got {num_classes!r}"
        )
    return num_classes


def start_classifier(classifier: nn.Conv2d) -> None:
    """Initialises a head's last layer as mmseg does: weights from a normal distribution of 0.01, biases 0."""
    nn.init.normal_(classifier.weight, std=0.01)
    assert classifier.bias is not None
    nn.init.zeros_(classifier.bias)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    if all(surely_equal(*sides) for sides in zip(x.shape[-2:], size, strict=True)):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)
