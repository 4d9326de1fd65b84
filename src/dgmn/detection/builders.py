"""The detectors, by the names that recipes and published models use."""

from collections.abc import Callable
from functools import partial

from torch import nn

from dgmn.detection.deformable_detr import deformable_detr
from dgmn.detection.mask_rcnn import mask_rcnn
from dgmn.detection.retinanet import retinanet
from dgmn.detection.sparse_rcnn import sparse_rcnn

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "retinanet": retinanet,
    "mask_rcnn": mask_rcnn,
    "deformable_detr": deformable_detr,
    "deformable_detr_refine_two_stage": partial(deformable_detr, box_refine=True, two_stage=True),
    "sparse_rcnn": sparse_rcnn,
}
"""Each takes a backbone, a number of classes, and options."""
