"""The nodes that a network samples for a position of an image (Fig. 5 of the paper)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from dgmn.errors import InputError
from dgmn.layers import DGMN, DGMN2Attention
from dgmn.ops.reference import counts, node_coordinates

Point = tuple[float, float]


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
        positions: positions of the nodes, (K, 2), on the map or outside it.
        inside: whether each node lies on the map, (K,), bool; nodes outside contribute zeros.
        affinities: A_ij, (K,), or None; in DGMN2's attention they are the softmax weights. They sum to 1.
        weights: |w_j|, the mean over the groups, (K,), or None.
    """

    layer: str
    sampling_rate: int
    head: int | None
    receiver: Point
    positions: Tensor
    inside: Tensor
    affinities: Tensor | None
    weights: Tensor | None

    def placed(self, scale: Point, corner: Point) -> "SampledNodes":
        """The same nodes in a picture where the image begins at `corner` and is `scale` times as large."""
        x, y = self.receiver
        receiver = (x * scale[0] + corner[0], y * scale[1] + corner[1])
        positions = self.positions * self.positions.new_tensor(scale) + self.positions.new_tensor(corner)
        return replace(self, receiver=receiver, positions=positions)


def sampled_nodes(model: nn.Module, images: Tensor | Sequence[Tensor], at: Point) -> list[SampledNodes]:
    """The nodes that the layers of a network sample for the position that contains a point of an image.

    Runs the network once, in evaluation mode, and asks every [`DGMN`][dgmn.layers.DGMN] module and every
    [`DGMN2Attention`][dgmn.layers.DGMN2Attention] for what it computes there: the nodes at `i + Δd_j` (eq. 4) with
    their affinities and weights (eq. 6 and 7), or the softmax of eq. 8. If a module runs several times, for instance
    with `steps`, the last run counts.

    A map of h x w positions covers the H x W pixels that the network saw, in the way that segmenters enlarge their
    maps: position (i, j) has its centre at x = (j + 0.5) W / w, y = (i + 0.5) H / h. The resizing and padding inside a
    detector are undone.

    Args:
        model: a classifier, backbone, segmenter or detector, or one of these modules alone.
        images: one image as the model takes it: (1, C, H, W), normalised; for detectors a list with one (3, H, W).
        at: x and y in pixels of the image, 0 <= x < W and 0 <= y < H; pixel (0, 0) reaches from 0 to 1.

    Returns:
        One entry for every sampling rate or head of a layer, in the order in which the layers run. Tensors are float32
        on the CPU. Messages that neither sample dynamically nor predict anything are left out. So are layers inside a
        detector that see single objects instead of the image.

    Raises:
        InputError (a ValueError): `at` is no point of the image, there is not exactly one image, or the network has no
            layer that samples nodes.

    Source: Dynamic Graph Message Passing Networks for Visual Recognition, Fig. 5 (https://arxiv.org/abs/2209.09760).
    """
    height, width = _size(images)
    check_point(at, width, height)
    watch = _Watch((height, width), at)
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
            "sampling, weights or affinity nor an attention of DGMN2"
        )
    return list(watch.found.values())


def check_point(at: Point, width: int, height: int) -> None:
    """Checks that a point lies in an image of this size.

    Raises:
        InputError: `at` is no point, or lies outside.
    """
    if not isinstance(at, Sequence) or len(at) != 2 or not all(isinstance(number, int | float) for number in at):
        raise InputError(f"at must be two numbers, x and y, got {at!r}")
    if not (0 <= at[0] < width and 0 <= at[1] < height):
        wanted = f"0 <= x < {width} and 0 <= y < {height}"
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
    """Watches the inputs of a network's layers while it runs, and keeps what they sample for one position."""

    def __init__(self, size: tuple[int, int], at: Point) -> None:
        self.at = at
        self.size = size  # the image
        self.resized = size  # the image after a detector's own resizing
        self.padded = size  # the resized image with padding
        self.found: dict[tuple[str, int], SampledNodes] = {}

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
            nodes = self._nodes(name, walks[:, :, :, head], attention.kernel_size, 1, affinities[:, :, :, head], None)
            self.found[name, head] = replace(nodes, head=head)

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
        self.found[name, index] = self._nodes(name, walks, side, rate, affinities, weights)

    def _nodes(
        self,
        layer: str,
        walks: Tensor,
        kernel_size: int,
        sampling_rate: int,
        affinities: Tensor | None,
        weights: Tensor | None,
    ) -> SampledNodes:
        """Selects the receiving position in walks (1, h, w, K, 2), affinities and weights (1, h, w, K)."""
        height, width = walks.shape[1:3]
        # Pixels of the image that one position of the map covers, along x and y.
        scale = [
            padded / length * original / resized
            for padded, length, original, resized in zip(
                self.padded, (height, width), self.size, self.resized, strict=True
            )
        ][::-1]
        column = min(int(self.at[0] / scale[0]), width - 1)
        row = min(int(self.at[1] / scale[1]), height - 1)

        def here(x: Tensor) -> Tensor:
            return x[0, row, column].float().cpu()

        y, x = (here(points[:, :, :, 0]) for points in node_coordinates(walks.unsqueeze(3), kernel_size, sampling_rate))
        along_y, along_x = counts(y, x, height, width)
        return SampledNodes(
            layer,
            sampling_rate,
            None,
            ((column + 0.5) * scale[0], (row + 0.5) * scale[1]),
            torch.stack([(x + 0.5) * scale[0], (y + 0.5) * scale[1]], -1),
            along_y & along_x,
            None if affinities is None else here(affinities),
            None if weights is None else here(weights),
        )
