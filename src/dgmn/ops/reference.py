"""The specification of both primitives in plain PyTorch operations.

It runs on every device and in every floating dtype, and is differentiable. Faster implementations are tested
against it. Arguments are checked in `functional.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dgmn.ops.precision import compute_dtype, without_autocast
from dgmn.ops.tracing import surely_equal


def node_coordinates(offset: Tensor, kernel_size: int, dilation: int) -> tuple[Tensor, Tensor]:
    """Pixel coordinates of the nodes, on the map or outside of it.

    Node ``t = kernel_size * i + j`` of position ``(y, x)`` lies at
    ``(y + i * dilation - pad, x + j * dilation - pad)`` plus its walk (eq. 4), where ``pad`` is the
    left padding of a convolution with ``padding="same"``: ``dilation * (kernel_size - 1) // 2``.

    Args:
        offset: walks in pixels as (dy, dx), (B, H, W, heads, K, 2).
        kernel_size: side of the grid.
        dilation: distance of the grid points in pixels.

    Returns:
        y and x, each (B, H, W, heads, K).
    """
    _, height, width, _, nodes, _ = offset.shape
    tap = torch.arange(nodes, device=offset.device)
    pad = dilation * (kernel_size - 1) // 2
    dy = tap.div(kernel_size, rounding_mode="floor") * dilation - pad
    dx = tap.remainder(kernel_size) * dilation - pad
    y = torch.arange(height, device=offset.device).view(height, 1, 1, 1) + dy
    x = torch.arange(width, device=offset.device).view(1, width, 1, 1) + dx
    dy_walk, dx_walk = offset.unbind(-1)
    return y + dy_walk, x + dx_walk


def counts(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where y and where x lie between -1 and the map's size. A point counts if both do; infinity and NaN do not."""
    return (y > -1) & (y < height), (x > -1) & (x < width)


def sampling_points(offset: Tensor, kernel_size: int, dilation: int) -> tuple[Tensor, Tensor]:
    """The coordinates that are read: [`node_coordinates`][dgmn.ops.reference.node_coordinates], with -2 for each
    coordinate that does not count.
    """
    y, x = node_coordinates(offset, kernel_size, dilation)
    along_y, along_x = counts(y, x, *offset.shape[1:3])
    outside = -2.0
    return torch.where(along_y, y, outside), torch.where(along_x, x, outside)


def sample_nodes(nodes: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear sampling (the sampler of eq. 5 and 8); corners outside of the map count as zero.

    Args:
        nodes: the map, (B, H, W, heads, D).
        y: pixel coordinates along the height, (B, H, W, heads or 1, K).
        x: pixel coordinates along the width, in the shape of `y`.

    Returns:
        (B, heads, D, H * W, K).
    """
    batch, height, width, heads, dim = nodes.shape
    taps = y.shape[-1]
    # grid_sample wants (x, y) in -1..1. With align_corners=False, pixel p of n lies at (2p + 1) / n - 1.
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    grid = grid.expand(batch, height, width, heads, taps, 2).permute(0, 3, 1, 2, 4, 5)
    maps = nodes.permute(0, 3, 4, 1, 2).reshape(batch * heads, dim, height, width)
    sampled = F.grid_sample(
        maps,
        grid.reshape(batch * heads, height, width * taps, 2),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    return sampled.view(batch, heads, dim, height * width, taps)


def sampled_aggregate(value: Tensor, offset: Tensor, weight: Tensor, kernel_size: int, dilation: int) -> Tensor:
    batch, height, width, heads, dim = value.shape
    nodes = kernel_size * kernel_size
    dtype = compute_dtype(value)
    with without_autocast(value):
        y, x = sampling_points(offset.to(dtype), kernel_size, dilation)
        sampled = sample_nodes(value.to(dtype), y, x)
        weight = weight.to(dtype).permute(0, 3, 1, 2, 4).reshape(batch, heads, height * width, nodes)
        out = torch.einsum("bhdnk,bhnk->bnhd", sampled, weight)
    return out.reshape(batch, height, width, heads, dim).to(value.dtype)


def attention_weights(query: Tensor, key: Tensor, y: Tensor, x: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """The softmax of eq. 8: how much a position attends to each of its nodes.

    Args:
        query: (B, H, W, heads, D).
        key: (B, H, W, heads, D).
        y: pixel coordinates of the nodes along the height, (B, H, W, heads or 1, K).
        x: pixel coordinates of the nodes along the width, in the shape of `y`.
        bias: added to the logits, (B, H, W, heads, K), or None.
        scale: factor of the dot products.

    Returns:
        (B, H, W, heads, K) in float32, or float64 if `query` is.
    """
    batch, height, width, heads, dim = query.shape
    dtype = compute_dtype(query)
    with without_autocast(query):
        sampled = sample_nodes(key.to(dtype), y, x)
        flat_query = query.to(dtype).reshape(batch, height * width, heads, dim)
        logits = scale * torch.einsum("bnhd,bhdnk->bnhk", flat_query, sampled)
        logits = logits.view(batch, height, width, heads, y.shape[-1])
        if bias is not None:
            logits = logits + bias.to(dtype)
        return logits.softmax(dim=-1)


def sampled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offset: Tensor,
    bias: Tensor | None,
    scale: float,
    kernel_size: int,
    dilation: int,
    dropout_p: float,
) -> Tensor:
    batch, height, width, heads, dim = query.shape
    nodes = kernel_size * kernel_size
    dtype = compute_dtype(query)
    with without_autocast(query):
        y, x = sampling_points(offset.to(dtype), kernel_size, dilation)
        weight = attention_weights(query, key, y, x, bias, scale)
        if dropout_p > 0:
            weight = F.dropout(weight, dropout_p)
        sampled = sample_nodes(value.to(dtype), y, x)
        weight = weight.permute(0, 3, 1, 2, 4).reshape(batch, heads, height * width, nodes)
        out = torch.einsum("bhdnk,bhnk->bnhd", sampled, weight)
    return out.reshape(batch, height, width, heads, dim).to(value.dtype)


def position_scores(query: Tensor, rows: Tensor | None, columns: Tensor | None, mirrored: bool, nodes: int) -> Tensor:
    batch, height, width, heads, _ = query.shape
    dtype = compute_dtype(query)
    scores = query.new_zeros((batch, height, width, heads, nodes), dtype=dtype)
    with without_autocast(query):
        query = query.to(dtype)
        if columns is not None:
            scores = scores + torch.einsum("byxhd,xkd->byxhk", query, windows(columns.to(dtype), nodes))
        if rows is not None:
            along_rows = torch.einsum("byxhd,ykd->byxhk", query, windows(rows.to(dtype), nodes))
            scores = scores + (stretched(along_rows) if mirrored else along_rows)
    return scores


def stretched(along_height: Tensor) -> Tensor:
    """The height terms (B, H, W, heads, K), mirrored, and then stretched to the map if it is not square."""
    turned = along_height.transpose(1, 2)
    batch, height, width, heads, nodes = along_height.shape
    if surely_equal(height, width):
        return turned
    maps = turned.flatten(3).permute(0, 3, 1, 2)  # (B, heads * K, W, H)
    maps = F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)
    return maps.permute(0, 2, 3, 1).reshape(batch, height, width, heads, nodes)


def windows(table: Tensor, nodes: int) -> Tensor:
    """The table rows for every position along an axis, (length, nodes, dim)."""
    tap = torch.arange(nodes, device=table.device)
    last = torch.arange(table.shape[0] - nodes, -1, -1, device=table.device)
    return table[last[:, None] + tap]
