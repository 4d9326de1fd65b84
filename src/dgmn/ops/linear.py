"""Linear layers in fewer passes over memory: added to a residual, and two of them with GELU in between.

The hidden layer of a perceptron has up to eight times the channels of the map. To write and read the whole of it costs
more than the matrix products, and in training it is the largest tensor that is kept. So it is computed some positions
at a time. On CPUs with AVX-512, oneDNN computes the products, all but those of the weights' gradients.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dgmn.ops import direct, native, onednn
from dgmn.ops.direct import learns
from dgmn.ops.precision import has_autocast, without_autocast
from dgmn.ops.tracing import is_batched, is_watched

# How many hidden numbers a thread computes at a time: 2 MiB in float32, about a core's cache.
_HIDDEN = 2**19
# The same for all threads of oneDNN: 8 MiB.
_HIDDEN_OF_ONEDNN = 2**21
# Up to so many input channels, the backward pass computes the hidden layer again: that takes little longer than to
# write it to memory and to read it back, and on the finest maps it is the largest tensor by far.
_CHEAP = 64

_gelu = torch.ops.aten.gelu.out
_gelu_backward = torch.ops.aten.gelu_backward.grad_input


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer, `F.linear` in fewer operations or faster ones where there are some.

    Args:
        x: (..., C), floating point.
        weight: (D, C).
        bias: (D,), or none.

    Returns:
        (..., D) in the dtype of `x`, or of autocast where it is on.

    Raises:
        ValueError: the channels of `x` are not those of `weight`.
    """
    _check_channels(x, weight)
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if bias is not None and is_compiled_inference(*tensors):
        compiled: Tensor = torch.ops.dgmn.linear(x, weight, bias)
        return compiled
    if is_watched(tensors) or _autocast_dtype(x) is not None or not _on_onednn(*tensors):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    out: Tensor = _Linear.apply(rows, weight, bias) if learns(*tensors) else onednn.linear(rows, weight, bias)
    return out.view(*x.shape[:-1], len(weight))


def add_linear(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`residual + linear(x)` with one pass less over the map, where `is_inference_on_cpu` holds.

    Args:
        residual: (..., D).
        x: (..., C), in the same dtype, as are the others.
        weight: (D, C).
        bias: (D,).

    Returns:
        (..., D).
    """
    rows, start = x.reshape(-1, x.shape[-1]), residual.reshape(-1, len(weight))
    if _on_onednn(x, weight, bias, residual):
        return onednn.added_linear(start, rows, weight, bias).view(residual.shape)
    out = torch.add(start, bias)
    torch.addmm(out, rows, weight.T, out=out)
    return out.view(residual.shape)


def perceptron(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, residual: Tensor | None = None
) -> Tensor:
    """`residual + linear2(gelu(linear1(x)))`, without the sum if there is no residual.

    Training keeps the input and, where it has more than 128 channels, the hidden layer before GELU. The backward pass
    computes the rest again.

    Args:
        x: (..., C), floating point.
        weight1: (H, C).
        bias1: (H,).
        weight2: (D, H).
        bias2: (D,).
        residual: (..., D), or what spreads to it as in any sum.

    Returns:
        (..., D) in the dtype of `x`, or of autocast where it is on; with a residual, in the wider of the two dtypes.

    Raises:
        ValueError: the channels of `x` are not those of `weight1`.
    """
    _check_channels(x, weight1)
    parameters = (weight1, bias1, weight2, bias2)
    dtype = _autocast_dtype(x)
    if dtype is not None:
        with torch.autocast(x.device.type, enabled=False):
            out = perceptron(x.to(dtype), *(parameter.to(dtype) for parameter in parameters))
            return out if residual is None else residual + out
    shape = (*x.shape[:-1], len(weight2))
    if residual is not None and (residual.shape != shape or residual.dtype != x.dtype):
        return residual + perceptron(x, *parameters)
    tensors = (x, *parameters) if residual is None else (x, *parameters, residual)
    if is_compiled_inference(*tensors):
        compiled: Tensor = torch.ops.dgmn.perceptron(x, *parameters, residual)
        return compiled
    recorded = learns(*tensors)
    if not (recorded or x.device.type == "cpu") or is_watched(tensors):
        out = F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)
        return out if residual is None else residual + out
    rows = x.reshape(-1, x.shape[-1])
    start = None if residual is None else residual.reshape(-1, len(weight2))
    output: Tensor = (_Perceptron.apply if recorded else _forward)(rows, *parameters, start)
    return output.view(shape)


def _check_channels(x: Tensor, weight: Tensor) -> None:
    """oneDNN would refuse other channels without a word about them."""
    if x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x must have {weight.shape[1]} channels in its last dimension, got shape {tuple(x.shape)}")


def is_inference_on_cpu(tensors: tuple[Tensor, ...]) -> bool:
    """Whether nothing but the numbers matters: no gradients, no autocast, and nothing that must see every step."""
    if is_watched(tensors) or any(x.device.type != "cpu" for x in tensors):
        return False
    return _autocast_dtype(tensors[0]) is None and not learns(*tensors)


def is_compiled_inference(*tensors: Tensor) -> bool:
    """Whether torch.compile records inference where oneDNN's products pay.

    They then become operators of its graph. Its own compiler takes MKL's, unless the weights are constants.
    PyTorch 2.11 says while it compiles that it exports; there the answer is no.
    """
    if not torch.compiler.is_dynamo_compiling() or torch.compiler.is_exporting() or learns(*tensors):
        return False
    usual = all(
        type(x) in (Tensor, torch.nn.Parameter) and x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors
    )
    pays = onednn.has_avx512() and onednn.is_available()
    return usual and _autocast_dtype(tensors[0]) is None and pays


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    device = x.device.type
    on = has_autocast(x) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on and x.dtype != torch.float64 else None  # autocast leaves float64


def _on_onednn(x: Tensor, *others: Tensor) -> bool:
    """Whether oneDNN computes the products: for any number of rows, so that it does not change a row's result."""
    return onednn.has_avx512() and onednn.computes(x, *others)


def _step(x: Tensor, hidden: int, fast: bool) -> int:
    """Positions at a time. Others than CPUs take all at once. Half precision does too: it would round partial sums."""
    parts = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    numbers = _HIDDEN_OF_ONEDNN if fast else _HIDDEN * torch.get_num_threads()
    return min(max(numbers // hidden, 1), len(x)) if parts else len(x)


def _parts(count: int, step: int) -> Iterator[slice]:
    return (slice(i, min(i + step, count)) for i in range(0, count, max(step, 1)))


def _forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    residual: Tensor | None = None,
    kept: list[Tensor] | None = None,
) -> Tensor:
    """The output; `kept` gets the parts of the hidden layer before GELU."""
    if _on_onednn(x, weight1, bias1, weight2, bias2):
        return _forward_of_onednn(x, weight1, bias1, weight2, bias2, residual, kept)
    step = _step(x, len(weight1), fast=False)
    active = x.new_empty(step, len(weight1))
    out = x.new_empty(len(x), len(weight2))
    for part in _parts(len(x), step):
        after = active[: part.stop - part.start]
        before = after if kept is None else torch.empty_like(after)
        torch.addmm(bias1, x[part], weight1.T, out=before)
        _gelu(before, out=after)
        start = bias2 if residual is None else torch.add(residual[part], bias2, out=out[part])
        torch.addmm(start, after, weight2.T, out=out[part])
        if kept is not None:
            kept.append(before)
    return out


def _forward_of_onednn(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    residual: Tensor | None,
    kept: list[Tensor] | None,
) -> Tensor:
    parts = []
    for part in _parts(len(x), _step(x, len(weight1), fast=True)):
        if kept is None:
            after = onednn.linear(x[part], weight1, bias1, "gelu")
        else:
            kept.append(onednn.linear(x[part], weight1, bias1))
            after = F.gelu(kept[-1])
        if residual is None:
            parts.append(onednn.linear(after, weight2, bias2))
        else:
            parts.append(onednn.added_linear(residual[part], after, weight2, bias2))
    return torch.cat(parts) if len(parts) != 1 else parts[0]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn.linear(x.contiguous(), weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        with without_autocast(x):
            return (
                _Linear.apply(grad, weight.T, None) if needs_x else None,
                grad.T @ x if needs_weight else None,
                grad.sum(0) if needs_bias else None,
            )


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, residual: Tensor | None
    ) -> Tensor:
        kept: list[Tensor] | None = None if x.shape[1] <= _CHEAP else []
        out = _forward(x, weight1, bias1, weight2, bias2, residual, kept)
        ctx.save_for_backward(x, weight1, bias1, weight2, bias2, *(kept or ()))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, needed = list(ctx.saved_tensors), ctx.needs_input_grad
        inputs, kept = saved[:5], saved[5:]
        of_residual = grad if needed[5] else None
        with without_autocast(grad):
            # Gradients of gradients, and of many at once, come from operations that have them.
            if torch.is_grad_enabled() or is_batched(grad):
                return *_recorded_backward(grad, inputs, needed[:5]), of_residual
            return *_backward(grad.contiguous(), inputs, kept, needed[:5]), of_residual


def _recorded_backward(grad: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases, since the inputs may depend on each other, and what they depend on has its turn later.
        own = [x.view_as(x) if needs else x.detach() for x, needs in zip(inputs, needed, strict=True)]
        out = F.linear(F.gelu(F.linear(*own[:3])), *own[3:])
    wanted = [x for x, needs in zip(own, needed, strict=True) if needs]
    grads = iter(torch.autograd.grad(out, wanted, grad, create_graph=recorded) if wanted else ())
    return [next(grads) if needs else None for needs in needed]


def _backward(
    grad: Tensor, inputs: list[Tensor], kept: list[Tensor], needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs that need one."""
    if len(grad) == 0:
        return tuple(torch.zeros_like(x) if needs else None for x, needs in zip(inputs, needed, strict=True))
    of_bias2 = grad.sum(0) if needed[4] else None
    if not any(needed[:4]):
        return None, None, None, None, of_bias2
    x, weight1, bias1, weight2, _ = inputs
    needs_x, needs_weight1, needs_bias1, needs_weight2, _ = needed
    grad_x = torch.empty_like(x) if needs_x else None
    grad_weight1 = grad_weight2 = None
    grad_bias1 = torch.zeros_like(bias1, memory_format=torch.contiguous_format)
    fast = _on_onednn(*inputs)
    step = len(kept[0]) if kept else _step(x, len(weight1), fast)
    room = x.new_empty(1 if fast else 3, step, len(weight1))
    for i, part in enumerate(_parts(len(x), step)):
        active, *others = room[:, : part.stop - part.start]
        if kept:
            before = kept[i].contiguous()  # what hooks of saved tensors give back may be turned
        elif fast:
            before = onednn.linear(x[part], weight1, bias1)
        else:
            before = torch.addmm(bias1, x[part], weight1.T, out=others[0])
        slope = onednn.linear(grad[part], weight2.T) if fast else torch.mm(grad[part], weight2, out=others[1])
        _differentiate(before, slope, active, grad_bias1)
        if needs_weight2:
            grad_weight2 = _add_product(grad_weight2, grad[part].T, active)
        if needs_weight1:
            grad_weight1 = _add_product(grad_weight1, slope.T, x[part])
        if grad_x is not None and fast:
            grad_x[part] = onednn.linear(slope, weight1.T)
        elif grad_x is not None:
            torch.mm(slope, weight1, out=grad_x[part])
    return grad_x, grad_weight1, grad_bias1 if needs_bias1 else None, grad_weight2, of_bias2


def _differentiate(before: Tensor, grad: Tensor, active: Tensor, total: Tensor) -> None:
    """The backward pass of GELU, as in `native.gelu_backward`."""
    usual = before.dtype == torch.float32 and not torch.compiler.is_compiling() and direct.FORCED != "reference"
    if usual and native.unsupported(before) is None:
        native.gelu_backward(before, grad, active, total)
        return
    _gelu(before, out=active)
    _gelu_backward(grad, before, grad_input=grad)
    total += grad.sum(0)


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    return left @ right if total is None else total.addmm_(left, right)
