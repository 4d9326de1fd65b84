"""Pictures of images, labels and predictions."""

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dgmn.images import stacked

_MANY = 20  # with more boxes than this, captions avoid boxes, too
INK, PAPER = (33, 33, 33), (255, 255, 255)
_GREEN, _RED = (46, 125, 50), (198, 40, 40)


def captioned(image: Image.Image, lines: Sequence[str], color: tuple[int, int, int] = INK) -> Image.Image:
    """An image at a legible size with lines of text below; the first line in `color`."""
    scale = max(1, round(256 / max(image.size)))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    image.thumbnail((1024, 1024))
    size = max(14, image.width // 24)
    font = ImageFont.load_default(size=size)
    lines = [fitting(line, font, max(image.width, 200) - 12) for line in lines]
    step = int(size * 1.4)
    width = max(image.width, 200)
    canvas = Image.new("RGB", (width, image.height + step * len(lines) + 10), PAPER)
    canvas.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for i, line in enumerate(lines):
        draw.text((6, image.height + 4 + i * step), line, fill=color if i == 0 else INK, font=font)
    return canvas


def fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Shortens a text to fit into a width."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def prediction_grid(
    images: Sequence[Image.Image], predictions: Sequence[tuple[str, float]], truth: Sequence[str], columns: int = 8
) -> Image.Image:
    """Images in rows, each with its predicted class and probability: green where right, red where wrong."""
    tile, margin, text_height = 112, 8, 44
    font = ImageFont.load_default(size=15)
    rows = -(-len(images) // columns)
    width = columns * (tile + margin) + margin
    canvas = Image.new("RGB", (width, rows * (tile + text_height + margin) + margin), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (image, (name, probability), true) in enumerate(zip(images, predictions, truth, strict=True)):
        x = margin + i % columns * (tile + margin)
        y = margin + i // columns * (tile + text_height + margin)
        canvas.paste(image.resize((tile, tile), Image.Resampling.BICUBIC), (x, y))
        right = name == true
        draw.text((x, y + tile + 3), fitting(f"{name}  {probability:.0%}", font, tile), _GREEN if right else _RED, font)
        if not right:
            draw.text((x, y + tile + 22), fitting(f"true: {true}", font, tile), INK, font)
    return canvas


def overlay(
    image: Image.Image, labels: NDArray[np.uint8], colors: Sequence[tuple[int, int, int]], alpha: float = 0.55
) -> Image.Image:
    """Paints labels (H, W) over an image in colours; pixels without a label (255) stay as they are."""
    table = np.zeros((256, 3), np.float32)
    table[: len(colors)] = colors
    share = np.zeros((256, 1), np.float32)
    share[: len(colors)] = alpha
    pixels = np.asarray(image.convert("RGB"))
    out = np.empty_like(pixels)
    for rows in range(0, len(out), 256):  # in strips, because a large image in floats would need eight times its memory
        part = slice(rows, rows + 256)
        mixed = pixels[part] * (1 - share[labels[part]]) + table[labels[part]] * share[labels[part]]
        out[part] = mixed.round()
    return Image.fromarray(out)


def _at_width(image: Image.Image, width: int) -> tuple[int, int]:
    """The size of an image at a width; a very tall one is squashed, because it would fill the memory."""
    return width, min(max(1, round(image.height * width / image.width)), 8 * width)


def comparison(
    image: Image.Image,
    truth: NDArray[np.uint8],
    predicted: NDArray[np.uint8],
    colors: Sequence[tuple[int, int, int]],
    width: int = 480,
) -> Image.Image:
    """An image, its true labels and the predicted ones, side by side."""
    size = _at_width(image, width)
    parts = [image, *(overlay(image, labels, colors, 0.75) for labels in (truth, predicted))]
    canvas = Image.new("RGB", (3 * width + 8, size[1] + 4), PAPER)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=13)
    for i, (part, title) in enumerate(zip(parts, ("image", "labels", "prediction"), strict=True)):
        canvas.paste(part.resize(size, Image.Resampling.BILINEAR), (i * (width + 4), 0))
        draw.text((i * (width + 4) + 5, 2), title, PAPER, font, stroke_width=2, stroke_fill=INK)
    return canvas


def boxed(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    captions: Sequence[str],
    colors: Sequence[tuple[int, int, int]],
    masks: NDArray[np.bool_] | None = None,
) -> Image.Image:
    """Draws boxes (x1, y1, x2, y2), captions and, if given, masks (N, H, W) on an image.

    The first box is on top. A caption that would cover another caption is left out. With more than 20 boxes, so is a
    caption that would cover another box. A small image is enlarged, so that the captions do not hide it.
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
        for top in (y1 - height - 4, y1, y2):  # above the box, or else in it, or else below
            place = (left, top, left + width + 4, top + height + 3)
            if (
                top >= 0
                and place[3] <= canvas.height
                and not any(_overlap(place, other) for other in [*taken, *others])
            ):
                taken.append(place)
                draw.rectangle(place, fill=tuple(color))
                dark = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] < 140
                draw.text((left + 2, top + 1), caption, PAPER if dark else INK, font)
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
    """A list of colours in which neighbours differ."""
    colors = []
    for i in range(count):
        rgb = colorsys.hsv_to_rgb(i * 0.618034 % 1, (0.85, 0.55)[i // 5 % 2], (0.95, 0.7, 0.5)[i // 10 % 3])
        colors.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return tuple(colors)


def legend(names: Sequence[str], colors: Sequence[tuple[int, int, int]], width: int) -> Image.Image:
    """Draws the class names beside their colours, in rows."""
    font = ImageFont.load_default(size=14)
    column = min(width, int(max(font.getlength(name) for name in names)) + 36)
    columns = max(1, width // column)
    rows = -(-len(names) // columns)
    canvas = Image.new("RGB", (width, 22 * rows + 6), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (name, color) in enumerate(zip(names, colors, strict=True)):
        x, y = i % columns * column + 6, i // columns * 22 + 5
        draw.rectangle((x, y, x + 16, y + 14), fill=tuple(color), outline=INK)
        draw.text((x + 22, y - 1), fitting(name, font, column - 28), INK, font)
    return canvas


def contact_sheet(pictures: Sequence[Image.Image], columns: int = 4, width: int = 320) -> Image.Image:
    """Pictures in rows, each at the same width."""
    rows = []
    for start in range(0, len(pictures), columns):
        row = [picture.resize(_at_width(picture, width)) for picture in pictures[start : start + columns]]
        line = Image.new("RGB", (columns * (width + 4), max(p.height for p in row) + 4), PAPER)
        for i, picture in enumerate(row):
            line.paste(picture, (i * (width + 4), 0))
        rows.append(line)
    return stacked(rows)
