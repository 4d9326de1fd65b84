"""The nodes that a network samples for a position of an image (Fig. 5 of the paper)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from dgmn.errors import InputError
from dgmn.layers import DGMN, DGMN2Attention
from dgmn.ops.reference import counts, node_coordinates

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels of an image."""


def stage_name(layer: str) -> str:
    """The part of a network that a layer belongs to: "stage3" for "backbone.stages.2.blocks.1.attn"."""
    stage = re.search(r"\bstages[._](\d+)", layer)
    if stage:
        return f"stage{int(stage[1]) + 1}"
    part = re.search(r"\blayers?[._]?\d+", layer)
    return part[0] if part else layer


@dataclass(frozen=True, eq=False)
class SampledNodes:
    """The K nodes that a receiving position samples in a layer, with one sampling rate or head.

    Points are (x, y) in pixels of the image: its upper left corner is (0, 0), the centre of its first pixel is
    (0.5, 0.5).

    Attributes:
        layer: name of the module in the network.
        sampling_rate: φ; 1 in DGMN2's attention.
        head: index of the attention head; None for a DGMN module.
        receiver: centre of the receiving position.
        grid: where the nodes would lie without walks, (K, 2).
        positions: positions of the nodes, (K, 2), on the map or outside it.
        inside: whether each node lies on the map, (K,), bool; nodes outside contribute zeros.
        affinities: A_ij, (K,), or None; in DGMN2's attention they are the softmax weights. They sum to 1.
        weights: |w_j|, the mean over the groups, (K,), or None.
    """

    layer: str
    sampling_rate: int
    head: int | None
    receiver: Point
    grid: Tensor
    positions: Tensor
    inside: Tensor
    affinities: Tensor | None
    weights: Tensor | None


@dataclass(frozen=True, eq=False)
class SampledLayer:
    """What a layer samples at all positions of its map, with one sampling rate or head.

    Points and lengths are in pixels of the image, as in [`SampledNodes`][dgmn.nodes.SampledNodes].

    Attributes:
        layer: name of the module in the network.
        sampling_rate: φ; 1 in DGMN2's attention.
        head: index of the attention head; None for a DGMN module.
        kernel_size: side of the grid of K nodes.
        walks: Δd_j of every position (eq. 4), (h, w, K, 2), as (dy, dx) in pixels of the map.
        affinities: A_ij, (h, w, K), or None.
        weights: |w_j|, the mean over the groups, (h, w, K), or None.
        scale: pixels of the image that one position covers, along x and y.
        corner: where the map begins in the image.
    """

    layer: str
    sampling_rate: int
    head: int | None
    kernel_size: int
    walks: Tensor = field(repr=False)
    affinities: Tensor | None = field(repr=False)
    weights: Tensor | None = field(repr=False)
    scale: Point
    corner: Point = (0.0, 0.0)

    @property
    def stage(self) -> str:
        """The name of the part of the network that repeats this layer: "stages.2" of "stages.2.blocks.1.attn"."""
        parts = self.layer.split(".")
        last = max((i for i, part in enumerate(parts) if part.isdigit()), default=0)
        return ".".join(parts[:last]).removesuffix(".blocks")

    @property
    def metric(self) -> str:
        """The name of the stage in metrics: "stage3" of `walks/stage3`."""
        return stage_name(self.layer)

    @property
    def covers(self) -> Box:
        """The part of the image that the map covers."""
        height, width = self.walks.shape[:2]
        (left, top), (along_x, along_y) = self.corner, self.scale
        return left, top, left + width * along_x, top + height * along_y

    def at(self, point: Point) -> SampledNodes:
        """The nodes of the position that contains a point.

        Raises:
            InputError (a ValueError): the map does not cover the point.
        """
        height, width = self.walks.shape[:2]
        check_point(point, *self.covers)
        left, top = self.corner
        column = min(int((point[0] - left) / self.scale[0]), width - 1)
        row = min(int((point[1] - top) / self.scale[1]), height - 1)
        here = (slice(row, row + 1), slice(column, column + 1))
        walks = self.walks[here]
        nodes, y, x = self._nodes(walks, row, column)
        grid, _, _ = self._nodes(torch.zeros_like(walks), row, column)
        along_y, along_x = counts(y, x, height, width)
        return SampledNodes(
            self.layer,
            self.sampling_rate,
            self.head,
            (left + (column + 0.5) * self.scale[0], top + (row + 0.5) * self.scale[1]),
            grid[0, 0],
            nodes[0, 0],
            (along_y & along_x)[0, 0],
            None if self.affinities is None else self.affinities[here][0, 0],
            None if self.weights is None else self.weights[here][0, 0],
        )

    def positions(self) -> Tensor:
        """Positions of the nodes of all positions, (h, w, K, 2), as (x, y)."""
        return self._nodes(self.walks, 0, 0)[0]

    def density(self) -> Tensor:
        """How often each position of the map is sampled by all, (h, w), float32.

        A node lies between four positions and counts for them as the bilinear sampler weighs them. Without walks every
        position is sampled K times, but for those at the border.
        """
        height, width = self.walks.shape[:2]
        _, y, x = self._nodes(self.walks, 0, 0)
        y, x = y.flatten(), x.flatten()
        along_y, along_x = counts(y, x, height, width)
        y, x = y[along_y & along_x], x[along_y & along_x]
        density = torch.zeros((height + 2) * (width + 2))  # with a border for what is read beside the map
        for dy in (0, 1):
            for dx in (0, 1):
                row, column = y.floor() + dy, x.floor() + dx
                share = (1 - (y - row).abs()) * (1 - (x - column).abs())
                density.index_add_(0, ((row + 1) * (width + 2) + column + 1).long(), share)
        return density.view(height + 2, width + 2)[1:-1, 1:-1].clone()

    def walk_lengths(self) -> Tensor:
        """How far the nodes of each position walk: the mean of |Δd_j| over its K nodes, (h, w), float32."""
        lengths: Tensor = (self.walks * self.walks.new_tensor(self.scale[::-1])).norm(dim=-1)
        return lengths.mean(-1)

    def placed(self, scale: Point, corner: Point) -> "SampledLayer":
        """The same in an image where what the network saw begins at `corner` and is `scale` times as large."""
        (along_x, along_y), (left, top) = self.scale, self.corner
        return replace(
            self,
            scale=(along_x * scale[0], along_y * scale[1]),
            corner=(left * scale[0] + corner[0], top * scale[1] + corner[1]),
        )

    def _nodes(self, walks: Tensor, row: int, column: int) -> tuple[Tensor, Tensor, Tensor]:
        """The nodes of walks that begin at a row and column: (h, w, K, 2) in the image; their y and x on the map."""
        found = node_coordinates(walks[None, :, :, None], self.kernel_size, self.sampling_rate)
        y, x = found[0][0, :, :, 0] + row, found[1][0, :, :, 0] + column
        (along_x, along_y), (left, top) = self.scale, self.corner
        return torch.stack([(x + 0.5) * along_x + left, (y + 0.5) * along_y + top], -1), y, x


def node_maps(model: nn.Module, images: Tensor | Sequence[Tensor]) -> list[SampledLayer]:
    """What the layers of a network sample at all positions of an image.

    Runs the network once, in evaluation mode, and asks every [`DGMN`][dgmn.layers.DGMN] module and every
    [`DGMN2Attention`][dgmn.layers.DGMN2Attention] for what it computes: the nodes at `i + Δd_j` (eq. 4) with
    their affinities and weights (eq. 6 and 7), or the softmax of eq. 8. If a module runs several times, for instance
    with `steps`, the last run counts.

    A map of h x w positions covers the H x W pixels that the network saw, in the way that segmenters enlarge their
    maps: position (i, j) has its centre at x = (j + 0.5) W / w, y = (i + 0.5) H / h. The resizing and padding inside a
    detector are undone.

    Args:
        model: a classifier, backbone, segmenter or detector, or one of these modules alone.
        images: one image as the model takes it: (1, C, H, W), normalised; for detectors a list with one (3, H, W).

    Returns:
        One entry for every sampling rate or head of a layer, in the order in which the layers run. Tensors are float32
        on the CPU. Messages that neither sample dynamically nor predict anything are left out. So are layers inside a
        detector that see single objects instead of the image.

    Raises:
        InputError (a ValueError): there is not exactly one image, or the network has no layer that samples nodes.
    """
    watch = _Watch(_size(images))
    handles = watch.register(model)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    if not watch.found:
        raise InputError(
            f"model: {type(model).__name__} has no layer that samples nodes, neither a DGMN module with dynamic "
            "sampling, weights or affinity nor an attention of DGMN2 (a file that was exported shows none)"
        )
    return list(watch.found.values())


def sampled_nodes(model: nn.Module, images: Tensor | Sequence[Tensor], at: Point) -> list[SampledNodes]:
    """The nodes that the layers of a network sample for the position that contains a point of an image.

    This is [`node_maps`][dgmn.nodes.node_maps] at one point.

    Args:
        model: see `node_maps`.
        images: see `node_maps`.
        at: x and y in pixels of the image, 0 <= x < W and 0 <= y < H; pixel (0, 0) reaches from 0 to 1.

    Raises:
        InputError (a ValueError): `at` is no point of the image, or as in `node_maps`.

    Source: Dynamic Graph Message Passing Networks for Visual Recognition, Fig. 5 (https://arxiv.org/abs/2209.09760).
    """
    height, width = _size(images)
    check_point(at, 0, 0, width, height)
    return [layer.at(at) for layer in node_maps(model, images)]


def label(nodes: SampledNodes | SampledLayer) -> str:
    """What tells nodes from the others of their layer: "head 3", or "rate 4"."""
    return f"rate {nodes.sampling_rate}" if nodes.head is None else f"head {nodes.head}"


def check_point(at: Point, left: float, top: float, right: float, bottom: float) -> None:
    """Checks that a point lies in an image, or the part of it, with these borders.

    Raises:
        InputError: `at` is no point, or lies outside.
    """
    if not isinstance(at, Sequence) or len(at) != 2 or not all(isinstance(number, int | float) for number in at):
        raise InputError(f"at must be two numbers, x and y, got {at!r}")
    if not (left <= at[0] < right and top <= at[1] < bottom):
        wanted = f"{left:g} <= x < {right:g} and {top:g} <= y < {bottom:g}"
        raise InputError(f"at must lie in the image, {wanted}, got x = {at[0]:g}, y = {at[1]:g}")


def _size(images: Any) -> tuple[int, int]:
    """Height and width of the single image."""
    wanted = "images must be one image, (1, C, H, W) or a list of one (C, H, W)"
    if not isinstance(images, Tensor | list | tuple) or not all(isinstance(image, Tensor) for image in images):
        raise InputError(f"{wanted}, got {type(images).__name__}")
    if len(images) != 1 or any(image.ndim != 3 for image in images):
        shapes = tuple(images.shape) if isinstance(images, Tensor) else [tuple(image.shape) for image in images]
        raise InputError(f"{wanted}, got {shapes}")
    height, width = images[0].shape[-2:]
    return height, width


class _Watch:
    """Watches the inputs of a network's layers while it runs, and keeps what they sample."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size  # the image
        self.resized = size  # the image after a detector's own resizing
        self.padded = size  # the resized image with padding
        self.found: dict[tuple[str, int], SampledLayer] = {}

    def register(self, model: nn.Module) -> list[Any]:
        handles = []
        for name, module in model.named_modules():
            name = name or type(module).__name__
            if isinstance(module, GeneralizedRCNNTransform):
                handles.append(module.register_forward_hook(self._see_resized))
            elif isinstance(module, DGMN2Attention):
                handles.append(module.register_forward_pre_hook(partial(self._see_attention, name)))
            elif isinstance(module, DGMN):
                for i, message in enumerate(module.messages):
                    handles.append(message.register_forward_pre_hook(partial(self._see_message, name, i)))
        return handles

    def _see_resized(self, _: nn.Module, __: Any, output: Any) -> None:
        batch = output[0]
        self.resized = batch.image_sizes[0]
        self.padded = batch.tensors.shape[-2:]

    def _see_attention(self, name: str, attention: Any, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        if len(x) != 1:
            return
        walks = attention.predict_walks(x)
        affinities = attention.predict_weights(x, walks)
        for head in range(attention.num_heads):
            found = self._layer(name, walks[:, :, :, head], attention.kernel_size, 1, affinities[:, :, :, head], None)
            self.found[name, head] = replace(found, head=head)

    def _see_message(self, name: str, index: int, message: Any, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        if len(x) != 1:
            return
        walks = message.predict_walks(x)
        weights, affinities = message.predict_parts(x, walks)
        if walks is None and weights is None and affinities is None:
            return
        side = message.filters.kernel_size[0]
        if walks is None:
            walks = x.new_zeros((1, *x.shape[2:], side * side, 2), dtype=torch.float32)
        affinities = None if affinities is None else affinities.squeeze(3)
        weights = None if weights is None else weights.abs().mean(3)
        rate = message.sampling_rate
        self.found[name, index] = self._layer(name, walks, side, rate, affinities, weights)

    def _layer(
        self,
        layer: str,
        walks: Tensor,
        kernel_size: int,
        sampling_rate: int,
        affinities: Tensor | None,
        weights: Tensor | None,
    ) -> SampledLayer:
        """Keeps walks (1, h, w, K, 2), affinities and weights (1, h, w, K), with the map's place in the image."""
        along_y, along_x = (
            padded / length * original / resized
            for padded, length, original, resized in zip(
                self.padded, walks.shape[1:3], self.size, self.resized, strict=True
            )
        )

        def kept(x: Tensor) -> Tensor:
            return x[0].float().cpu()

        return SampledLayer(
            layer,
            sampling_rate,
            None,
            kernel_size,
            kept(walks),
            None if affinities is None else kept(affinities),
            None if weights is None else kept(weights),
            (along_x, along_y),
        )
