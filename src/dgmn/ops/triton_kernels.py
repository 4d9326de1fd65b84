"""Both primitives as fused GPU kernels in Triton, forward and backward, on plain tensors.

A program takes some positions of one head. It loops over their K nodes and reads the four pixels around each. The
sampled nodes never exist in memory. All arguments have the shapes and meaning of those in `reference.py`. Offsets,
logits, softmax and sums are in float32 whatever the dtype of the maps.
"""

# Kernel arguments have no Python types, and Triton's constants are written in capitals.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803, N806

import warnings
from collections.abc import Callable, Sequence
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


def unsupported(value: Tensor) -> str | None:
    """Why these kernels cannot run on a map (B, H, W, heads, D), or None if they can."""
    device = value.device
    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        return f"the tensors are on {device}, the Triton kernels run on CUDA devices"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (7, 0):
        return f"{torch.cuda.get_device_name(device)} is too old: Triton needs compute capability 7.0"
    if value.dtype not in DTYPES:
        accepted = ", ".join(str(dtype) for dtype in DTYPES)
        return f"the tensors have dtype {value.dtype}, the Triton kernels accept {accepted}"
    if value.shape[-1] > MAX_DIM:
        return f"the heads have D = {value.shape[-1]} channels, the Triton kernels accept up to {MAX_DIM}"
    return None


# ------------------------------------------------------------------------------------------------- what kernels share


@triton.jit
def _rows(positions, heads, height, width, TILE: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr):
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
def _channels(CHUNKS: tl.constexpr, BLOCK_D: tl.constexpr):
    """The channels of a head as (CHUNKS, 1, BLOCK_D // CHUNKS), in tiles (CHUNKS, positions, BLOCK_D // CHUNKS).

    A thread holds the same few channels of every chunk, so it computes one address for all its chunks. With one
    chunk, more threads share a position, and each computes the same addresses.
    """
    WIDTH: tl.constexpr = BLOCK_D // CHUNKS
    return (tl.arange(0, CHUNKS) * WIDTH)[:, None, None] + tl.arange(0, WIDTH)[None, None, :]


@triton.jit
def _spread(row):
    """One number per position, as a tile that broadcasts over the channels."""
    return row[None, :, None]


@triton.jit
def _sum(x):
    """A tile summed over the channels."""
    return tl.sum(tl.sum(x, axis=0), axis=1)


@triton.jit
def _start(strides, place):
    """Where the entry of (batch, y, x, head) begins."""
    return place[0] * strides[0] + place[1] * strides[1] + place[2] * strides[2] + place[3] * strides[3]


@triton.jit
def _load(pointer, mask):
    return tl.load(pointer, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _cell(walks, strides, live, place, height, width, i, j, dilation, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """The four pixels around node SIZE * i + j: top row, left column, and how far the node is from them."""
    walk = walks + (i * SIZE + j) * strides[4]
    pad = dilation * (SIZE - 1) // 2
    y = (place[1] + (i * dilation - pad)).to(tl.float32) + _load(walk, live)
    x = (place[2] + (j * dilation - pad)).to(tl.float32) + _load(walk + strides[5], live)
    # Beyond these bounds a point has no pixel of the map around it, so the bounds change no result. Infinity and NaN
    # do not convert to an integer; minimum and maximum drop NaN.
    y = tl.minimum(tl.maximum(y, -2.0), height + 1.0)
    x = tl.minimum(tl.maximum(x, -2.0), width + 1.0)
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
    return _load(pointer + _spread(index), _spread(inside) & columns), _spread(weight)


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
    down = _spread(cell[2])
    right = _spread(cell[3])
    slope_y = (1 - right) * (p10 - p00) + right * (p11 - p01)
    slope_x = (1 - down) * (p01 - p00) + down * (p11 - p10)
    return w00 * p00 + w01 * p01 + w10 * p10 + w11 * p11, slope_y, slope_x


@triton.jit
def _scatter_one(pointer, strides, cell, columns, gradient, DOWN: tl.constexpr, RIGHT: tl.constexpr):
    index, inside, weight = _corner(cell, strides, DOWN, RIGHT)
    # Atomics take most of the backward's time. Training starts with walks of whole pixels, where only one corner in
    # four has a weight.
    mask = _spread(inside & (weight != 0)) & columns
    tl.atomic_add(pointer + _spread(index), _spread(weight) * gradient, mask=mask, sem="relaxed")


@triton.jit
def _scatter(pointer, strides, cell, columns, gradient):
    """Adds the gradient of a sample to the pixels that it was read from."""
    _scatter_one(pointer, strides, cell, columns, gradient, 0, 0)
    _scatter_one(pointer, strides, cell, columns, gradient, 0, 1)
    _scatter_one(pointer, strides, cell, columns, gradient, 1, 0)
    _scatter_one(pointer, strides, cell, columns, gradient, 1, 1)


def _tuned(*choices: tuple[int, int, int]) -> Callable[[Any], Any]:
    """Compiles a kernel. On its first call of a kind, Triton times the choices: program elements, chunks, warps."""
    if INTERPRETED:
        choices = ((2048, 2, 1),)  # one choice, because there is nothing to time

    def decorate(kernel: Any) -> Any:
        # Not specialised: a new size of the map must not compile a new kernel.
        jitted = triton.jit(kernel, do_not_specialize=["positions", "height", "width", "dilation", "size_class"])
        return triton.autotune(
            [
                # One stage: loads at computed places gain nothing from being staged in shared memory.
                triton.Config({"TILE": tile, "CHUNKS": chunks}, num_warps=warps, num_stages=1)
                for tile, chunks, warps in choices
            ],
            key=["BLOCK_D", "size_class"],
            # The trials add to these sums, so each has to start from zero.
            reset_to_zero=[name for name in ("grad_key", "grad_value") if name in jitted.arg_names],
        )(jitted)

    return decorate


# ---------------------------------------------------------------------------------------------------------- attention


@_tuned((1024, 1, 4), (1024, 2, 2), (1024, 4, 1), (512, 2, 2), (512, 4, 1))
def _attention_forward_kernel(
    query, key, value, offset, bias, out, lse, strides,
    positions, heads, height, width, scale, dilation, size_class,
    SIZE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
    TILE: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    query_strides, key_strides, value_strides, offset_strides, bias_strides = strides
    row, live, place = _rows(positions, heads, height, width, TILE, BLOCK_D, WIDE)
    channel = _channels(CHUNKS, BLOCK_D)
    columns = channel < D
    q = scale * _load(query + _spread(_start(query_strides, place)) + channel, _spread(live) & columns)
    # The map of this batch element and head, which nodes are read from.
    origin = (place[0], 0, 0, place[3])
    keys = key + _spread(_start(key_strides, origin)) + channel
    values = value + _spread(_start(value_strides, origin)) + channel
    walks = offset + _start(offset_strides, place)

    # Online softmax: the sums are relative to the highest logit so far. That starts at a finite number, because a
    # bias may be -inf and the difference of two infinities is NaN.
    highest = tl.full(row.shape, -3e38, tl.float32)
    total = tl.zeros(row.shape, tl.float32)
    zeros = tl.zeros(q.shape, tl.float32)
    sums = zeros
    for i in range(SIZE):
        for j in tl.static_range(SIZE):
            node = i * SIZE + j
            cell = _cell(walks, offset_strides, live, place, height, width, i, j, dilation, SIZE, WIDE)
            logit = _sum(q * _add_sample(zeros, 1.0, keys, key_strides, cell, columns))
            if bias is not None:
                logit += _load(bias + _start(bias_strides, place) + node * bias_strides[4], live)
            higher = tl.maximum(highest, logit)
            rescale = tl.exp(highest - higher)
            weight = tl.exp(logit - higher)
            highest = higher
            total = total * rescale + weight
            sums *= _spread(rescale)
            sums = _add_sample(sums, _spread(weight), values, value_strides, cell, columns)
    tl.store(out + _spread(row) * D + channel, sums / _spread(total), mask=_spread(live) & columns)
    tl.store(lse + row, highest + tl.log(total), mask=live)


@_tuned((128, 1, 1), (256, 2, 1), (512, 1, 4), (1024, 2, 4))
def _attention_backward_kernel(
    grad_out, query, key, value, offset, bias, lse, grad_query, grad_key, grad_value, grad_offset, grad_bias,
    strides,
    positions, heads, height, width, scale, dilation, size_class,
    SIZE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
    TILE: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    grad_out_strides, query_strides, key_strides, value_strides, offset_strides, bias_strides, map_strides = strides
    row, live, place = _rows(positions, heads, height, width, TILE, BLOCK_D, WIDE)
    channel = _channels(CHUNKS, BLOCK_D)
    columns = channel < D
    mask = _spread(live) & columns
    q = scale * _load(query + _spread(_start(query_strides, place)) + channel, mask)
    g = _load(grad_out + _spread(_start(grad_out_strides, place)) + channel, mask)
    log_total = _load(lse + row, live)
    origin = (place[0], 0, 0, place[3])
    keys = key + _spread(_start(key_strides, origin)) + channel
    values = value + _spread(_start(value_strides, origin)) + channel
    walks = offset + _start(offset_strides, place)

    # The gradient of a logit is weight * (gradient of the weight - weighted mean of these gradients). First the mean.
    mean = tl.zeros(row.shape, tl.float32)
    zeros = tl.zeros(q.shape, tl.float32)
    for i in range(SIZE):
        for j in tl.static_range(SIZE):
            node = i * SIZE + j
            cell = _cell(walks, offset_strides, live, place, height, width, i, j, dilation, SIZE, WIDE)
            logit = _sum(q * _add_sample(zeros, 1.0, keys, key_strides, cell, columns))
            if bias is not None:
                logit += _load(bias + _start(bias_strides, place) + node * bias_strides[4], live)
            sampled = _add_sample(zeros, 1.0, values, value_strides, cell, columns)
            mean += tl.exp(logit - log_total) * _sum(g * sampled)

    grad_keys = grad_key + _spread(_start(map_strides, origin)) + channel
    grad_values = grad_value + _spread(_start(map_strides, origin)) + channel
    grad_q = zeros
    for i in range(SIZE):
        for j in tl.static_range(SIZE):
            node = i * SIZE + j
            cell = _cell(walks, offset_strides, live, place, height, width, i, j, dilation, SIZE, WIDE)
            k, k_slope_y, k_slope_x = _sample_with_slopes(keys, key_strides, cell, columns)
            v, v_slope_y, v_slope_x = _sample_with_slopes(values, value_strides, cell, columns)
            logit = _sum(q * k)
            if bias is not None:
                logit += _load(bias + _start(bias_strides, place) + node * bias_strides[4], live)
            weight = tl.exp(logit - log_total)
            grad_logit = weight * (_sum(g * v) - mean)
            if grad_bias is not None:
                tl.store(grad_bias + row * (SIZE * SIZE) + node, grad_logit, mask=live)
            grad_q += _spread(grad_logit) * k
            grad_k = _spread(grad_logit) * q
            grad_v = _spread(weight) * g
            grad_walk = grad_offset + (row * (SIZE * SIZE) + node) * 2
            tl.store(grad_walk, _sum(grad_k * k_slope_y + grad_v * v_slope_y), mask=live)
            tl.store(grad_walk + 1, _sum(grad_k * k_slope_x + grad_v * v_slope_x), mask=live)
            _scatter(grad_keys, map_strides, cell, columns, grad_k)
            _scatter(grad_values, map_strides, cell, columns, grad_v)
    tl.store(grad_query + _spread(row) * D + channel, scale * grad_q, mask=mask)


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
    query, key, value = _channels_last(query), _channels_last(key), _channels_last(value)
    out = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    lse = torch.empty(value.shape[:4], dtype=torch.float32, device=value.device)
    maps = (query, key, value)
    strides = (*(x.stride() for x in maps), _walk_strides(offset, value), () if bias is None else bias.stride())
    _launch(_attention_forward_kernel, (*maps, offset, bias, out, lse), strides, value, kernel_size, dilation, scale)
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
    _alert_not_deterministic("sampled_attention")
    maps = tuple(_channels_last(x) for x in (grad_out, query, key, value))
    grad_query = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    grad_key, grad_value, grad_offset = _sum_like(key), _sum_like(value), _per_head(offset, value)
    grad_bias = None if bias is None else torch.empty(bias.shape, dtype=bias.dtype, device=bias.device)
    strides = (*(x.stride() for x in maps), _walk_strides(offset, value), () if bias is None else bias.stride())
    tensors = (*maps, offset, bias, lse.contiguous(), grad_query, grad_key, grad_value, grad_offset, grad_bias)
    strides = (*strides, grad_key.stride())
    _launch(_attention_backward_kernel, tensors, strides, value, kernel_size, dilation, scale)
    return (
        grad_query,
        grad_key.to(key.dtype),
        grad_value.to(value.dtype),
        _over_heads(grad_offset, offset),
        grad_bias,
    )


# ---------------------------------------------------------------------------------------------------------- aggregate


@_tuned((1024, 1, 4), (1024, 2, 2), (1024, 4, 1), (512, 2, 2), (512, 4, 1))
def _aggregate_forward_kernel(
    value, offset, weight, out, strides,
    positions, heads, height, width, dilation, size_class,
    SIZE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
    TILE: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    value_strides, offset_strides, weight_strides = strides
    row, live, place = _rows(positions, heads, height, width, TILE, BLOCK_D, WIDE)
    channel = _channels(CHUNKS, BLOCK_D)
    columns = channel < D
    values = value + _spread(_start(value_strides, (place[0], 0, 0, place[3]))) + channel
    walks = offset + _start(offset_strides, place)
    weights = weight + _start(weight_strides, place)
    sums = tl.zeros((CHUNKS, row.shape[0], BLOCK_D // CHUNKS), tl.float32)
    for i in range(SIZE):
        for j in tl.static_range(SIZE):
            node = i * SIZE + j
            cell = _cell(walks, offset_strides, live, place, height, width, i, j, dilation, SIZE, WIDE)
            factor = _load(weights + node * weight_strides[4], live)
            sums = _add_sample(sums, _spread(factor), values, value_strides, cell, columns)
    tl.store(out + _spread(row) * D + channel, sums, mask=_spread(live) & columns)


@_tuned((128, 1, 1), (256, 2, 1), (512, 1, 4), (1024, 2, 4))
def _aggregate_backward_kernel(
    grad_out, value, offset, weight, grad_value, grad_offset, grad_weight, strides,
    positions, heads, height, width, dilation, size_class,
    SIZE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
    TILE: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    grad_out_strides, value_strides, offset_strides, weight_strides, map_strides = strides
    row, live, place = _rows(positions, heads, height, width, TILE, BLOCK_D, WIDE)
    channel = _channels(CHUNKS, BLOCK_D)
    columns = channel < D
    origin = (place[0], 0, 0, place[3])
    g = _load(grad_out + _spread(_start(grad_out_strides, place)) + channel, _spread(live) & columns)
    values = value + _spread(_start(value_strides, origin)) + channel
    grad_values = grad_value + _spread(_start(map_strides, origin)) + channel
    walks = offset + _start(offset_strides, place)
    weights = weight + _start(weight_strides, place)
    for i in range(SIZE):
        for j in tl.static_range(SIZE):
            node = i * SIZE + j
            cell = _cell(walks, offset_strides, live, place, height, width, i, j, dilation, SIZE, WIDE)
            v, slope_y, slope_x = _sample_with_slopes(values, value_strides, cell, columns)
            factor = _load(weights + node * weight_strides[4], live)
            grad_v = _spread(factor) * g
            entry = row * (SIZE * SIZE) + node
            tl.store(grad_weight + entry, _sum(g * v), mask=live)
            tl.store(grad_offset + entry * 2, _sum(grad_v * slope_y), mask=live)
            tl.store(grad_offset + entry * 2 + 1, _sum(grad_v * slope_x), mask=live)
            _scatter(grad_values, map_strides, cell, columns, grad_v)


def aggregate_forward(value: Tensor, offset: Tensor, weight: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """The weighted sums, contiguous, in the dtype of `value`."""
    value = _channels_last(value)
    out = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    strides = (value.stride(), _walk_strides(offset, value), weight.stride())
    _launch(_aggregate_forward_kernel, (value, offset, weight, out), strides, value, kernel_size, dilation)
    return out


def aggregate_backward(
    grad_out: Tensor, value: Tensor, offset: Tensor, weight: Tensor, kernel_size: int, dilation: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, offset and weight, each in the dtype and shape of its input."""
    _alert_not_deterministic("sampled_aggregate")
    grad_out, value = _channels_last(grad_out), _channels_last(value)
    grad_value, grad_offset = _sum_like(value), _per_head(offset, value)
    grad_weight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    tensors = (grad_out, value, offset, weight, grad_value, grad_offset, grad_weight)
    strides = (grad_out.stride(), value.stride(), _walk_strides(offset, value), weight.stride(), grad_value.stride())
    _launch(_aggregate_backward_kernel, tensors, strides, value, kernel_size, dilation)
    return grad_value.to(value.dtype), _over_heads(grad_offset, offset), grad_weight


# -------------------------------------------------------------------------------------------------------- on the host


def _channels_last(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _walk_strides(offset: Tensor, value: Tensor) -> tuple[int, ...]:
    """The strides of `offset` expanded to all heads: heads that share walks read the same memory."""
    return offset.expand(*value.shape[:4], *offset.shape[4:]).stride()


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


def _is_large(tensor: Tensor) -> bool:
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) >= LARGE


def _launch(
    kernel: Any,
    tensors: Sequence[Tensor | None],
    strides: Sequence[tuple[int, ...]],
    value: Tensor,
    kernel_size: int,
    dilation: int,
    *scale: float,
) -> None:
    batch, height, width, heads, dim = value.shape
    positions = batch * height * width
    if positions == 0:
        return
    block = max(16, triton.next_power_of_2(dim))
    # Tuned separately for maps that do not fill a GPU, maps that fill it, and larger ones.
    size_class = (positions >= 2**13) + (positions >= 2**17)
    with torch.cuda.device_of(value):  # type: ignore[no-untyped-call]
        kernel[lambda meta: (triton.cdiv(positions, max(1, meta["TILE"] // block)) * heads,)](
            *tensors,
            tuple(strides),
            positions,
            heads,
            height,
            width,
            *scale,
            dilation,
            size_class,
            SIZE=kernel_size,
            D=dim,
            BLOCK_D=block,
            WIDE=any(_is_large(tensor) for tensor in tensors if tensor is not None),
        )


def _alert_not_deterministic(name: str) -> None:
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
