"""Regions of maps and images: read from the maps of a pyramid, and masks of regions read and put into images."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, box_area, roi_align

_STRIDES = (4, 8, 16, 32)  # of the maps that regions are read from


def extent(like: Tensor, size: Sequence[int]) -> Tensor:
    """Width, height, width, height of an image of `size` (height, width), to scale boxes by."""
    # Not new_tensor: a traced graph would take the size for a constant.
    height, width = (torch.as_tensor(side, dtype=like.dtype, device=like.device) for side in size)
    return torch.stack([width, height, width, height])


class AlignedRoIs(MultiScaleRoIAlign):
    """RoIAlign shifted by half a pixel, at fixed strides.

    Args:
        output_size: bins along a side of a region.
        sampling_ratio: samples along a side of a bin; 0 takes as many as a region has pixels.
    """

    def __init__(self, output_size: int, sampling_ratio: int = 0) -> None:
        super().__init__(["0", "1", "2", "3"], output_size, sampling_ratio)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        rois = torch.cat([F.pad(b, (1, 0), value=i) for i, b in enumerate(boxes)])
        levels = self.levels(rois[:, 1:])
        first = x[self.featmap_names[0]]
        # len() would be a constant of an exported graph.
        out = first.new_zeros((rois.shape[0], first.shape[1], *self.output_size))
        for level, name in enumerate(self.featmap_names):
            here = torch.where(levels == level)[0]
            # In the boxes' precision: in the half precision of autocast's maps, the boxes would move by whole pixels.
            values, scale = x[name].to(rois.dtype), 1 / _STRIDES[level]
            pooled = roi_align(values, rois[here], self.output_size, scale, self.sampling_ratio, aligned=True)
            out = out.index_put((here,), pooled.to(out.dtype))
        return out

    @staticmethod
    def levels(boxes: Tensor) -> Tensor:
        """The level of the pyramid that a region is read from."""
        return torch.floor(torch.log2(box_area(boxes).sqrt() / 56 + 1e-6)).clamp(0, 3).long()


def mask_targets(masks: Tensor, index: Tensor, boxes: Tensor, size: int = 28) -> Tensor:
    """The masks that the mask head should predict in the regions, (regions, size, size) of 0 and 1.

    Args:
        masks: masks of the ground truth, (N, H, W).
        index: which of the masks belongs to each region, (regions,).
        boxes: boxes of the regions, (regions, 4).
        size: side of the output.
    """
    if len(boxes) == 0:
        return boxes.new_zeros((0, size, size))
    rois = torch.cat([index[:, None].to(boxes.dtype), boxes], 1)
    sampled = roi_align(masks[:, None].to(boxes.dtype), rois, size, 1.0, 0, aligned=True)[:, 0]
    wanted: Tensor = (sampled >= 0.5).to(boxes.dtype)
    return wanted


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Puts the masks of regions into an image: each pixel's centre is sampled in its region, bilinearly, 0 outside.

    Args:
        masks: probabilities (N, 1, h, w).
        boxes: boxes of the regions (N, 4) in pixels of the image.
        size: height and width of the image.

    Returns:
        (N, 1, H, W), bool, True where the probability is at least a half.
    """
    height, width = size
    out = torch.zeros((len(masks), 1, height, width), dtype=torch.bool, device=masks.device)
    y, x = (torch.arange(n, device=boxes.device, dtype=boxes.dtype) + 0.5 for n in size)
    # One mask at a time, and only around its box: all masks over the whole image would need gigabytes.
    for i, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        rows = slice(max(math.floor(y0) - 1, 0), min(math.ceil(y1) + 1, height))
        columns = slice(max(math.floor(x0) - 1, 0), min(math.ceil(x1) + 1, width))
        if y1 <= y0 or x1 <= x0 or rows.stop <= rows.start or columns.stop <= columns.start:
            continue
        down, across = (y[rows] - y0) / (y1 - y0) * 2 - 1, (x[columns] - x0) / (x1 - x0) * 2 - 1
        grid = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)[None]
        out[i, 0, rows, columns] = F.grid_sample(masks[i, None].to(grid.dtype), grid, align_corners=False)[0, 0] >= 0.5
    return out
