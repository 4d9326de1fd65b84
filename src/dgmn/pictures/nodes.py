"""Pictures of sampled nodes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dgmn.errors import InputError
from dgmn.images import stacked
from dgmn.nodes import SampledNodes
from dgmn.pictures.drawing import INK, PAPER, fitting

# The shades of the smallest and of the largest sampling rate, and what the discs show.
FAMILIES = {
    "affinities": ((255, 226, 80), (120, 48, 0), "affinity"),
    "weights": ((165, 215, 255), (8, 36, 120), "weight |w|, mean of the groups"),
    "positions": ((255, 226, 80), (120, 48, 0), "nodes"),  # for a layer that predicts neither affinities nor weights
}
RECEIVER = (230, 20, 20)
FINE = 3  # discs are drawn this many times larger and then reduced, which makes them smooth
Color = tuple[int, int, int]
_Word = tuple[str, Color | None]  # a text and the colour of its disc


def node_picture(image: Image.Image, nodes: Sequence[SampledNodes], layer: str | None = None) -> Image.Image:
    """Draws the nodes that a layer samples for one position, as in Fig. 5 of the paper.

    The receiving node is red. Yellow to brown discs show affinities, blue discs show weights; each kind has its own
    picture. The area of a disc is its value. Darker shades are larger sampling rates or later heads. Nodes outside
    the image are not drawn; the text below gives their number.

    Args:
        image: the image that the points belong to; it is drawn with a long side of 640 to 1200 pixels.
        nodes: from [`sampled_nodes`][dgmn.nodes.sampled_nodes].
        layer: name of the layer; None for the last one.

    Raises:
        InputError (a ValueError): `nodes` has no such layer.
    """
    layers = list(dict.fromkeys(each.layer for each in nodes))
    if not layers or layer not in (None, *layers):
        raise InputError(f"layer must be one that samples nodes, {', '.join(layers) or 'there is none'}; got {layer!r}")
    layer = layer or layers[-1]
    nodes = [each for each in nodes if each.layer == layer]
    families = [family for family in ("affinities", "weights") if getattr(nodes[0], family) is not None]
    side = min(max(max(image.size), 640), 1200)
    factor = side / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    picture = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    picture = Image.blend(picture, Image.new("RGB", size, PAPER), 0.3)  # so that the discs stand out
    letters = min(side * 3 // 128, max(size[0], side // 2) // 30)
    panels = [_node_panel(picture, factor, nodes, family, letters) for family in families or ["positions"]]
    gap = side // 64
    canvas = Image.new("RGB", (sum(p.width + gap for p in panels) - gap, max(p.height for p in panels)), PAPER)
    for i, panel in enumerate(panels):
        canvas.paste(panel, (i * (panel.width + gap), 0))
    there = sum(int(within(each, image.size).sum()) for each in nodes)
    total = sum(len(each.positions) for each in nodes)
    words: list[_Word] = [("receiving node", RECEIVER), (f"layer {layer}", None)]
    if there < total:
        words.append((f"{total - there} of {total} nodes lie outside the image", None))
    return stacked([canvas, _key([words], canvas.width, letters)])


def _node_panel(
    picture: Image.Image, factor: float, nodes: Sequence[SampledNodes], family: str, letters: int
) -> Image.Image:
    """Draws the nodes of one family on the picture, the receiving node on top, and explains the discs below."""
    first, last, meaning = FAMILIES[family]
    side = max(picture.size)
    unit = FINE * side / 640
    factor *= FINE
    discs, shades = [], []
    for i, each in enumerate(nodes):
        share = i / max(len(nodes) - 1, 1)
        red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, last, strict=True))
        shades.append((red, green, blue))
        values = [1.0] * len(each.positions) if family == "positions" else getattr(each, family).tolist()
        drawn = within(each, (picture.width * FINE / factor, picture.height * FINE / factor))
        for (x, y), value, here in zip(each.positions.tolist(), values, drawn.tolist(), strict=True):
            if here:
                discs.append((value, x * factor, y * factor, shades[-1]))
    canvas = picture.resize((picture.width * FINE, picture.height * FINE), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    largest = max((disc[0] for disc in discs), default=0.0)
    for value, x, y, color in sorted(discs, reverse=True):  # small discs on top
        radius = 5.0 if family == "positions" else max(2.0, 12 * (value / (largest or 1.0)) ** 0.5)
        disc(draw, x, y, (radius + 1) * unit, PAPER, PAPER)  # a white rim, for dark images
        disc(draw, x, y, radius * unit, color, INK)
    x, y = nodes[0].receiver
    disc(draw, x * factor, y * factor, 6 * unit, RECEIVER, PAPER)
    canvas = canvas.resize(picture.size, Image.Resampling.LANCZOS)
    heads = nodes[0].head is not None
    kind = "head" if heads else "sampling rate"
    meaning = meaning if family == "positions" else f"area: {meaning}, up to {largest:.2g}"
    numbers = [each.head if heads else each.sampling_rate for each in nodes]
    words: list[_Word] = [(f"{kind}:", None), *((str(n), shade) for n, shade in zip(numbers, shades, strict=True))]
    width = max(picture.width, side // 2)
    framed = Image.new("RGB", (width, picture.height), PAPER)
    framed.paste(canvas, ((width - picture.width) // 2, 0))
    return stacked([framed, _key([[(meaning, None)], words], width, letters)])


def within(nodes: SampledNodes, size: tuple[float, float]) -> NDArray[np.bool_]:
    """Which nodes lie within an image of this width and height."""
    x, y = nodes.positions.numpy().T
    return np.asarray((x >= 0) & (x <= size[0]) & (y >= 0) & (y <= size[1]))


def disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: Color, line: Color) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=line, width=FINE)


def _key(rows: Sequence[Sequence[_Word]], width: int, size: int) -> Image.Image:
    """Draws rows of words in letters of this size; a word with a colour gets a disc before it; long rows are broken."""
    font = ImageFont.load_default(size=size)
    left, line = size // 2, size * 3 // 2
    y, placed = size // 2 - line, []
    for row in rows:
        x, y = left, y + line
        for text, color in row:
            needed = int(font.getlength(text)) + (line if color else 0)
            if x + needed > width and x > left:
                x, y = left, y + line
            placed.append((x, y, text, color))
            x += needed + size
    canvas = Image.new("RGB", (width * FINE, (y + line) * FINE), PAPER)
    draw = ImageDraw.Draw(canvas)
    for x, y, _, color in placed:
        if color:
            disc(draw, (x + size / 2) * FINE, (y + size * 0.62) * FINE, size / 2 * FINE, color, INK)
    canvas = canvas.resize((width, canvas.height // FINE), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(canvas)
    for x, y, text, color in placed:
        draw.text((x + (line if color else 0), y), fitting(text, font, width - x), INK, font)
    return canvas
