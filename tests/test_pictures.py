"""Pictures stay legible: colours differ, dark images can be seen, and crowded ones say what is left out."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from dgmn.app.view import View
from dgmn.detection.predictor import drawn
from dgmn.pictures import distinct_colors, inscribed, overlay
from dgmn.segmentation import SegmentationPredictor, semantic_fpn
from dgmn.segmentation.labels import named


def lab(colors):
    """CIELAB of colours, as Little CMS computes it."""
    profiles = (ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"))
    image = Image.fromarray(np.array([colors], np.uint8))
    values = np.asarray(ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "RGB", "LAB")))[0]
    return np.column_stack((values[:, 0] / 2.55, values[:, 1:].view(np.int8).astype(float)))


@pytest.mark.parametrize(("count", "least"), [(10, 50), (30, 30), (100, 15), (255, 10)])
def test_colours_differ(count, least):
    places = lab(distinct_colors(count))
    distances = np.linalg.norm(places[:, None] - places, axis=-1)[np.triu_indices(count, 1)]
    assert distances.min() >= least
    assert places[:, 0].min() > 35, "none is lost on a dark image"
    assert distinct_colors(300)[:count] == distinct_colors(count)


def test_more_colours_than_there_are():
    colors = distinct_colors(3000)
    assert len(colors) == 3000
    assert len(set(colors)) == 2711


@pytest.mark.parametrize("color", [(0, 0, 70), (128, 64, 128), (255, 220, 0)])
def test_a_dark_image_can_be_seen_through_its_colours(color):
    pixels = np.full((64, 64, 3), 6, np.uint8)
    pixels[:, ::2] = 24  # stripes that hardly differ
    labels = np.zeros((64, 64), np.uint8)
    labels[32:] = 255
    painted = np.asarray(overlay(Image.fromarray(pixels), labels, [color])).astype(int)
    stripes = np.abs(painted[:32, 0] - painted[:32, 1])
    assert stripes.min() >= 15
    assert (painted[32:] == pixels[32:]).all(), "without a label, the image stays as it is"
    light = Image.new("RGB", (8, 8), (180, 180, 180))
    share = np.asarray(overlay(light, np.zeros((8, 8), np.uint8), [color]))[0, 0]
    assert share.tolist() == pytest.approx([0.45 * 180 + 0.55 * value for value in color], abs=1)


def test_background_is_black_and_never_painted():
    """In overlays of predictions and of the page its pixels stay as they are, whatever its colour is."""
    assert named(["Background", "cat", "dog"]).colors == ((0, 0, 0), *distinct_colors(2))
    red = ((255, 0, 0), (0, 0, 255))
    predictor = SegmentationPredictor(semantic_fpn("dgmn2_nano", 2), ["__background__", "cat"], red)
    image = Image.new("RGB", (96, 64), (180, 180, 180))
    result = predictor.predict(image)
    result.labels[:, :48], result.labels[:, 48:] = 0, 1
    view = View(predictor, image, result)
    for picture in (result.draw(), result.draw(inside=True), view.picture(0.3, 0.55)):
        bottom = np.asarray(picture)[60:64]  # below the names that are within the picture
        assert (bottom[:, :48] == 180).all()
        assert (bottom[:, 48:] == (81, 81, 221)).all()
    assert np.asarray(result.label_image().convert("RGB"))[0, 0].tolist() == [255, 0, 0]
    key = np.asarray(result.draw())[64:].reshape(-1, 3)
    assert not (key == red[0]).all(1).any(), "its box in the key is bare"


def found(count, width):
    """Objects at nearly one place, of three classes."""
    boxes = torch.tensor([[20.0 + i, 20.0 + i, 20.0 + width + i, 60.0 + i] for i in range(count)])
    return {"boxes": boxes, "scores": torch.linspace(0.9, 0.3, count), "labels": torch.arange(count) % 3}


def test_a_crowded_picture_says_what_is_left_out():
    grey, names = Image.new("RGB", (500, 300), (128, 128, 128)), ["cat", "dog", "a long name"]
    few, many = drawn(grey, found(2, 200), names), drawn(grey, found(40, 50), names)
    assert few.size == (500, 300)
    assert many.size > few.size, "a key is below"
    key = np.asarray(many)[300:].reshape(-1, 3)
    assert all((key == color).all(1).any() for color in distinct_colors(3))
    inside = drawn(grey, found(40, 50), names, inside=True)
    assert inside.size == (500, 300)
    assert (np.asarray(inside)[:20, :5] != 128).any(), "the key is in the corner"


def test_a_caption_moves_to_where_it_is_seen():
    """The box above leaves no room above the second, so its caption is below or beside it."""
    grey = Image.new("RGB", (500, 300), (128, 128, 128))
    boxes = torch.tensor([[100.0, 60, 300, 100], [100.0, 62, 300, 104]])
    both = {"boxes": boxes, "scores": torch.tensor([0.9, 0.8]), "labels": torch.tensor([0, 1])}
    picture = np.asarray(drawn(grey, both, ["first", "second"]))
    assert picture.shape == (300, 500, 3), "none is left out"
    assert all((picture == color).all(2).sum() > 600 for color in distinct_colors(2)), "both captions are there"


def test_words_in_the_corner_of_a_small_image():
    picture = inscribed(Image.new("RGB", (120, 90)), ["a very long class name 99.9%"] * 9, [(255, 0, 0)] * 9)
    assert picture.size == (120, 90)
    assert (np.asarray(picture)[45:] == 0).all()
    assert (np.asarray(picture)[:, 90:] == 0).all(), "most of the image stays free"
