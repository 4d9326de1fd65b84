"""Maps of several strides from a plain vision transformer, which has one map of one stride."""

import math
from typing import Any

from timm.models import FeatureInfo
from torch import Tensor, nn

from dgmn.about import About
from dgmn.errors import InputError


class PlainPyramid(nn.Module):
    """Makes a pyramid of the last map of a plain network, as the detectors and segmenters ask for.

    Every level has its own transposed convolutions, each of which doubles the map, or pools the map, or takes it as it
    is.

    Args:
        body: gives a list with one map (B, C, H / stride, W / stride).
        strides: strides of the levels, the finest first.
        exact: refuse a network that does not reach these strides by doubling or halving, for instance one of patches of
            14 pixels; otherwise the levels have the nearest strides.

    Raises:
        InputError (a ValueError): the map cannot be doubled or halved to these strides.

    Source: the pyramid of ViTDet (https://arxiv.org/abs/2203.16527, section 3), which is that of BEiT's detectors.
    """

    def __init__(self, body: Any, strides: tuple[int, ...], exact: bool = True) -> None:
        super().__init__()
        self.body = body
        channels, stride = body.feature_info.channels()[-1], body.feature_info.reduction()[-1]
        doublings = [round(math.log2(stride / wanted)) for wanted in strides]
        reached = [stride / 2**number for number in doublings]
        if min(doublings) < -1 or (exact and reached != list(strides)):
            raise InputError(f"a plain network of stride {stride} gives no maps of the strides {list(strides)}")
        self.levels = nn.ModuleList(_level(channels, number) for number in doublings)
        maps = [{"num_chs": channels, "reduction": here, "module": f"levels.{i}"} for i, here in enumerate(reached)]
        self.feature_info = FeatureInfo(maps, tuple(range(len(strides))))

    def forward(self, x: Tensor) -> list[Tensor]:
        (plain,) = self.body(x)
        return [level(plain) for level in self.levels]

    def about(self) -> About:
        return About(backbone="body")

    def adds(self) -> tuple[str, ...]:
        return ("levels.",)


def _level(channels: int, doublings: int) -> nn.Module:
    if doublings < 0:
        return nn.MaxPool2d(2)
    parts: list[nn.Module] = []
    for i in range(doublings):
        parts += [nn.BatchNorm2d(channels), nn.GELU()] if i else []
        parts.append(nn.ConvTranspose2d(channels, channels, 2, 2))
    return nn.Sequential(*parts)
