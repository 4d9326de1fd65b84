"""Both primitives and the position scores for graphs of ONNX: what other runtimes compute fast.

The results are those of `reference.py`, but for walks of NaN. Nodes come before positions in memory, so that products
and sums run over long rows, and no step needs Einsum, which runtimes take apart into transpositions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dgmn.ops.precision import compute_dtype, without_autocast
from dgmn.ops.reference import node_coordinates, windows
from dgmn.ops.tracing import is_recorded_as


def _channels_first(x: Tensor) -> Tensor:
    """(B, H, W, heads, N) to (B, heads, N, H * W)."""
    batch, height, width, heads, count = x.shape
    return x.permute(0, 3, 4, 1, 2).reshape(batch, heads, count, height * width)


def _sampling_grid(offset: Tensor, heads: int, kernel_size: int, dilation: int) -> Tensor:
    """Where `grid_sample` reads, (B * heads, K * H, W, 2)."""
    batch, height, width, _, nodes, _ = offset.shape
    y, x = node_coordinates(offset, kernel_size, dilation)
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    # At 3 a point is outside of every map. Runtimes turn coordinates into integers, which infinity is none of.
    grid = grid.clamp(-3, 3).permute(0, 3, 4, 1, 2, 5)
    return grid.expand(batch, heads, nodes, height, width, 2).reshape(batch * heads, nodes * height, width, 2)


def _sampled(x: Tensor, grid: Tensor, nodes: int) -> Tensor:
    """The nodes of a map (B, H, W, heads, D), as (B, heads, D, K, H * W)."""
    batch, height, width, heads, dim = x.shape
    if is_recorded_as("gathers"):
        return _gathered(x, grid, nodes)
    maps = x.permute(0, 3, 4, 1, 2).reshape(batch * heads, dim, height, width)
    sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.reshape(batch, heads, dim, nodes, height * width)


def _gathered(x: Tensor, grid: Tensor, nodes: int) -> Tensor:
    """What `_sampled` gives, from whole pixels that are read by their numbers in the map with a border of zeros."""
    batch, height, width, heads, dim = x.shape
    bordered = F.pad(x.permute(0, 3, 1, 2, 4), (0, 0, 1, 1, 1, 1)).reshape(-1, dim)
    column = ((grid[..., 0] + 1) * width - 1) / 2
    row = ((grid[..., 1] + 1) * height - 1) / 2
    left, top = column.floor(), row.floor()
    right_share, bottom_share = column - left, row - top
    tall, wide = height + 2, width + 2
    maps = torch.arange(batch * heads, device=x.device).view(-1, 1, 1) * (tall * wide)
    parts = []
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        # The border is at 0 and at the end. Whatever lies beyond it reads it, too.
        y = (top + (1 + down)).clamp(min=0).minimum(torch.as_tensor(tall - 1, dtype=top.dtype)).long()
        z = (left + (1 + right)).clamp(min=0).minimum(torch.as_tensor(wide - 1, dtype=top.dtype)).long()
        share = (bottom_share if down else 1 - bottom_share) * (right_share if right else 1 - right_share)
        pixels = bordered.index_select(0, (maps + y * wide + z).reshape(-1))
        parts.append(pixels * share.reshape(-1, 1))
    return sum(parts[1:], parts[0]).reshape(batch, heads, nodes, height * width, dim).permute(0, 1, 4, 2, 3)


def sampled_aggregate(value: Tensor, offset: Tensor, weight: Tensor, kernel_size: int, dilation: int) -> Tensor:
    batch, height, width, heads, dim = value.shape
    dtype = compute_dtype(value)
    with without_autocast(value):
        grid = _sampling_grid(offset.to(dtype), heads, kernel_size, dilation)
        sampled = _sampled(value.to(dtype), grid, kernel_size**2)
        out = (sampled * _channels_first(weight.to(dtype))[:, :, None]).sum(3)
    return out.reshape(batch, heads, dim, height, width).permute(0, 3, 4, 1, 2).to(value.dtype)


def sampled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offset: Tensor,
    bias: Tensor | None,
    scale: float,
    kernel_size: int,
    dilation: int,
) -> Tensor:
    batch, height, width, heads, dim = query.shape
    dtype = compute_dtype(query)
    nodes = kernel_size**2
    with without_autocast(query):
        grid = _sampling_grid(offset.to(dtype), heads, kernel_size, dilation)
        keys = _sampled(key.to(dtype), grid, nodes)
        logits = (keys * _channels_first(scale * query.to(dtype))[:, :, :, None]).sum(2)
        if bias is not None:
            logits = logits + _channels_first(bias.to(dtype))
        weight = logits.softmax(2)
        out = (_sampled(value.to(dtype), grid, nodes) * weight[:, :, None]).sum(3)
    return out.reshape(batch, heads, dim, height, width).permute(0, 3, 4, 1, 2).to(value.dtype)


def position_scores(query: Tensor, rows: Tensor | None, columns: Tensor | None, mirrored: bool, nodes: int) -> Tensor:
    batch, height, width, heads, dim = query.shape
    dtype = compute_dtype(query)
    scores = None
    with without_autocast(query):
        query = query.to(dtype)
        if columns is not None:
            queries = query.permute(2, 0, 1, 3, 4).reshape(width, batch * height * heads, dim)
            products = torch.matmul(queries, windows(columns.to(dtype), nodes).transpose(1, 2))
            scores = products.reshape(width, batch, height, heads, nodes).permute(1, 2, 0, 3, 4)
        if rows is not None:
            queries = query.permute(1, 0, 2, 3, 4).reshape(height, batch * width * heads, dim)
            products = torch.matmul(queries, windows(rows.to(dtype), nodes).transpose(1, 2))
            products = products.reshape(height, batch, width, heads, nodes)
            along_rows = products.permute(1, 2, 0, 3, 4) if mirrored else products.permute(1, 0, 2, 3, 4)
            scores = along_rows if scores is None else scores + along_rows
    return query.new_zeros((batch, height, width, heads, nodes), dtype=dtype) if scores is None else scores
