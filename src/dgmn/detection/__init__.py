"""Object detection: networks, data, training task, prediction."""

from typing import TYPE_CHECKING

from dgmn.detection.deformable_detr import DeformableDETR, deformable_detr
from dgmn.detection.mask_rcnn import MaskRCNN, mask_rcnn
from dgmn.detection.retinanet import RetinaNet, retinanet
from dgmn.detection.sparse_rcnn import SparseRCNN, sparse_rcnn
from dgmn_base.lazy import lazy_names

if TYPE_CHECKING:
    from dgmn.detection.data import DetectionData
    from dgmn.detection.predictor import DetectionPredictor
    from dgmn.detection.task import DetectionTask

__all__ = [
    "DeformableDETR",
    "DetectionData",
    "DetectionPredictor",
    "DetectionTask",
    "MaskRCNN",
    "RetinaNet",
    "SparseRCNN",
    "deformable_detr",
    "mask_rcnn",
    "retinanet",
    "sparse_rcnn",
]

# Imported late: lightning takes seconds to import, and neither networks nor prediction need it.
__getattr__ = lazy_names(
    __name__, {"DetectionData": "data", "DetectionPredictor": "predictor", "DetectionTask": "task"}
)
