"""Images that users give."""

import os
import struct
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageOps, PngImagePlugin, features

from dgmn import images
from dgmn.classification.transforms import eval_transform, seen_part
from dgmn.errors import InputError
from dgmn.images import check_images, image_size, load_image, save_image, to_image
from dgmn.pictures import comparison, contact_sheet
from dgmn.segmentation.labels import named, read_mask
from dgmn_base.files import find_images


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.tif" if mode in ("CMYK", "I;16") else "x.png")
    Image.new(mode, (7, 5), 1).save(path) if mode in ("1", "L", "P", "I;16") else Image.new(mode, (7, 5)).save(path)
    image = load_image(path)
    assert (image.mode, image.size) == ("RGB", (7, 5))


def test_sixteen_bits_keep_their_greys(tmp_path: Path) -> None:
    greys = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(greys).save(tmp_path / "x.png")
    loaded = np.asarray(load_image(tmp_path / "x.png"))[..., 0]
    assert np.abs(loaded.astype(int) - greys // 257).max() == 0
    assert loaded.max() == 255


@pytest.mark.parametrize(
    ("bits", "dtype"), [(8, np.int32), (12, np.uint16), (12, np.int32), (16, np.uint16), (16, np.int32)]
)
def test_every_depth_is_the_picture_of_its_copy_with_8_bits(
    bits: int, dtype: type, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """12 bits in a file of 16 were almost black, and 32 bits were black."""
    copy = np.random.default_rng(0).integers(0, 256, (16, 16))
    copy[0, 0] = 255
    values = (copy * 257 if bits == 16 else copy << (bits - 8)).astype(dtype)
    Image.fromarray(values).save(tmp_path / "x.tif")
    loaded = np.asarray(load_image(tmp_path / "x.tif"))
    assert np.array_equal(loaded, np.repeat(copy[..., None], 3, 2))
    told = [str(warning.message) for warning in recwarn if "are read as" in str(warning.message)]
    assert len(told) == (bits == 12 and dtype is np.uint16)


@pytest.mark.parametrize("scale", [1 / 255, 1, 16, 257])
def test_floating_point(scale: float, tmp_path: Path) -> None:
    copy = np.arange(256).reshape(16, 16)
    Image.fromarray((copy * scale).astype(np.float32)).save(tmp_path / "x.tif")
    assert np.array_equal(np.asarray(load_image(tmp_path / "x.tif"))[..., 0], copy)


@pytest.mark.parametrize("odd", [-1.0, 65536.0, np.nan, np.inf])
def test_values_that_are_no_greys(odd: float, tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.5, odd]], np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(InputError, match=r"x\.tif: grey values from .* in pixels of mode F; 0\.\.65535 are accepted"):
        load_image(tmp_path / "x.tif")


@pytest.mark.parametrize(
    ("kind", "count", "value"),
    [
        (10, 1, struct.pack("<ii", -1, 0)),  # a share of nothing
        (5, 2, struct.pack("<IIII", 72, 1, 72, 1)),  # two values where one is expected
        (9, 1, None),  # a negative size
        (5, 1, b""),  # a value beyond the end
        (99, 1, b""),  # a kind that there is not
    ],
)
def test_damaged_exif_data_is_no_damaged_image(kind: int, count: int, value: bytes | None, tmp_path: Path) -> None:
    """What a phone or an editor wrote about a photograph says nothing about its pixels."""
    turn = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    odd = struct.pack("<HHIi", 0x011A, kind, count, -1 if value is None else 38)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + turn + odd + bytes(4) + (value or b"")
    Image.effect_noise((8, 4), 50).save(tmp_path / "x.jpg", exif=exif)
    assert load_image(tmp_path / "x.jpg").size == (4, 8)
    assert image_size(tmp_path / "x.jpg") == (8, 4)
    with Image.open(tmp_path / "x.jpg") as image:
        once = to_image(image)
    assert to_image(once).size == once.size == (4, 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_turn_is_that_of_pillow(orientation: int, tmp_path: Path) -> None:
    image = Image.effect_noise((8, 4), 50).convert("RGB")
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as stored:
        expected = ImageOps.exif_transpose(stored)
    assert np.array_equal(np.asarray(load_image(tmp_path / "x.png")), np.asarray(expected))
    assert image_size(tmp_path / "x.png") == expected.size[::-1]


@pytest.mark.parametrize("what", ["text", "itxt", "icc"])
def test_large_notes_in_a_picture(what: str, tmp_path: Path) -> None:
    """Editors put whole projects into PNG files, and scanners profiles of several megabytes."""
    notes = PngImagePlugin.PngInfo()
    if what != "icc":
        getattr(notes, f"add_{what}")("workflow", "x" * 2**21, zip=True)
    profile = {"icc_profile": b"x" * 2**21} if what == "icc" else {}
    Image.effect_noise((8, 4), 50).save(tmp_path / "x.png", pnginfo=notes, **profile)
    assert load_image(tmp_path / "x.png").size == (8, 4)


@pytest.mark.parametrize("mode", ["P", "1", "LA", "RGBA"])
def test_palettes_and_transparency_are_the_picture_of_their_copy(mode: str, tmp_path: Path) -> None:
    picture = Image.effect_noise((20, 20), 80).convert("RGB").convert(mode)
    picture.save(tmp_path / "x.png")
    assert np.array_equal(np.asarray(load_image(tmp_path / "x.png")), np.asarray(picture.convert("RGB")))


def test_turned_upright(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((4, 8, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned
    image.save(tmp_path / "x.jpg", exif=exif)
    assert load_image(tmp_path / "x.jpg").size == (4, 8)


def test_bad_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        load_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(InputError, match=r"text\.png: not an image"):
        load_image(tmp_path / "text.png")
    whole = tmp_path / "whole.jpg"
    Image.effect_noise((200, 200), 60).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"cut\.jpg: damaged"):
        load_image(tmp_path / "cut.jpg")
    monkeypatch.setattr(images, "MAX_PIXELS", 39_999)
    with pytest.raises(InputError, match=r"whole\.jpg: 200 x 200 pixels, at most 39,999"):
        load_image(whole)


def _written(form: str) -> bytes:
    content = BytesIO()
    Image.new("F" if form == "SPIDER" else "RGB", (16, 16)).save(content, form)
    return content.getvalue()


_FITS = ("SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    2")
_FITS += ("NAXIS1  =                    4", "NAXIS2  =                    4", "END")
FOREIGN = {
    **{form: _written(form) for form in ("EPS", "PCX", "TGA", "SGI", "ICO", "DDS", "IM", "SPIDER", "JPEG2000")},
    "PSD": b"8BPS" + struct.pack(">H6xHIIHH12xH", 1, 3, 4, 4, 8, 3, 0) + bytes(48),
    "FITS": b"".join(card.ljust(80).encode() for card in _FITS).ljust(2880) + bytes(2880),
    "WMF": b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<hhhhHI2x", 0, 0, 10, 10, 96, 0) + b"\1\0\t\0" + bytes(40),
}


@pytest.mark.parametrize("form", FOREIGN)
def test_other_formats_are_refused_whatever_their_name(form: str, tmp_path: Path) -> None:
    """Pillow opens all of them."""
    with Image.open(BytesIO(FOREIGN[form])) as image:
        assert image.format == form
    for name in ("x.jpg", "x.png"):
        (tmp_path / name).write_bytes(FOREIGN[form])
        for read in (load_image, lambda path: read_mask(path, named(["a", "b"]))):
            with pytest.raises(InputError, match=rf"{name}: not an image of a known format: JPEG, PNG, .*TIFF") as told:
                read(tmp_path / name)
            assert "\n" not in str(told.value)
    with pytest.raises(InputError, match="not an image of a known format"):
        to_image(FOREIGN[form])


def test_an_image_runs_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands PostScript to the program gs."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    (tmp_path / "x.jpg").write_bytes(FOREIGN["EPS"])
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow looks for it once
    with pytest.raises(InputError):
        load_image(tmp_path / "x.jpg")
    assert not (tmp_path / "ran").exists()
    with suppress(OSError):  # gs makes no picture here
        Image.open(tmp_path / "x.jpg").load()
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("form", ["JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF"])
def test_known_formats_are_read_whatever_their_name(form: str, tmp_path: Path) -> None:
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    first, second = Image.new("RGB", (16, 12), (200, 30, 30)), Image.new("RGB", (16, 12), (30, 30, 200))
    more = {"save_all": True, "append_images": [second]} if form in ("MPO", "GIF", "TIFF") else {}
    first.save(tmp_path / "x.jpg", form, **more)
    image = load_image(tmp_path / "x.jpg")
    assert np.abs(np.asarray(image).astype(int) - np.asarray(first)).max() <= 6


@pytest.mark.parametrize("form", ["JPEG", "MPO", "WEBP", "AVIF"])
def test_formats_that_change_pixels_hold_no_masks(form: str, tmp_path: Path) -> None:
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    mask = Image.new("L", (16, 12))
    mask.save(tmp_path / "x.png", form, **({"save_all": True, "append_images": [mask]} if form == "MPO" else {}))
    with pytest.raises(InputError, match=f"{form} does not keep the values of pixels"):
        read_mask(tmp_path / "x.png", named(["a", "b"]))


@pytest.mark.parametrize("what", ["an array", "a tensor", "a PIL image", "a file", "bytes", "a mask"])
def test_nothing_has_more_pixels_than_the_limit(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (30, 20)).save(tmp_path / "x.png")
    forms = {
        "an array": lambda: to_image(np.zeros((20, 30, 3), np.uint8)),
        "a tensor": lambda: to_image(torch.zeros(3, 20, 30)),
        "a PIL image": lambda: to_image(Image.new("RGB", (30, 20))),
        "a file": lambda: load_image(tmp_path / "x.png"),
        "bytes": lambda: to_image((tmp_path / "x.png").read_bytes()),
        "a mask": lambda: read_mask(tmp_path / "x.png", named(["a", "b"])),
    }
    monkeypatch.setattr(images, "MAX_PIXELS", 600)
    forms[what]()
    monkeypatch.setattr(images, "MAX_PIXELS", 599)
    with pytest.raises(InputError, match="30 x 20 pixels, at most 599 are accepted"):
        forms[what]()


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_an_accepted_size_is_no_warning(form: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Pillow warns of more than 89 million pixels."""
    Image.new("L", (10_000, 9_900)).save(tmp_path / "large", form)
    assert image_size(tmp_path / "large") == (9_900, 10_000)
    assert not recwarn.list


@pytest.mark.parametrize("size", [(1, 20000), (20000, 1), (2, 5001)])
def test_thin_images_stay_small(size: tuple[int, int]) -> None:
    """Resized to a short side of 256 pixels, they had up to 1.3 billion pixels."""
    image = Image.new("RGB", size, (10, 20, 30))
    transform = eval_transform(224)
    assert transform(image).shape == (3, 224, 224)
    (across, down), (left, top) = seen_part(transform, image, 224)
    assert left + 112 * across == pytest.approx(size[0] / 2, abs=1)
    assert top + 112 * down == pytest.approx(size[1] / 2, abs=1)
    assert max(contact_sheet([image]).size) < 4000
    labels = np.zeros(size[::-1], np.uint8)
    assert max(comparison(image, labels, labels, [(0, 0, 0)]).size) < 5000


def test_a_cut_image_is_seen_as_before() -> None:
    """Only what the centre crop does not show is cut off."""
    random = np.random.default_rng(0).integers(0, 256, (8, 8 * 40, 3), dtype=np.uint8)
    cut, *rest = eval_transform(32).transforms
    assert cut(Image.fromarray(random)).size == (8 * 32, 8)
    whole, part = Image.fromarray(random), cut(Image.fromarray(random))
    for step in rest:
        whole, part = step(whole), step(part)
    assert torch.equal(whole, part)


def test_pictures_are_written_whole_in_the_format_of_their_name(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8))
    for name, form in {"x.jpg": "JPEG", "x.PNG": "PNG", "deep/x.webp": "WEBP"}.items():
        save_image(picture, tmp_path / name)
        with Image.open(tmp_path / name) as saved:
            assert saved.format == form
    for name in ("x", "x.txt"):
        with pytest.raises(InputError, match=rf"{name}: the extension must be that of an image"):
            save_image(picture, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "x.PNG", "x.jpg"]


def test_find_images(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "deep/c.webp", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    names = [p.relative_to(tmp_path).as_posix() for p in find_images([tmp_path])]
    assert names == ["a.JPG", "b.png", "deep/c.webp"]
    assert find_images([tmp_path / "b.png", tmp_path / "*.png"]) == [tmp_path / "b.png"]
    assert len(find_images([str(tmp_path / "**/*.*")])) == 4
    for missing in ("no.png", "*.gif"):
        with pytest.raises(InputError, match="no such file, folder or glob"):
            find_images([tmp_path / missing])


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", ".ipynb_checkpoints/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert find_images([tmp_path]) == [tmp_path / "a.png"]
    assert find_images([tmp_path / "._a.png"]) == [tmp_path / "._a.png"]  # asked for by its name
    hidden = tmp_path / ".ipynb_checkpoints"
    assert find_images([hidden]) == [hidden / "b.png"]


def test_check_images_stops_at_its_budget(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path in paths:
        Image.effect_noise((50, 50), 60).save(path)
    assert check_images(paths) == 4
    assert check_images(paths, budget=paths[0].stat().st_size + 1) == 2
    paths[3].write_bytes(b"")
    with pytest.raises(InputError, match=r"3\.png"):
        check_images(paths)


def test_pictures_larger_than_their_format(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"c\.jpg: 66000 x 20 pixels cannot be written as JPEG \("):
        save_image(Image.new("RGB", (66000, 20)), tmp_path / "c.jpg")
    assert list(tmp_path.iterdir()) == []
