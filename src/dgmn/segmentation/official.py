"""Renames published weights of segmenters (mmseg 0.16: Semantic FPN, SETR-Naive, -PUP, -MLA) to our names."""

from dgmn.about import Renamed, Weights
from dgmn.models.official import official_around_dgmn2
from dgmn.weights.keys import Rules

# In our heads, part 0 of a block is its convolution, and part 1 is the batch norm.
_RULES: Rules = (
    (r"neck\.lateral_convs\.(\d)\.conv\.(\w+)", lambda m: f"head.pyramid.inner_blocks.{m[1]}.0.{m[2]}"),
    (r"neck\.fpn_convs\.(\d)\.conv\.(\w+)", lambda m: f"head.pyramid.layer_blocks.{m[1]}.0.{m[2]}"),
    (
        r"decode_head\.scale_heads\.(\d)\.(\d)\.(conv|bn)\.(\w+)",
        lambda m: f"head.levels.{m[1]}.{m[2]}.{int(m[3] == 'bn')}.{m[4]}",
    ),
    (
        r"decode_head\.(conv|syncbn_fc)_(\d)\.(\w+)",
        lambda m: f"head.convs.{m[2]}.{int(m[1] == 'syncbn_fc')}.{m[3]}",
    ),
    (
        r"decode_head\.mlahead\.head([2-5])\.([0134])\.(\w+)",
        lambda m: f"head.branches.{int(m[1]) - 2}.{int(m[2]) // 3}.{int(m[2]) % 3}.{m[3]}",
    ),
    (r"decode_head\.conv_seg\.(\w+)", lambda m: f"head.classifier.{m[1]}"),
)


def official_segmenter(state_dict: Weights) -> Renamed | None:
    """The weights of a published segmenter under our names; None for any other file.

    Raises:
        InputError (a ValueError): the file has a name that no published segmenter has.
    """
    return official_around_dgmn2(state_dict, _RULES, "segmenter", "backbone.model.")
