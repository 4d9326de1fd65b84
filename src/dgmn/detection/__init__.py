"""Object detection: networks, data, training task."""

from typing import TYPE_CHECKING, Any

from dgmn.detection.deformable_detr import DeformableDETR, deformable_detr
from dgmn.detection.mask_rcnn import MaskRCNN, mask_rcnn
from dgmn.detection.retinanet import RetinaNet, retinanet
from dgmn.detection.sparse_rcnn import SparseRCNN, sparse_rcnn

if TYPE_CHECKING:
    from dgmn.detection.data import DetectionData
    from dgmn.detection.task import DetectionTask

__all__ = [
    "DeformableDETR",
    "DetectionData",
    "DetectionTask",
    "MaskRCNN",
    "RetinaNet",
    "SparseRCNN",
    "deformable_detr",
    "mask_rcnn",
    "retinanet",
    "sparse_rcnn",
]

_HOMES = {"DetectionData": "data", "DetectionTask": "task"}


def __getattr__(name: str) -> Any:
    # Late, because lightning takes seconds to import and the networks do not need it.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
