"""What all tasks share: optimiser and schedule, callbacks, checkpoints, reading images."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgmn.training.callbacks import DropPathSchedule
    from dgmn.training.schedules import MultiStep, Polynomial, WarmupCosine
    from dgmn.training.task import Task

__all__ = ["DropPathSchedule", "MultiStep", "Polynomial", "Task", "WarmupCosine"]

_HOMES = {
    "DropPathSchedule": "callbacks",
    "MultiStep": "schedules",
    "Polynomial": "schedules",
    "Task": "task",
    "WarmupCosine": "schedules",
}


def __getattr__(name: str) -> Any:
    # Late, because lightning takes seconds to import and prediction does not need it.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
