"""Files in COCO's format: what is read, and how mistakes are reported."""

import gc
import json
import re
import resource

import numpy as np
import pytest
import torch
from PIL import Image

from dgmn.errors import InputError
from dgmn.objects.coco import decode_mask, read_coco, to_target


@pytest.fixture
def content(tmp_path):
    """Two images of 40 x 30, one without objects, and categories 3 and 90."""
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / name)
    box = {"image_id": 7, "iscrowd": 0}
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 2, "file_name": "b.png", "width": 40, "height": 30},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
        "annotations": [
            {"id": 1, "category_id": 90, "bbox": [5, 6, 10, 8], "segmentation": [[5, 6, 15, 6, 15, 14, 5, 14]], **box},
            {
                "id": 2,
                "category_id": 3,
                "bbox": [-4, 20, 10, 30],
                "segmentation": {"size": [30, 40], "counts": [0, 1200]},
                **box,
            },
            {"id": 3, "category_id": 3, "bbox": [3, 3, 0, 5], **box},
            {"id": 4, "category_id": 3, "bbox": [50, 3, 5, 5], **box},
            {"id": 5, "category_id": 3, "bbox": [0, 0, 40, 30], **box, "iscrowd": 1},
        ],
    }


@pytest.fixture
def read(content, tmp_path):
    def run(problems=None):
        file = tmp_path / "instances.json"
        file.write_text(json.dumps(content))
        return read_coco(file, tmp_path, problems)

    return run


def test_what_is_read(read, tmp_path):
    found = read()
    assert found.names == ("car", "toothbrush")
    assert found.ids == (3, 90)
    assert found.left_out == 2  # one box has no area, one is outside
    assert [image.id for image in found.images] == [2, 7]
    assert found.images[1].path == tmp_path / "a.png"
    empty, full = (to_target(image, found.ids, masks=True) for image in found.images)
    assert empty["boxes"].shape == (0, 4)
    assert empty["masks"].shape == (0, 30, 40)
    # Boxes are cut off at the border. Crowds and boxes without an area or outside are left out.
    assert full["boxes"].tolist() == [[5, 6, 15, 14], [0, 20, 6, 30]]
    assert full["labels"].tolist() == [1, 0]
    assert full["labels"].dtype == torch.long
    expected = torch.zeros(30, 40, dtype=torch.uint8)
    expected[6:14, 5:15] = 1
    assert torch.equal(full["masks"][0], expected)
    assert full["masks"][1].all()
    assert "masks" not in to_target(found.images[1], found.ids, masks=False)


def test_forms_of_masks(content, read):
    """The same rectangle as polygon, as plain and as compressed run lengths."""
    from faster_coco_eval.core import mask as coco_mask

    polygon = [[2, 3, 10, 3, 10, 9, 2, 9]]
    (compressed,) = coco_mask.frPyObjects(polygon, 30, 40)
    mask = np.zeros((30, 40), np.uint8)
    mask[3:9, 2:10] = 1
    flat = np.concatenate([[0], mask.T.ravel(), [2]])
    counts = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat[:-1]) != 0), [mask.size]])).tolist()
    forms = [polygon, {"size": [30, 40], "counts": counts}, {"size": [30, 40], "counts": compressed["counts"]}]
    forms[2]["counts"] = (
        forms[2]["counts"].decode() if isinstance(compressed["counts"], bytes) else compressed["counts"]
    )
    base = {"image_id": 7, "category_id": 3, "bbox": [2, 3, 8, 6], "iscrowd": 0}
    content["annotations"] = [{"id": i, "segmentation": form, **base} for i, form in enumerate(forms)]
    found = read()
    masks = to_target(found.images[1], found.ids, masks=True)["masks"]
    for got in masks:
        assert torch.equal(got, torch.from_numpy(mask))


def change(path, value):
    def apply(content):
        here = content
        for key in path[:-1]:
            here = here[key]
        here[path[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("images", 0, "file_name"), "c.png", r"images\[0\]: no image .*c.png"),
        (("images", 1, "id"), 7, r"images\[1\]: the id 7 is there twice"),
        (("images", 0, "width"), "40", r"images\[0\] needs id as a whole number or text, width and height as"),
        (
            ("images", 0, "height"),
            0,
            r"images\[0\]: the size must be at least 1 x 1, and at most 100,000,000 pixels, got 40 x 0",
        ),
        (
            ("images", 0, "width"),
            10**7,
            r"images\[0\]: the size must be at least 1 x 1, and at most 100,000,000 pixels, got 10000000 x 30",
        ),
        (
            ("annotations", 0, "bbox"),
            [1e9, 2, 3, 4],
            r"\(id 1\): bbox must be four numbers .* got \[1000000000.0, 2, 3",
        ),
        (
            ("annotations", 0, "bbox"),
            [1, 2, float("inf"), 4],
            r"\(id 1\): bbox must be four numbers .* \[1, 2, Infinity",
        ),
        (("images",), [], r"annotations\[0\] \(id 1\): the image_id 7 belongs to no image"),
        (("categories",), [], r"no categories in it"),
        (("categories", 1), {"id": 90, "name": "car"}, r"categories\[1\]: the id 90 is there twice"),
        (
            ("categories", 1),
            {"id": "x", "name": "car"},
            r"categories\[1\] needs id as a whole number, and name as text",
        ),
        (
            ("annotations", 1, "category_id"),
            4,
            r"annotations\[1\] \(id 2\): the category_id 4 is not declared; there are \[3, 90\]",
        ),
        (("annotations", 2, "image_id"), 9, r"annotations\[2\] \(id 3\): the image_id 9 belongs to no image"),
        (("annotations", 3, "id"), 1, r"annotations\[3\] \(id 1\): this id is there twice"),
        (
            ("annotations", 0, "bbox"),
            [1, 2, -3, 4],
            r"annotations\[0\] \(id 1\): bbox has a negative size, got \[1, 2, -3, 4\]",
        ),
        (
            ("annotations", 0, "bbox"),
            [1, 2, float("nan"), 4],
            r"\(id 1\): bbox must be four numbers .* got \[1, 2, NaN, 4\]",
        ),
        (("annotations", 0, "bbox"), [1, 2, 3], r"\(id 1\): bbox must be four numbers"),
        (("annotations", 0, "iscrowd"), "1", r"\(id 1\): iscrowd must be 0 or 1, got \"1\""),
        (("annotations", 0, "iscrowd"), 2, r"\(id 1\): iscrowd must be 0 or 1, got 2"),
        (("annotations", 0, "image_id"), "7", r"\(id 1\): the image_id \"7\" belongs to no image"),
        (
            ("annotations", 0),
            "x",
            r'annotations\[0\] needs image_id as its image has it, and category_id as .*, got "x"',
        ),
    ],
)
def test_mistakes_are_named(content, read, path, value, message):
    change(path, value)(content)
    with pytest.raises(InputError, match=message):
        read()
    problems = []
    read(problems)
    assert any(re.search(message, problem) for problem in problems)
    assert all("instances.json: " in problem for problem in problems)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"not JSON \(it is empty\)"),
        ("[1", r"not JSON \("),
        ("[]", r"not in COCO's format: it needs lists of images, annotations and categories"),
        ('{"images": []}', r"not in COCO's format"),
    ],
)
def test_other_files(tmp_path, text, message):
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_coco(file, tmp_path)
    with pytest.raises(InputError, match="no such file of annotations"):
        read_coco(tmp_path / "b.json", tmp_path)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], r"annotation 1: segmentation: a polygon needs three points or more"),
        (
            {"size": [3, 4], "counts": [12]},
            r"annotation 1: segmentation must be polygons, or run lengths of the image's",
        ),
        ([[0, 0, float("nan"), 0, 5, 5]], r"annotation 1: segmentation: NaN in a polygon is no place"),
        ([[0, 0, 1e8, 0, 5, 5]], r"annotation 1: segmentation: 100000000.0 in a polygon is no place"),
        ({"size": [30, 40], "counts": "0"}, r"annotation 1: segmentation cannot be read .*1200"),
        ([[0, 0, 5, float("inf"), 5, 5]], r"annotation 1: segmentation: Infinity in a polygon is no place"),
        ([[0, 0, 10**400, 0, 5, 5]], r"annotation 1: segmentation: 10+\.\.\. in a polygon is no place"),
        ([[-390, 0, 390, 390] * 1000], r"annotation 1: segmentation: the border of a polygon is 1560000 pixels long"),
        ({"size": [10**6, 10**6], "counts": [10**12]}, r"annotation 1: segmentation must be polygons, or run lengths"),
        ({"size": [30, 40], "counts": [10**12]}, r"annotation 1: segmentation cannot be read .*exceed"),
        ({"size": [30, 40], "counts": [-5, 1205]}, r"annotation 1: segmentation cannot be read"),
        ({"size": [30, 40], "counts": "~" * 1000}, r"annotation 1: segmentation cannot be read"),
        ({"size": None, "counts": [1200]}, r"annotation 1: segmentation cannot be read"),
        (None, r"annotation 1: segmentation must be polygons"),
        ([["x"] * 6], r'annotation 1: segmentation: "x" in a polygon is no place in or near the image'),
    ],
)
def test_masks_that_cannot_be_read(content, read, segmentation, message):
    content["annotations"][0]["segmentation"] = segmentation
    found = read()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=message) as told:
        to_target(found.images[1], found.ids, masks=True)
    assert "\n" not in str(told.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_two_categories_of_one_name(content, read):
    content["categories"][1]["name"] = content["categories"][0]["name"]
    with pytest.raises(InputError, match=r"categories\[1\]: the name '\w+' is there twice"):
        read()


@pytest.mark.parametrize("number", [0, -3, 2**60, "seven", None, 1.5])
def test_ids_of_annotations_mean_nothing(content, read, number):
    content["annotations"][0] |= {"id": number}
    if number is None:
        content["annotations"][0].pop("id")
    assert len(to_target(read().images[1], (3, 90), masks=True)["boxes"]) == 2


@pytest.mark.parametrize("image", [2**60, -4, "a.png", 0])
def test_any_id_of_an_image(content, read, image):
    content["images"][0]["id"] = image
    for entry in content["annotations"]:
        entry["image_id"] = image
    (found,) = (entry for entry in read().images if entry.id == image)
    assert len(found.objects) == 3


@pytest.mark.parametrize(("iscrowd", "learnt"), [(None, 1), (False, 1), (0.0, 1), (True, 0), (1, 0), (1.0, 0)])
def test_forms_of_iscrowd(content, read, iscrowd, learnt):
    content["annotations"] = [{**content["annotations"][0], "iscrowd": iscrowd}]
    (image,) = (entry for entry in read().images if entry.objects)
    assert len(to_target(image, (3, 90), masks=False)["boxes"]) == learnt


def test_a_mark_at_the_beginning_of_the_file(content, tmp_path):
    file = tmp_path / "instances.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    assert len(read_coco(file, tmp_path).images) == 2


def test_an_image_without_width_is_one_problem(content, read):
    content["images"][0].pop("width")
    problems = []
    read(problems)
    assert len(problems) == 1
    assert "images[0] needs" in problems[0]


def test_labels_that_are_ids(read):
    coco = read().labelled_by_id()
    assert len(coco.names) == 91
    assert (coco.names[3], coco.names[90], coco.names[5]) == ("car", "toothbrush", "no category 5")
    assert to_target(coco.images[1], coco.ids, masks=False)["labels"].tolist() == [90, 3]


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("..\\dataset\\a.png", "a.png"),  # labelme2coco on Windows
        ("..\\..\\label-studio\\media\\upload\\4\\a.png", "a.png"),  # Label Studio
        ("/data/local-files/a.png", "a.png"),
        ("images/sub/a.png", "sub/a.png"),  # CVAT
        ("d%C3%A9cran%20a.png", "d\u00e9cran a.png"),
        ("d\u00e9cran.png", "de\u0301cran.png"),  # macOS writes an accent as a character of its own
        ("de\u0301cran.png", "d\u00e9cran.png"),
        ("50%20a.png", "50%20a.png"),  # the name as it stands comes first
    ],
)
def test_names_as_other_machines_write_them(content, read, tmp_path, written, there):
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / "a.png").rename(tmp_path / there)
    content["images"][0]["file_name"] = written
    assert [image.path for image in read().images] == [tmp_path / "b.png", tmp_path / there]


@pytest.mark.parametrize("written", ["b.png", "other/b.png"])
def test_two_images_in_one_file(content, read, written):
    """Frames of several videos have one name, and overwrite each other when they are exported together."""
    content["images"][0]["file_name"] = written
    with pytest.raises(InputError, match=r"images\[1\]: .*b\.png is the image of images\[0\], too"):
        read()


def test_a_click_too_many_beside_a_polygon(content, read):
    entry = content["annotations"][0]
    expected = decode_mask(read().images[1].objects[0], (30, 40))
    entry["segmentation"] += [[30, 20, 35, 25], [1, 1]]
    assert np.array_equal(decode_mask(read().images[1].objects[0], (30, 40)), expected)
    entry["segmentation"] = [[30, 20, 35, 25]]
    with pytest.raises(InputError, match="a polygon needs three points or more"):
        decode_mask(read().images[1].objects[0], (30, 40))


def test_images_are_held_as_arrays(content, read, tmp_path):
    """Workers share arrays, and would copy objects of Python one by one as they look at them."""
    first, objects = content["images"][0], content["annotations"]
    for i in range(500):
        (tmp_path / f"{i}.png").hardlink_to(tmp_path / "a.png")
    content["images"] = [{**first, "id": i, "file_name": f"{i}.png"} for i in range(500)]
    content["annotations"] = [
        {**entry, "id": 10 * i + k, "image_id": i} for i in range(500) for k, entry in enumerate(objects[:2])
    ]
    gc.collect()
    before = len(gc.get_objects())
    found = read()
    gc.collect()
    assert len(gc.get_objects()) - before < 100
    assert len(found.images) == 500
    assert [image.id for image in found.images[10:13]] == [10, 11, 12]
    assert found.images[10] == found.images[10:][0] == found.images[np.arange(500) == 10][0]
    assert found.images[-1].id == 499
    assert found.images[7].objects[0]["id"] == 70
    with pytest.raises(IndexError):
        found.images[500]
