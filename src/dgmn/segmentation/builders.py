"""The segmenters by the names that recipes and published models use."""

from collections.abc import Callable

from dgmn.segmentation.fcn import dilated_fcn
from dgmn.segmentation.segmenter import Segmenter
from dgmn.segmentation.semantic_fpn import semantic_fpn
from dgmn.segmentation.setr import setr_mla, setr_naive, setr_pup

BUILDERS: dict[str, Callable[..., Segmenter]] = {
    "semantic_fpn": semantic_fpn,
    "setr_naive": setr_naive,
    "setr_pup": setr_pup,
    "setr_mla": setr_mla,
    "dilated_fcn": dilated_fcn,
}
"""The segmenters by name. Each takes a backbone, a number of classes, and options."""
