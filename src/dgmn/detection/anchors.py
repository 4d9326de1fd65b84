"""Anchors, boxes and the pyramid of mmdet 2.12, with which the published weights were trained."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock


class ExactAnchors(AnchorGenerator):
    """torchvision's anchors, not rounded to whole pixels, at given strides and not at those guessed from map sizes.

    Args:
        sizes: sizes of the anchors of every level, in pixels.
        aspect_ratios: height over width of the anchors.
        strides: stride of every level.
    """

    def __init__(
        self, sizes: Sequence[Sequence[float]], aspect_ratios: Sequence[float], strides: Sequence[int]
    ) -> None:
        super().__init__(tuple(map(tuple, sizes)), (tuple(aspect_ratios),) * len(sizes))
        self.strides = tuple(strides)

    def generate_anchors(
        self,
        scales: Any,
        aspect_ratios: Any,
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - as in torchvision
    ) -> Tensor:
        sizes = torch.as_tensor(scales, dtype=dtype, device=device)
        roots = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        widths, heights = (sizes / roots[:, None]).flatten(), (sizes * roots[:, None]).flatten()
        corners: Tensor = torch.stack([-widths, -heights, widths, heights], 1) / 2
        return corners

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        # In half precision, autocast's, anchors would lie on whole pixels far from each other.
        dtype, device = torch.promote_types(feature_maps[0].dtype, torch.float32), feature_maps[0].device
        grids = [list(x.shape[-2:]) for x in feature_maps]
        strides = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        self.set_cell_anchors(dtype, device)
        anchors = torch.cat(self.grid_anchors(grids, strides))
        return [anchors] * len(image_list.image_sizes)


def counted_anchors(anchors: Tensor, target: dict[str, Tensor]) -> Tensor:
    """Which anchors (N, 4) take part in the losses of an image: those centred in it or in its own padding, (N,), bool.

    In a batch, a small image is padded to the largest. What lies beyond its own padding, to a multiple of 32, is not
    its background.

    Args:
        anchors: anchors as x1, y1, x2, y2 in pixels.
        target: an image's target; its `padded_size` comes from [`Resize`][dgmn.detection.resizing.Resize]. Without it,
            all anchors count.

    Source: `valid_flags` of mmdet 2.12.
    """
    size = target.get("padded_size")
    if size is None:
        return torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    # Centres and sizes are whole numbers. The half keeps rounding errors from counting.
    inside: Tensor = (centers < size.flip(0) - 0.5).all(1)
    return inside


class ClampedBoxCoder(BoxCoder):
    """torchvision's box coder, with a limit to how much a box grows and to how much it shrinks.

    Boxes keep their precision: under autocast codes are in half precision, in which pixels lie far apart.
    """

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        rel_codes = rel_codes.to(torch.promote_types(rel_codes.dtype, boxes.dtype), copy=True)
        for axis in (2, 3):
            limit = self.bbox_xform_clip * self.weights[axis]
            rel_codes[:, axis::4] = rel_codes[:, axis::4].clamp(-limit, limit)
        decoded: Tensor = super().decode_single(rel_codes, boxes)
        return decoded


class ExtraLevels(ExtraFPNBlock):
    """Makes P6 from the last map of the backbone, and P7 from P6 without an activation between them.

    Args:
        in_channels: channels of the backbone's last map.
        out_channels: channels of the pyramid.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, 2, 1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, 2, 1)
        for module in (self.p6, self.p7):
            assert module.bias is not None
            nn.init.zeros_(module.bias)

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        p6 = self.p6(x[-1])
        return [*results, p6, self.p7(p6)], [*names, "p6", "p7"]


class Subsampled(ExtraFPNBlock):
    """Takes every second position of P5 as P6."""

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        return [*results, F.max_pool2d(results[-1], 1, 2, 0)], [*names, "p6"]


class Pyramid(nn.Module):
    """A backbone and the feature pyramid on its maps, as torchvision's detectors take them.

    Args:
        backbone: gives a list of maps, the finest first.
        maps: how many of the last maps go into the pyramid.
        extra: makes the coarser levels.
        out_channels: channels of the pyramid.
        xavier: start the convolutions from Xavier's uniform distribution, as mmdet does; otherwise from Kaiming's, as
            detectron2 and torchvision do.
    """

    def __init__(self, backbone: Any, maps: int, extra: ExtraFPNBlock, out_channels: int, xavier: bool = True) -> None:
        super().__init__()
        self.body = backbone
        self.maps = maps
        self.out_channels = out_channels
        channels = backbone.feature_info.channels()[-maps:]
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra)
        for convolution in self.fpn.modules():
            if xavier and isinstance(convolution, nn.Conv2d):
                nn.init.xavier_uniform_(convolution.weight)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body(images)[-self.maps :]
        out: dict[str, Tensor] = self.fpn(OrderedDict((str(i), x) for i, x in enumerate(maps)))
        return out
