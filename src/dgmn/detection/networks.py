"""The detectors by name, as recipes and published models have them."""

from collections.abc import Callable

from torch import nn

from dgmn.detection.mask_rcnn import mask_rcnn
from dgmn.detection.retinanet import retinanet
from dgmn.detection.sparse_rcnn import sparse_rcnn

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "retinanet": retinanet,
    "mask_rcnn": mask_rcnn,
    "sparse_rcnn": sparse_rcnn,
}
