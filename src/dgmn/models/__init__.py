"""Networks, registered with timm: `timm.create_model("dgmn2_tiny")`."""

from dgmn.models.dgmn2 import DGMN2, dgmn2_large, dgmn2_medium, dgmn2_nano, dgmn2_small, dgmn2_tiny
from dgmn.models.dgmn_resnet import (
    DGMNResNet,
    dgmn_resnet50,
    dgmn_resnet101,
    dgmn_resnext101_32x8d,
    set_multi_grid,
)

__all__ = [
    "DGMN2",
    "DGMNResNet",
    "dgmn2_large",
    "dgmn2_medium",
    "dgmn2_nano",
    "dgmn2_small",
    "dgmn2_tiny",
    "dgmn_resnet50",
    "dgmn_resnet101",
    "dgmn_resnext101_32x8d",
    "set_multi_grid",
]
