"""Averaged weights."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from typing_extensions import override


class AveragedWeights(WeightAveraging):
    """Keeps an exponential moving average of the weights, which is validated and is what checkpoints hold.

    Its decay rises with the steps: `min(decay, 1 - (1 + step) ** (-2 / 3))`, as with timm's `use_warmup`. So the
    average of a short training, too, is one of its last steps, and not of its start. A checkpoint also holds the raw
    weights, from which a run continues.

    Args:
        decay: the decay that is reached in the end, for instance 0.9998.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=self._average)
        self.decay = decay

    def _average(self, averages: list[Tensor], current: list[Tensor], updates: Any) -> None:
        # The number of steps comes from the callback: `updates` is on the device, and to look at it would make it wait.
        decay: float = min(self.decay, 1 - (1 + self._latest_update_step) ** (-2 / 3))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, current, 1 - decay)
        else:  # counters and indices
            torch._foreach_copy_(averages, current)

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning makes the copy before the network is on its device, and leaves it there.
        assert self._average_model is not None
        self._average_model.to(pl_module.device)
