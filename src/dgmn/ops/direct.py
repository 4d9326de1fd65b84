"""The kernels without PyTorch's dispatcher, for eager code: on small maps it takes longer than they do.

The operators in `library.py` compute the same. Whatever looks at operators (compilers, exporters, counters) gets those.
"""

import os
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from dgmn.ops import native
from dgmn.ops.tracing import is_batched, is_watched

# Forces one backend where the code says "auto": to look for the cause of a problem, without a change of the code.
FORCED = os.environ.get("DGMN_BACKEND")


def is_direct(*tensors: Tensor | None) -> bool:
    """Whether nothing looks at the operators that run, and memory holds the numbers of these tensors."""
    given = tuple(x for x in tensors if x is not None)
    return not (is_in_torch_dispatch_mode() or is_watched(given) or any(map(_is_lazy, given)))


def learns(*tensors: Tensor | None) -> bool:
    """Whether one of these wants a gradient."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _is_lazy(x: Tensor) -> bool:
    """Whether memory does not hold its numbers: a negated view, or zeros without memory. The dispatcher writes them."""
    return x.is_neg() or x._is_zerotensor()


def _needs_operator(grad: Tensor) -> bool:
    """Whether a backward pass is for PyTorch to see.

    The operators tell those who differentiate again that it cannot be done, and take many gradients at once one by one.
    """
    return torch.is_grad_enabled() or is_batched(grad) or _is_lazy(grad)


class _NoContext:
    """Stands for the context of a function that is not recorded."""

    def save_for_backward(self, *_: Tensor | None) -> None:
        pass


def run(function: type[torch.autograd.Function], tensors: tuple[Tensor | None, ...], *options: Any) -> Tensor:
    """One of the functions below; without gradients to come, autograd does not hear of it, which takes less time."""
    out: Tensor = (
        function.apply(*tensors, *options) if learns(*tensors) else function.forward(_NoContext(), *tensors, *options)
    )
    return out


def _kernels(backend: str) -> ModuleType:
    if backend == "native":
        return native
    from dgmn.ops import triton_kernels

    return triton_kernels


def _position_kernels(backend: str) -> ModuleType:
    if backend == "native":
        return native
    from dgmn.ops import triton_position

    return triton_position


class Attention(torch.autograd.Function):
    """`dgmn::sampled_attention`, whose arguments it takes. The caller has checked them."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, scale, kernel_size, dilation, backend = inputs
        out: Tensor
        out, log_sum = _kernels(backend).attention_forward(*tensors, scale, kernel_size, dilation)
        ctx.save_for_backward(*tensors, log_sum)
        ctx.options = (scale, kernel_size, dilation, backend)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        if _needs_operator(grad):
            *grads, grad_bias = torch.ops.dgmn.sampled_attention_backward(grad, *saved, *ctx.options)
        else:
            *options, backend = ctx.options
            *grads, grad_bias = _kernels(backend).attention_backward(grad, *saved, *options)
        return (*grads, None if saved[4] is None else grad_bias, None, None, None, None)


class Aggregate(torch.autograd.Function):
    """`dgmn::sampled_aggregate`, whose arguments it takes. The caller has checked them."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, kernel_size, dilation, backend = inputs
        ctx.save_for_backward(*tensors)
        ctx.options = (kernel_size, dilation, backend)
        out: Tensor = _kernels(backend).aggregate_forward(*tensors, kernel_size, dilation)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        if _needs_operator(grad):
            grads = torch.ops.dgmn.sampled_aggregate_backward(grad, *saved, *ctx.options)
        else:
            *options, backend = ctx.options
            grads = _kernels(backend).aggregate_backward(grad, *saved, *options)
        return (*grads, None, None, None)


class Position(torch.autograd.Function):
    """`dgmn::position_scores`, whose arguments it takes. The caller has checked them."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, mirrored, nodes, backend = inputs
        ctx.save_for_backward(*tensors)
        ctx.options = (mirrored, backend)
        scores: Tensor = _position_kernels(backend).position_forward(*tensors, mirrored, nodes)
        return scores

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        if _needs_operator(grad):
            grads = torch.ops.dgmn.position_scores_backward(grad, *saved, *ctx.options)
        else:
            mirrored, backend = ctx.options
            grads = _position_kernels(backend).position_backward(grad, *saved, mirrored)
        return (*(None if x is None else grad for x, grad in zip(saved, grads, strict=True)), None, None, None)
