"""Object detection: the networks."""

from dgmn.detection.mask_rcnn import MaskRCNN, mask_rcnn
from dgmn.detection.retinanet import RetinaNet, retinanet

__all__ = ["MaskRCNN", "RetinaNet", "mask_rcnn", "retinanet"]
