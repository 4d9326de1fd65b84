"""Both primitives as fused GPU kernels in Triton, forward and backward, on plain tensors.

A program takes some positions of one head. It loops over their K nodes and reads the four pixels around each. The
sampled nodes never exist in memory. All arguments have the shapes and meaning of those in `reference.py`. Offsets,
logits, softmax and sums are in float32 whatever the dtype of the maps.
"""

# Kernel arguments have no Python types, and Triton's constants are written in capitals.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803, N806

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether TRITON_INTERPRET=1 was set on import. If so, the kernels also run on the CPU, but slowly."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_DIM = 256
# From this many elements on, indices need 64 bits.
LARGE = 2**31
# The interpreter is fastest with the largest tiles.
INTERPRETER_TILE = 2048


def unsupported(value: Tensor) -> str | None:
    """Why these kernels cannot run on a map (B, H, W, heads, D), or None if they can."""
    reason: str | None = _refusal(value.device)
    if reason is not None:
        return reason
    if value.dtype not in DTYPES:
        accepted = ", ".join(str(dtype) for dtype in DTYPES)
        return f"the tensors have dtype {value.dtype}, the Triton kernels accept {accepted}"
    if value.shape[-1] > MAX_DIM:
        return f"the heads have D = {value.shape[-1]} channels, the Triton kernels accept up to {MAX_DIM}"
    return None


@torch.compiler.assume_constant_result
def _refusal(device: torch.device) -> str | None:
    """Why these kernels cannot run on a device, or None if they can."""
    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        return f"the Triton kernels run on CUDA devices, not on {device}"
    if device.type == "cuda" and _capability(device) < (7, 0):
        return f"{torch.cuda.get_device_name(device)} is too old: Triton needs compute capability 7.0"
    return None


_capability = functools.cache(torch.cuda.get_device_capability)


# ------------------------------------------------------------------------------------------------- what kernels share


@triton.jit
def rows_of(positions, heads, height, width, TILE: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr):
    """What this program works on: row numbers in (B, H, W, heads), which of them exist, and (batch, y, x, head)."""
    ROWS: tl.constexpr = TILE // BLOCK_D if TILE > BLOCK_D else 1
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    # Neighbouring programs take the heads of the same positions, because their offsets share cache lines.
    head = program % heads
    position = program // heads * ROWS + tl.arange(0, ROWS)
    place = (position // width // height, position // width % height, position % width, head)
    return position * heads + head, position < positions, place


@triton.jit
def start_of(strides, place):
    """Where the entry of (batch, y, x, head) begins."""
    return place[0] * strides[0] + place[1] * strides[1] + place[2] * strides[2] + place[3] * strides[3]


@triton.jit
def load(pointer, mask):
    return tl.load(pointer, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _walks(offset, row, heads, SIZE: tl.constexpr, SHARED: tl.constexpr):
    """Where the walks of a row begin. All heads of a position may share them."""
    return offset + (row // heads if SHARED else row) * (2 * SIZE * SIZE)


@triton.jit
def _map_of(batch, head, heads, height, width, D: tl.constexpr):
    """Where the map of one head begins in a contiguous tensor, and the strides in it."""
    return (batch * height * width * heads + head) * D, (0, width * heads * D, heads * D)


@triton.jit
def _cell(walks, live, place, height, width, node, dilation, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """The four pixels around a node: top row, left column, and how far the node is from them."""
    walk = walks + node * 2
    pad = dilation * (SIZE - 1) // 2
    y = (place[1] + (node // SIZE * dilation - pad)).to(tl.float32) + load(walk, live)
    x = (place[2] + (node % SIZE * dilation - pad)).to(tl.float32) + load(walk + 1, live)
    # As in `reference.counts`: such a coordinate reads nothing and has no gradient, also exactly on the bounds.
    # Infinity and NaN do not convert to an integer.
    y = tl.where((y > -1) & (y < height), y, -2.0)
    x = tl.where((x > -1) & (x < width), x, -2.0)
    top = tl.floor(y)
    left = tl.floor(x)
    if WIDE:
        return top.to(tl.int64), left.to(tl.int64), y - top, x - left, live, height, width
    else:  # noqa: RET505 - Triton compiles what follows a return
        return top.to(tl.int32), left.to(tl.int32), y - top, x - left, live, height, width


@triton.jit
def _corner(cell, strides, DOWN: tl.constexpr, RIGHT: tl.constexpr):
    """One of the four pixels: where it is in the map, whether it exists, and its bilinear weight."""
    row = cell[0] + DOWN
    column = cell[1] + RIGHT
    inside = cell[4] & (row >= 0) & (row < cell[5]) & (column >= 0) & (column < cell[6])
    weight_y = cell[2] if DOWN else 1 - cell[2]
    weight_x = cell[3] if RIGHT else 1 - cell[3]
    return row * strides[1] + column * strides[2], inside, weight_y * weight_x


@triton.jit
def _pixel(pointer, strides, cell, columns, DOWN: tl.constexpr, RIGHT: tl.constexpr):
    index, inside, weight = _corner(cell, strides, DOWN, RIGHT)
    # Pixels outside are not read. A weight of zero is not enough: they may be NaN or not exist.
    return load(pointer + index[:, None], inside[:, None] & columns), weight[:, None]


@triton.jit
def _add_sample(sums, factor, pointer, strides, cell, columns):
    """sums + factor * the map at the point. The factor joins the four weights, which saves a product per channel."""
    pixel, weight = _pixel(pointer, strides, cell, columns, 0, 0)
    sums += factor * weight * pixel
    pixel, weight = _pixel(pointer, strides, cell, columns, 0, 1)
    sums += factor * weight * pixel
    pixel, weight = _pixel(pointer, strides, cell, columns, 1, 0)
    sums += factor * weight * pixel
    pixel, weight = _pixel(pointer, strides, cell, columns, 1, 1)
    return sums + factor * weight * pixel


@triton.jit
def _sample_with_slopes(pointer, strides, cell, columns):
    """The map at the point and its derivatives along y and x."""
    p00, w00 = _pixel(pointer, strides, cell, columns, 0, 0)
    p01, w01 = _pixel(pointer, strides, cell, columns, 0, 1)
    p10, w10 = _pixel(pointer, strides, cell, columns, 1, 0)
    p11, w11 = _pixel(pointer, strides, cell, columns, 1, 1)
    down = cell[2][:, None]
    right = cell[3][:, None]
    slope_y = (1 - right) * (p10 - p00) + right * (p11 - p01)
    slope_x = (1 - down) * (p01 - p00) + down * (p11 - p10)
    return w00 * p00 + w01 * p01 + w10 * p10 + w11 * p11, slope_y, slope_x


@triton.jit
def _scatter_one(pointer, strides, cell, columns, gradient, DOWN: tl.constexpr, RIGHT: tl.constexpr):
    index, inside, weight = _corner(cell, strides, DOWN, RIGHT)
    # Atomics take most of the backward's time. Training starts with walks of whole pixels, where only one corner in
    # four has a weight.
    mask = (inside & (weight != 0))[:, None] & columns
    tl.atomic_add(pointer + index[:, None], weight[:, None] * gradient, mask=mask, sem="relaxed")


@triton.jit
def _scatter(pointer, strides, cell, columns, gradient):
    """Adds the gradient of a sample to the pixels that it was read from."""
    _scatter_one(pointer, strides, cell, columns, gradient, 0, 0)
    _scatter_one(pointer, strides, cell, columns, gradient, 0, 1)
    _scatter_one(pointer, strides, cell, columns, gradient, 1, 0)
    _scatter_one(pointer, strides, cell, columns, gradient, 1, 1)


# Kernel arguments that are not specialised: another size of the map must not compile another kernel.
LOOSE = ("positions", "heads", "height", "width", "dilation", "programs")


def compiled(kernel: Any) -> Any:
    return triton.jit(kernel, do_not_specialize=[name for name in LOOSE if name in kernel.__code__.co_varnames])


# ---------------------------------------------------------------------------------------------------------- attention


@compiled
def _attention_forward_kernel(
    query, key, value, offset, bias, out, lse, strides,
    positions, heads, height, width, scale, dilation,
    SIZE: tl.constexpr, SHARED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    row, live, place = rows_of(positions, heads, height, width, TILE, BLOCK_D, WIDE)
    channel = tl.arange(0, BLOCK_D)[None, :]
    columns = channel < D
    q = scale * load(query + start_of(strides, place)[:, None] + channel, live[:, None] & columns)
    # The map of this batch element and head, which nodes are read from.
    origin = (place[0], 0, 0, place[3])
    keys = key + start_of(strides, origin)[:, None] + channel
    values = value + start_of(strides, origin)[:, None] + channel
    walks = _walks(offset, row, heads, SIZE, SHARED)

    # Online softmax: the sums are relative to the highest logit so far. That starts at the least finite number,
    # because a bias may be -inf and the difference of two infinities is NaN.
    highest = tl.full(row.shape, -3.4028234663852886e38, tl.float32)
    total = tl.zeros(row.shape, tl.float32)
    zeros = tl.zeros(q.shape, tl.float32)
    sums = zeros
    for node in range(SIZE * SIZE):
        cell = _cell(walks, live, place, height, width, node, dilation, SIZE, WIDE)
        logit = tl.sum(q * _add_sample(zeros, 1.0, keys, strides, cell, columns), axis=1)
        if bias is not None:
            logit += load(bias + row * (SIZE * SIZE) + node, live)
        higher = tl.maximum(highest, logit)
        rescale = tl.exp(highest - higher)
        weight = tl.exp(logit - higher)
        highest = higher
        total = total * rescale + weight
        sums *= rescale[:, None]
        sums = _add_sample(sums, weight[:, None], values, strides, cell, columns)
    tl.store(out + row[:, None] * D + channel, sums / total[:, None], mask=live[:, None] & columns)
    tl.store(lse + row, highest + tl.log(total), mask=live)


@compiled
def _attention_backward_kernel(
    grad_out, query, key, value, offset, bias, lse, grad_query, grad_key, grad_value, grad_offset, grad_bias,
    strides,
    positions, heads, height, width, scale, dilation,
    SIZE: tl.constexpr, SHARED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    row, live, place = rows_of(positions, heads, height, width, TILE, BLOCK_D, WIDE)
    channel = tl.arange(0, BLOCK_D)[None, :]
    columns = channel < D
    mask = live[:, None] & columns
    q = scale * load(query + start_of(strides, place)[:, None] + channel, mask)
    g = load(grad_out + row[:, None] * D + channel, mask)
    log_total = load(lse + row, live)
    origin = (place[0], 0, 0, place[3])
    keys = key + start_of(strides, origin)[:, None] + channel
    values = value + start_of(strides, origin)[:, None] + channel
    walks = _walks(offset, row, heads, SIZE, SHARED)

    # The gradient of a logit is weight * (gradient of the weight - weighted mean of these gradients). First the mean:
    # to sample twice takes no longer, because the atomics below take most of the time.
    mean = tl.zeros(row.shape, tl.float32)
    zeros = tl.zeros(q.shape, tl.float32)
    for node in range(SIZE * SIZE):
        cell = _cell(walks, live, place, height, width, node, dilation, SIZE, WIDE)
        logit = tl.sum(q * _add_sample(zeros, 1.0, keys, strides, cell, columns), axis=1)
        if bias is not None:
            logit += load(bias + row * (SIZE * SIZE) + node, live)
        sampled = _add_sample(zeros, 1.0, values, strides, cell, columns)
        mean += tl.exp(logit - log_total) * tl.sum(g * sampled, axis=1)

    start, map_strides = _map_of(place[0], place[3], heads, height, width, D)
    grad_keys = grad_key + start[:, None] + channel
    grad_values = grad_value + start[:, None] + channel
    grad_q = zeros
    for node in range(SIZE * SIZE):
        cell = _cell(walks, live, place, height, width, node, dilation, SIZE, WIDE)
        k, k_slope_y, k_slope_x = _sample_with_slopes(keys, strides, cell, columns)
        v, v_slope_y, v_slope_x = _sample_with_slopes(values, strides, cell, columns)
        logit = tl.sum(q * k, axis=1)
        if bias is not None:
            logit += load(bias + row * (SIZE * SIZE) + node, live)
        weight = tl.exp(logit - log_total)
        grad_logit = weight * (tl.sum(g * v, axis=1) - mean)
        if grad_bias is not None:
            tl.store(grad_bias + row * (SIZE * SIZE) + node, grad_logit, mask=live)
        grad_q += grad_logit[:, None] * k
        grad_k = grad_logit[:, None] * q
        grad_v = weight[:, None] * g
        grad_walk = grad_offset + (row * (SIZE * SIZE) + node) * 2
        tl.store(grad_walk, tl.sum(grad_k * k_slope_y + grad_v * v_slope_y, axis=1), mask=live)
        tl.store(grad_walk + 1, tl.sum(grad_k * k_slope_x + grad_v * v_slope_x, axis=1), mask=live)
        _scatter(grad_keys, map_strides, cell, columns, grad_k)
        _scatter(grad_values, map_strides, cell, columns, grad_v)
    tl.store(grad_query + row[:, None] * D + channel, scale * grad_q, mask=mask)


def attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offset: Tensor,
    bias: Tensor | None,
    scale: float,
    kernel_size: int,
    dilation: int,
) -> tuple[Tensor, Tensor]:
    """The messages, contiguous, in the dtype of `value`, and the log of the softmax's sum (B, H, W, heads)."""
    maps = alike(query, key, value)
    out = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    lse = torch.empty(value.shape[:4], dtype=torch.float32, device=value.device)
    tensors = (*maps, offset.contiguous(), None if bias is None else bias.contiguous(), out, lse)
    _launch(_attention_forward_kernel, tensors, maps[0], offset, kernel_size, dilation, scale, **forward_tile(value))
    return out, lse


def attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offset: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    scale: float,
    kernel_size: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of query, key, value, offset and bias, each in the dtype and shape of its input."""
    alert_not_deterministic("sampled_attention")
    maps = alike(query, key, value)
    grad_query = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    grad_key, grad_value, grad_offset = _sum_like(key), _sum_like(value), _per_head(offset, value)
    grad_bias = None if bias is None else torch.empty(bias.shape, dtype=bias.dtype, device=bias.device)
    inputs = (x if x is None else x.contiguous() for x in (offset, bias, lse))
    tensors = (grad_out.contiguous(), *maps, *inputs, grad_query, grad_key, grad_value, grad_offset, grad_bias)
    _launch(_attention_backward_kernel, tensors, maps[0], offset, kernel_size, dilation, scale, **_backward_tile())
    return (
        grad_query,
        grad_key.to(key.dtype),
        grad_value.to(value.dtype),
        _over_heads(grad_offset, offset),
        grad_bias,
    )


# ---------------------------------------------------------------------------------------------------------- aggregate


@compiled
def _aggregate_forward_kernel(
    value, offset, weight, out, strides,
    positions, heads, height, width, dilation,
    SIZE: tl.constexpr, SHARED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    row, live, place = rows_of(positions, heads, height, width, TILE, BLOCK_D, WIDE)
    channel = tl.arange(0, BLOCK_D)[None, :]
    columns = channel < D
    values = value + start_of(strides, (place[0], 0, 0, place[3]))[:, None] + channel
    walks = _walks(offset, row, heads, SIZE, SHARED)
    weights = weight + row * (SIZE * SIZE)
    sums = tl.zeros((row.shape[0], BLOCK_D), tl.float32)
    for node in range(SIZE * SIZE):
        cell = _cell(walks, live, place, height, width, node, dilation, SIZE, WIDE)
        factor = load(weights + node, live)
        sums = _add_sample(sums, factor[:, None], values, strides, cell, columns)
    tl.store(out + row[:, None] * D + channel, sums, mask=live[:, None] & columns)


@compiled
def _aggregate_backward_kernel(
    grad_out, value, offset, weight, grad_value, grad_offset, grad_weight, strides,
    positions, heads, height, width, dilation,
    SIZE: tl.constexpr, SHARED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    row, live, place = rows_of(positions, heads, height, width, TILE, BLOCK_D, WIDE)
    channel = tl.arange(0, BLOCK_D)[None, :]
    columns = channel < D
    origin = (place[0], 0, 0, place[3])
    g = load(grad_out + row[:, None] * D + channel, live[:, None] & columns)
    values = value + start_of(strides, origin)[:, None] + channel
    start, map_strides = _map_of(place[0], place[3], heads, height, width, D)
    grad_values = grad_value + start[:, None] + channel
    walks = _walks(offset, row, heads, SIZE, SHARED)
    weights = weight + row * (SIZE * SIZE)
    for node in range(SIZE * SIZE):
        cell = _cell(walks, live, place, height, width, node, dilation, SIZE, WIDE)
        v, slope_y, slope_x = _sample_with_slopes(values, strides, cell, columns)
        factor = load(weights + node, live)
        grad_v = factor[:, None] * g
        entry = row * (SIZE * SIZE) + node
        tl.store(grad_weight + entry, tl.sum(g * v, axis=1), mask=live)
        tl.store(grad_offset + entry * 2, tl.sum(grad_v * slope_y, axis=1), mask=live)
        tl.store(grad_offset + entry * 2 + 1, tl.sum(grad_v * slope_x, axis=1), mask=live)
        _scatter(grad_values, map_strides, cell, columns, grad_v)


def aggregate_forward(value: Tensor, offset: Tensor, weight: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """The weighted sums, contiguous, in the dtype of `value`."""
    (value,) = alike(value)
    out = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    tensors = (value, offset.contiguous(), weight.contiguous(), out)
    _launch(_aggregate_forward_kernel, tensors, value, offset, kernel_size, dilation, **forward_tile(value))
    return out


def aggregate_backward(
    grad_out: Tensor, value: Tensor, offset: Tensor, weight: Tensor, kernel_size: int, dilation: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, offset and weight, each in the dtype and shape of its input."""
    alert_not_deterministic("sampled_aggregate")
    (value,) = alike(value)
    grad_value, grad_offset = _sum_like(value), _per_head(offset, value)
    grad_weight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    inputs = (grad_out.contiguous(), value, offset.contiguous(), weight.contiguous())
    tensors = (*inputs, grad_value, grad_offset, grad_weight)
    _launch(_aggregate_backward_kernel, tensors, value, offset, kernel_size, dilation, **_backward_tile())
    return grad_value.to(value.dtype), _over_heads(grad_offset, offset), grad_weight


# -------------------------------------------------------------------------------------------------------- on the host


def alike(*maps: Tensor) -> tuple[Tensor, ...]:
    """The maps with equal strides and adjacent channels: as they are if they have them, otherwise copies."""
    strides = maps[0].stride()
    if strides[-1] == 1 and all(x.stride() == strides for x in maps):
        return maps
    return tuple(x.contiguous() for x in maps)


def _sum_like(x: Tensor) -> Tensor:
    # Many positions add to one pixel, atomically. In half precision the sum would lose late contributions, and atomics
    # are slow or missing.
    return torch.zeros(x.shape, dtype=torch.float32, device=x.device)


def _per_head(offset: Tensor, value: Tensor) -> Tensor:
    heads = value.shape[3]
    # _over_heads sums the heads that share walks. It sums in float32 and needs no atomics.
    dtype = offset.dtype if offset.shape[3] == heads else torch.float32
    return torch.empty((*value.shape[:4], *offset.shape[4:]), dtype=dtype, device=offset.device)


def _over_heads(grad_offset: Tensor, offset: Tensor) -> Tensor:
    return grad_offset if grad_offset.shape == offset.shape else grad_offset.sum(3, keepdim=True).to(offset.dtype)


def is_wide(x: Tensor, numbers: int) -> bool:
    """Whether indices into the map `x`, or into contiguous tensors of so many numbers a row, need 64 bits."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return max(last + 1, math.prod(x.shape[:4]) * max(numbers, x.shape[4])) >= LARGE


def forward_tile(value: Tensor) -> dict[str, int]:
    """The shape of a program whose loads take most of the time: a thread holds 16 bytes of a position."""
    return {"tile": INTERPRETER_TILE if INTERPRETED else 4 * 32 * 16 // value.element_size(), "warps": 4}


def _backward_tile() -> dict[str, int]:
    """The shape of a program whose atomics take most of the time."""
    return {"tile": INTERPRETER_TILE if INTERPRETED else 128, "warps": 1}


def _launch(
    kernel: Any,
    tensors: Sequence[Tensor | None],
    value: Tensor,
    offset: Tensor,
    kernel_size: int,
    dilation: int,
    *scale: float,
    tile: int,
    warps: int,
) -> None:
    batch, height, width, heads, dim = value.shape
    positions = batch * height * width
    if positions == 0:
        return
    block = max(16, triton.next_power_of_2(dim))
    with torch.cuda.device_of(value):  # type: ignore[no-untyped-call]
        kernel[(triton.cdiv(positions, max(1, tile // block)) * heads,)](
            *tensors,
            value.stride()[:4],
            positions,
            heads,
            height,
            width,
            *scale,
            dilation,
            SIZE=kernel_size,
            SHARED=offset.shape[3] != heads,
            D=dim,
            BLOCK_D=block,
            WIDE=is_wide(value, 2 * kernel_size**2),
            TILE=tile,
            num_warps=warps,
            num_stages=1,  # loads at computed places gain nothing from being staged in shared memory
        )


def alert_not_deterministic(name: str) -> None:
    if not torch.are_deterministic_algorithms_enabled():
        return
    message = (
        f"the backward of {name} in Triton does not have a deterministic implementation, but you set "
        "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation, or run it "
        'on the CPU, without Triton: backend="reference" is not deterministic on CUDA either.'
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=3)
