"""Image classification: data, training task, prediction."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgmn.classification.data import Augmentation, ClassificationData
    from dgmn.classification.task import ClassificationTask

__all__ = ["Augmentation", "ClassificationData", "ClassificationTask"]

_HOMES = {"Augmentation": "data", "ClassificationData": "data", "ClassificationTask": "task"}


def __getattr__(name: str) -> Any:
    # Late, because lightning takes seconds to import and prediction does not need it.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
