"""Pictures of images, labels and predictions."""

import math
from collections.abc import Iterator, Mapping, Sequence

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
    image: Image.Image, labels: NDArray[np.uint8], colors: Sequence[tuple[int, int, int] | None], alpha: float = 0.55
) -> Image.Image:
    """Paints labels (H, W) over an image in colours.

    Pixels without a label (255), and those of a class whose colour is None, stay as they are. A dark image is lightened
    below the colours: little of it could be seen through them.
    """
    table = np.zeros((256, 3), np.float32)
    painted = np.zeros((256, 1), bool)
    for i, color in enumerate(colors):
        if color is not None:
            table[i], painted[i] = color, True
    share = np.float32(alpha) * painted
    pixels = np.asarray(image.convert("RGB"))
    lighter = _lightened(pixels)
    out = np.empty_like(pixels)
    for rows in range(0, len(out), 256):  # in strips, because a large image in floats would need eight times its memory
        part = slice(rows, rows + 256)
        here = labels[part]
        mixed = lighter[pixels[part]] * (1 - share[here]) + table[here] * share[here]
        out[part] = np.where(painted[here], mixed.round(), pixels[part])
    return Image.fromarray(out)


def _lightened(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A table that lightens the values of a dark image, dark ones most, so that its median is that of others."""
    some = pixels[:: max(1, len(pixels) // 256), :: max(1, pixels.shape[1] // 256)]
    median = max(float(np.median(some)), 1.0) / 255
    power = max(0.35, math.log(_MEDIAN) / math.log(median)) if median < _MEDIAN else 1.0
    return (255 * (np.arange(256) / 255) ** power).astype(np.float32)


_MEDIAN = 0.43  # the median, in 0..1, that a darker image gets


def _at_width(image: Image.Image, width: int) -> tuple[int, int]:
    """The size of an image at a width; a very tall one is squashed, because it would fill the memory."""
    return width, min(max(1, round(image.height * width / image.width)), 8 * width)


def comparison(
    image: Image.Image,
    truth: NDArray[np.uint8],
    predicted: NDArray[np.uint8],
    colors: Sequence[tuple[int, int, int] | None],
    width: int = 480,
) -> Image.Image:
    """An image, its true labels and the predicted ones, side by side."""
    labelled = [overlay(image, labels, colors, 0.75) for labels in (truth, predicted)]
    return side_by_side({"image": image, "labels": labelled[0], "prediction": labelled[1]}, width)


def side_by_side(parts: Mapping[str, Image.Image], width: int) -> Image.Image:
    """Pictures of one size side by side, each with its title above it, with gaps between and a gap below."""
    size, above = _at_width(next(iter(parts.values())), width), 20
    canvas = Image.new("RGB", (len(parts) * (width + 4) - 4, above + size[1] + 4), PAPER)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=14)
    for i, (title, part) in enumerate(parts.items()):
        draw.text((i * (width + 4) + 5, 1), fitting(title, font, width - 10), INK, font)
        canvas.paste(part.resize(size, Image.Resampling.BILINEAR), (i * (width + 4), above))
    return canvas


def boxed(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    captions: Sequence[str],
    colors: Sequence[tuple[int, int, int]],
    masks: NDArray[np.bool_] | None = None,
    enlarge: bool = True,
) -> tuple[Image.Image, int]:
    """Draws boxes (x1, y1, x2, y2), captions and, if given, masks (N, H, W) on an image.

    The first box is on top. A caption moves around its box to where it covers no other caption and, with more than 20
    boxes, no other box that is not much larger. If there is no such place, it is left out.

    Args:
        image: the image.
        boxes: the boxes.
        captions: a text for each; "" for none.
        colors: a colour for each.
        masks: a mask for each.
        enlarge: enlarge a small image, so that the captions do not hide it.

    Returns:
        The picture, and the number of captions that are left out.
    """
    scale = max(1, round(480 / max(image.size))) if enlarge else 1
    image = image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    boxes = [[scale * corner for corner in box] for box in boxes]
    masks = None if masks is None else masks.repeat(scale, 1).repeat(scale, 2)
    pixels = np.array(image)
    for mask, color in zip(() if masks is None else masks[::-1], colors[::-1], strict=masks is not None):
        _paint_mask(pixels, mask, color)
    canvas = Image.fromarray(pixels)
    draw = ImageDraw.Draw(canvas)
    line = max(1, round(max(canvas.size) / 400))
    font = ImageFont.load_default(size=max(11, round(max(canvas.size) / (55 if len(boxes) <= _MANY else 75))))
    for (x1, y1, x2, y2), color in reversed(list(zip(boxes, colors, strict=True))):
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=tuple(color), width=line)
    taken: list[Sequence[float]] = []
    left_out = 0
    for box, caption, color in zip(boxes, captions, colors, strict=True):
        if not caption:
            continue
        _, _, width, height = draw.textbbox((0, 0), caption, font)
        # A box that is much larger than the caption is not hidden by it.
        small = (other for other in boxes if other is not box and _area(other) < 16 * width * height)
        others = tuple(small) if len(boxes) > _MANY else ()
        place = next(
            (
                place
                for place in _around(box, (width + 4, height + 3), canvas.size)
                if not any(_overlap(place, other) for other in (*taken, *others))
            ),
            None,
        )
        if place is None:
            left_out += 1
            continue
        taken.append(place)
        draw.rectangle(place, fill=tuple(color))
        draw.text((place[0] + 2, place[1] + 1), caption, PAPER if _is_dark(color) else INK, font)
    return canvas, left_out


def _around(
    box: Sequence[float], size: tuple[float, float], canvas: tuple[int, int]
) -> Iterator[tuple[float, float, float, float]]:
    """The places in a canvas for the caption of a box, the best first: above it, in it, below it, beside it."""
    x1, y1, x2, y2 = box
    width, height = size
    last = max(0.0, canvas[0] - width)
    left, right = min(max(0.0, x1), last), min(max(0.0, x2 - width), last)
    above = y1 - height - 1
    tops = ((left, above), (left, y1), (left, y2), (right, above), (right, y2), (x2 + 1, y1), (x1 - width - 1, y1))
    for x, y in tops:
        if x >= 0 and y >= 0 and x <= last and y + height <= canvas[1]:
            yield x, y, x + width, y + height


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _is_dark(color: Sequence[int]) -> bool:
    return 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] < 140


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


def legend(
    names: Sequence[str], colors: Sequence[tuple[int, int, int] | None], width: int, note: str = ""
) -> Image.Image:
    """Draws the class names beside their colours, in rows; a class without a colour has a bare box. A note is below."""
    font = ImageFont.load_default(size=14)
    column = min(width, int(max(font.getlength(name) for name in names)) + 36)
    columns = max(1, width // column)
    rows = -(-len(names) // columns)
    canvas = Image.new("RGB", (width, 22 * (rows + bool(note)) + 6), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (name, color) in enumerate(zip(names, colors, strict=True)):
        x, y = i % columns * column + 6, i // columns * 22 + 5
        draw.rectangle((x, y, x + 16, y + 14), fill=color and tuple(color), outline=INK)
        draw.text((x + 22, y - 1), fitting(name, font, column - 28), INK, font)
    draw.text((6, 22 * rows + 4), fitting(note, font, width - 12), INK, font)
    return canvas


def inscribed(image: Image.Image, lines: Sequence[str], colors: Sequence[tuple[int, int, int] | None]) -> Image.Image:
    """An image with lines of text in its upper left corner, each behind its colour if it has one.

    They get about a third of its height and half of its width at most; the last lines are left out.
    """
    size = max(11, round(max(image.size) / 50))
    font = ImageFont.load_default(size=size)
    step = round(1.4 * size)
    lines = [fitting(line, font, max(image.width // 2 - 2 * step, step)) for line in lines]
    lines = lines[: max(1, image.height // 3 // step)]
    if not lines:
        return image
    width = round(max(font.getlength(line) for line in lines)) + 2 * step
    picture = image.copy()
    corner = (0, 0, min(width, image.width), min(step * len(lines) + step // 2, image.height))
    part = picture.crop(corner)
    picture.paste(Image.blend(part, Image.new("RGB", part.size, PAPER), 0.7), corner)
    draw = ImageDraw.Draw(picture)
    for i, (line, color) in enumerate(zip(lines, colors, strict=False)):
        top = i * step + step // 4
        if color is not None:
            draw.rectangle((step // 4, top + step // 6, step, top + step * 5 // 6), fill=tuple(color), outline=INK)
        draw.text((step // 4 if color is None else step * 5 // 4, top), line, INK, font)
    return picture


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
