"""DGMN2's attention in its original formulation, as the baseline of our measurements.

We wrote it anew in plain PyTorch from what the original code computes. It differs from our attention in two ways: it
keeps all K sampled nodes of key and value in memory, and its relative position multiplies every query with every row of
the tables.
"""

import copy

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from dgmn.layers import DGMN2Attention, RelativePosition
from dgmn.layers.attention import DGMN2Mlp


def original_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offset: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float | None = None,
    kernel_size: int = 3,
    dilation: int = 1,
) -> Tensor:
    """Computes the same as [`sampled_attention`][dgmn.ops.sampled_attention], but keeps all sampled nodes in memory.

    Args:
        query: (B, H, W, heads, D).
        key: the same shape.
        value: the same shape.
        offset: walks in pixels as (dy, dx), (B, H, W, heads or 1, K, 2).
        bias: added to the logits, (B, H, W, heads, K).
        scale: factor of the dot products; D ** -0.5 if None.
        kernel_size: side of the grid; K = kernel_size².
        dilation: distance between grid points in pixels.

    Returns:
        (B, H, W, heads, D).
    """
    batch, height, width, heads, dim = query.shape
    nodes = kernel_size * kernel_size
    scale = dim**-0.5 if scale is None else scale
    grid = _grid(offset.expand(batch, height, width, heads, nodes, 2), kernel_size, dilation)
    keys = _sample_all(key, grid)
    values = _sample_all(value, grid)
    queries = query.permute(0, 3, 1, 2, 4).reshape(batch, heads, height * width, 1, dim)
    logits = scale * torch.matmul(queries, keys.transpose(-2, -1))
    if bias is not None:
        bias = bias.permute(0, 3, 1, 2, 4).reshape(batch, heads, height * width, 1, nodes)
        logits = logits + bias.to(logits.dtype)
    out = torch.matmul(logits.softmax(dim=-1), values)
    return out.view(batch, heads, height, width, dim).permute(0, 2, 3, 1, 4)


def _grid(offset: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """Places the nodes for `grid_sample`: (x, y) in -1..1, of shape (B * heads, H, W * K, 2), at least float32."""
    batch, height, width, heads, nodes, _ = offset.shape
    # In half precision a coordinate above 256 is off by more than a pixel.
    offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
    start = -(dilation * (kernel_size - 1) // 2)
    side = torch.arange(kernel_size, device=offset.device) * dilation + start
    tap_y, tap_x = side.repeat_interleave(kernel_size), side.repeat(kernel_size)
    y = torch.arange(height, device=offset.device).view(height, 1, 1, 1) + tap_y + offset[..., 0]
    x = torch.arange(width, device=offset.device).view(1, width, 1, 1) + tap_x + offset[..., 1]
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    return grid.permute(0, 3, 1, 2, 4, 5).reshape(batch * heads, height, width * nodes, 2)


def _sample_all(nodes: Tensor, grid: Tensor) -> Tensor:
    """Returns all sampled nodes of a map, (B, heads, H * W, K, D)."""
    batch, height, width, heads, dim = nodes.shape
    maps = nodes.permute(0, 3, 4, 1, 2).reshape(batch * heads, dim, height, width)
    # `grid_sample` needs map and grid in one dtype and gives channels first, but the products need them last. The
    # original code copies here, too.
    sampled = F.grid_sample(maps.to(grid.dtype), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    sampled = sampled.to(nodes.dtype).view(batch, heads, dim, height * width, -1)
    return sampled.permute(0, 1, 3, 4, 2).contiguous()


class OriginalAttention(nn.Module):
    """Computes a [`DGMN2Attention`][dgmn.layers.DGMN2Attention] as the original code does, with the same parameters."""

    def __init__(self, attention: DGMN2Attention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.head_dim = attention.head_dim
        self.kernel_size = attention.kernel_size
        self.qkv = attention.qkv
        self.offset = attention.offset
        self.rel_pos = OriginalRelativePosition(attention.rel_pos)
        self.proj = attention.proj

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        heads = (self.num_heads, self.head_dim)
        query, key, value = self.qkv(x).reshape(batch, height, width, 3, *heads).unbind(3)
        walks = self.offset(x.reshape(batch, height, width, *heads))
        walks = walks.view(batch, height, width, self.num_heads, self.kernel_size**2, 2)
        x = original_attention(query, key, value, walks, self.rel_pos(query), kernel_size=self.kernel_size)
        out: Tensor = self.proj(x.reshape(batch, height, width, dim))
        return out


class OriginalRelativePosition(nn.Module):
    """Computes [`RelativePosition`][dgmn.layers.RelativePosition] by H + W + 16 dot products a node. It uses 18."""

    def __init__(self, rel_pos: RelativePosition) -> None:
        super().__init__()
        self.nodes = rel_pos.nodes
        self.rel_pos = rel_pos.rel_pos
        self.rel_height = rel_pos.rel_height
        self.rel_width = rel_pos.rel_width

    def _along(self, query: Tensor, table: Tensor) -> Tensor:
        """Returns the terms along dimension -2: (B, heads, rows, length, D) to (B, heads, rows, length, K)."""
        length = query.shape[-2]
        rows = length + self.nodes - 1
        if table.shape[0] != rows:
            table = F.interpolate(table.T[None], size=rows, mode="linear", align_corners=False)[0].T
        products = torch.matmul(query, table.T)
        position = torch.arange(length, device=query.device)
        used = (length - 1 - position)[:, None] + torch.arange(self.nodes, device=query.device)
        return products.gather(-1, used.expand(*products.shape[:-1], self.nodes))

    def forward(self, query: Tensor) -> Tensor:
        height, width = query.shape[1:3]
        query = query.permute(0, 3, 1, 2, 4)
        along_width = self._along(query, self.rel_width)
        along_height = self._along(query.transpose(2, 3), self.rel_height)  # (B, heads, W, H, K)
        if self.rel_pos == "aligned":
            along_height = along_height.transpose(2, 3)
        elif height != width:
            maps = along_height.permute(0, 1, 4, 2, 3).flatten(0, 2)[None]
            maps = F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)[0]
            along_height = maps.view(*query.shape[:2], self.nodes, height, width).permute(0, 1, 3, 4, 2)
        return (along_width + along_height).permute(0, 2, 3, 1, 4)


def use_original(model: nn.Module) -> nn.Module:
    """Copies a model. Its DGMN2 layers compute as the original code does, but without dropout.

    Their perceptrons are timm's, which hold the whole hidden layer.
    """
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, DGMN2Attention):
            model.set_submodule(name, OriginalAttention(module))
        elif isinstance(module, DGMN2Mlp):
            plain = Mlp(module.fc1.in_features, module.fc1.out_features, device="meta")
            plain.fc1, plain.fc2 = module.fc1, module.fc2
            model.set_submodule(name, plain)
    return model
