"""Bad and odd images, for `dgmn predict` and `dgmn validate-data`."""

import os
import socket
import struct
import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from bad_inputs.cases import Case, World

NOISE = Image.effect_noise((40, 30), 60).convert("RGB")


def encoded(form: str, image: Image.Image = NOISE, **options: Any) -> bytes:
    content = BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *more: bytes, bits: int = 8, color: int = 2, pixels: bytes | None = None) -> bytes:
    """A PNG file whose header says what it likes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    data = zlib.compress(bytes(30 * 121)) if pixels is None else pixels
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def floats(*values: float) -> bytes:
    return encoded("TIFF", Image.fromarray(np.array([values], np.float32)))


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG file whose header says another size than its pixels have."""
    content = bytearray(encoded("JPEG"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def bmp_of(width: int, height: int) -> bytes:
    content = bytearray(encoded("BMP"))
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


def tiff(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
    """A TIFF file with these entries: tag, type, count, value."""
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + table + struct.pack("<I", following)


def large(mode: str) -> bytes:
    return encoded("PNG", Image.new(mode, (10_001, 10_001)))


def exif(orientation: Any = None, raw: bytes | None = None) -> bytes:
    if raw is not None:
        return encoded("JPEG", exif=raw)
    entries = Image.Exif()
    entries[0x0112] = orientation
    return encoded("JPEG", exif=entries)


NOT_AN_IMAGE = "not an image of a known format: JPEG, PNG"
DAMAGED = "damaged image|not an image of a known format"
TOO_LARGE = "pixels, at most 100,000,000 are accepted|too large, at most"
GREYS = r"grey values from .* 0\.\.65535 are accepted"

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", NOT_AN_IMAGE),
    "text": (lambda: b"no image\n", NOT_AN_IMAGE),
    "html": (lambda: b"<!DOCTYPE html><html>Quota exceeded</html>", NOT_AN_IMAGE),
    "zeros": (lambda: bytes(5000), NOT_AN_IMAGE),
    "random": (lambda: np.random.default_rng(0).bytes(5000), NOT_AN_IMAGE),
    "svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', NOT_AN_IMAGE),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(executed) (w) file\n", NOT_AN_IMAGE),
    "pdf": (lambda: encoded("PDF"), NOT_AN_IMAGE),
    "eps": (lambda: encoded("EPS"), NOT_AN_IMAGE),
    "ico": (lambda: encoded("ICO"), NOT_AN_IMAGE),
    "jpeg2000": (lambda: encoded("JPEG2000"), NOT_AN_IMAGE),
    "tga": (lambda: encoded("TGA"), NOT_AN_IMAGE),
    "zip": (lambda: b"PK\x05\x06" + bytes(18), NOT_AN_IMAGE),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(100), NOT_AN_IMAGE),
    "numpy": (lambda: b"\x93NUMPY" + bytes(100), NOT_AN_IMAGE),
    "video": (lambda: b"\0\0\0\x18ftypmp42" + bytes(100), NOT_AN_IMAGE),
    "heic": (lambda: b"\0\0\0\x18ftypheic" + bytes(100), NOT_AN_IMAGE),
    "png-signature-only": (lambda: encoded("PNG")[:8], DAMAGED),
    "png-header-only": (lambda: encoded("PNG")[:33], DAMAGED),
    "png-cut": (lambda: encoded("PNG")[:1000], DAMAGED),
    "png-without-pixels": (lambda: png(40, 30, pixels=b""), DAMAGED),
    "png-too-few-pixels": (lambda: png(40, 30, pixels=zlib.compress(bytes(100))), DAMAGED),
    "png-garbage-pixels": (lambda: png(40, 30, pixels=b"garbage" * 9), DAMAGED),
    "png-no-width": (lambda: png(0, 30), DAMAGED),
    "png-no-height": (lambda: png(40, 0), DAMAGED),
    "png-wrong-checksum": (lambda: encoded("PNG").replace(b"IHDR\0\0\0\x28", b"IHDR\0\0\0\x29"), DAMAGED),
    "png-depth-of-3": (lambda: png(40, 30, bits=3), DAMAGED),
    "png-color-of-9": (lambda: png(40, 30, color=9), DAMAGED),
    "png-huge": (lambda: png(100_000, 100_000), TOO_LARGE),
    "png-largest": (lambda: png(2**31 - 1, 2**31 - 1), TOO_LARGE),
    "png-beyond-31-bits": (lambda: png(2**32 - 1, 2**32 - 1), TOO_LARGE),
    "png-huge-strip": (lambda: png(200_000_000, 1), TOO_LARGE),
    "png-just-too-large": (lambda: large("1"), TOO_LARGE),
    "png-text-bomb": (
        lambda: png(40, 30, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200 * 2**20)))),
        "damaged image",
    ),
    "png-profile-bomb": (
        lambda: png(40, 30, *[chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(60 * 2**20)))] * 3),
        "damaged image",
    ),
    "jpeg-cut": (lambda: encoded("JPEG")[:400], DAMAGED),
    "jpeg-start-only": (lambda: encoded("JPEG")[:20], DAMAGED),
    "jpeg-huge": (lambda: jpeg_of(65_000, 65_000), TOO_LARGE),
    "jpeg-no-height": (lambda: jpeg_of(40, 0), DAMAGED),
    "gif-cut": (lambda: encoded("GIF")[:300], DAMAGED),
    "gif-start-only": (lambda: b"GIF89a", DAMAGED),
    "gif-no-size": (lambda: b"GIF89a" + bytes(7) + b"\x3b", DAMAGED),
    "gif-without-frame": (lambda: b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b"\x3b", DAMAGED),
    "bmp-cut": (lambda: encoded("BMP")[:500], DAMAGED),
    "bmp-start-only": (lambda: encoded("BMP")[:20], DAMAGED),
    "bmp-huge": (lambda: bmp_of(2**31 - 1, 2**31 - 1), TOO_LARGE),
    "bmp-no-size": (lambda: bmp_of(0, 0), DAMAGED),
    "bmp-negative-width": (lambda: bmp_of(-40, 30), f"{DAMAGED}|{TOO_LARGE}"),
    "webp-cut": (lambda: encoded("WEBP")[:100], DAMAGED),
    "webp-start-only": (lambda: encoded("WEBP")[:12], DAMAGED),
    "tiff-cut": (lambda: encoded("TIFF")[:500], DAMAGED),
    "tiff-start-only": (lambda: b"II*\0\x08\0\0\0", DAMAGED),
    "tiff-nothing": (lambda: tiff(), DAMAGED),
    "tiff-circle": (lambda: tiff(following=8), DAMAGED),
    "tiff-huge": (
        lambda: tiff((256, 4, 1, 2**31), (257, 4, 1, 2**31), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8)),
        f"{DAMAGED}|{TOO_LARGE}",
    ),
    "tiff-no-size": (
        lambda: tiff((256, 4, 1, 0), (257, 4, 1, 0), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8)),
        DAMAGED,
    ),
    "tiff-place-beyond-its-end": (
        lambda: tiff((256, 4, 1, 40), (257, 4, 1, 30), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 2**31)),
        DAMAGED,
    ),
    "tiff-huge-count": (
        lambda: tiff((256, 4, 1, 40), (257, 4, 1, 30), (258, 3, 2**32 - 1, 8), (262, 3, 1, 1), (273, 4, 1, 8)),
        DAMAGED,
    ),
    "tiff-unknown-compression": (
        lambda: tiff((256, 4, 1, 40), (257, 4, 1, 30), (258, 3, 1, 8), (259, 3, 1, 999), (262, 3, 1, 1)),
        DAMAGED,
    ),
    "tiff-nan": (lambda: floats(0.5, float("nan")), GREYS),
    "tiff-inf": (lambda: floats(0.5, float("inf")), GREYS),
    "tiff-minus-inf": (lambda: floats(0.5, float("-inf")), GREYS),
    "tiff-negative": (lambda: floats(0.5, -0.5), GREYS),
    "tiff-above-16-bits": (lambda: floats(0.5, 1e9), GREYS),
    "tiff-32-bits-negative": (lambda: encoded("TIFF", Image.fromarray(np.array([[-1, 5]], np.int32))), GREYS),
    "ppm-huge": (lambda: b"P6 99999 99999 255\n", TOO_LARGE),
    "ppm-without-pixels": (lambda: b"P6 40 30 255\n", DAMAGED),
    "ppm-negative": (lambda: b"P6 -40 30 255\n" + bytes(3600), DAMAGED),
    "ppm-letters": (lambda: b"P6 x y 255\n" + bytes(3600), DAMAGED),
    "ppm-no-largest-value": (lambda: b"P6 40 30 0\n" + bytes(3600), DAMAGED),
    "ppm-long-number": (lambda: b"P6 " + b"9" * 5000 + b" 30 255\n", DAMAGED),
    "ppm-without-end": (lambda: b"P3 40 30 255\n" + b"1 " * 500, DAMAGED),
    "pfm-nan": (lambda: b"Pf\n2 1\n-1.0\n" + struct.pack("<ff", 0.5, float("nan")), GREYS),
}

frames = [Image.new("RGB", (40, 30), color) for color in ("red", "green", "blue")]
ACCEPTED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "gif-animated": ("x.gif", lambda: encoded("GIF", frames[0], save_all=True, append_images=frames[1:])),
    "png-animated": ("x.png", lambda: encoded("PNG", frames[0], save_all=True, append_images=frames[1:])),
    "webp-animated": ("x.webp", lambda: encoded("WEBP", frames[0], save_all=True, append_images=frames[1:])),
    "tiff-of-pages": ("x.tif", lambda: encoded("TIFF", frames[0], save_all=True, append_images=frames[1:])),
    "jpeg-cmyk": ("x.jpg", lambda: encoded("JPEG", NOISE.convert("CMYK"))),
    "tiff-lab": ("x.tif", lambda: encoded("TIFF", Image.new("LAB", (40, 30)))),
    "tiff-cmyk": ("x.tif", lambda: encoded("TIFF", NOISE.convert("CMYK"))),
    "tiff-16-bits": ("x.tif", lambda: encoded("TIFF", Image.fromarray(np.full((30, 40), 4000, np.uint16)))),
    "tiff-floating-point": ("x.tif", lambda: encoded("TIFF", Image.fromarray(np.full((30, 40), 0.5, np.float32)))),
    "png-16-bits": ("x.png", lambda: encoded("PNG", Image.fromarray(np.full((30, 40), 4000, np.uint16)))),
    "png-palette-transparent": ("x.png", lambda: encoded("PNG", NOISE.convert("P"), transparency=bytes(range(256)))),
    "png-alpha": ("x.png", lambda: encoded("PNG", NOISE.convert("RGBA"))),
    "png-grey-alpha": ("x.png", lambda: encoded("PNG", NOISE.convert("LA"))),
    "png-one-bit": ("x.png", lambda: encoded("PNG", NOISE.convert("1"))),
    "png-named-jpg": ("x.jpg", lambda: encoded("PNG")),
    "jpeg-without-extension": ("x", lambda: encoded("JPEG")),
    "jpeg-named-txt": ("x.txt", lambda: encoded("JPEG")),
    "jpeg-with-more-behind": ("x.jpg", lambda: encoded("JPEG") + b"PK\x03\x04 and so on" * 99),
    "exif-orientation-of-0": ("x.jpg", lambda: exif(0)),
    "exif-orientation-of-6": ("x.jpg", lambda: exif(6)),
    "exif-orientation-of-255": ("x.jpg", lambda: exif(255)),
    "exif-orientation-a-text": ("x.jpg", lambda: exif(raw=b"Exif\0\0" + tiff((0x0112, 2, 4, 0x706F74)))),
    "exif-orientation-of-two": ("x.jpg", lambda: exif((6, 3))),
    "exif-garbage": ("x.jpg", lambda: exif(raw=b"Exif\0\0garbage" * 20)),
    "exif-empty": ("x.jpg", lambda: exif(raw=b"Exif\0\0")),
    "exif-circle": ("x.jpg", lambda: exif(raw=b"Exif\0\0" + tiff((34665, 4, 1, 8), following=8))),
    "icc-garbage": ("x.png", lambda: encoded("PNG", icc_profile=b"garbage" * 99)),
    "xmp-garbage": ("x.png", lambda: encoded("PNG", pnginfo=_info(b"<x:xmpmeta><broken"))),
    "one-pixel": ("x.png", lambda: encoded("PNG", Image.new("RGB", (1, 1)))),
    "strip-wide": ("x.png", lambda: encoded("PNG", Image.new("RGB", (20_000, 1)))),
    "strip-tall": ("x.png", lambda: encoded("PNG", Image.new("RGB", (1, 20_000)))),
    "name-with-newline": ("two\nlines.png", lambda: encoded("PNG")),
    "name-not-utf8": (os.fsdecode(b"gr\xfcn \xff.png"), lambda: encoded("PNG")),
    "name-of-255-bytes": ("x" * 251 + ".png", lambda: encoded("PNG")),
    "name-like-an-option": ("--help.png", lambda: encoded("PNG")),
    "name-with-escapes": ("\x1b[31mred\x07.png", lambda: encoded("PNG")),
    "name-like-a-glob": ("[x]*?.png", lambda: encoded("PNG")),
}


def _info(content: bytes) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", content)
    return info


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))  # its path must be short


def circle(path: Path) -> None:
    path.symlink_to(path.name)


def chain(path: Path) -> None:
    for i in range(60):
        (path.parent / f"link{i}").symlink_to(f"link{i + 1}")
    path.symlink_to("link0")


NO_FILES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "missing": ("x.png", lambda path: None, r"x\.png: no such file, folder or glob"),
    "pipe": ("x.png", pipe, r"x\.png: a pipe, a file is needed"),
    "socket": ("x.png", listening, r"x\.png: a socket, a file is needed"),
    "device": ("x.png", lambda path: path.symlink_to("/dev/zero"), r"x\.png: a device, a file is needed"),
    "empty-folder": ("x.png", lambda path: path.mkdir(), r"x\.png: no images in this folder"),
    "folder-of-hidden-files": (
        "folder",
        lambda path: (path.mkdir(), (path / "._x.png").touch()),
        "folder: no images in this folder",
    ),
    "broken-link": ("x.png", lambda path: path.symlink_to("nowhere"), r"x\.png: no such file"),
    "link-to-itself": ("x.png", circle, r"x\.png: (no such file|Too many levels)"),
    "chain-of-links": ("x.png", chain, r"x\.png: (no such file|Too many levels)|Too many levels.*x\.png"),
    "glob-without-files": ("*.gif", lambda path: None, r"\*\.gif: no such file, folder or glob"),
    "missing-name-with-newline": ("a\nb.png", lambda path: None, r"a\\nb\.png: no such file"),
    "missing-name-not-utf8": (os.fsdecode(b"\xff.png"), lambda path: None, r"\.png: no such file"),
    "name-of-256-bytes": ("x" * 252 + ".png", lambda path: None, "no such file|File name too long"),
    "path-of-10000-bytes": ("x/" * 5000 + "x.png", lambda path: None, "no such file|File name too long"),
    "empty-name": ("", lambda path: None, "no such file|no images in this folder"),
}


def predict(world: World, *arguments: str, kind: str = "classifier") -> list[str]:
    return ["predict", *arguments, "--ckpt_path", str(world.checkpoint(kind)), "--device", "cpu"]


def _of_content(name: str, content: Callable[[], bytes], kind: str) -> Callable[[World], list[str]]:
    return lambda world: predict(world, f"./{world.file(name, content()).name}", kind=kind)


def _of_no_file(name: str, make: Callable[[Path], object]) -> Callable[[World], list[str]]:
    def arguments(world: World) -> list[str]:
        if len(name) < 255 and name:
            make(world.here / name)
        return predict(world, name)

    return arguments


# Videos by what is in them, whatever their names say. FFmpeg reads pictures, playlists and lists of files, too.
NO_VIDEOS: dict[str, tuple[str, bytes]] = {
    "text": ("x.mp4", b"not a video"),
    "empty": ("x.mov", b""),
    "zeros": ("x.avi", bytes(10_000)),
    "a-picture": ("x.mkv", encoded("PNG")),
    "beginning-only": ("x.mp4", bytes.fromhex("0000001c6674797069736f6d0000020069736f6d69736f3261766331")),
    "huge-box": ("x.mp4", bytes.fromhex("7fffffff6d6f6f76") + bytes(100)),
    "playlist": ("x.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"),
    "list-of-files": ("x.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n"),
    "description": ("x.mpg", b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"),
}


def _in_a_dataset(name: str, content: Callable[[], bytes]) -> Callable[[World], list[str]]:
    def arguments(world: World) -> list[str]:
        for i, place in enumerate(("train/a", "train/b", "val/a", "val/b")):
            world.file(f"data/{place}/good.png", encoded("PNG", Image.new("RGB", (30, 40), (i, 0, 0))))
        world.file(f"data/train/b/{name}", content())
        return ["validate-data", "-c", "recipes/classification/digits.yaml", "--data.root", "data"]

    return arguments


KINDS = ("classifier", "semantic_fpn", "retinanet")
ALONE = ("png-text-bomb", "png-huge", "tiff-huge-count", "png-just-too-large", "pipe", "device")

CASES = [
    *(
        # The three tasks take turns.
        Case(f"image-{name}", _of_content("x.png", content, KINDS[i % 3]), rf"x\.png: .*({told})", alone=name in ALONE)
        for i, (name, (content, told)) in enumerate(REFUSED.items())
    ),
    *(
        Case(f"image-{name}", _of_content(file, content, KINDS[i % 3]), "image ", code=0)
        for i, (name, (file, content)) in enumerate(ACCEPTED.items())
    ),
    *(
        Case(f"image-{name}", _of_no_file(file, make), told, alone=name in ALONE)
        for name, (file, make, told) in NO_FILES.items()
    ),
    *(
        Case(
            f"video-{name}",
            _of_content(file, partial(bytes, content), KINDS[i % 3]),
            r"x\.\w+: (not (a video|one frame)|there is no video)",
        )
        for i, (name, (file, content)) in enumerate(NO_VIDEOS.items())
    ),
    *(
        Case(
            f"video-with-{option}",
            lambda world, option=option: predict(world, world.file("y.mp4", "").name, f"--{option}", "out"),
            rf"y\.mp4: --{option} is for images",
        )
        for option in ("nodes", "labels", "submission")
    ),
    Case(
        "image-over-itself",
        lambda world: predict(world, world.file("y.jpg", encoded("JPEG")).name, "--pictures", "."),
        r"--pictures \.: y\.jpg is read, give another folder",
    ),
    Case("standard-input-empty", lambda world: predict(world, "-"), "-: standard input is empty", alone=True),
    *(
        Case(
            f"dataset-{name}",
            _in_a_dataset("x.png", content),
            rf"1 problem:\n  data/train/b/x\.png: .*({told})",
            code=1,
        )
        for name, (content, told) in list(REFUSED.items())[::2]
    ),
]
