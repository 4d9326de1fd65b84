"""Semantic segmentation: networks, losses, inference, data, training task, prediction."""

from typing import TYPE_CHECKING

from dgmn.segmentation.builders import BUILDERS
from dgmn.segmentation.fcn import dilated_fcn
from dgmn.segmentation.inference import PAPER_SCALES, Inference, predict_labels, predict_probabilities
from dgmn.segmentation.losses import PixelLoss
from dgmn.segmentation.metrics import Scores, scores
from dgmn.segmentation.segmenter import Segmenter
from dgmn.segmentation.semantic_fpn import semantic_fpn
from dgmn.segmentation.setr import setr_mla, setr_naive, setr_pup
from dgmn_base.lazy import lazy_names

if TYPE_CHECKING:
    from dgmn.segmentation.data import SegmentationData, Splits
    from dgmn.segmentation.predictor import SegmentationPredictor
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

# Imported late: lightning takes seconds to import, and neither networks nor prediction need it.
__getattr__ = lazy_names(
    __name__,
    {
        "Augmentation": "transforms",
        "SegmentationData": "data",
        "SegmentationPredictor": "predictor",
        "SegmentationTask": "task",
        "Splits": "data",
    },
)
