"""Reads the images that users give: checks them, limits their size and converts them to RGB."""

import os
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError, features
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile
from torch import Tensor

from dgmn.errors import InputError, first_line
from dgmn_base.files import check_file, writing

MAX_PIXELS = 100_000_000
"""A larger image or mask is refused, before it is decoded. An image takes up to 24 bytes of memory per pixel."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", *(("AVIF",) if "avif" in features.modules else ()))
"""Pillow's names of the formats that are read. For others it starts programs, or trusts the sizes in a file."""


@dataclass(frozen=True, eq=False)
class Named:
    """An image under a name of its own, in the place of its path: a frame of a video, or bytes.

    Attributes:
        name: its name in results and messages.
        image: anything else that [`to_image`][dgmn.images.to_image] accepts.
        facts: what else its result's `to_dict` says, for instance the number of the frame.
    """

    name: str
    image: Any
    facts: Mapping[str, Any] = field(default_factory=dict)


# Some editors put whole projects into PNG files. Pillow reads at most this much of all texts, but only 1 MiB of one.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY

AnyImage = Any
"""Any image that [`to_image`][dgmn.images.to_image] accepts."""


def to_image(image: AnyImage) -> Image.Image:
    """Converts an image to RGB and turns it upright, as its EXIF data says.

    Args:
        image: a path, the bytes of a file, a PIL image, an array (H, W, 3) of uint8 in RGB (or (H, W) of grey values),
            a tensor (3, H, W) in RGB, of uint8 or of floating point in 0..1, or one of these as `Named`.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the argument is none of these, cannot be read, or has more than `MAX_PIXELS` pixels; the message
            says what was given.
    """
    name = None
    if isinstance(image, Named):
        name, image = image.name, image.image
    if isinstance(image, Image.Image):
        _check_size(image.size, "image")
        try:
            return _upright(_rgb(image, "image"), _orientation(image))
        except InputError:
            raise
        except (OSError, ValueError) as error:  # it is closed, its file is damaged, or no other mode is made from its
            raise InputError(f"image: a PIL image that cannot be read: {error}") from error
    if isinstance(image, str | os.PathLike):
        return load_image(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return _decoded(BytesIO(image), name or f"image ({len(image)} bytes)", upright=True)
    if isinstance(image, Tensor):
        return _from_tensor(image)
    if isinstance(image, np.ndarray):
        is_picture = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
        if image.dtype != np.uint8 or not is_picture or not image.size:
            raise InputError(f"image: an array must be (H, W, 3) of uint8 in RGB, got {image.shape} of {image.dtype}")
        _check_size(image.shape[1::-1], "image")
        return Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    raise InputError(
        "image must be a path, the bytes of a file, a PIL image, an array (H, W, 3) or a tensor (3, H, W), "
        f"got {type(image).__name__}" + ("; give what its read() returns" if hasattr(image, "read") else "")
    )


def _from_tensor(image: Tensor) -> Image.Image:
    wanted = "image: a tensor must be (3, H, W), of uint8 or of floating point in 0..1"
    if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        raise InputError(f"{wanted}, got {tuple(image.shape)}")
    if image.is_meta or image.layout != torch.strided:
        raise InputError(f"{wanted}, got a tensor {'on the meta device' if image.is_meta else image.layout}")
    _check_size(image.shape[:0:-1], "image")
    image = image.detach().cpu()
    if image.is_floating_point():
        low, high = image.min().item(), image.max().item()
        if not (low >= 0 and high <= 1):
            raise InputError(f"{wanted}, got numbers from {low:.6g} to {high:.6g}; give it without normalisation")
        image = (image * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise InputError(f"{wanted}, got {image.dtype}")
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def load_image(path: str | os.PathLike[str], upright: bool = True) -> Image.Image:
    """Decodes a whole image as RGB; of a GIF, the first frame.

    Args:
        path: path of the image.
        upright: whether to turn the image as its EXIF data says; otherwise it stays as it is stored.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is not an image, is truncated, or has more than `MAX_PIXELS` pixels; the message names it.
    """
    if not os.fspath(path):
        raise InputError("image: the path is empty")
    return _decoded(path, os.fspath(path), upright)


def load_annotated(path: Path, size: tuple[int, int]) -> Image.Image:
    """An image that was annotated at this height and width: upright, or as it is stored if only that fits."""
    image = load_image(path)
    return image if image.size == size[::-1] else load_image(path, upright=False)


def _decoded(source: Any, name: str, upright: bool) -> Image.Image:
    with opened(source, name) as image:
        return _upright(_rgb(image, name), _orientation(image) if upright else None)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image that is turned upright, read from its header; errors as of `load_image`."""
    with opened(path, os.fspath(path)) as image:
        width, height = image.size
        if isinstance(image, TiffImageFile):  # Pillow tells the size that it has upright, or not, by version
            width, height = (image.tag_v2[key] for key in (IMAGEWIDTH, IMAGELENGTH))
        # Of a PNG without EXIF data, Pillow would decode all pixels to look for it after them.
        turned = (image.format != "PNG" or "exif" in image.info) and _orientation(image) in (5, 6, 7, 8)
        return (width, height) if turned else (height, width)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by the orientation in its EXIF data."""


def _orientation(image: Image.Image) -> Any:
    """The orientation in the EXIF data; None if there is none, or the data is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other entries that are damaged
            return image.getexif().get(ExifTags.Base.Orientation)
    except (LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error):
        return None


def _upright(image: Image.Image, orientation: Any) -> Image.Image:
    """Turns an image. Pillow's `exif_transpose` also writes EXIF data anew, which fails where a value is damaged."""
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = {}  # it must not be turned again
    return turned


@contextmanager
def opened(source: Any, name: str, what: str = "image") -> Iterator[Image.Image]:
    """Opens an image or mask as it is stored; its pixels are decoded when they are first used.

    This is the only place that opens images: it takes the formats in `FORMATS` only.

    Args:
        source: path of the file, or the file.
        name: its name in messages.
        what: what it is, in messages.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is not an image, is truncated, or has more than `MAX_PIXELS` pixels; the message names it.
    """
    try:
        if isinstance(source, str | os.PathLike):
            check_file(source)
        with warnings.catch_warnings():
            # Pillow warns of sizes that are accepted here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            found = Image.open(source, formats=FORMATS)
        with found as image:
            _check_size(image.size, name)
            yield image
    except (FileNotFoundError, InputError):
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: not an image of a known format: {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: too large, at most {MAX_PIXELS:,} pixels are accepted") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's errors for damaged files have no number
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{name}: cannot be read: {error.strerror}") from error
        raise InputError(f"{name}: damaged {what} ({error})") from error


def _check_size(size: Sequence[int], name: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"{name}: {width} x {height} pixels, at least 1 x 1 are needed")
    if width * height > MAX_PIXELS:
        raise InputError(f"{name}: {width} x {height} pixels, at most {MAX_PIXELS:,} are accepted")


def save_image(image: Image.Image, path: Path, **options: Any) -> None:
    """Writes an image in the format of the path's extension; the file is whole or absent.

    Args:
        image: the image.
        path: path of the file.
        options: options of Pillow's writer of the format.

    Raises:
        InputError: the extension is of no format, or the file cannot be written; the message names it.
    """
    Image.init()
    form = Image.EXTENSION.get(path.suffix.lower())
    if not path.suffix or form not in Image.SAVE:  # one of Pillow's writers registers the names without an extension
        raise InputError(f"{path}: the extension must be that of an image, such as .jpg or .png")
    encoded = BytesIO()  # Pillow's errors for a full disk do not say that it is full
    try:
        image.save(encoded, form, **options)
    except (OSError, ValueError) as error:  # larger than the format can be, for instance
        size = f"{image.width} x {image.height} pixels"
        raise InputError(f"{path}: {size} cannot be written as {form} ({first_line(error)})") from error
    with writing(path) as file:
        file.write(encoded.getbuffer())


def _rgb(image: Image.Image, name: str) -> Image.Image:
    image = _eight_bit(image, name) if image.mode[0] in "IF" else image
    if image.mode != "RGB":
        return image.convert("RGB")
    image.load()
    return image


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    """Converts grey values of more than 8 bits to 8 bits; Pillow's own conversion clips them to white.

    Files of 16 and 32 bits do not say how many bits their camera has. The largest value tells: up to 255 there are 8
    bits, up to 4095 there are 12, then 16. Floating point holds 0..1, or any of these.
    """
    values = np.asarray(image)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not 0 <= low <= high <= 65535:  # false for NaN, too
        raise InputError(
            f"{name}: grey values from {low:g} to {high:g} in pixels of mode {image.mode}; 0..65535 are accepted, "
            "or 0..1 in floating point"
        )
    if image.mode == "F" and high <= 1:
        return Image.fromarray(np.round(values * 255).astype(np.uint8))
    bits, divisor = next((bits, divisor) for bits, divisor in ((8, 1), (12, 16), (16, 257)) if high < 2**bits)
    if bits < 16 and image.mode.startswith("I;16"):
        # Without the file's name, so that it is said once and not for every image.
        warnings.warn(f"images of 16 bits without a value of {2**bits} or more are read as {bits} bits", stacklevel=2)
    return Image.fromarray((values // divisor).astype(np.uint8))


def check_images(paths: Iterable[str | os.PathLike[str]], budget: int = 256 * 2**20) -> int:
    """Decodes images until `budget` bytes of files are read, to find damaged ones before a long training.

    Returns:
        How many images were decoded.

    Raises:
        InputError: an image cannot be read; the message names it.
    """
    checked = 0
    for path in paths:
        load_image(path)
        checked += 1
        budget -= os.path.getsize(path)
        if budget <= 0:
            break
    return checked


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Puts pictures below each other."""
    canvas = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height
    return canvas
