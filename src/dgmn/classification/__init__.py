"""Image classification: data, training task, prediction."""

from typing import TYPE_CHECKING

from dgmn_base.lazy import lazy_names

if TYPE_CHECKING:
    from dgmn.classification.data import Augmentation, ClassificationData
    from dgmn.classification.predictor import ClassificationPredictor
    from dgmn.classification.task import ClassificationTask

__all__ = ["Augmentation", "ClassificationData", "ClassificationPredictor", "ClassificationTask"]

# Imported late: lightning takes seconds to import, and neither networks nor prediction need it.
__getattr__ = lazy_names(
    __name__,
    {
        "Augmentation": "data",
        "ClassificationData": "data",
        "ClassificationPredictor": "predictor",
        "ClassificationTask": "task",
    },
)
