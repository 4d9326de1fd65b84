"""Weights of classes in losses."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dgmn.errors import InputError, did_you_mean
from dgmn.report import say

ClassWeights = list[float] | dict[str, float] | Literal["balanced"] | None


def check_class_weights(weights: Any, num_classes: int) -> None:
    """Checks weights of classes before the data is read; names are checked later.

    Raises:
        InputError (a ValueError): the weights are not of one of the kinds that `Task` takes, or not that many.
    """
    if weights is None or weights == "balanced":
        return
    if not isinstance(weights, list | dict):
        raise InputError(f'model.class_weights must be a list, weights by name, or "balanced", got {weights!r}')
    if isinstance(weights, list) and len(weights) != num_classes:
        raise InputError(f"model.class_weights: {len(weights)} weights for {num_classes} classes")
    values = list(weights.values() if isinstance(weights, dict) else weights)
    if not all(isinstance(value, int | float) and 0 <= value < math.inf for value in values):
        raise InputError(f"model.class_weights must be finite numbers of at least 0, got {weights}")
    if isinstance(weights, list) and not any(values):
        raise InputError("model.class_weights: all are 0, so there is nothing to learn")


def class_weight_tensor(
    weights: list[float] | dict[str, float] | Literal["balanced"], data: Any, num_classes: int
) -> Tensor:
    """The weights of all classes, in the order of the network's outputs.

    Args:
        weights: see [`Task`][dgmn.training.Task].
        data: the data module, which is set up for a training.
        num_classes: outputs of the network; the data may know of fewer.

    Raises:
        InputError (a ValueError): a name is of no class.
    """
    if isinstance(weights, list):
        return torch.tensor(weights, dtype=torch.float32)
    if weights == "balanced":
        counts = list(data.class_counts())
        found = _balanced(counts + [0] * (num_classes - len(counts)))
        names = data.names or range(len(found))
        shown = sorted(zip(found, names, strict=True), key=lambda pair: -pair[0])
        most = [*shown[:3], *shown[max(3, len(shown) - 2) :]]
        dots = " ..." if len(shown) > len(most) else ""
        say(f"class weights, balanced: {', '.join(f'{name} {weight:.3g}' for weight, name in most)}{dots}")
        return torch.tensor(found, dtype=torch.float32)
    names = data.names
    if names is None:
        raise InputError("model.class_weights: the data does not name its classes; give a list of weights")
    for name in weights:
        if name not in names:
            some = f"; there are {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
            raise InputError(f"model.class_weights: there is no class {name!r}{did_you_mean(name, names, some)}")
    return torch.tensor([weights.get(name, 1.0) for name in names], dtype=torch.float32)


def _balanced(counts: Sequence[int]) -> list[float]:
    """Weights whose mean over the data is 1, and for which every class counts as much; 0 for a class without data."""
    there = sum(count > 0 for count in counts)
    return [sum(counts) / (there * count) if count else 0.0 for count in counts]
