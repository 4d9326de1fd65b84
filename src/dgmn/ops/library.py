"""The kernels as PyTorch operators, `torch.ops.dgmn.*`: shapes, gradients and costs, for autograd, compile and export.

Every operator has its own backward operator. The inputs are saved for it, and for attention one number per position
and head, but never the sampled nodes. `functional.py` checks the arguments and chooses the backend. An exported program
runs without it, so the operators check all that the kernels rely on once more.
"""

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from dgmn.ops import linear as _linear
from dgmn.ops import native

# With both at their most, the nodes of a grid lie 2**30 pixels apart. The kernels' positions have 32 bits.
MAX_KERNEL_SIZE = 2**10
MAX_DILATION = 2**20
# Position scores of more nodes do not fit the registers of a Triton program that adds up the gradients of a table.
MAX_TRITON_NODES = 64


def _check_number(name: str, number: int, most: int) -> None:
    if not 1 <= number <= most:
        raise RuntimeError(f"dgmn: {name} must be from 1 to {most}, got {number}")


def _check_map(name: str, x: Tensor) -> None:
    if x.dim() != 5 or 0 in x.shape[1:]:
        raise RuntimeError(
            f"dgmn: {name} must have the shape (B, H, W, heads, D), only B may be zero, got {tuple(x.shape)}"
        )


def _check_tensor(name: str, x: Tensor, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> None:
    """Refuses a tensor that the kernels would read beyond its end. Without a dtype, it may be of any floating point."""
    if x.shape == shape and x.device == like.device and (x.is_floating_point() if dtype is None else x.dtype == dtype):
        return
    raise RuntimeError(
        f"dgmn: {name} must be {dtype or 'floating point'} of the shape {tuple(shape)} on {like.device}, "
        f"got {x.dtype} of the shape {tuple(x.shape)} on {x.device}"
    )


def _kernels(backend: str, name: str, x: Tensor) -> ModuleType:
    """The module with the kernels of a backend.

    Raises:
        RuntimeError: the backend is unknown or cannot run on the map `x`, which is the argument `name`.
    """
    if backend not in ("native", "triton"):
        raise RuntimeError(f"dgmn: no kernels for the backend {backend!r}, it must be native or triton")
    _check_map(name, x)
    kernels: ModuleType = native
    # An exported program names the backend of the machine that exported it, and may run on another device.
    if backend == "triton" or x.is_cuda:
        from dgmn.ops import triton_kernels

        kernels = triton_kernels
    reason = kernels.unsupported(x)
    if reason is not None:
        raise RuntimeError(f"dgmn: the kernels cannot run on {name}: {reason}")
    return kernels


def _checked(
    backend: str,
    value: Tensor,
    maps: dict[str, Tensor],
    offset: Tensor,
    weights: dict[str, Tensor | None],
    kernel_size: int,
    dilation: int,
) -> ModuleType:
    """The kernels that sample nodes, after a check of their arguments.

    Raises:
        RuntimeError: they cannot run here, or an argument is none that they can take; the message names it.
    """
    kernels = _kernels(backend, "value", value)
    _check_number("kernel_size", kernel_size, MAX_KERNEL_SIZE)
    _check_number("dilation", dilation, MAX_DILATION)
    for name, x in maps.items():
        _check_tensor(name, x, value.shape, value, value.dtype)
    positions, nodes = value.shape[:4], kernel_size**2
    shared = offset.dim() == 6 and offset.shape[3] == 1
    _check_tensor("offset", offset, (*positions[:3], 1 if shared else positions[3], nodes, 2), value)
    for name, weight in weights.items():
        if weight is not None:
            _check_tensor(name, weight, (*positions, nodes), value)
    return kernels


def _position_kernels(
    backend: str, query: Tensor, rows: Tensor | None, columns: Tensor | None, mirrored: bool, nodes: int
) -> ModuleType:
    kernels = _kernels(backend, "query", query)
    _, height, width, _, dim = query.shape
    for name, table, length in (("rows", rows, height), ("columns", columns, width)):
        if table is not None:
            _check_tensor(name, table, (length + nodes - 1, dim), query)
    if kernels is native:
        return kernels
    from dgmn.ops import triton_position

    _check_number("nodes", nodes, MAX_TRITON_NODES)
    if mirrored and rows is not None and height != width:
        raise RuntimeError(f"dgmn: mirrored needs a square map, got a query of the shape {tuple(query.shape)}")
    return triton_position


def _check_devices(*arguments: Any) -> None:
    """Refuses a meta tensor among others: for these PyTorch asks only for shapes, and would return chance numbers."""
    devices = {str(x.device) for x in arguments if isinstance(x, Tensor)}
    if len(devices) > 1:
        raise RuntimeError(f"dgmn: the tensors must be on one device, got {', '.join(sorted(devices))}")


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
    maps = {"query": query, "key": key}
    kernels = _checked(backend, value, maps, offset, {"bias": bias}, kernel_size, dilation)
    out, log_sum = kernels.attention_forward(query, key, value, offset, bias, scale, kernel_size, dilation)
    return out, log_sum


@sampled_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    _check_devices(query, key, value, *others)
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
    maps = {"grad_out": grad_out, "query": query, "key": key}
    kernels = _checked(backend, value, maps, offset, {"bias": bias}, kernel_size, dilation)
    _check_tensor("log_sum", log_sum, value.shape[:4], value)
    grad_query, grad_key, grad_value, grad_offset, grad_bias = kernels.attention_backward(
        grad_out, query, key, value, offset, bias, log_sum, scale, kernel_size, dilation
    )
    return grad_query, grad_key, grad_value, grad_offset, value.new_empty(0) if grad_bias is None else grad_bias


@sampled_attention_backward.register_fake
def _(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, offset: Tensor, bias: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check_devices(grad_out, query, key, value, offset, bias, *others)
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
    kernels = _checked(backend, value, {}, offset, {"weight": weight}, kernel_size, dilation)
    out: Tensor = kernels.aggregate_forward(value, offset, weight, kernel_size, dilation)
    return out


@sampled_aggregate.register_fake
def _(value: Tensor, *others: Any) -> Tensor:
    _check_devices(value, *others)
    return value.new_empty(value.shape)


@torch.library.custom_op("dgmn::sampled_aggregate_backward", mutates_args=())
def sampled_aggregate_backward(
    grad_out: Tensor, value: Tensor, offset: Tensor, weight: Tensor, kernel_size: int, dilation: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = _checked(backend, value, {"grad_out": grad_out}, offset, {"weight": weight}, kernel_size, dilation)
    grad_value, grad_offset, grad_weight = kernels.aggregate_backward(
        grad_out, value, offset, weight, kernel_size, dilation
    )
    return grad_value, grad_offset, grad_weight


@sampled_aggregate_backward.register_fake
def _(grad_out: Tensor, value: Tensor, offset: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    _check_devices(grad_out, value, offset, weight)
    return value.new_empty(value.shape), offset.new_empty(offset.shape), weight.new_empty(weight.shape)


def _save_aggregate(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.options = inputs[3:]


def _aggregate_gradients(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.dgmn.sampled_aggregate_backward(grad_out, *ctx.saved_tensors, *ctx.options)
    return (*grads, None, None, None)


sampled_aggregate_backward.register_autograd(_no_second_derivatives)
sampled_aggregate.register_autograd(_aggregate_gradients, setup_context=_save_aggregate)


@torch.library.custom_op("dgmn::position_scores", mutates_args=())
def position_scores(
    query: Tensor, rows: Tensor | None, columns: Tensor | None, mirrored: bool, nodes: int, backend: str
) -> Tensor:
    _check_number("nodes", nodes, MAX_KERNEL_SIZE**2)
    kernels = _position_kernels(backend, query, rows, columns, mirrored, nodes)
    scores: Tensor = kernels.position_forward(query, rows, columns, mirrored, nodes)
    return scores


@position_scores.register_fake
def _(query: Tensor, rows: Tensor | None, columns: Tensor | None, mirrored: bool, nodes: int, _: str) -> Tensor:
    _check_devices(query, rows, columns)
    return query.new_empty((*query.shape[:4], nodes), dtype=torch.float32)


@torch.library.custom_op("dgmn::position_scores_backward", mutates_args=())
def position_scores_backward(
    grad_scores: Tensor, query: Tensor, rows: Tensor | None, columns: Tensor | None, mirrored: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    nodes = grad_scores.shape[-1] if grad_scores.dim() else 0
    _check_number("the last size of grad_scores", nodes, MAX_KERNEL_SIZE**2)
    kernels = _position_kernels(backend, query, rows, columns, mirrored, nodes)
    _check_tensor("grad_scores", grad_scores, (*query.shape[:4], nodes), query)
    grad_query, *tables = kernels.position_backward(grad_scores, query, rows, columns, mirrored)
    grad_rows, grad_columns = (query.new_empty(0) if table is None else table for table in tables)
    return grad_query, grad_rows, grad_columns


@position_scores_backward.register_fake
def _(
    grad_scores: Tensor, query: Tensor, rows: Tensor | None, columns: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    _check_devices(grad_scores, query, rows, columns)
    grad_rows, grad_columns = (query.new_empty(0) if x is None else x.new_empty(x.shape) for x in (rows, columns))
    return query.new_empty(query.shape), grad_rows, grad_columns


def _save_position(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    _, _, _, ctx.mirrored, _, ctx.backend = inputs


def _position_gradients(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
    query, rows, columns = ctx.saved_tensors
    grad_query, grad_rows, grad_columns = torch.ops.dgmn.position_scores_backward(
        grad_scores, query, rows, columns, ctx.mirrored, ctx.backend
    )
    return grad_query, None if rows is None else grad_rows, None if columns is None else grad_columns, None, None, None


position_scores_backward.register_autograd(_no_second_derivatives)
position_scores.register_autograd(_position_gradients, setup_context=_save_position)


@torch.library.custom_op("dgmn::linear", mutates_args=())
def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """For compiled inference; it has no gradients, and neither has the next."""
    return _linear.linear(x, weight, bias)


@linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], len(weight)))


@torch.library.custom_op("dgmn::perceptron", mutates_args=())
def perceptron(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, residual: Tensor | None
) -> Tensor:
    return _linear.perceptron(x, weight1, bias1, weight2, bias2, residual)


@perceptron.register_fake
def _(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, *_: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], len(weight2)))


# The formulas count the matrix products of the reference, so a network costs the same on every backend. They leave out
# the sampling, because PyTorch's counter counts no interpolation.


def _products(shape: Any, nodes: int, over_nodes: int = 0, over_channels: int = 0) -> int:
    """The flops of so many products that are summed over nodes, and over channels.

    Where a sum has one term, einsum multiplies elements; the counter takes only matrix products.
    """
    batch, height, width, heads, dim = shape
    times = over_nodes * (nodes > 1) + over_channels * (dim > 1)
    flops: int = 2 * times * batch * height * width * heads * dim * nodes
    return flops


@register_flop_formula(torch.ops.dgmn.sampled_attention)
def _(
    query: Any, key: Any, value: Any, offset: Any, bias: Any, scale: Any, kernel_size: int, *_: Any, **__: Any
) -> int:
    return _products(value, kernel_size**2, 1, 1)


@register_flop_formula(torch.ops.dgmn.sampled_attention_backward)
def _(grad_out: Any, query: Any, key: Any, value: Any, offset: Any, *_: Any, **__: Any) -> int:
    return _products(value, offset[-2], 2, 2)


@register_flop_formula(torch.ops.dgmn.sampled_aggregate)
def _(value: Any, offset: Any, *_: Any, **__: Any) -> int:
    return _products(value, offset[-2], over_nodes=1)


@register_flop_formula(torch.ops.dgmn.sampled_aggregate_backward)
def _(grad_out: Any, value: Any, offset: Any, *_: Any, **__: Any) -> int:
    return _products(value, offset[-2], over_nodes=2)


@register_flop_formula(torch.ops.dgmn.position_scores)
def _(query: Any, rows: Any, columns: Any, mirrored: bool, nodes: int, *_: Any, **__: Any) -> int:
    return _products(query, nodes, over_channels=(rows is not None) + (columns is not None))


@register_flop_formula(torch.ops.dgmn.position_scores_backward)
def _(grad_scores: Any, query: Any, rows: Any, columns: Any, *_: Any, **__: Any) -> int:
    return _products(query, grad_scores[-1], over_channels=2 * ((rows is not None) + (columns is not None)))


if hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # the packed layers of dgmn.fuse

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _(x: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        flops: int = 2 * math.prod(out_shape) * x[-1]
        return flops

    @register_flop_formula(torch.ops.mkldnn._convolution_pointwise)
    def _(x: Any, weight: Any, *arguments: Any, out_shape: Any, **_: Any) -> int:
        groups = arguments[4]
        flops: int = 2 * math.prod(out_shape) * (x[1] // groups) * weight[-2] * weight[-1]
        return flops
