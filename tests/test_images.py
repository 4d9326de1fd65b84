"""Images that users give."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dgmn import images
from dgmn.errors import InputError
from dgmn.images import check_images, load_image
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
