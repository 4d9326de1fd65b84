"""Pictures of images, labels, predictions and sampled nodes."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dgmn.errors import InputError
from dgmn.nodes import SampledNodes
from dgmn.training.images import load_image

_MANY = 20  # boxes in a picture
_GREEN, _RED, _INK, _PAPER = (46, 125, 50), (198, 40, 40), (33, 33, 33), (255, 255, 255)


def captioned(image: Image.Image, lines: Sequence[str], color: tuple[int, int, int] = _INK) -> Image.Image:
    """An image at a legible size with lines of text below; the first line in `color`."""
    scale = max(1, round(256 / max(image.size)))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    image.thumbnail((1024, 1024))
    size = max(14, image.width // 24)
    font = ImageFont.load_default(size=size)
    lines = [_fitting(line, font, max(image.width, 200) - 12) for line in lines]
    step = int(size * 1.4)
    width = max(image.width, 200)
    canvas = Image.new("RGB", (width, image.height + step * len(lines) + 10), _PAPER)
    canvas.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for i, line in enumerate(lines):
        draw.text((6, image.height + 4 + i * step), line, fill=color if i == 0 else _INK, font=font)
    return canvas


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def prediction_grid(
    paths: Sequence[Path], predictions: Sequence[tuple[str, float]], truth: Sequence[str], columns: int = 8
) -> Image.Image:
    """Images in rows, each with its predicted class and probability: green where right, red where wrong."""
    tile, margin, text_height = 112, 8, 44
    font = ImageFont.load_default(size=15)
    rows = -(-len(paths) // columns)
    width = columns * (tile + margin) + margin
    canvas = Image.new("RGB", (width, rows * (tile + text_height + margin) + margin), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (path, (name, probability), true) in enumerate(zip(paths, predictions, truth, strict=True)):
        x = margin + i % columns * (tile + margin)
        y = margin + i // columns * (tile + text_height + margin)
        canvas.paste(load_image(path).resize((tile, tile), Image.Resampling.BICUBIC), (x, y))
        right = name == true
        draw.text(
            (x, y + tile + 3), _fitting(f"{name}  {probability:.0%}", font, tile), _GREEN if right else _RED, font
        )
        if not right:
            draw.text((x, y + tile + 22), _fitting(f"true: {true}", font, tile), _INK, font)
    return canvas


def overlay(
    image: Image.Image, labels: NDArray[np.uint8], colors: Sequence[tuple[int, int, int]], alpha: float = 0.55
) -> Image.Image:
    """An image with its labels (H, W) in colours over it; pixels without a label (255) stay as they are."""
    table = np.zeros((256, 3), np.float32)
    table[: len(colors)] = colors
    share = np.zeros((256, 1), np.float32)
    share[: len(colors)] = alpha
    pixels = np.asarray(image.convert("RGB"))
    out = np.empty_like(pixels)
    for rows in range(0, len(out), 256):  # in floats, a large image would need eight times its memory
        part = slice(rows, rows + 256)
        mixed = pixels[part] * (1 - share[labels[part]]) + table[labels[part]] * share[labels[part]]
        out[part] = mixed.round()
    return Image.fromarray(out)


def comparison(
    image: Image.Image,
    truth: NDArray[np.uint8],
    predicted: NDArray[np.uint8],
    colors: Sequence[tuple[int, int, int]],
    width: int = 480,
) -> Image.Image:
    """An image, its true labels and the predicted ones, side by side."""
    size = (width, max(1, round(image.height * width / image.width)))
    parts = [image, *(overlay(image, labels, colors, 0.75) for labels in (truth, predicted))]
    canvas = Image.new("RGB", (3 * width + 8, size[1] + 4), _PAPER)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=13)
    for i, (part, title) in enumerate(zip(parts, ("image", "labels", "prediction"), strict=True)):
        canvas.paste(part.resize(size, Image.Resampling.BILINEAR), (i * (width + 4), 0))
        draw.text((i * (width + 4) + 5, 2), title, _PAPER, font, stroke_width=2, stroke_fill=_INK)
    return canvas


def boxed(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    captions: Sequence[str],
    colors: Sequence[tuple[int, int, int]],
    masks: NDArray[np.bool_] | None = None,
) -> Image.Image:
    """An image with boxes (x1, y1, x2, y2), perhaps masks (N, H, W), and captions.

    The first is on top. A caption that would cover another one is left out, and among many boxes one that would cover
    another box. A small image is enlarged, so that the captions leave something of it.
    """
    scale = max(1, round(480 / max(image.size)))
    image = image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    boxes = [[scale * corner for corner in box] for box in boxes]
    masks = None if masks is None else masks.repeat(scale, 1).repeat(scale, 2)
    pixels = np.array(image)
    for mask, color in zip(() if masks is None else masks[::-1], colors[::-1], strict=masks is not None):
        _paint_mask(pixels, mask, color)
    canvas = Image.fromarray(pixels)
    draw = ImageDraw.Draw(canvas)
    line = max(1, round(max(canvas.size) / 400))
    font = ImageFont.load_default(size=max(11, round(max(canvas.size) / 55)))
    for (x1, y1, x2, y2), color in reversed(list(zip(boxes, colors, strict=True))):
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=tuple(color), width=line)
    taken: list[tuple[float, float, float, float]] = []
    for box, caption, color in zip(boxes, captions, colors, strict=True):
        if not caption:
            continue
        x1, y1, _, y2 = box
        others = [other for other in boxes if other is not box] if len(boxes) > _MANY else []
        _, _, width, height = draw.textbbox((0, 0), caption, font)
        left = min(max(0.0, x1), max(0.0, canvas.width - width - 4.0))
        for top in (y1 - height - 4, y1, y2):  # above the box, else in it, else below
            place = (left, top, left + width + 4, top + height + 3)
            if (
                top >= 0
                and place[3] <= canvas.height
                and not any(_overlap(place, other) for other in [*taken, *others])
            ):
                taken.append(place)
                draw.rectangle(place, fill=tuple(color))
                dark = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] < 140
                draw.text((left + 2, top + 1), caption, _PAPER if dark else _INK, font)
                break
    return canvas


def _paint_mask(pixels: NDArray[np.uint8], mask: NDArray[np.bool_], color: tuple[int, int, int]) -> None:
    """Mixes a colour into the pixels of a mask, in place, and draws its border."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(ys):
        return
    here = (slice(ys[0], ys[-1] + 1), slice(xs[0], xs[-1] + 1))
    inside, part = mask[here], pixels[here]
    around = np.pad(inside, 1)
    core = inside & around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    part[core] = (0.6 * part[core] + 0.4 * np.asarray(color)).astype(np.uint8)
    part[inside & ~core] = color


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def distinct_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """Colours that neighbours in the list do not share."""
    colors = []
    for i in range(count):
        rgb = colorsys.hsv_to_rgb(i * 0.618034 % 1, (0.85, 0.55)[i // 5 % 2], (0.95, 0.7, 0.5)[i // 10 % 3])
        colors.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return tuple(colors)


def legend(names: Sequence[str], colors: Sequence[tuple[int, int, int]], width: int) -> Image.Image:
    """The classes beside their colours, in rows."""
    font = ImageFont.load_default(size=14)
    column = min(width, int(max(font.getlength(name) for name in names)) + 36)
    columns = max(1, width // column)
    rows = -(-len(names) // columns)
    canvas = Image.new("RGB", (width, 22 * rows + 6), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (name, color) in enumerate(zip(names, colors, strict=True)):
        x, y = i % columns * column + 6, i // columns * 22 + 5
        draw.rectangle((x, y, x + 16, y + 14), fill=tuple(color), outline=_INK)
        draw.text((x + 22, y - 1), _fitting(name, font, column - 28), _INK, font)
    return canvas


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other."""
    canvas = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), _PAPER)
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height
    return canvas


def contact_sheet(pictures: Sequence[Image.Image], columns: int = 4, width: int = 320) -> Image.Image:
    """Pictures in rows, each at the same width."""
    rows = []
    for start in range(0, len(pictures), columns):
        row = [p.resize((width, max(1, round(p.height * width / p.width)))) for p in pictures[start : start + columns]]
        line = Image.new("RGB", (columns * (width + 4), max(p.height for p in row) + 4), _PAPER)
        for i, picture in enumerate(row):
            line.paste(picture, (i * (width + 4), 0))
        rows.append(line)
    return stacked(rows)


# The shades of the smallest and of the largest sampling rate, and what the discs show.
_FAMILIES = {
    "affinities": ((255, 226, 80), (120, 48, 0), "affinity"),
    "weights": ((165, 215, 255), (8, 36, 120), "weight |w|, mean of the groups"),
    "positions": ((255, 226, 80), (120, 48, 0), "nodes"),  # alone, of a layer that predicts neither
}
_RECEIVER = (230, 20, 20)
_FINE = 3  # drawn that many times as large, then reduced: smooth circles
_Word = tuple[str, tuple[int, int, int] | None]  # with the colour of its disc


def node_picture(image: Image.Image, nodes: Sequence[SampledNodes], layer: str | None = None) -> Image.Image:
    """The nodes that a layer samples for one position, as in Fig. 5 of the paper.

    The receiving node is red. Yellow to brown discs are affinities, blue ones weights, each in a picture of its own;
    the area of a disc is its value, darker shades are larger sampling rates, or later heads. Nodes out of the image
    are left out, and counted below.

    Args:
        image: that the points belong to; it is drawn with a long side of 640 to 1200 pixels.
        nodes: from [`sampled_nodes`][dgmn.nodes.sampled_nodes].
        layer: name of the layer; None for the last one.

    Raises:
        InputError (a ValueError): no such layer among `nodes`.
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
    picture = Image.blend(picture, Image.new("RGB", size, _PAPER), 0.3)  # so that the discs stand out
    letters = min(side * 3 // 128, max(size[0], side // 2) // 30)
    panels = [_node_panel(picture, factor, nodes, family, letters) for family in families or ["positions"]]
    gap = side // 64
    canvas = Image.new("RGB", (sum(p.width + gap for p in panels) - gap, max(p.height for p in panels)), _PAPER)
    for i, panel in enumerate(panels):
        canvas.paste(panel, (i * (panel.width + gap), 0))
    there = sum(int(_drawn(each, image.size).sum()) for each in nodes)
    total = sum(len(each.positions) for each in nodes)
    words: list[_Word] = [("receiving node", _RECEIVER), (f"layer {layer}", None)]
    if there < total:
        words.append((f"{total - there} of {total} nodes lie outside of the image", None))
    return stacked([canvas, _key([words], canvas.width, letters)])


def _node_panel(
    picture: Image.Image, factor: float, nodes: Sequence[SampledNodes], family: str, letters: int
) -> Image.Image:
    """The picture with the nodes of one family, the receiving node on top, and what the discs mean below."""
    first, last, meaning = _FAMILIES[family]
    side = max(picture.size)
    unit = _FINE * side / 640
    factor *= _FINE
    discs, shades = [], []
    for i, each in enumerate(nodes):
        share = i / max(len(nodes) - 1, 1)
        red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, last, strict=True))
        shades.append((red, green, blue))
        values = [1.0] * len(each.positions) if family == "positions" else getattr(each, family).tolist()
        drawn = _drawn(each, (picture.width * _FINE / factor, picture.height * _FINE / factor))
        for (x, y), value, here in zip(each.positions.tolist(), values, drawn.tolist(), strict=True):
            if here:
                discs.append((value, x * factor, y * factor, shades[-1]))
    canvas = picture.resize((picture.width * _FINE, picture.height * _FINE), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    largest = max((disc[0] for disc in discs), default=0.0)
    for value, x, y, color in sorted(discs, reverse=True):  # the small ones on top
        radius = 5.0 if family == "positions" else max(2.0, 12 * (value / (largest or 1.0)) ** 0.5)
        _disc(draw, x, y, (radius + 1) * unit, _PAPER, _PAPER)  # seen on dark images, too
        _disc(draw, x, y, radius * unit, color, _INK)
    x, y = nodes[0].receiver
    _disc(draw, x * factor, y * factor, 6 * unit, _RECEIVER, _PAPER)
    canvas = canvas.resize(picture.size, Image.Resampling.LANCZOS)
    heads = nodes[0].head is not None
    kind = "head" if heads else "sampling rate"
    meaning = meaning if family == "positions" else f"area: {meaning}, up to {largest:.2g}"
    numbers = [each.head if heads else each.sampling_rate for each in nodes]
    words: list[_Word] = [(f"{kind}:", None), *((str(n), shade) for n, shade in zip(numbers, shades, strict=True))]
    width = max(picture.width, side // 2)
    framed = Image.new("RGB", (width, picture.height), _PAPER)
    framed.paste(canvas, ((width - picture.width) // 2, 0))
    return stacked([framed, _key([[(meaning, None)], words], width, letters)])


def _drawn(nodes: SampledNodes, size: tuple[float, float]) -> NDArray[np.bool_]:
    """Which nodes lie within an image of this width and height."""
    x, y = nodes.positions.numpy().T
    return np.asarray((x >= 0) & (x <= size[0]) & (y >= 0) & (y <= size[1]))


def _disc(
    draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: tuple[int, int, int], line: tuple[int, int, int]
) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=line, width=_FINE)


def _key(rows: Sequence[Sequence[_Word]], width: int, size: int) -> Image.Image:
    """Rows of words in letters of this size, each perhaps behind a disc of its colour; a long row is broken."""
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
    canvas = Image.new("RGB", (width * _FINE, (y + line) * _FINE), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for x, y, _, color in placed:
        if color:
            _disc(draw, (x + size / 2) * _FINE, (y + size * 0.62) * _FINE, size / 2 * _FINE, color, _INK)
    canvas = canvas.resize((width, canvas.height // _FINE), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(canvas)
    for x, y, text, color in placed:
        draw.text((x + (line if color else 0), y), _fitting(text, font, width - x), _INK, font)
    return canvas
