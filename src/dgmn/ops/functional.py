"""The public functions: they check their arguments and choose a backend."""

import math

import torch
from torch import Tensor

from dgmn.ops import reference

BACKENDS = ("auto", "reference")
"""What the argument `backend` accepts."""


def sampled_aggregate(
    value: Tensor,
    offset: Tensor,
    weight: Tensor,
    *,
    kernel_size: int = 3,
    dilation: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Sums K sampled nodes of a feature map at every position, with weights of the position's own.

    `m_i = Σ_j w_ij ϱ(h_j | V, j, Δd_j)`, where ϱ samples the map at node j moved by its walk Δd_j.

    The K = `kernel_size`² nodes start on a grid around each position, `dilation` pixels apart (the sampling
    rate), are moved by the predicted walks and read bilinearly. What lies outside of the map counts as zero, as
    in deformable convolution.

    Args:
        value: the nodes, (B, H, W, heads, D), floating point. Any strides.
        offset: walks in pixels as (dy, dx), (B, H, W, heads or 1, K, 2); 1 shares them among the heads.
        weight: (B, H, W, heads, K).
        kernel_size: side of the grid.
        dilation: distance of the grid points in pixels.
        backend: "auto" or "reference".

    Returns:
        (B, H, W, heads, D), in the dtype of `value`.

    Raises:
        TypeError: an argument is no tensor, or not of floating point.
        ValueError: shapes, devices or numbers that do not fit; the message names the argument.

    Source: Dynamic Graph Message Passing Networks, eq. 3 and 5 (https://arxiv.org/abs/2209.09760).
    """
    nodes = _check_grid(kernel_size, dilation)
    _check_backend(backend)
    _check_map("value", value)
    _check_offset(offset, value, nodes, "value")
    _check_shape("weight", weight, (*value.shape[:4], nodes), value)
    return reference.sampled_aggregate(value, offset, weight, kernel_size, dilation)


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

    where the key and the value of a node are sampled at the same point (see
    [`sampled_aggregate`][dgmn.ops.sampled_aggregate] for where). A node outside of the map has key and value
    zero and stays in the softmax. Logits and softmax are computed in float32 also for half precision inputs.

    Args:
        query, key, value: (B, H, W, heads, D), floating point, of one dtype. Any strides: the slices of one
            qkv projection need no copy.
        offset: walks in pixels as (dy, dx), (B, H, W, heads or 1, K, 2); 1 shares them among the heads.
        bias: added to the logits, (B, H, W, heads, K).
        scale: of the dot products; D ** -0.5 if None.
        kernel_size: side of the grid; K = kernel_size².
        dilation: distance of the grid points in pixels.
        dropout_p: probability to drop an attention weight (pass 0 in evaluation).
        backend: "auto" or "reference".

    Returns:
        (B, H, W, heads, D), in the dtype of `value`.

    Raises:
        TypeError: an argument is no tensor, or not of floating point.
        ValueError: shapes, devices or numbers that do not fit; the message names the argument.

    Source: Dynamic Graph Message Passing Networks for Visual Recognition, eq. 8 and 9
    (https://arxiv.org/abs/2209.09760).
    """
    nodes = _check_grid(kernel_size, dilation)
    _check_backend(backend)
    _check_map("query", query)
    _check_shape("key", key, query.shape, query)
    _check_shape("value", value, query.shape, query)
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dtype != query.dtype:
            raise ValueError(f"{name} has dtype {tensor.dtype}, but query has {query.dtype}: give them one dtype")
    _check_offset(offset, query, nodes, "query")
    if bias is not None:
        _check_shape("bias", bias, (*query.shape[:4], nodes), query)
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must be at least 0 and below 1, got {dropout_p}")
    if scale is None:
        scale = query.shape[-1] ** -0.5
    elif not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number, got {scale}")
    return reference.sampled_attention(query, key, value, offset, bias, scale, kernel_size, dilation, dropout_p)


def _check_grid(kernel_size: int, dilation: int) -> int:
    for name, number in (("kernel_size", kernel_size), ("dilation", dilation)):
        if isinstance(number, bool) or not isinstance(number, int | torch.SymInt) or number < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {number!r}")
    return kernel_size * kernel_size


def _check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")


def _check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be of floating point, got {tensor.dtype}")


def _check_map(name: str, tensor: Tensor) -> None:
    _check_tensor(name, tensor)
    if tensor.dim() != 5 or 0 in tensor.shape[1:]:
        raise ValueError(f"{name} must have the shape (B, H, W, heads, D), none but B zero, got {tuple(tensor.shape)}")


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
