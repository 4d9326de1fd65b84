"""Layers built on the primitives in `dgmn.ops`, and the modules that the paper compares them with."""

from dgmn.layers.attention import DGMN2Attention, DGMN2Block, RelativePosition
from dgmn.layers.context import CrissCross, DeformableConv2d, context_module
from dgmn.layers.dgmn import DGMN
from dgmn.layers.packed import PackedConv2d, PackedLinear

__all__ = [
    "DGMN",
    "CrissCross",
    "DGMN2Attention",
    "DGMN2Block",
    "DeformableConv2d",
    "PackedConv2d",
    "PackedLinear",
    "RelativePosition",
    "context_module",
]
