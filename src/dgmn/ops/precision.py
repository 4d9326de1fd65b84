"""Computes in at least float32 where half precision would lose too much: walks, pixel coordinates, logits.

In bfloat16 the coordinate 200.5 rounds to 200.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgmn.ops.tracing import is_exporting, is_symbolic, opaque


def compute_dtype(x: Tensor) -> torch.dtype:
    """float32, or float64 if `x` is."""
    return torch.promote_types(x.dtype, torch.float32)


def has_autocast(x: Tensor) -> bool:
    """Whether the device of `x` has autocast. Others, such as meta, raise where it is asked for."""
    device = x.device.type
    # The compiler of PyTorch 2.11 cannot look into the question itself.
    return device != "meta" if torch.compiler.is_compiling() else torch.amp.is_autocast_available(device)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Switches autocast off, so that the code sets the dtypes. Also works on devices without autocast, such as meta."""
    if is_symbolic(x):  # the modules that need it switch it off themselves when the graph runs
        return nullcontext()
    device = x.device.type
    if not has_autocast(x):
        return nullcontext()
    # A recorded graph may run under autocast later.
    needed = torch.compiler.is_compiling() or is_exporting() or torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if needed else nullcontext()


@opaque
class PreciseLinear(nn.Linear):
    """`nn.Linear` in at least float32, also under autocast and with weights of half precision."""

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            return F.linear(*_widened(x, self.weight, self.bias))


@opaque
class PreciseConv2d(nn.Conv2d):
    """`nn.Conv2d` in at least float32, also under autocast and with weights of half precision."""

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            out: Tensor = self._conv_forward(*_widened(x, self.weight, self.bias))
            return out


def _widened(x: Tensor, *parameters: Tensor | None) -> tuple[Any, ...]:
    dtype = compute_dtype(x)
    return x.to(dtype), *(None if parameter is None else parameter.to(dtype) for parameter in parameters)


def computes_in_bfloat16() -> bool:
    """Whether the CPU multiplies matrices of bfloat16. Others convert them, which takes longer than float32."""
    try:
        if torch.cpu._is_avx2_supported():  # oneDNN also emulates it, where the processor has AVX-512 without it
            return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # private names of PyTorch
        return False
