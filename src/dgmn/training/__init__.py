"""The Lightning parts that all tasks share: task, data, optimiser, schedule, callbacks and checkpoints."""

from typing import TYPE_CHECKING

from dgmn_base.lazy import lazy_names

if TYPE_CHECKING:
    from dgmn.training.averaging import AveragedWeights
    from dgmn.training.callbacks import DropPathSchedule
    from dgmn.training.schedules import MultiStep, Polynomial, WarmupCosine
    from dgmn.training.task import Task

__all__ = ["AveragedWeights", "DropPathSchedule", "MultiStep", "Polynomial", "Task", "WarmupCosine"]

# Lazy, because importing lightning takes seconds, and neither networks nor prediction need it.
__getattr__ = lazy_names(
    __name__,
    {
        "AveragedWeights": "averaging",
        "DropPathSchedule": "callbacks",
        "MultiStep": "schedules",
        "Polynomial": "schedules",
        "Task": "task",
        "WarmupCosine": "schedules",
    },
)
