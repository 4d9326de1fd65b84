"""Building blocks of the networks, made of the primitives in `dgmn.ops`."""

from dgmn.layers.attention import DGMN2Attention, DGMN2Block, RelativePosition
from dgmn.layers.dgmn import DGMN

__all__ = ["DGMN", "DGMN2Attention", "DGMN2Block", "RelativePosition"]
