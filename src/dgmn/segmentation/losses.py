"""Losses of semantic segmentation."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dgmn.errors import InputError
from dgmn.ops.precision import compute_dtype
from dgmn.processes import mean_divisor

IGNORED = 255
"""The value of a pixel without a label in masks."""


@dataclass(frozen=True)
class PixelLoss:
    """Cross-entropy of pixels.

    Attributes:
        average: "all" divides by the number of all pixels, including those without a label, as the original training
            does. "labelled" divides by the number of labelled pixels in all processes, which is the usual mean; with
            weights of classes, by the sum of these pixels' weights.
        hard_below: online hard example mining: only pixels whose true class has less than this probability count.
            The average is over the pixels that count, in all processes. None counts all.
        hard_share: with `hard_below`, at least this share of a process's pixels counts: those with the highest loss.

    Source: Bootstrapping, as "Online Hard Example Mining" in Dynamic Graph Message Passing Networks, Table 13
        (https://arxiv.org/abs/2209.09760).
    """

    average: Literal["all", "labelled"] = "all"
    hard_below: float | None = None
    hard_share: float = 1 / 16

    def __post_init__(self) -> None:
        if self.average not in ("all", "labelled"):
            raise InputError(f'loss.average must be "all" or "labelled", got {self.average!r}')
        if self.hard_below is not None and not 0 < self.hard_below <= 1:
            raise InputError(f"loss.hard_below is a probability, above 0 and at most 1, got {self.hard_below}")
        if not 0 <= self.hard_share <= 1:
            raise InputError(f"loss.hard_share must be in 0..1, got {self.hard_share}")

    def __call__(self, logits: Tensor, masks: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            logits: (B, classes, H, W).
            masks: (B, H, W), whole numbers; 255 is no label.
            weights: (classes,), weights of the classes; None: all are 1.

        Returns:
            The loss; 0 if no pixel has a label.
        """
        logits, labels = logits.to(compute_dtype(logits)), masks.long()
        if self.hard_below is None and self.average == "all":
            # Dividing by a fixed number makes the loss of a batch without labels 0, not NaN.
            return F.cross_entropy(logits, labels, weights, ignore_index=IGNORED, reduction="sum") / masks.numel()
        losses = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
        counted = masks != IGNORED
        if self.hard_below is not None:
            counted = counted & self._hard(losses.detach(), counted, self.hard_below)
        if weights is None:
            return (losses * counted).sum() / mean_divisor(counted.sum(), losses)
        shares = weights[labels.masked_fill(~counted, 0)] * counted
        least = torch.finfo(shares.dtype).tiny
        return (losses * shares).sum() / mean_divisor(shares.sum(), losses, least)

    def _hard(self, losses: Tensor, labelled: Tensor, hard_below: float) -> Tensor:
        threshold = -torch.log(losses.new_tensor(hard_below))
        least = min(int(self.hard_share * losses.numel()), int(labelled.sum()))
        if least > 0:
            easiest = losses[labelled].kthvalue(int(labelled.sum()) - least + 1).values
            threshold = torch.minimum(threshold, easiest)
        return losses >= threshold
