"""The dilated fully convolutional network, the paper's baseline on Cityscapes, with or without DGMN."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from dgmn.errors import InputError
from dgmn.layers import context_module
from dgmn.models.build import noted
from dgmn.models.dgmn_resnet import set_multi_grid
from dgmn.models.features import feature_maps
from dgmn.segmentation.segmenter import Segmenter, checked_classes


class FCNHead(nn.Module):
    """A 3x3 convolution on the last map, an optional module that relates its positions, and a classifier.

    Args:
        in_channels: channels of the last map.
        num_classes: number of outputs.
        channels: channels of the convolution and the module.
        module: one of `dgmn.layers.context.MODULES`, for instance "dgmn".
        module_args: more arguments for the module.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: int = 512,
        module: str = "none",
        module_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(channels, int) or channels < 1:
            raise InputError(f"channels must be a whole number of at least 1, got {channels!r}")
        self.conv = Conv2dNormActivation(in_channels, channels, 3)
        self.module = context_module(module, channels, module_args)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def adds(self) -> tuple[str, ...]:
        return ("module.",)

    def forward(self, maps: list[Tensor]) -> Tensor:
        logits: Tensor = self.classifier(self.module(self.conv(maps[-1])))
        return logits


@noted
def dilated_fcn(
    backbone: str = "resnet101",
    num_classes: int = 19,
    *,
    module: str = "none",
    module_args: Mapping[str, Any] | None = None,
    channels: int = 512,
    multi_grid: Sequence[int] | None = None,
    output_stride: int = 8,
    pretrained: bool = False,
    backbone_args: dict[str, Any] | None = None,
) -> Segmenter:
    """Dilated FCN: a 3x3 convolution on the last map of a dilated ResNet, a module and a classifier (Table 2).

    Args:
        backbone: any timm network that takes this `output_stride`.
        num_classes: number of outputs.
        module: the module that relates the positions, one of `dgmn.layers.context.MODULES`: "dgmn", "non_local" and
            so on; "none" is the baseline.
        module_args: more arguments for the module. For instance, the paper's rates on Cityscapes are
            `{"sampling_rates": (1, 6, 12, 24, 36), "fusion": "concat"}`.
        channels: channels of the convolution and the module.
        multi_grid: factors of the dilations in the last stage's blocks, for instance (1, 2, 4); for timm's ResNets
            only.
        output_stride: stride of the backbone's last map.
        pretrained: start the backbone from its published weights.
        backbone_args: more arguments for the backbone.

    Returns:
        A network from images (B, 3, H, W) to logits (B, num_classes, H, W).

    Raises:
        InputError (a ValueError): timm does not know the backbone, the backbone does not take this stride, the module
            is unknown, or module, backbone and arguments do not go together.

    Source: Dynamic Graph Message Passing Networks, sections 5.1 and 8.1 (https://arxiv.org/abs/2209.09760).
    """
    maps = feature_maps(backbone, pretrained, backbone_args, output_stride, levels=1, exact=False)
    if multi_grid is not None:
        set_multi_grid(maps, multi_grid)
    head = FCNHead(maps.feature_info.channels()[-1], checked_classes(num_classes), channels, module, module_args)
    return Segmenter(maps, head)
