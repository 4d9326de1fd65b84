"""The public functions: they check their arguments and choose a backend."""

import math
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dgmn.errors import InputError, check_flag
from dgmn.ops import direct, exported, library, native, packaged, reference
from dgmn.ops.direct import is_direct
from dgmn.ops.precision import has_autocast
from dgmn.ops.selfcheck import is_trusted
from dgmn.ops.tracing import has_tangent, is_exporting, is_jit_tracing, is_recorded_as, is_transformed, surely_equal

BACKENDS = ("auto", "reference", "native", "triton")
"""Values of `backend`, in order: the fastest that can run, plain PyTorch, the CPU kernels, the CUDA kernels."""

_HAS_TRITON = find_spec("triton") is not None


def sampled_aggregate(
    value: Tensor,
    offset: Tensor,
    weight: Tensor,
    *,
    kernel_size: int = 3,
    dilation: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Sums K sampled nodes of a feature map at every position, with the position's own weights.

    `m_i = Σ_j w_ij ϱ(h_j | V, j, Δd_j)`, where ϱ samples the map at node j moved by its walk Δd_j.

    The K = `kernel_size`² nodes start on a grid around each position, `dilation` pixels apart (the sampling
    rate). The predicted walks move them. They are read bilinearly. Pixels outside of the map count as zero, as in
    deformable convolution.

    Args:
        value: the nodes, (B, H, W, heads, D), floating point. Any strides.
        offset: walks in pixels as (dy, dx), (B, H, W, heads or 1, K, 2); with 1, all heads share them.
        weight: weights of the nodes, (B, H, W, heads, K).
        kernel_size: side of the grid.
        dilation: distance of the grid points in pixels.
        backend: one of [`BACKENDS`][dgmn.ops.BACKENDS].

    Returns:
        (B, H, W, heads, D), in the dtype of `value`; under autocast in autocast's dtype.

    Raises:
        TypeError: an argument is not a tensor, or not of floating point.
        ValueError: shapes, devices or numbers do not fit; the message names the argument.
        RuntimeError: the chosen backend cannot run here; the message says why.

    Source: Dynamic Graph Message Passing Networks, eq. 3 and 5 (https://arxiv.org/abs/2209.09760).
    """
    nodes = _check_grid(kernel_size, dilation)
    _check_map("value", value)
    _check_offset(offset, value, nodes, "value")
    _check_shape("weight", weight, (*value.shape[:4], nodes), value)
    (value,) = _autocast(value)
    backend = _chosen(backend, value, offset, weight)
    if backend == "reference":
        sums: Tensor = _plain().sampled_aggregate(value, offset, weight, kernel_size, dilation)
        return sums
    tensors, options = (value, offset, weight), (kernel_size, dilation, backend)
    if is_direct(*tensors):
        return direct.run(direct.Aggregate, tensors, *options)
    out: Tensor = library.sampled_aggregate(*tensors, *options)
    return out


def sampled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offset: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float | None = None,
    kernel_size: int = 3,
    dilation: int = 1,
    dropout_p: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Attends from every position to its K sampled nodes: the message of DGMN2.

    `m_i = Σ_j softmax_j(s q_i · k_j + r_ij) v_j`

    The key and the value of a node are sampled at the same point, as in
    [`sampled_aggregate`][dgmn.ops.sampled_aggregate]. A node outside of the map has a key and a value of zero
    and stays in the softmax. Logits and softmax are computed in float32 also for half precision inputs.

    Args:
        query: (B, H, W, heads, D), floating point. Any strides: the slices of one qkv projection need no copy.
        key: shape and dtype of `query`, any strides.
        value: shape and dtype of `query`, any strides.
        offset: walks in pixels as (dy, dx), (B, H, W, heads or 1, K, 2); with 1, all heads share them.
        bias: added to the logits, (B, H, W, heads, K).
        scale: factor of the dot products; D ** -0.5 if None.
        kernel_size: side of the grid; K = kernel_size².
        dilation: distance of the grid points in pixels.
        dropout_p: probability to drop an attention weight (pass 0 in evaluation).
        backend: one of [`BACKENDS`][dgmn.ops.BACKENDS].

    Returns:
        (B, H, W, heads, D), in the dtype of `value`; under autocast in autocast's dtype.

    Raises:
        TypeError: an argument is not a tensor, or not of floating point.
        ValueError: shapes, devices or numbers do not fit; the message names the argument.
        RuntimeError: the chosen backend cannot run here; the message says why.

    Source: Dynamic Graph Message Passing Networks for Visual Recognition, eq. 8 and 9
    (https://arxiv.org/abs/2209.09760).
    """
    nodes = _check_grid(kernel_size, dilation)
    _check_map("query", query)
    _check_shape("key", key, query.shape, query)
    _check_shape("value", value, query.shape, query)
    query, key, value = _autocast(query, key, value)
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dtype != query.dtype:
            raise ValueError(f"{name} has dtype {tensor.dtype}, but query has {query.dtype}: give them one dtype")
    _check_offset(offset, query, nodes, "query")
    if bias is not None:
        _check_shape("bias", bias, (*query.shape[:4], nodes), query)
    if not isinstance(dropout_p, int | float) or not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must be at least 0 and below 1, got {dropout_p!r}")
    if scale is None:
        scale = query.shape[-1] ** -0.5
    elif not isinstance(scale, int | float) or not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number, got {scale!r}")
    backend = _chosen(backend, value, query, key, offset, bias, dropout_p=dropout_p)
    if backend == "reference" and (form := _plain()) is not reference and dropout_p == 0:
        recorded: Tensor = form.sampled_attention(query, key, value, offset, bias, scale, kernel_size, dilation)
        return recorded
    if backend == "reference":
        return reference.sampled_attention(query, key, value, offset, bias, scale, kernel_size, dilation, dropout_p)
    tensors, options = (query, key, value, offset, bias), (scale, kernel_size, dilation, backend)
    if is_direct(*tensors):
        return direct.run(direct.Attention, tensors, *options)
    out: Tensor = library.sampled_attention(*tensors, *options)[0]
    return out


def position_scores(
    query: Tensor,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    *,
    nodes: int = 9,
    mirrored: bool = False,
    backend: str = "auto",
) -> Tensor:
    """The relative position term of the attention logits: dot products of every query with rows of two tables.

    Node s of position (y, x) gets `query(y, x) · rows[H - 1 - y + s] + query(y, x) · columns[W - 1 - x + s]`.
    This takes up to 2K dot products per position, whatever the size of the map.

    Args:
        query: (B, H, W, heads, D), floating point. Any strides.
        rows: table of the height, (H + nodes - 1, D), or None to leave the term out.
        columns: table of the width, (W + nodes - 1, D), or None to leave the term out.
        nodes: K, the number of scores per position.
        mirrored: take the height term at (y, x) from position (x, y). If the map is not square, the mirrored term is
            stretched to it: bilinear, without aligned corners.
        backend: one of [`BACKENDS`][dgmn.ops.BACKENDS].

    Returns:
        (B, H, W, heads, K) in float32, or float64 if `query` is.

    Raises:
        TypeError: an argument is not a tensor, or not of floating point.
        ValueError: shapes, devices or numbers do not fit; the message names the argument.
        RuntimeError: the chosen backend cannot run here; the message says why.

    Source: Dynamic Graph Message Passing Networks for Visual Recognition, eq. 9, Fig. 4b
    (https://arxiv.org/abs/2209.09760).
    """
    _check_map("query", query)
    _, height, width, _, dim = query.shape
    _check_number("nodes", nodes, library.MAX_KERNEL_SIZE**2)
    check_flag("mirrored", mirrored)
    for name, table, length in (("rows", rows, height), ("columns", columns, width)):
        if table is not None:
            _check_shape(name, table, (length + nodes - 1, dim), query)
    chosen = _chosen(backend, query, rows, columns)
    if chosen == "triton" and nodes > library.MAX_TRITON_NODES:
        if backend == "triton":
            raise RuntimeError(
                f"backend 'triton' cannot run: it takes up to {library.MAX_TRITON_NODES} nodes, got {nodes}"
            )
        chosen = "reference"
    mirrored = mirrored and rows is not None
    # A graph of any size is recorded in the general form: to stretch to the same size changes nothing.
    stretches = mirrored and not surely_equal(height, width)
    if stretches and not (chosen == "native" and is_direct(query, rows, columns)):
        options: dict[str, Any] = {"nodes": nodes, "backend": backend}
        terms = reference.stretched(position_scores(query, rows, **options))
        return terms if columns is None else position_scores(query, columns=columns, **options) + terms
    if chosen == "reference":
        products: Tensor = _plain().position_scores(query, rows, columns, mirrored, nodes)
        return products
    if is_direct(query, rows, columns):
        return direct.run(direct.Position, (query, rows, columns), mirrored, nodes, chosen)
    scores: Tensor = library.position_scores(query, rows, columns, mirrored, nodes, chosen)
    return scores


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Casts maps to the dtype of autocast where it is on, as scaled_dot_product_attention does."""
    device = tensors[0].device.type
    if not has_autocast(tensors[0]) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def _transformed(tensors: Sequence[Tensor | None]) -> bool:
    """Whether torch.func or forward-mode differentiation is active. The operators with kernels support neither."""
    if torch.compiler.is_compiling():
        return False
    return is_transformed() or has_tangent(tensors)


def unsupported(
    backend: str, value: Tensor, others: Sequence[Tensor | None] = (), dropout_p: float = 0.0
) -> str | None:
    """Why a backend cannot run, or None."""
    if backend == "reference":
        return None
    if _transformed((value, *others)):
        return "torch.func and forward-mode differentiation need the backend reference"
    if dropout_p > 0:
        return f"it has no dropout, got dropout_p = {dropout_p}"
    if backend == "native":
        return native.unsupported(value)
    if not _HAS_TRITON:
        return "triton is not installed"
    from dgmn.ops import triton_kernels

    return triton_kernels.unsupported(value)


def _plain() -> ModuleType:
    """The primitives in plain PyTorch: ONNX, TorchScript and packages get forms of their own."""
    if is_recorded_as("kernels"):
        return reference
    if is_exporting() and is_recorded_as("standard"):
        return packaged
    return exported if is_jit_tracing() or (is_exporting() and torch.onnx.is_in_onnx_export()) else reference


def _chosen(backend: str, value: Tensor, *others: Tensor | None, dropout_p: float = 0.0) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if is_recorded_as("kernels") and is_jit_tracing():
        backend = "native"  # the node of the graph, whatever computes in PyTorch
    elif backend == "auto" and direct.FORCED:
        if direct.FORCED not in BACKENDS:
            raise InputError(
                f"the environment variable DGMN_BACKEND must be one of {', '.join(BACKENDS)}, got {direct.FORCED!r}"
            )
        reason = unsupported(direct.FORCED, value, others, dropout_p) if direct.FORCED != "auto" else None
        if reason is not None:
            raise InputError(f"the environment variable DGMN_BACKEND is {direct.FORCED!r}, which cannot run: {reason}")
        backend = direct.FORCED
    if backend != "auto":
        reason = unsupported(backend, value, others, dropout_p)
        if reason is not None:
            raise RuntimeError(f"backend {backend!r} cannot run: {reason}")
        return backend
    if _plain() is not reference:
        return "reference"
    if value.device.type == "cpu":
        if native.LIBRARY is None and not torch.compiler.is_compiling():
            warnings.warn(
                f"dgmn runs on plain PyTorch, many times slower: its CPU kernels {native.PROBLEM}: "
                "pip install --force-reinstall --no-cache-dir, or uv sync --reinstall-package dgmn.",
                stacklevel=1,
            )
        return "native" if unsupported("native", value, others, dropout_p) is None else "reference"
    if not value.is_cuda or unsupported("triton", value, others, dropout_p) is not None:
        return "reference"
    return "triton" if is_trusted("triton", value.device, value.dtype) else "reference"


def _check_number(name: str, number: int, most: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int | torch.SymInt) or number < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {number!r}")
    if number > most:
        raise ValueError(f"{name} must be at most {most}, got {number}")


def _check_grid(kernel_size: int, dilation: int) -> int:
    _check_number("kernel_size", kernel_size, library.MAX_KERNEL_SIZE)
    _check_number("dilation", dilation, library.MAX_DILATION)
    return kernel_size * kernel_size


def _check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be of floating point, got {tensor.dtype}")


def _check_map(name: str, tensor: Tensor) -> None:
    _check_tensor(name, tensor)
    if tensor.dim() != 5 or 0 in tensor.shape[1:]:
        raise ValueError(
            f"{name} must have the shape (B, H, W, heads, D), only B may be zero, got {tuple(tensor.shape)}"
        )


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], like: Tensor) -> None:
    _check_tensor(name, tensor)
    if tensor.shape != tuple(expected):
        raise ValueError(f"{name} must have the shape {tuple(expected)}, got {tuple(tensor.shape)}")
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, the other tensors are on {like.device}")


def _check_offset(offset: Tensor, like: Tensor, nodes: int, like_name: str) -> None:
    _check_tensor("offset", offset)
    batch, height, width, heads, _ = like.shape
    if offset.dim() != 6 or offset.shape[3] not in (1, heads):
        shared = "1" if heads == 1 else f"{heads} or 1"
        raise ValueError(
            f"offset must have the shape (B, H, W, heads or 1, K, 2) = ({batch}, {height}, {width}, {shared}, "
            f"{nodes}, 2), to go with {like_name} {tuple(like.shape)}, got {tuple(offset.shape)}"
        )
    _check_shape("offset", offset, (batch, height, width, offset.shape[3], nodes, 2), like)
