"""Message passing on sampled nodes: the two primitives that everything else is built on.

* [`sampled_aggregate`][dgmn.ops.sampled_aggregate]: sum sampled nodes with given weights (DGMN, eq. 5);
* [`sampled_attention`][dgmn.ops.sampled_attention]: sum them with softmax attention (DGMN2, eq. 8 and 9).

[`position_scores`][dgmn.ops.position_scores] computes the relative position term of DGMN2's logits.
"""

from dgmn.ops.functional import BACKENDS, position_scores, sampled_aggregate, sampled_attention

__all__ = ["BACKENDS", "position_scores", "sampled_aggregate", "sampled_attention"]
