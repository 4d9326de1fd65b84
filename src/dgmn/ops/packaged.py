"""Both primitives for packages of AOTInductor: what its loops would compute slowly, PyTorch's `embedding_bag` computes.

It adds up rows of a table, each times a number, and never keeps the rows: the pixels around a node are rows of the map.
The results are those of `reference.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dgmn.ops.precision import compute_dtype, without_autocast
from dgmn.ops.reference import position_scores as position_scores
from dgmn.ops.reference import sampling_points


def _pixels(offset: Tensor, heads: int, kernel_size: int, dilation: int) -> tuple[Tensor, Tensor]:
    """The four pixels around every node, as rows of `_table`, and their shares: both (B, H, W, heads, K, 4)."""
    batch, height, width = offset.shape[:3]
    y, x = sampling_points(offset, kernel_size, dilation)
    top, left = y.floor(), x.floor()
    along_y = torch.stack((top + 1 - y, y - top), dim=-1)[..., :, None]
    along_x = torch.stack((left + 1 - x, x - left), dim=-1)[..., None, :]
    # The table's border, which is zero, lies at 0 and behind the map's end. Whatever is outside reads it.
    row = torch.stack((top, top + 1), dim=-1)[..., :, None].clamp(-1, height).long() + 1
    column = torch.stack((left, left + 1), dim=-1)[..., None, :].clamp(-1, width).long() + 1
    image = torch.arange(batch, device=offset.device).view(-1, 1, 1, 1, 1, 1, 1)
    head = torch.arange(heads, device=offset.device).view(-1, 1, 1, 1)
    pixel = (((image * (height + 2) + row) * (width + 2)) + column) * heads + head
    shares = (along_y * along_x).expand(pixel.shape)
    return pixel.flatten(5), shares.flatten(5)


def _table(x: Tensor) -> Tensor:
    """The pixels of a map (B, H, W, heads, D) with a border of zeros, one row for each head."""
    return F.pad(x, (0, 0, 0, 0, 1, 1, 1, 1)).reshape(-1, x.shape[-1])


def _summed(x: Tensor, pixel: Tensor, share: Tensor) -> Tensor:
    """The sums over the last axis of `pixel`, (..., D)."""
    shape, count = pixel.shape[:-1], pixel.shape[-1]
    bags = F.embedding_bag(pixel.reshape(-1, count), _table(x), mode="sum", per_sample_weights=share.reshape(-1, count))
    return bags.reshape(*shape, x.shape[-1])


def sampled_aggregate(value: Tensor, offset: Tensor, weight: Tensor, kernel_size: int, dilation: int) -> Tensor:
    dtype = compute_dtype(value)
    with without_autocast(value):
        pixel, share = _pixels(offset.to(dtype), value.shape[3], kernel_size, dilation)
        share = share * weight.to(dtype)[..., None]
        return _summed(value.to(dtype), pixel.flatten(4), share.flatten(4)).to(value.dtype)


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
    dtype = compute_dtype(query)
    with without_autocast(query):
        pixel, share = _pixels(offset.to(dtype), query.shape[3], kernel_size, dilation)
        keys = _summed(key.to(dtype), pixel, share)
        logits = (scale * query.to(dtype)[..., None, :] * keys).sum(-1)
        if bias is not None:
            logits = logits + bias.to(dtype)
        share = share * logits.softmax(-1)[..., None]
        return _summed(value.to(dtype), pixel.flatten(4), share.flatten(4)).to(value.dtype)
