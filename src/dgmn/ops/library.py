"""The kernels as PyTorch operators, `torch.ops.dgmn.*`: shapes, gradients and costs, for autograd, compile and export.

Every operator has its own backward operator. The inputs are saved for it, and for attention one number per position
and head, but never the sampled nodes. `functional.py` checks the arguments and chooses the backend.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from dgmn.ops import native


def _kernels(backend: str, value: Tensor) -> ModuleType:
    """The module with the kernels of a backend.

    Raises:
        RuntimeError: the backend is unknown or cannot run on such a map. Exported programs call this with arguments
            that nothing has checked.
    """
    if backend not in ("native", "triton"):
        raise RuntimeError(f"dgmn: no kernels for the backend {backend!r}, it must be native or triton")
    kernels: ModuleType = native
    # An exported program names the backend of the machine that exported it, and may run on another device.
    if backend == "triton" or value.is_cuda:
        from dgmn.ops import triton_kernels

        kernels = triton_kernels
    reason = kernels.unsupported(value)
    if reason is not None:
        raise RuntimeError(f"dgmn: the kernels cannot run: {reason}")
    return kernels


def _check(value: Tensor, maps: Sequence[Tensor], offset: Tensor, nodes: int, weights: Sequence[Tensor | None]) -> None:
    """Refuses shapes and devices with which the kernels would read beyond the end of a tensor."""
    shape = value.shape
    offsets = [(*shape[:3], heads, nodes, 2) for heads in (1, *shape[3:4])]
    fits = (
        len(shape) == 5
        and all(x.shape == shape for x in maps)
        and tuple(offset.shape) in offsets
        and all(x is None or x.shape == (*shape[:4], nodes) for x in weights)
        and all(x is None or x.device == value.device for x in (*maps, offset, *weights))
    )
    if not fits:
        given = [tuple(x.shape) for x in (value, *maps, offset, *weights) if x is not None]
        raise RuntimeError(f"dgmn: the shapes or devices of the arguments do not fit each other: {given}")


def _check_tables(query: Tensor, rows: Tensor | None, columns: Tensor | None, mirrored: bool, nodes: int) -> None:
    _, height, width, _, dim = query.shape
    tables = ((rows, height), (columns, width))
    if (mirrored and height != width) or any(
        table is not None and table.shape != (length + nodes - 1, dim) for table, length in tables
    ):
        given = [None if table is None else tuple(table.shape) for table, _ in tables]
        raise RuntimeError(f"dgmn: tables {given} do not fit a query {tuple(query.shape)} of {nodes} nodes")


def _no_second_derivatives(*_: Any) -> Any:
    raise RuntimeError("dgmn: the kernels have no second derivatives; give backend='reference'")


@torch.library.custom_op("dgmn::sampled_attention", mutates_args=())
def sampled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offset: Tensor,
    bias: Tensor | None,
    scale: float,
    kernel_size: int,
    dilation: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    _check(value, (query, key), offset, kernel_size**2, (bias,))
    out, log_sum = _kernels(backend, value).attention_forward(
        query, key, value, offset, bias, scale, kernel_size, dilation
    )
    return out, log_sum


@sampled_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return value.new_empty(value.shape), value.new_empty(value.shape[:4], dtype=torch.float32)


@torch.library.custom_op("dgmn::sampled_attention_backward", mutates_args=())
def sampled_attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offset: Tensor,
    bias: Tensor | None,
    log_sum: Tensor,
    scale: float,
    kernel_size: int,
    dilation: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check(value, (grad_out, query, key), offset, kernel_size**2, (bias,))
    grad_query, grad_key, grad_value, grad_offset, grad_bias = _kernels(backend, value).attention_backward(
        grad_out, query, key, value, offset, bias, log_sum, scale, kernel_size, dilation
    )
    return grad_query, grad_key, grad_value, grad_offset, value.new_empty(0) if grad_bias is None else grad_bias


@sampled_attention_backward.register_fake
def _(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, offset: Tensor, bias: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_query, grad_key, grad_value, grad_offset = (x.new_empty(x.shape) for x in (query, key, value, offset))
    grad_bias = value.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return grad_query, grad_key, grad_value, grad_offset, grad_bias


def _save_attention(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, scale, kernel_size, dilation, backend = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.options = (scale, kernel_size, dilation, backend)
    ctx.mark_non_differentiable(output[1])


def _attention_gradients(ctx: Any, grad_out: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: unpacking twice is an error under activation checkpointing
    *grads, grad_bias = torch.ops.dgmn.sampled_attention_backward(grad_out, *saved, *ctx.options)
    return (*grads, None if saved[4] is None else grad_bias, None, None, None, None)


sampled_attention_backward.register_autograd(_no_second_derivatives)
sampled_attention.register_autograd(_attention_gradients, setup_context=_save_attention)


@torch.library.custom_op("dgmn::sampled_aggregate", mutates_args=())
def sampled_aggregate(
    value: Tensor, offset: Tensor, weight: Tensor, kernel_size: int, dilation: int, backend: str
) -> Tensor:
    _check(value, (), offset, kernel_size**2, (weight,))
    out: Tensor = _kernels(backend, value).aggregate_forward(value, offset, weight, kernel_size, dilation)
    return out


@sampled_aggregate.register_fake
def _(value: Tensor, *_: Any) -> Tensor:
    return value.new_empty(value.shape)


@torch.library.custom_op("dgmn::sampled_aggregate_backward", mutates_args=())
def sampled_aggregate_backward(
    grad_out: Tensor, value: Tensor, offset: Tensor, weight: Tensor, kernel_size: int, dilation: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    _check(value, (grad_out,), offset, kernel_size**2, (weight,))
    grad_value, grad_offset, grad_weight = _kernels(backend, value).aggregate_backward(
        grad_out, value, offset, weight, kernel_size, dilation
    )
    return grad_value, grad_offset, grad_weight


@sampled_aggregate_backward.register_fake
def _(grad_out: Tensor, value: Tensor, offset: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return value.new_empty(value.shape), offset.new_empty(offset.shape), weight.new_empty(weight.shape)


def _save_aggregate(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.options = inputs[3:]


def _aggregate_gradients(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.dgmn.sampled_aggregate_backward(grad_out, *ctx.saved_tensors, *ctx.options)
    return (*grads, None, None, None)


sampled_aggregate_backward.register_autograd(_no_second_derivatives)
sampled_aggregate.register_autograd(_aggregate_gradients, setup_context=_save_aggregate)


@torch.library.custom_op("dgmn::position_scores", mutates_args=(), device_types="cpu")
def position_scores(query: Tensor, rows: Tensor | None, columns: Tensor | None, mirrored: bool, nodes: int) -> Tensor:
    _kernels("native", query)
    _check_tables(query, rows, columns, mirrored, nodes)
    return native.position_forward(query, rows, columns, mirrored, nodes)


@position_scores.register_fake
def _(query: Tensor, rows: Tensor | None, columns: Tensor | None, mirrored: bool, nodes: int) -> Tensor:
    return query.new_empty((*query.shape[:4], nodes), dtype=torch.float32)


@torch.library.custom_op("dgmn::position_scores_backward", mutates_args=(), device_types="cpu")
def position_scores_backward(
    grad_scores: Tensor, query: Tensor, rows: Tensor | None, columns: Tensor | None, mirrored: bool
) -> tuple[Tensor, Tensor, Tensor]:
    _kernels("native", query)
    _check_tables(query, rows, columns, mirrored, grad_scores.shape[-1])
    grad_query, *tables = native.position_backward(grad_scores, query, rows, columns, mirrored)
    grad_rows, grad_columns = (query.new_empty(0) if table is None else table for table in tables)
    return grad_query, grad_rows, grad_columns


@position_scores_backward.register_fake
def _(
    grad_scores: Tensor, query: Tensor, rows: Tensor | None, columns: Tensor | None, mirrored: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_rows, grad_columns = (query.new_empty(0) if x is None else x.new_empty(x.shape) for x in (rows, columns))
    return query.new_empty(query.shape), grad_rows, grad_columns


def _save_position(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.mirrored = inputs[3]


def _position_gradients(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
    query, rows, columns = ctx.saved_tensors
    grad_query, grad_rows, grad_columns = torch.ops.dgmn.position_scores_backward(
        grad_scores, query, rows, columns, ctx.mirrored
    )
    return grad_query, None if rows is None else grad_rows, None if columns is None else grad_columns, None, None


position_scores_backward.register_autograd(_no_second_derivatives)
position_scores.register_autograd(_position_gradients, setup_context=_save_position)


# The formulas count the matrix products of the reference, so a network costs the same on every backend. They leave out
# the sampling, because PyTorch's counter counts no interpolation.


def _products(shape: Any, nodes: int, times: int) -> int:
    batch, height, width, heads, dim = shape
    flops: int = 2 * times * batch * height * width * heads * dim * nodes
    return flops


@register_flop_formula(torch.ops.dgmn.sampled_attention)
def _(
    query: Any, key: Any, value: Any, offset: Any, bias: Any, scale: Any, kernel_size: int, *_: Any, **__: Any
) -> int:
    return _products(value, kernel_size**2, 2)


@register_flop_formula(torch.ops.dgmn.sampled_attention_backward)
def _(grad_out: Any, query: Any, key: Any, value: Any, offset: Any, *_: Any, **__: Any) -> int:
    return _products(value, offset[-2], 4)


@register_flop_formula(torch.ops.dgmn.sampled_aggregate)
def _(value: Any, offset: Any, *_: Any, **__: Any) -> int:
    return _products(value, offset[-2], 1)


@register_flop_formula(torch.ops.dgmn.sampled_aggregate_backward)
def _(grad_out: Any, value: Any, offset: Any, *_: Any, **__: Any) -> int:
    return _products(value, offset[-2], 2)


@register_flop_formula(torch.ops.dgmn.position_scores)
def _(query: Any, rows: Any, columns: Any, mirrored: bool, nodes: int, *_: Any, **__: Any) -> int:
    return _products(query, nodes, (rows is not None) + (columns is not None))


@register_flop_formula(torch.ops.dgmn.position_scores_backward)
def _(grad_scores: Any, query: Any, rows: Any, columns: Any, *_: Any, **__: Any) -> int:
    return _products(query, grad_scores[-1], 2 * ((rows is not None) + (columns is not None)))
