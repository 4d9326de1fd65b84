"""Multi-scale deformable attention as message passing on sampled nodes."""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgmn.ops import sampled_aggregate
from dgmn.ops.tracing import is_jit_tracing

Shape = tuple[int, int]


def multi_scale_aggregate(value: Tensor, shapes: Sequence[Shape], locations: Tensor, weights: Tensor) -> Tensor:
    """Sums sampled points of several maps, for a query at every pixel of these maps.

    The maps are laid side by side on one sheet, a pixel apart, with each query at its pixel. There, the points of all
    maps are nodes that [`sampled_aggregate`][dgmn.ops.sampled_aggregate] reads at once, in its fused kernels.

    Args:
        value: the maps' pixels one after the other, (B, N, heads, D).
        shapes: height and width of every map.
        locations: x and y of the points as shares of the map's width and height, (B, N, heads, maps, points, 2).
        weights: weights of the points, (B, N, heads, maps, points).

    Returns:
        The sums, (B, N, heads * D).

    Source: Deformable DETR, eq. 3 (https://arxiv.org/abs/2010.04159).
    """
    batch, _, heads, dim = value.shape
    # Half precision is too coarse for pixels.
    locations = locations.to(torch.promote_types(locations.dtype, torch.float32))
    nodes = weights.shape[3] * weights.shape[4]
    side = math.isqrt(nodes - 1) + 1
    origins, sheet = _places(shapes)
    size = locations.new_tensor([(width, height) for height, width in shapes])[:, None]
    # Points stop one pixel outside of their map: they read zeros there. Further out they would read the next map.
    points = torch.minimum((locations * size - 0.5).clamp(min=-1), size)
    points = points + locations.new_tensor([(x, y) for y, x in origins])[:, None]
    points = F.pad(points.flatten(3, 4).flip(-1), (0, 0, 0, side**2 - nodes))
    weights = F.pad(weights.flatten(3, 4), (0, side**2 - nodes))

    tap = torch.arange(side**2, device=points.device)
    start = torch.stack([tap // side, tap % side], -1) - (side - 1) // 2
    values = value.new_zeros(batch, *sheet, heads, dim)
    walks = points.new_zeros(batch, *sheet, heads, side**2, 2)
    shares = weights.new_zeros(batch, *sheet, heads, side**2)
    parts = []
    for (height, width), (y, x), here in zip(shapes, origins, _slices(shapes), strict=True):
        part = (slice(None), slice(y, y + height), slice(x, x + width))
        rows, columns = (torch.arange(n, device=points.device) for n in (height, width))
        pixel = torch.stack(torch.meshgrid(rows + y, columns + x, indexing="ij"), -1)[:, :, None, None]
        values[part] = value[:, here].reshape(batch, height, width, heads, dim)
        walks[part] = points[:, here].reshape(batch, height, width, heads, side**2, 2) - (pixel + start)
        shares[part] = weights[:, here].reshape(batch, height, width, heads, side**2)
        parts.append(part)
    out = sampled_aggregate(values, walks, shares, kernel_size=side)
    return torch.cat([out[part].flatten(3).flatten(1, 2) for part in parts], 1)


def _places(shapes: Sequence[Shape]) -> tuple[list[Shape], Shape]:
    """Upper left corners of the maps, and the sheet's size.

    The first map is at the left. The others are to its right, below each other.
    """
    origins, bottom = [(0, 0)], 0
    for height, _ in shapes[1:]:
        origins.append((bottom, shapes[0][1] + 1))
        bottom += height + 1
    ends = [(y + height, x + width) for (y, x), (height, width) in zip(origins, shapes, strict=True)]
    return origins, (max(y for y, _ in ends), max(x for _, x in ends))


def _slices(shapes: Sequence[Shape]) -> list[slice]:
    ends = [0]
    for height, width in shapes:
        ends.append(ends[-1] + height * width)
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


class FusedMultiScaleAttention(nn.Module):
    """Replaces transformers' `MultiScaleDeformableAttention`.

    Args:
        fallback: the replaced module. It serves queries that are not the pixels of the maps: a decoder's.

    Attributes:
        fused: whether to take the fused kernels; if not, always the fallback.
    """

    def __init__(self, fallback: nn.Module) -> None:
        super().__init__()
        self.fallback = fallback
        self.fused = True

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: list[Shape],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        # Where the sheet's maps lie depends on their sizes, which a traced graph leaves open.
        if self.fused and not is_jit_tracing() and sampling_locations.shape[1] == value.shape[1]:
            shapes = [(int(height), int(width)) for height, width in value_spatial_shapes_list]
            return multi_scale_aggregate(value, shapes, sampling_locations, attention_weights)
        out: Tensor = self.fallback(
            value,
            value_spatial_shapes,
            value_spatial_shapes_list,
            level_start_index,
            sampling_locations,
            attention_weights,
            im2col_step,
        )
        return out
