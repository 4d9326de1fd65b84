"""What all tasks share of Lightning: task, data, optimiser and schedule, callbacks, checkpoints."""

from typing import TYPE_CHECKING

from dgmn_base.lazy import lazy_names

if TYPE_CHECKING:
    from dgmn.training.callbacks import DropPathSchedule
    from dgmn.training.schedules import MultiStep, Polynomial, WarmupCosine
    from dgmn.training.task import Task

__all__ = ["DropPathSchedule", "MultiStep", "Polynomial", "Task", "WarmupCosine"]

# Late, because lightning takes seconds to import, and neither networks nor prediction need it.
__getattr__ = lazy_names(
    __name__,
    {
        "DropPathSchedule": "callbacks",
        "MultiStep": "schedules",
        "Polynomial": "schedules",
        "Task": "task",
        "WarmupCosine": "schedules",
    },
)
