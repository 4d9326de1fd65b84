"""The three decoders of SETR on any timm backbone."""

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from dgmn.errors import InputError
from dgmn.models.build import noted
from dgmn.models.features import feature_maps
from dgmn.segmentation.segmenter import Segmenter, checked_classes, resize, start_classifier

Upsampling = Literal["official", "undistorted"]


class _SquareHead(nn.Module):
    """Base of the three SETR decoders: says to which size they enlarge a map."""

    def __init__(self, upsampling: Upsampling) -> None:
        super().__init__()
        if upsampling not in ("official", "undistorted"):
            raise InputError(f'upsampling must be "official" or "undistorted", got {upsampling!r}')
        self.upsampling = upsampling

    def _size(self, x: Tensor, factor: int) -> tuple[int, int]:
        height, width = x.shape[-2:]
        return factor * (width if self.upsampling == "official" else height), factor * width

    def _squared(self, logits: Tensor, side: int) -> Tensor:
        return resize(logits, (side, side)) if self.upsampling == "official" else logits

    def _tell(self, x: Tensor) -> None:
        if self.upsampling == "official" and x.shape[-2] != x.shape[-1] and not torch.compiler.is_compiling():
            warnings.warn(
                'this image is not square: upsampling="official" makes a square prediction and stretches it over the '
                'image, as the original does; "undistorted" keeps the shape',
                stacklevel=2,
            )


class SETRNaiveHead(_SquareHead):
    """A 1x1 convolution on the last map. Its output is enlarged directly.

    Args:
        in_channels: channels of the last map.
        num_classes: number of outputs.
        image_size: side of the square to which "official" resizes the logits before it resizes them to the image.
        upsampling: see [`setr_naive`][dgmn.segmentation.setr_naive].
    """

    def __init__(
        self, in_channels: int, num_classes: int, image_size: int = 769, upsampling: Upsampling = "official"
    ) -> None:
        super().__init__(upsampling)
        self.image_size = image_size
        self.classifier = nn.Conv2d(in_channels, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        self._tell(maps[-1])
        logits: Tensor = self.classifier(maps[-1])
        return self._squared(logits, self.image_size)


class SETRPUPHead(_SquareHead):
    """Progressive upsampling: three convolutions, each followed by a doubling, then a classifier and one more doubling.

    Args:
        in_channels: channels of the last map.
        num_classes: number of outputs.
        channels: channels of the convolutions.
        upsampling: see [`setr_naive`][dgmn.segmentation.setr_naive].
    """

    def __init__(
        self, in_channels: int, num_classes: int, channels: int = 256, upsampling: Upsampling = "official"
    ) -> None:
        super().__init__(upsampling)
        widths = (in_channels, channels, channels, channels)
        self.convs = nn.ModuleList(Conv2dNormActivation(a, b, bias=True) for a, b in pairwise(widths))
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        self._tell(maps[-1])
        x = maps[-1]
        for conv in self.convs:
            x = conv(x)
            x = resize(x, self._size(x, 2))
        logits: Tensor = self.classifier(x)
        return resize(logits, self._size(logits, 2))


class SETRMLAHead(_SquareHead):
    """Multi-level aggregation: two convolutions on each of four maps, enlarged to one size, concatenated, classified.

    Args:
        in_channels: channels of the maps, the finest first.
        num_classes: number of outputs.
        channels: channels of the convolutions.
        image_size: side of the square to which "official" resizes the logits before it resizes them to the image.
        upsampling: see [`setr_naive`][dgmn.segmentation.setr_naive].
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 128,
        image_size: int = 769,
        upsampling: Upsampling = "official",
    ) -> None:
        super().__init__(upsampling)
        self.image_size = image_size
        self.branches = nn.ModuleList(
            nn.Sequential(Conv2dNormActivation(width, channels), Conv2dNormActivation(channels, channels))
            for width in in_channels
        )
        self.classifier = nn.Conv2d(channels * len(in_channels), num_classes, 1)
        start_classifier(self.classifier)

    def forward(self, maps: list[Tensor]) -> Tensor:
        self._tell(maps[-1])
        # Four times the second map; with the paper's strides 4, 8, 8, 8 this is twice the first.
        size = self._size(maps[1], 4)
        levels = [resize(branch(x), size) for branch, x in zip(self.branches, maps, strict=True)]
        logits: Tensor = self.classifier(torch.cat(levels, 1))
        return self._squared(logits, self.image_size)


@noted
def setr_naive(
    backbone: str = "dgmn2_tiny",
    num_classes: int = 19,
    *,
    upsampling: Upsampling = "official",
    image_size: int = 769,
    output_stride: int = 8,
    pretrained: bool = False,
    backbone_args: dict[str, Any] | None = None,
) -> Segmenter:
    """SETR-Naive: one 1x1 convolution on the last map (Table 11).

    Args:
        backbone: any timm network that takes this `output_stride`.
        num_classes: number of outputs.
        upsampling: "official" makes the prediction square and stretches it to the image. The published weights were
            trained this way; it is right for square crops only. "undistorted" keeps the image's shape. On square crops
            of `image_size` the two agree.
        image_size: side of the square that "official" makes: the size of the training crops.
        output_stride: stride of the backbone's last map. The paper sets the strides of stages 3 and 4 to 1, which
            gives 8.
        pretrained: start the backbone from its published weights.
        backbone_args: more arguments for the backbone, for instance `drop_path_rate`.

    Returns:
        A network from images (B, 3, H, W) to logits (B, num_classes, H, W).

    Raises:
        InputError (a ValueError): timm does not know the backbone, or it does not take this stride.

    Source: Dynamic Graph Message Passing Networks, section 6.3 (https://arxiv.org/abs/2209.09760); SETR
        (https://arxiv.org/abs/2012.15840).
    """
    maps = feature_maps(backbone, pretrained, backbone_args, output_stride, levels=1, exact=False)
    return Segmenter(
        maps, SETRNaiveHead(maps.feature_info.channels()[-1], checked_classes(num_classes), image_size, upsampling)
    )


@noted
def setr_pup(
    backbone: str = "dgmn2_tiny",
    num_classes: int = 19,
    *,
    upsampling: Upsampling = "official",
    channels: int = 256,
    output_stride: int = 8,
    pretrained: bool = False,
    backbone_args: dict[str, Any] | None = None,
) -> Segmenter:
    """SETR-PUP: progressive upsampling of the last map (Table 11).

    Args:
        backbone: any timm network that takes this `output_stride`.
        num_classes: number of outputs.
        upsampling: "official" or "undistorted"; see [`setr_naive`][dgmn.segmentation.setr_naive].
        channels: channels of the head's convolutions.
        output_stride: stride of the backbone's last map; 8 as in the paper.
        pretrained: start the backbone from its published weights.
        backbone_args: more arguments for the backbone, for instance `drop_path_rate`.

    Returns:
        A network from images (B, 3, H, W) to logits (B, num_classes, H, W).

    Raises:
        InputError (a ValueError): timm does not know the backbone, or it does not take this stride.

    Source: see [`setr_naive`][dgmn.segmentation.setr_naive].
    """
    maps = feature_maps(backbone, pretrained, backbone_args, output_stride, levels=1, exact=False)
    return Segmenter(
        maps, SETRPUPHead(maps.feature_info.channels()[-1], checked_classes(num_classes), channels, upsampling)
    )


@noted
def setr_mla(
    backbone: str = "dgmn2_tiny",
    num_classes: int = 19,
    *,
    upsampling: Upsampling = "official",
    channels: int = 128,
    image_size: int = 769,
    output_stride: int = 8,
    pretrained: bool = False,
    backbone_args: dict[str, Any] | None = None,
) -> Segmenter:
    """SETR-MLA: aggregates all four maps of the backbone (Table 11).

    Args:
        backbone: any timm network that takes this `output_stride`.
        num_classes: number of outputs.
        upsampling: "official" or "undistorted"; see [`setr_naive`][dgmn.segmentation.setr_naive].
        channels: channels of the head's convolutions.
        image_size: side of the square that "official" makes: the size of the training crops.
        output_stride: stride of the backbone's last map; 8 as in the paper.
        pretrained: start the backbone from its published weights.
        backbone_args: more arguments for the backbone, for instance `drop_path_rate`.

    Returns:
        A network from images (B, 3, H, W) to logits (B, num_classes, H, W).

    Raises:
        InputError (a ValueError): timm does not know the backbone, or it does not take this stride.

    Source: see [`setr_naive`][dgmn.segmentation.setr_naive].
    """
    maps = feature_maps(backbone, pretrained, backbone_args, output_stride, exact=False)
    head = SETRMLAHead(maps.feature_info.channels(), checked_classes(num_classes), channels, image_size, upsampling)
    return Segmenter(maps, head)
