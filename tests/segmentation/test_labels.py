"""Masks and classes: what is accepted, and how mistakes are reported."""

import json
import struct
import zlib

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as official_labels
from PIL import Image

from dgmn.errors import InputError
from dgmn.pictures import distinct_colors
from dgmn.segmentation.cityscapes import CITYSCAPES, CITYSCAPES_IDS, submission_name, to_label_ids
from dgmn.segmentation.labels import Classes, named, paint, read_classes, read_mask

CLASSES = named(("a", "b", "c"))
VALUES = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)


def save(tmp_path, values, name="mask.png", **options):
    path = tmp_path / name
    Image.fromarray(values).save(path, **options)
    return path


def test_cityscapes_is_the_official_table():
    for label in official_labels:
        value = CITYSCAPES_IDS.table()[label.id % 256]
        assert value == (label.trainId if 0 <= label.trainId < 19 else 255), label.name
        if 0 <= label.trainId < 19:
            assert CITYSCAPES.names[label.trainId] == label.name
            assert CITYSCAPES.colors[label.trainId] == label.color
    train_ids = np.arange(19, dtype=np.uint8)
    by_train_id = {label.trainId: label.id for label in official_labels}
    assert to_label_ids(train_ids).tolist() == [by_train_id[i] for i in range(19)]


def png_of_bits(values, bits):
    """A greyscale PNG of 1, 2 or 4 bits, as tools write that make files small; Pillow reads such, but writes none."""
    lines = ["".join(f"{value:0{bits}b}" for value in row) for row in values]
    lines = [line + "0" * (-len(line) % 8) for line in lines]
    pixels = b"".join(b"\0" + int(line, 2).to_bytes(len(line) // 8, "big") for line in lines)
    head = struct.pack(">IIBBBBB", len(values[0]), len(values), bits, 0, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_of_few_bits(bits, tmp_path):
    values = [[i * j % 2**bits for i in range(5)] for j in range(3)]
    (tmp_path / "small.png").write_bytes(png_of_bits(values, bits))
    classes = named([f"class {i}" for i in range(100)])
    assert read_mask(tmp_path / "small.png", classes).tolist() == values


def test_reads_what_is_there(tmp_path):
    assert np.array_equal(read_mask(save(tmp_path, VALUES), CLASSES), VALUES)
    for name, kind in (("deep.png", np.uint16), ("deep.tif", np.uint16), ("deeper.tif", np.int32)):
        assert np.array_equal(read_mask(save(tmp_path, VALUES.astype(kind), name), CLASSES), VALUES)
    binary = save(tmp_path, VALUES > 1, "binary.png")
    assert np.array_equal(read_mask(binary, CLASSES), (VALUES > 1).astype(np.uint8))
    ids = Classes(("a", "b"), ((0, 0, 0), (1, 1, 1)), (7, 4), ignored=(0,))
    values = np.array([[7, 4], [0, 255]], np.uint8)
    assert read_mask(save(tmp_path, values, "ids.png"), ids).tolist() == [[0, 1], [255, 255]]


def test_a_painted_mask_is_read_back(tmp_path):
    path = tmp_path / "painted.png"
    image = paint(VALUES, CLASSES.colors)
    image.save(path)
    with pytest.raises(InputError, match=r"painted.png: a mask with a palette.*--data.palette_masks true"):
        read_mask(path, CLASSES)
    assert np.array_equal(read_mask(path, CLASSES, palette=True), VALUES)
    assert np.asarray(image.convert("RGB"))[0, 1].tolist() == list(CLASSES.colors[1])


@pytest.mark.parametrize(
    ("values", "name", "message"),
    [
        (
            VALUES.astype(np.uint16) * 256,
            "deep.png",
            r"deep.png: holds 256, 512, 65280, which no class has; the 3 clas",
        ),
        (
            VALUES.astype(np.int32) - 1,
            "deep.tif",
            r"deep.tif: holds -1, 254, which no class has; the 3 classes are 0..2",
        ),
        (VALUES.astype(np.float32), "float.tif", r"float.tif: has pixels of mode F; a mask is a greyscale image"),
        (np.zeros((2, 3, 3), np.uint8), "rgb.png", r"rgb.png: has colours; a mask is a greyscale image \(PNG\)"),
        (np.zeros((2, 3, 4), np.uint8), "rgba.png", r"rgba.png: has colours"),
        (VALUES, "lossy.jpg", r"lossy.jpg: JPEG does not keep the values of pixels"),
        (VALUES + 2, "odd.png", r"odd.png: holds 3, 4, which no class has; the 3 classes are 0..2, 255 is no label"),
    ],
)
def test_wrong_masks_are_named(tmp_path, values, name, message):
    with pytest.raises(InputError, match=message):
        read_mask(save(tmp_path, values, name), CLASSES)


def test_damaged_masks_are_named(tmp_path):
    path = save(tmp_path, np.random.default_rng(0).integers(0, 3, (64, 64), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"mask.png: damaged mask \(.*truncated"):
        read_mask(path, CLASSES)
    path.write_text("no image")
    with pytest.raises(InputError, match=r"mask.png: not an image"):
        read_mask(path, CLASSES)
    with pytest.raises(InputError, match=r"gone.png: missing mask"):
        read_mask(tmp_path / "gone.png", CLASSES)


def test_files_of_classes(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("\ufeffcat\ndog \n\n")
    assert read_classes(path).names == ("cat", "dog")
    path.write_text("cat\n\ndog\n")
    with pytest.raises(InputError, match=r"classes.txt: line 2 is empty"):
        read_classes(path)
    path.write_text("cat\ndog\n")
    assert read_classes(path).ids == (0, 1)
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(["cat", "dog", "cow"]))
    classes = read_classes(path)
    assert classes.names == ("cat", "dog", "cow")
    assert len(set(classes.colors)) == 3
    path.write_text(
        json.dumps(
            {"classes": [{"name": "sky", "color": [1, 2, 3], "id": 9}, {"name": "sea", "id": 4}], "ignored": [0]}
        )
    )
    classes = read_classes(path)
    assert (classes.ids, classes.ignored, classes.colors[0]) == ((9, 4), (0,), (1, 2, 3))
    path.write_text(json.dumps(["cat", "background", {"name": "dog", "color": [1, 2, 3]}]))
    assert read_classes(path).colors == (*distinct_colors(1), (0, 0, 0), (1, 2, 3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", r"classes.json: not JSON"),
        ("{}", r"classes.json: expected a list of names"),
        ('[{"color": [0, 0, 0]}, "b"]', r"classes.json: class 0 has no name"),
        ('[{"name": "a", "color": [0, 0]}, "b"]', r"the color of a must be \[r, g, b\] of 0..255, got \[0, 0\]"),
        ('[{"name": "a", "id": "x"}, "b"]', r"the id of a must be a whole number, got 'x'"),
        ('[{"name": "a", "id": 1}, {"name": "b", "id": 1}]', r"ids must be different and in 0..254, got 1"),
        ('[{"name": "a", "id": true}, "b"]', r"the id of a must be a whole number, got True"),
        ('[{"name": "a", "color": 5}, "b"]', r"the color of a must be \[r, g, b\] of 0..255, got 5"),
        ('{"classes": ["a", "b"], "ignored": 9}', r"ignored must be a list of whole numbers, got 9"),
        ('["a", "b", "a"]', r"classes: 'a' is there twice"),
        ('["a"]', r"classes: 2 to 255 are accepted, got 1"),
    ],
)
def test_wrong_files_of_classes_are_named(tmp_path, text, message):
    path = tmp_path / "classes.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_classes(path)


def test_names_for_the_test_server(tmp_path):
    name = submission_name(tmp_path / "berlin_000000_000019_leftImg8bit.png")
    assert name == "berlin_000000_000019_pred_labelIds.png"
    with pytest.raises(InputError, match=r"holiday.jpg: the test server needs names like berlin"):
        submission_name(tmp_path / "holiday.jpg")
