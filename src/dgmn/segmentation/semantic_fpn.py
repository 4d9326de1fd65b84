"""Semantic FPN on any timm backbone."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork

from dgmn.models.build import noted
from dgmn.models.features import feature_maps
from dgmn.segmentation.segmenter import Segmenter, checked_classes, resize, start_classifier


class SemanticFPNHead(nn.Module):
    """A feature pyramid. Its levels are doubled step by step to the finest one's size, summed and classified.

    Args:
        in_channels: channels of the backbone's maps, the finest first.
        num_classes: number of outputs.
        pyramid_channels: channels of the feature pyramid.
        channels: channels of the levels' convolutions.
        dropout: probability of dropping a whole channel before the classifier, in training.

    Source: Panoptic Feature Pyramid Networks, section 3 (https://arxiv.org/abs/1901.02446), in the form of mmseg.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        pyramid_channels: int = 256,
        channels: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(list(in_channels), pyramid_channels)
        self.levels = nn.ModuleList()
        for level in range(len(in_channels)):
            parts: list[nn.Module] = []
            for i in range(max(1, level)):
                parts.append(Conv2dNormActivation(pyramid_channels if i == 0 else channels, channels))
                if level > 0:
                    parts.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True))
            self.levels.append(nn.Sequential(*parts))
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        for convolution in self.pyramid.modules():
            if isinstance(convolution, nn.Conv2d):
                nn.init.xavier_uniform_(convolution.weight)
        for convolution in self.levels.modules():
            if isinstance(convolution, nn.Conv2d):
                nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        start_classifier(self.classifier)

    def forward(self, maps: list[Tensor]) -> Tensor:
        pyramid = self.pyramid(OrderedDict((str(i), x) for i, x in enumerate(maps))).values()
        levels = [level(x) for level, x in zip(self.levels, pyramid, strict=True)]
        out = levels[0]
        for x in levels[1:]:
            out = out + resize(x, out.shape[-2:])
        logits: Tensor = self.classifier(self.dropout(out))
        return logits


@noted
def semantic_fpn(
    backbone: str = "dgmn2_tiny",
    num_classes: int = 19,
    *,
    pyramid_channels: int = 256,
    channels: int = 128,
    dropout: float = 0.1,
    pretrained: bool = False,
    backbone_args: dict[str, Any] | None = None,
) -> Segmenter:
    """Semantic FPN, the paper's lightest segmenter (Table 11).

    Args:
        backbone: any timm network that gives four maps.
        num_classes: number of outputs.
        pyramid_channels: channels of the feature pyramid.
        channels: channels of the head's convolutions.
        dropout: probability of dropping a whole channel before the classifier, in training.
        pretrained: start the backbone from its published weights.
        backbone_args: more arguments for the backbone, for instance `drop_path_rate`.

    Returns:
        A network from images (B, 3, H, W) to logits (B, num_classes, H, W).

    Raises:
        InputError (a ValueError): timm does not know the backbone, or it does not give four maps.

    Source: Dynamic Graph Message Passing Networks, section 6.3 (https://arxiv.org/abs/2209.09760).
    """
    maps = feature_maps(backbone, pretrained, backbone_args, exact=False)
    head = SemanticFPNHead(
        maps.feature_info.channels(), checked_classes(num_classes), pyramid_channels, channels, dropout
    )
    return Segmenter(maps, head)
