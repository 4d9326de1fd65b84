"""Semantic segmentation: networks, losses, inference, data, training task, prediction."""

from typing import TYPE_CHECKING, Any

from dgmn.segmentation.fcn import dilated_fcn
from dgmn.segmentation.inference import PAPER_SCALES, Inference, predict_labels, predict_probabilities
from dgmn.segmentation.losses import PixelLoss
from dgmn.segmentation.metrics import Scores, scores
from dgmn.segmentation.networks import BUILDERS, semantic_fpn, setr_mla, setr_naive, setr_pup
from dgmn.segmentation.segmenter import Segmenter

if TYPE_CHECKING:
    from dgmn.segmentation.data import SegmentationData, Splits
    from dgmn.segmentation.predict import SegmentationPredictor
    from dgmn.segmentation.task import SegmentationTask
    from dgmn.segmentation.transforms import Augmentation

__all__ = [
    "BUILDERS",
    "PAPER_SCALES",
    "Augmentation",
    "Inference",
    "PixelLoss",
    "Scores",
    "SegmentationData",
    "SegmentationPredictor",
    "SegmentationTask",
    "Segmenter",
    "Splits",
    "dilated_fcn",
    "predict_labels",
    "predict_probabilities",
    "scores",
    "semantic_fpn",
    "setr_mla",
    "setr_naive",
    "setr_pup",
]

_HOMES = {
    "Augmentation": "transforms",
    "SegmentationData": "data",
    "SegmentationPredictor": "predict",
    "SegmentationTask": "task",
    "Splits": "data",
}


def __getattr__(name: str) -> Any:
    # Late, because lightning takes seconds to import and networks and prediction do not need it.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
