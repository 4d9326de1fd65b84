"""Building blocks of the networks, made of the primitives in `dgmn.ops`."""

from dgmn.layers.attention import DGMN2Attention, DGMN2Block, RelativePosition

__all__ = ["DGMN2Attention", "DGMN2Block", "RelativePosition"]
