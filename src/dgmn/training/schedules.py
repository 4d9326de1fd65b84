"""Learning rate schedules that change the rate at every optimiser step."""

import math
import zlib
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from dgmn.errors import InputError

_PROBED = 100_000  # steps of the training for which schedules are compared


def fingerprint(make: Callable[[Optimizer, int], LRScheduler], optimizer: Optimizer) -> str:
    """A text that differs for schedules of different factors.

    Args:
        make: makes the schedule from an optimiser and the number of steps.
        optimizer: an optimiser of one group, which is not used any more.
    """
    optimizer.param_groups[0]["lr"] = 1.0
    schedule = make(optimizer, _PROBED)
    factors: list[float] = []
    if isinstance(schedule, LambdaLR):
        steps = [*range(1000), *range(1000, _PROBED, 99)]
        factors = [round(float(schedule.lr_lambdas[0](step)), 9) for step in steps]
    return f"{type(schedule).__name__} {zlib.crc32(repr(factors).encode()):08x}"


def advance(schedule: LRScheduler, step: int) -> None:
    """Advances a schedule to a step that lies at least one step ahead."""
    if isinstance(schedule, LambdaLR):  # its factors depend on the step alone
        schedule.last_epoch = step - 1
    while schedule.last_epoch < step:
        schedule.step()


class WarmupCosine(LambdaLR):
    """Linear warm-up, and half a cosine down to a fraction of the learning rate.

    Args:
        optimizer: the optimiser whose learning rates are scaled.
        total_steps: steps of the whole training.
        warmup: share of the steps that warm up.
        start: factor at the first step.
        end: factor that the cosine ends at, after the last step.
        updates: how often the learning rate changes during the training, for instance the number of epochs; None: at
            every step.
        warmup_prefix: whether the cosine begins after the warm-up. Otherwise it begins with the training, and the
            warm-up takes the place of its first part, as in timm.
        delay: how many changes late the schedule is; the rate of the start lasts that much longer. DGMN2's original is
            one epoch late.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup: float = 0.0,
        start: float = 1e-3,
        end: float = 0.01,
        updates: int | None = None,
        warmup_prefix: bool = True,
        delay: int = 0,
    ) -> None:
        if not 0 <= warmup < 1:
            raise InputError(f"warmup is the share of steps that warm up, at least 0 and below 1, got {warmup}")
        for name, value in {"start": start, "end": end}.items():
            if not 0 <= value <= 1:
                raise InputError(f"{name} is a share of the learning rate, in 0..1, got {value}")
        if updates is not None and updates < 1:
            raise InputError(f"updates must be at least 1, got {updates}")
        if delay < 0:
            raise InputError(f"delay must be at least 0, got {delay}")
        changes = total_steps if updates is None else updates
        warm = round(warmup * changes)
        before = warm if warmup_prefix else 0

        def factor(step: int) -> float:
            change = max(0, (step if updates is None else step * updates // max(total_steps, 1)) - delay)
            if change < warm:
                return start + (1 - start) * change / warm
            progress = min(1.0, (change - before) / max(1, changes - before))
            return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress))

        super().__init__(optimizer, factor)


class Polynomial(LambdaLR):
    """Scales the learning rate by `(1 - step / total) ** power`, with a linear warm-up.

    Args:
        optimizer: the optimiser whose learning rates are scaled.
        total_steps: steps of the whole training.
        power: exponent of the decay.
        warmup: share of the steps that warm up, starting near 0.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, power: float = 0.9, warmup: float = 0.0) -> None:
        if not 0 < power < math.inf or not 0 <= warmup < 1:
            raise InputError(f"power must be above 0 and warmup at least 0 and below 1, got {power} and {warmup}")
        warmup_steps = round(warmup * total_steps)

        def factor(step: int) -> float:
            rising = (step + 1) / warmup_steps if step < warmup_steps else 1.0
            falling: float = (1 - min(step, total_steps) / max(total_steps, 1)) ** power
            return rising * falling

        super().__init__(optimizer, factor)


class MultiStep(LambdaLR):
    """Multiplies the learning rate by `factor` at each milestone, after a linear warm-up.

    Args:
        optimizer: the optimiser whose learning rates are scaled.
        total_steps: steps of the whole training.
        milestones: places of the milestones, as shares of the training.
        factor: multiplier at every milestone.
        warmup_steps: steps that warm up.
        start: factor at the first step.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        milestones: tuple[float, ...] = (8 / 12, 11 / 12),
        factor: float = 0.1,
        warmup_steps: int = 500,
        start: float = 0.001,
    ) -> None:
        if not all(0 < share < 1 for share in milestones) or warmup_steps < 0:
            raise InputError(
                "milestones must be shares of the training above 0 and below 1, and warmup_steps at least 0, "
                f"got {list(milestones)} and {warmup_steps}"
            )
        for name, value in {"factor": factor, "start": start}.items():
            if not 0 <= value <= 1:
                raise InputError(f"{name} is a share of the learning rate, in 0..1, got {value}")
        places = [round(share * total_steps) for share in milestones]

        def scale(step: int) -> float:
            warm = start + (1 - start) * step / warmup_steps if step < warmup_steps else 1.0
            passed = sum(step >= place for place in places)
            return float(warm * factor**passed)

        super().__init__(optimizer, scale)
