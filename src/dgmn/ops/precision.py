"""Computes in at least float32 where half precision would lose too much: walks, pixel coordinates, logits.

In bfloat16 the coordinate 200.5 rounds to 200.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

torch.fx.wrap("_linear")
torch.fx.wrap("_conv2d")


def compute_dtype(x: Tensor) -> torch.dtype:
    """float32, or float64 if `x` is."""
    return torch.promote_types(x.dtype, torch.float32)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Switches autocast off, so that the code sets the dtypes. Also works on devices without autocast, such as meta."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


class PreciseLinear(nn.Linear):
    """`nn.Linear` in at least float32, also under autocast and with weights of half precision."""

    def forward(self, x: Tensor) -> Tensor:
        return _linear(x, self.weight, self.bias)


class PreciseConv2d(nn.Conv2d):
    """`nn.Conv2d` in at least float32, also under autocast and with weights of half precision."""

    def forward(self, x: Tensor) -> Tensor:
        return _conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def _linear(x: Tensor, *parameters: Tensor | None) -> Tensor:
    with without_autocast(x):
        return F.linear(*_widened(x, *parameters))


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    with without_autocast(x):
        return F.conv2d(*_widened(x, weight, bias), *geometry)


def _widened(x: Tensor, *parameters: Tensor | None) -> tuple[Any, ...]:
    dtype = compute_dtype(x)
    return x.to(dtype), *(None if parameter is None else parameter.to(dtype) for parameter in parameters)
