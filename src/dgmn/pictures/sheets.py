"""Sheets of many panels: the nodes of layers, and heat maps of where all positions of a layer look."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dgmn.errors import InputError, check_number
from dgmn.images import stacked
from dgmn.nodes import SampledLayer, SampledNodes, label
from dgmn.pictures.drawing import INK, PAPER, fitting
from dgmn.pictures.nodes import FAMILIES, FINE, RECEIVER, Color, disc, within

_SECOND = ((190, 240, 150), (0, 74, 40))  # the shades of a second point's nodes
_SECOND_RECEIVER = (0, 140, 60)
_HEAT = ((48, 18, 110), (40, 95, 160), (30, 150, 130), (120, 205, 80), (253, 231, 37))
_LETTERS = 14
_GAP = 6
_BAR = 76  # width of a colour bar with its numbers
_FAR = 1e5  # pixels; a longer line than this says nothing more


def node_sheet(
    image: Image.Image,
    nodes: Sequence[SampledNodes],
    second: Sequence[SampledNodes] = (),
    *,
    arrows: bool = True,
    side: int = 320,
    columns: int | None = None,
) -> Image.Image:
    """Draws the nodes of layers in rows, with a panel for every head or sampling rate, as in Fig. 11 of the paper.

    A disc marks a node, an arrow its walk from the grid to the node. The larger and darker a disc and the broader an
    arrow, the larger is the affinity or the weight; a colour bar shows how large, for each row. A layer with both has
    two rows. The receiving node is red.

    Args:
        image: the image that the points belong to.
        nodes: from [`sampled_nodes`][dgmn.nodes.sampled_nodes]: all, or those of some layers.
        second: the same for a second point, which is drawn in green beside the first.
        arrows: whether to draw the walks.
        side: the long side of a panel, in pixels.
        columns: the most panels beside each other; None: all of a layer.

    Raises:
        InputError (a ValueError): there are no nodes.
    """
    check_number("side", side)
    if columns is not None:
        check_number("columns", columns)
    if not nodes:
        raise InputError("nodes must be of at least one layer, got none")
    picture, factor = _panel(image, side)
    background = Image.blend(picture, Image.new("RGB", picture.size, PAPER), 0.3)
    background = background.resize((picture.width * FINE, picture.height * FINE), Image.Resampling.BILINEAR)
    others = {(each.layer, each.sampling_rate, each.head): each for each in second}
    rows = []
    for layer, group in groupby(nodes, lambda each: each.layer):
        of_layer = list(group)
        names = [name for name in ("affinities", "weights") if getattr(of_layer[0], name) is not None]
        for family in names or ["positions"]:
            pairs = [(each, others.get((each.layer, each.sampling_rate, each.head))) for each in of_layer]
            largest = max((max(_values(one, family)) for pair in pairs for one in pair if one is not None), default=0)
            panels = []
            for first, other in pairs:
                canvas = background.copy()
                if other is not None:
                    _draw(canvas, other, family, largest, factor, _SECOND, _SECOND_RECEIVER, arrows)
                _draw(canvas, first, family, largest, factor, FAMILIES[family][:2], RECEIVER, arrows)
                panels.append(_captioned(canvas.reduce(FINE), label(first)))
            ramps = [FAMILIES[family][:2], *([_SECOND] if second else [])]
            bar = [] if family == "positions" else [_bar(ramps, largest, picture.height)]
            most = columns or len(panels)
            for i in range(0, len(panels), most):
                rows.append(_titled("" if i else f"{layer}: {FAMILIES[family][2]}", panels[i : i + most] + bar))
    return stacked(rows)


def heat_sheet(image: Image.Image, maps: Sequence[SampledLayer], side: int = 320) -> Image.Image:
    """Draws where all positions of a layer look, and how far their nodes walk; a row for every layer.

    The left panel shows how often each place is sampled, by all heads or sampling rates together: 1 is the mean over
    the map. The right panel shows how far the nodes of each position walk, on average, in pixels of the image.

    Args:
        image: the image that the maps belong to.
        maps: from [`node_maps`][dgmn.nodes.node_maps]: all, or those of some layers.
        side: the long side of a panel, in pixels.

    Raises:
        InputError (a ValueError): there are no maps.
    """
    check_number("side", side)
    if not maps:
        raise InputError("maps must be of at least one layer, got none")
    picture, factor = _panel(image, side)
    grey = picture.convert("L").convert("RGB")
    rows = []
    for layer, group in groupby(maps, lambda each: each.layer):
        of_layer = list(group)
        density = torch.stack([each.density() for each in of_layer]).sum(0)
        lengths = torch.stack([each.walk_lengths() for each in of_layer]).mean(0)
        panels = []
        for values, caption in (
            (density / density.mean().clamp(min=1e-9), "where all look (1: the mean)"),
            (lengths, "how far nodes walk, in pixels"),
        ):
            largest = float(values.nan_to_num(0, 0, 0).max())
            panels.append(_captioned(_heated(grey, values, largest, of_layer[0], factor), caption))
            panels.append(_bar([_HEAT], largest, picture.height))
        rows.append(_titled(f"{layer}: mean walk {float(lengths.mean()):.1f} pixels", panels))
    return stacked(rows)


def _panel(image: Image.Image, side: int) -> tuple[Image.Image, float]:
    """The image at a long side, and how many times as large it is."""
    factor = side / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC), factor


def _values(nodes: SampledNodes, family: str) -> list[float]:
    """The values of a family, of the nodes on the map; others contribute zeros."""
    found = torch.ones(len(nodes.positions)) if family == "positions" else getattr(nodes, family)
    values: list[float] = (found.nan_to_num(0, 0, 0) * nodes.inside).tolist()
    return values


def _ramp(ramp: Sequence[Color], share: float) -> Color:
    """The colour at a share, 0 to 1, of the way along a ramp."""
    place = min(max(share, 0.0), 1.0) * (len(ramp) - 1)
    i = min(int(place), len(ramp) - 2)
    red, green, blue = (round(a + (b - a) * (place - i)) for a, b in zip(ramp[i], ramp[i + 1], strict=True))
    return red, green, blue


def _draw(
    canvas: Image.Image,
    nodes: SampledNodes,
    family: str,
    largest: float,
    factor: float,
    ramp: Sequence[Color],
    receiver: Color,
    arrows: bool,
) -> None:
    """Draws the nodes of one head or rate, and the receiving node, on a canvas that is `FINE` times as large."""
    draw = ImageDraw.Draw(canvas)
    unit = max(canvas.size) / 400
    factor *= FINE
    values = [value / (largest or 1.0) for value in _values(nodes, family)]
    radii = [unit * (5.0 if family == "positions" else max(2.0, 8 * value**0.5)) for value in values]
    starts, ends = nodes.grid * factor, nodes.positions * factor
    order = sorted(range(len(values)), key=lambda i: -values[i])  # small ones on top
    for i in order if arrows else ():
        if bool((ends[i].abs() < _FAR).all()):  # false for NaN, too
            width = (1 + 3 * values[i]) * unit
            _arrow(draw, starts[i].tolist(), ends[i].tolist(), radii[i], width, _ramp(ramp, values[i]))
    here = within(nodes, (canvas.width / factor, canvas.height / factor))
    for i in order:
        if here[i]:
            x, y = ends[i].tolist()
            disc(draw, x, y, radii[i], _ramp(ramp, values[i]), INK)
    x, y = nodes.receiver
    disc(draw, x * factor, y * factor, 5 * unit, receiver, PAPER)


def _arrow(
    draw: ImageDraw.ImageDraw, start: list[float], end: list[float], radius: float, width: float, color: Color
) -> None:
    """An arrow with a dark rim up to a disc of this radius; a walk that is too short for one is left out."""
    along = np.subtract(end, start)
    length = float(np.hypot(*along))
    head = 2.5 * width + 4
    if length < head + radius:
        return
    along /= length
    across = np.array([-along[1], along[0]])
    tip = np.subtract(end, along * radius)
    neck = tip - along * head
    for rim, fill in ((2.0, INK), (0.0, color)):
        draw.line([*start, *neck.tolist()], fill=fill, width=max(1, round(width + 2 * rim)))
        sides = [(neck - along * rim + across * s * (1.3 * width + 2 + 1.5 * rim)).tolist() for s in (1, -1)]
        draw.polygon([tuple((tip + along * rim).tolist()), *map(tuple, sides)], fill=fill)


def _heated(grey: Image.Image, values: torch.Tensor, largest: float, place: SampledLayer, factor: float) -> Image.Image:
    """A grey picture with a map of values over the part that the map covers."""
    left, top, right, bottom = (round(border * factor) for border in place.covers)
    size = (max(1, bottom - top), max(1, right - left))
    fine = F.interpolate(values[None, None].nan_to_num(0, 0, 0), size, mode="bilinear", align_corners=False)[0, 0]
    shares = (fine / (largest or 1.0)).clamp(0, 1).numpy()
    stops = np.linspace(0, 1, len(_HEAT))
    channels = [np.interp(shares, stops, [color[i] for color in _HEAT]) for i in range(3)]
    heat = Image.fromarray(np.stack(channels, -1).astype(np.uint8))
    out = grey.copy()
    out.paste(heat, (left, top))
    return Image.blend(grey, out, 0.65)


def _bar(ramps: Sequence[Sequence[Color]], largest: float, height: int) -> Image.Image:
    """A colour bar from 0 to the largest value, with a strip for every ramp."""
    height = max(height, 3 * _LETTERS)
    font = ImageFont.load_default(size=_LETTERS)
    canvas = Image.new("RGB", (_BAR, height), PAPER)
    strip = 16 // len(ramps)
    for i, ramp in enumerate(ramps):
        colors: NDArray[np.uint8] = np.array([_ramp(ramp, 1 - y / (height - 1)) for y in range(height)], np.uint8)
        canvas.paste(Image.fromarray(colors[:, None]).resize((strip, height)), (i * strip, 0))
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, 0, 15, height - 1), outline=INK)
    for value, y in ((largest, 0), (0.0, height - _LETTERS - 3)):
        draw.text((20, y), fitting(f"{value:.3g}", font, _BAR - 20), INK, font)
    return canvas


def _captioned(panel: Image.Image, text: str) -> Image.Image:
    font = ImageFont.load_default(size=_LETTERS)
    canvas = Image.new("RGB", (max(panel.width, 60), panel.height + _LETTERS + 8), PAPER)
    canvas.paste(panel, (0, 0))
    ImageDraw.Draw(canvas).text((2, panel.height + 1), fitting(text, font, canvas.width - 2), INK, font)
    return canvas


def _titled(title: str, panels: Sequence[Image.Image]) -> Image.Image:
    """Panels side by side under a title."""
    font = ImageFont.load_default(size=_LETTERS + 2)
    width = sum(panel.width + _GAP for panel in panels)
    top = 2 * _LETTERS if title else 0
    canvas = Image.new("RGB", (width, top + max(panel.height for panel in panels) + _GAP), PAPER)
    ImageDraw.Draw(canvas).text((2, 3), fitting(title, font, width - 4), INK, font)
    x = 0
    for panel in panels:
        canvas.paste(panel, (x, top))
        x += panel.width + _GAP
    return canvas
