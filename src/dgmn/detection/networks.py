"""The detectors by name, as recipes and published models have them."""

from collections.abc import Callable

from torch import nn

from dgmn.detection.mask_rcnn import mask_rcnn
from dgmn.detection.retinanet import retinanet

BUILDERS: dict[str, Callable[..., nn.Module]] = {"retinanet": retinanet, "mask_rcnn": mask_rcnn}
"""Each takes a backbone, a number of classes, and options."""
