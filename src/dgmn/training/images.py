"""Reading images that users give: verified, limited in size, in RGB."""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dgmn.errors import InputError

EXTENSIONS = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))
MAX_PIXELS = 200_000_000
"""A larger image is refused: decoding it could take all memory."""


def load_image(path: str | os.PathLike[str], upright: bool = True) -> Image.Image:
    """Decodes a whole image as RGB.

    Args:
        path: of the image.
        upright: turned as the camera says; otherwise as it is stored.

    Raises:
        FileNotFoundError: no such file.
        InputError: not an image, truncated, or of more than `MAX_PIXELS` pixels; the message names the file.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise InputError(f"{path}: {width} x {height} pixels, at most {MAX_PIXELS:,} are accepted")
            turned = ImageOps.exif_transpose(image) if upright else image
            return (_eight_bit(turned, path) if turned.mode[0] in "IF" else turned).convert("RGB")
    except (FileNotFoundError, InputError):
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: not an image, or of a format that Pillow does not know") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: too large, at most {MAX_PIXELS:,} pixels are accepted") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's errors for damaged files
        raise InputError(f"{path}: damaged image ({error})") from error


def _eight_bit(image: Image.Image, path: str | os.PathLike[str]) -> Image.Image:
    """Grey values of 16 bits as 8 bits; Pillow's own conversion clips them to white."""
    values = np.asarray(image)
    if image.mode == "F" or (values.size and (values.min() < 0 or values.max() > 65535)):
        raise InputError(f"{path}: pixels of mode {image.mode}; 8 or 16 bits are accepted")
    return Image.fromarray((values // 257).astype(np.uint8))


def find_images(sources: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The images that files, folders (with all below) and globs stand for, in order, each once.

    Raises:
        InputError: one of them stands for no image; the message names it.
    """
    found: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            images = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
            if not images:
                raise InputError(f"{path}: no images in this folder ({', '.join(sorted(EXTENSIONS))})")
        elif path.is_file():
            images = [path]
        else:
            images = sorted(p for p in map(Path, glob.glob(str(source), recursive=True)) if p.is_file())
            if not images:
                raise InputError(f"{source}: no such file, folder or glob")
        found.extend(images)
    return list(dict.fromkeys(found))


def check_images(paths: Iterable[str | os.PathLike[str]], budget: int = 256 * 2**20) -> int:
    """Decodes images until `budget` bytes of files are read, to find damaged ones before hours are spent.

    Raises:
        InputError: of the first image that cannot be read.

    Returns:
        How many were decoded.
    """
    checked = 0
    for path in paths:
        load_image(path)
        checked += 1
        budget -= os.path.getsize(path)
        if budget <= 0:
            break
    return checked
