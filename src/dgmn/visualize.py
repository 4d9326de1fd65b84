"""Pictures of predictions."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dgmn.training.images import load_image

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
