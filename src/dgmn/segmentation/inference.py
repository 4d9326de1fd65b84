"""Predicts every pixel of an image of any size: whole or by windows, at several scales, mirrored."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dgmn.errors import InputError
from dgmn.finite import check_scores
from dgmn.images import MAX_PIXELS

_Part = tuple[int, int]  # from, to


@dataclass(frozen=True)
class Inference:
    """How an image is predicted.

    Attributes:
        mode: "whole" gives the network the whole image, up to 4 million pixels; larger images use "slide". "slide"
            gives the network windows of the image and averages their logits where they overlap. Its memory does not
            grow with the image.
        crop: side of a window; a smaller image is one window.
        stride: distance between the windows.
        scales: factors that the image is resized by; the probabilities at all scales are averaged.
        flip: average over the mirrored image, too.
        fit: (height, width) that the image is resized into before `scales`, keeping its aspect ratio; None keeps its
            own size. The original evaluation of Cityscapes uses (1025, 2049).
        batch_size: windows that the network gets at a time.
        tile: side of the part of the image that "slide" predicts at a time. It bounds the memory.

    Source: the definitions of mmseg's `slide_inference` and `aug_test`.
    """

    mode: Literal["whole", "slide"] = "whole"
    crop: int = 769
    stride: int = 513
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    fit: tuple[int, int] | None = None
    batch_size: int = 2
    tile: int = 2048

    def __post_init__(self) -> None:
        if self.mode not in ("whole", "slide"):
            raise InputError(f'inference.mode must be "whole" or "slide", got {self.mode!r}')
        if not 1 <= self.stride <= self.crop:
            raise InputError(f"inference.stride must be in 1..crop ({self.crop}), got {self.stride}")
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise InputError(f"inference.scales must be one or more numbers above 0, got {list(self.scales)}")
        if self.batch_size < 1 or self.tile < 1:
            raise InputError(
                f"inference: batch_size and tile must be at least 1, got {self.batch_size} and {self.tile}"
            )
        if self.fit is not None and min(self.fit) < 1:
            raise InputError(f"inference.fit must be a height and a width of at least 1, got {list(self.fit)}")


_WHOLE = 2**22  # pixels of the largest image that is predicted whole

PAPER_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Scales of the paper's multi-scale evaluation, to be used with `flip`."""


@torch.no_grad()
def predict_labels(network: Callable[[Tensor], Tensor], image: Tensor, inference: Inference = Inference()) -> Tensor:
    """The most probable class of every pixel.

    Args:
        network: maps images (B, 3, h, w) to logits (B, classes, h, w); in evaluation mode.
        image: (3, H, W), on the network's device: normalised, or uint8 if the network normalises 0..255 itself, which
            takes a quarter of the memory.
        inference: how the image is predicted.

    Returns:
        (H, W), uint8, on the CPU.
    """
    labels = torch.empty(image.shape[-2:], dtype=torch.uint8)
    for rows, columns, probabilities in _parts(network, image, inference):
        if len(probabilities) > 255:
            raise InputError(f"labels have 8 bits, so at most 255 classes are accepted, got {len(probabilities)}")
        labels[slice(*rows), slice(*columns)] = probabilities.argmax(0).to(torch.uint8).cpu()
    return labels


@torch.no_grad()
def predict_probabilities(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    inference: Inference = Inference(),
) -> Tensor:
    """The probability of every class at every pixel; see [`predict_labels`][dgmn.segmentation.predict_labels].

    Returns:
        (classes, H, W), float32, on the image's device. The whole tensor must fit into memory.
    """
    out = None
    for rows, columns, probabilities in _parts(network, image, inference):
        if out is None:
            out = probabilities.new_empty((len(probabilities), *image.shape[-2:]))
        out[:, slice(*rows), slice(*columns)] = probabilities
    assert out is not None
    return out


def count_windows(height: int, width: int, inference: Inference) -> int:
    """How many windows, or whole images, the network gets for an image of this size."""
    inference = _for_size(height, width, inference)
    if inference.mode == "whole":
        return len(inference.scales) * (1 + inference.flip)
    total = 0
    for rows, columns in product(*_tiles(height, width, inference)):
        both = (columns, _mirrored(columns, width)) if inference.flip else (columns,)
        for (tall, wide), part in product(_sizes(height, width, inference), both):
            down = _origins(tall, min(inference.crop, tall), inference.stride, _source(rows, height, tall))
            across = _origins(wide, min(inference.crop, wide), inference.stride, _source(part, width, wide))
            total += len(down) * len(across)
    return total


def window_around(
    at: tuple[float, float], image: Tensor, inference: Inference
) -> tuple[tuple[int, int], tuple[int, int], Tensor]:
    """The window of an image whose middle is closest to a point, among the windows that the network gets.

    Args:
        at: x and y in pixels of the image.
        image: (3, H, W).
        inference: how the image is predicted. `scales` and `flip` are ignored: the image has its own
            size, or that of `fit`.

    Returns:
        Row and column where the window begins, its height and width, and the resized image (3, h, w) that holds it.
    """
    height, width = image.shape[-2:]
    inference = _for_size(height, width, inference)
    ((tall, wide),) = (size,) = _sizes(height, width, replace(inference, scales=(1.0,)))
    scaled = image if size == (height, width) else _resize_image(image, size)
    if inference.mode == "whole":
        return (0, 0), size, scaled
    crop = (min(inference.crop, tall), min(inference.crop, wide))
    middle = (at[1] * tall / height - crop[0] / 2, at[0] * wide / width - crop[1] / 2)
    origins = (_origins(n, side, inference.stride, (0, n)) for n, side in zip(size, crop, strict=True))
    top, left = (min(o, key=lambda o: abs(o - m)) for o, m in zip(origins, middle, strict=True))
    return (top, left), crop, scaled


def _parts(
    network: Callable[[Tensor], Tensor], image: Tensor, inference: Inference
) -> Iterator[tuple[_Part, _Part, Tensor]]:
    """Yields the rows and columns of each part of the image, and its probabilities (classes, h, w)."""
    if image.ndim != 3:
        raise InputError(f"image: expected (3, H, W), got {tuple(image.shape)}")
    height, width = image.shape[-2:]
    inference = _for_size(height, width, inference)
    for rows, columns in product(*_tiles(height, width, inference)):
        total = None
        for size in _sizes(height, width, inference):
            # Resized again for every tile: keeping the image at all scales would fill the memory.
            scaled = image if size == (height, width) else _resize_image(image, size)
            for mirrored in (False, True) if inference.flip else (False,):
                part = _probabilities(network, scaled, (height, width), rows, columns, mirrored, inference)
                total = part if total is None else total.add_(part)
                del part
            del scaled  # before the next one is made
        assert total is not None
        yield rows, columns, total.div_(len(inference.scales) * (1 + inference.flip))


def _probabilities(
    network: Callable[[Tensor], Tensor],
    scaled: Tensor,
    full: tuple[int, int],
    rows: _Part,
    columns: _Part,
    mirrored: bool,
    inference: Inference,
) -> Tensor:
    """Probabilities of a part of the image, from the image at one scale."""
    if mirrored:
        columns = _mirrored(columns, full[1])
    # The part of the scaled image from which the part of the full image is interpolated.
    top, bottom = _source(rows, full[0], scaled.shape[-2])
    left, right = _source(columns, full[1], scaled.shape[-1])
    if inference.mode == "whole":
        whole = scaled.flip(-1) if mirrored else scaled
        logits = network(whole[None])[0].float()[:, top:bottom, left:right]
    else:
        logits = _slide(network, scaled, (top, bottom), (left, right), mirrored, inference)
    logits = _resize_part(logits, 1, top, rows, full[0], scaled.shape[-2])
    logits = _resize_part(logits, 2, left, columns, full[1], scaled.shape[-1])
    logits = logits.softmax(0)  # under the same name, so that the memory of the logits is free again
    check_scores(logits)
    return logits.flip(-1) if mirrored else logits


def _slide(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    rows: _Part,
    columns: _Part,
    mirrored: bool,
    inference: Inference,
) -> Tensor:
    """The logits of a part of the image, or of its mirror image, averaged over all windows that overlap it."""
    height, width = image.shape[-2:]
    crop = (min(inference.crop, height), min(inference.crop, width))
    windows = [
        (y, x)
        for y in _origins(height, crop[0], inference.stride, rows)
        for x in _origins(width, crop[1], inference.stride, columns)
    ]

    def window(y: int, x: int) -> Tensor:
        if mirrored:  # a mirrored copy of the whole image would fill the memory
            return image[:, y : y + crop[0], width - x - crop[1] : width - x].flip(-1)
        return image[:, y : y + crop[0], x : x + crop[1]]

    total = None
    count = image.new_zeros((rows[1] - rows[0], columns[1] - columns[0]), dtype=torch.float32)
    for start in range(0, len(windows), inference.batch_size):
        batch = windows[start : start + inference.batch_size]
        out = network(torch.stack([window(y, x) for y, x in batch]))
        if total is None:
            total = torch.zeros((out.shape[1], *count.shape), dtype=torch.float32, device=out.device)
        for (y, x), logits in zip(batch, out, strict=True):
            top, bottom = max(y, rows[0]), min(y + crop[0], rows[1])
            left, right = max(x, columns[0]), min(x + crop[1], columns[1])
            here = (slice(top - rows[0], bottom - rows[0]), slice(left - columns[0], right - columns[0]))
            total[:, *here] += logits[:, top - y : bottom - y, left - x : right - x]
            count[here] += 1
    assert total is not None
    return total.div_(count)


def _origins(size: int, crop: int, stride: int, part: _Part) -> list[int]:
    """Where the windows that overlap a part begin: at multiples of the stride, the last one moved back inside."""
    steps = max(size - crop + stride - 1, 0) // stride + 1
    origins = [min(i * stride, size - crop) for i in range(steps)]
    return [origin for origin in origins if origin < part[1] and origin + crop > part[0]]


def _for_size(height: int, width: int, inference: Inference) -> Inference:
    large = inference.mode == "whole" and height * width > _WHOLE
    return replace(inference, mode="slide") if large else inference


def _tiles(height: int, width: int, inference: Inference) -> tuple[list[_Part], list[_Part]]:
    """Rows and columns of the parts that an image is predicted in."""
    # The logits of a part have the size that it has at the largest scale.
    tile = max(height, width) if inference.mode == "whole" else _tile_side(inference)
    rows, columns = ([(start, min(start + tile, n)) for start in range(0, n, tile)] for n in (height, width))
    return rows, columns


def _tile_side(inference: Inference) -> int:
    return max(1, int(inference.tile / max(1.0, *inference.scales)))


def scaled_size(height: int, width: int, scale: float, fit: tuple[int, int] | None = None) -> tuple[int, int]:
    """Height and width of an image at a scale with its aspect ratio kept, rounded as in mmseg.

    Args:
        height: height of the image.
        width: width of the image.
        scale: factor.
        fit: (height, width) that the image is fitted into first; None keeps its own size.
    """
    long, short = max(height, width), min(height, width)
    box = (max(fit), min(fit)) if fit is not None else (long, short)
    factor = min(max(int(box[0] * scale), 1) / long, max(int(box[1] * scale), 1) / short)
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def _sizes(height: int, width: int, inference: Inference) -> list[tuple[int, int]]:
    """The sizes at which an image is predicted.

    Raises:
        InputError: one of them has more than `MAX_PIXELS` pixels.
    """
    sizes = [scaled_size(height, width, scale, inference.fit) for scale in inference.scales]
    tall, wide = max(sizes)
    if tall * wide > MAX_PIXELS:
        raise InputError(
            f"image: {width} x {height} pixels become {wide} x {tall} at scale {max(inference.scales):g}, at most "
            f"{MAX_PIXELS:,} pixels are accepted; predict it at one scale, or smaller"
        )
    return sizes


def _mirrored(part: _Part, size: int) -> _Part:
    return size - part[1], size - part[0]


def _resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    image = image if image.is_floating_point() else image.float()
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]


def _source(part: _Part, full: int, scaled: int) -> _Part:
    """The positions of the scaled axis from which a part of the full axis is interpolated."""
    if scaled == full:
        return part
    step = (scaled - 1) / (full - 1) if full > 1 else 0.0
    return int(part[0] * step), min(int((part[1] - 1) * step) + 2, scaled)


def _resize_part(x: Tensor, axis: int, start: int, part: _Part, full: int, scaled: int) -> Tensor:
    """Resizes along one axis, bilinearly with align_corners; `x` begins at `start` of the scaled axis."""
    if scaled == full:
        return x
    step = (scaled - 1) / (full - 1) if full > 1 else 0.0
    position = torch.arange(*part, device="cpu", dtype=torch.float64) * step  # not every device has float64
    share = position.frac().to(x)
    below = position.long().clamp(max=scaled - 1).to(x.device)
    above = (below + 1).clamp(max=scaled - 1)
    share = share[:, None] if axis == 1 else share
    return torch.lerp(x.index_select(axis, below - start), x.index_select(axis, above - start), share)
