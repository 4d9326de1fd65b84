"""Formats beside COCO's: what they say is what COCO's files say."""

import json
import re
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detection import formats
from dgmn.detection.data import DetectionData
from dgmn.detection.metrics import average_precision
from dgmn.errors import InputError
from dgmn.layout import find_layout
from dgmn.objects.layouts import LAYOUTS, CocoFiles


@pytest.fixture
def coco(coco_scenes):
    """The scenes with polygons instead of run lengths, an image without objects, and classes that are not sorted."""
    for part, content in formats.contents(coco_scenes).items():
        first = content["images"][0]["id"]
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != first]
        for entry in content["annotations"]:
            x, y, w, h = entry["bbox"]
            entry["segmentation"] = [[x + 1, y, x + w, y + 2, x + w, y + h - 1, x, y + h]]
        for entry in content["categories"]:
            entry["name"] = f"digit {9 - int(entry['name'])}"
        (coco_scenes / f"annotations/instances_{part}.json").write_text(json.dumps(content))
    return coco_scenes


def targets(root, part, masks):
    layout = DetectionData(root).layout
    found = layout.samples(part, masks)
    return found, [layout.read(image, found, masks) for image in found.images]


def check_same(root, coco, masks):
    for part in ("train", "val", "test"):
        (ours, mine), (theirs, wanted) = (targets(folder, part, masks) for folder in (root, coco))
        assert (ours.names, ours.ids) == (theirs.names, theirs.ids)
        assert ours.names[0] == "digit 9"
        assert len(mine) == len(wanted)
        for (image, target), (image_of_coco, target_of_coco) in zip(mine, wanted, strict=True):
            assert torch.equal(image, image_of_coco)
            assert target["image_id"] == target_of_coco["image_id"]
            for key in ("boxes", "labels", *(("masks",) if masks else ())):
                assert target[key].dtype == target_of_coco[key].dtype
                assert torch.equal(target[key], target_of_coco[key])
        assert len(mine[0][1]["boxes"]) == 0


@pytest.mark.parametrize("name", [*formats.POLYGONS, *formats.BOXES])
def test_targets_are_those_of_coco_bit_by_bit(name, coco, tmp_path):
    writer = {**formats.POLYGONS, **formats.BOXES}[name]
    masks = name in formats.POLYGONS
    if not masks:  # crowds are what VOC calls difficult
        for part, content in formats.contents(coco).items():
            content["annotations"][0]["iscrowd"] = 1
            (coco / f"annotations/instances_{part}.json").write_text(json.dumps(content))
    root = tmp_path / "other"
    writer(coco, root)
    check_same(root, coco, masks)
    layouts = [DetectionData(folder).layout for folder in (root, coco)]
    assert layouts[0].name == name.split()[0]
    # A score that shows boxes of any size, crowds and missed objects: every box is moved by a tenth, some are left out.
    results = [
        {"image_id": image.id, "category_id": entry["category_id"], "score": 1 / (2 + i), "bbox": [x + w / 10, y, w, h]}
        for image in layouts[1].samples("val", masks=False).images
        for i, entry in enumerate(image.objects[:3])
        for x, y, w, h in [entry["bbox"]]
    ]
    scores = [average_precision(layout.truth("val"), results)[0] for layout in layouts]
    assert 0.1 < scores[1]["AP"] < 1
    assert {k: scores[0][k] for k in ("AP", "AP50", "AP75")} == {k: scores[1][k] for k in ("AP", "AP50", "AP75")}


def test_boxes_of_yolo_beside_polygons(coco, tmp_path):
    """Of an image, some lines are boxes and some are polygons."""
    for part, content in formats.contents(coco).items():
        for entry in content["annotations"][::2]:
            del entry["segmentation"]
        (coco / f"annotations/instances_{part}.json").write_text(json.dumps(content))
    formats.yolo(coco, tmp_path / "yolo")
    check_same(tmp_path / "yolo", coco, masks=False)
    with pytest.raises(InputError, match="segmentation must be polygons"):
        targets(tmp_path / "yolo", "train", masks=True)


@pytest.mark.parametrize(
    "edit",
    [
        lambda facts: {**facts, "names": list(facts["names"].values())},
        lambda facts: {**facts, "names": {str(key): name for key, name in facts["names"].items()}, "nc": 10},
        lambda facts: {**facts, "path": "..", "train": "yolo/images/train", "val": "yolo/images/val"},
        lambda facts: {**facts, "path": ".", "train": ["./images/train"], "val": "images/../images/val/"},
        lambda facts: {**facts, "train": "lists/train.txt", "val": ["lists/val.txt"]},
        lambda facts: {**facts, "path": None, "train": "/home/me/yolo/images/train", "val": "C:\\yolo\\images\\val"},
        lambda facts: {"validation": facts.pop("val"), **facts},
        lambda facts: {"valid": facts.pop("val"), **facts, "download": "exit(1)"},
    ],
)
def test_spellings_of_data_yaml(edit, coco, tmp_path):
    root = tmp_path / "yolo"
    formats.yolo(coco, root)
    file = root / "data.yaml"
    for part in ("train", "val"):
        names = [image["file_name"] for image in formats.contents(coco)[part]["images"]]
        formats.write(root / "lists" / f"{part}.txt", "\n".join(f"../images/{part}/{name}" for name in names))
    facts = edit(formats.yaml.safe_load(file.read_text()))
    file.unlink()
    formats.write(root / "digits.yaml", formats.yaml.safe_dump(facts))
    check_same(root, coco, masks=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/train\nnames: ]", "data.yaml:2: not YAML"),
        ("{}", "data.yaml: it needs train, val and names"),
        ("- train", "data.yaml: it needs train, val and names"),
        ("train: images/train", "data.yaml: it needs names, the list of classes"),
        ("train: images/train\nnames: [a]\nnc: 2", "data.yaml: nc is 2, but names has 1"),
        ("train: images/train\nnc: 1000000000", "data.yaml: nc must be a whole number in 1..10000"),
        ("train: images/train\nnames: {1: a}", "data.yaml: names must number the classes from 0 to 0"),
        ("train: images/train\nnames: [a, no]", "data.yaml: names holds False; put names such as yes, no and null"),
        (
            "train: images/train\nnames: [a, a, c, d, e, f, g, h, i, j]",
            "data.yaml: categories[1]: the name 'a' is there twice",
        ),
        ("train: images/trein\nnames: [a]", "data.yaml: train: no folder or file 'images/trein'"),
        ("train: {a: b}\nnames: [a]", "data.yaml: train must be a folder, a text file"),
        ("val: images/val\nnames: [a]", "no part 'train' in"),
        ("a: &a [x, x]\nb: &b [*a, *a]\n" + "names: &c [*b, *b]\n" + "x: " + "[" * 60, "nested at most 50 deep"),
        ("train: images/train\nnames: !!python/object/apply:os.system ['true']", "data.yaml:2: not YAML"),
    ],
)
def test_mistakes_in_data_yaml(text, message, coco, tmp_path):
    formats.yolo(coco, tmp_path / "yolo")
    (tmp_path / "yolo/data.yaml").write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        DetectionData(tmp_path / "yolo").layout.samples("train", masks=False)


def test_mistakes_in_labels_are_named_by_line(coco, tmp_path):
    """Each of these lines is a mistake that tools make."""
    formats.yolo(coco, tmp_path / "yolo")
    file = tmp_path / "yolo/labels/train/000002.txt"
    mistakes = {
        "dog 0.5 0.5 0.1 0.1": "'dog' is no number",
        "10 0.5 0.5 0.1 0.1": "class 10 is not in 0..9",
        "1.5 0.5 0.5 0.1 0.1": "class 1.5 is not in 0..9",
        "0 260 177 231 199": "260 is not in 0..1; values are shares",
        "0 0.5 0.5 -0.005 0.1": "width and height must not be negative",
        "0 0.5 0.5 0.1 0.1 0.9": "6 values, as in predictions",
        "0 0.5 0.5 0.1": "4 values; a class and a box are 5",
        "0 0.1 0.1 0.2 0.1 0.2 0.2 0.3": "8 values",
        "0 nan 0.5 0.1 0.1": "'nan' is no number",
        "0 1e999 0.5 0.1 0.1": "inf is not in 0..1",
        "0,0.5,0.5,0.1,0.1": "'0,0.5,0.5,0.1,0.1' is no number",
    }
    file.write_text("0 0.5 0.5 0.1 0.1\n\n" + "\n".join(mistakes))
    problems = []
    DetectionData(tmp_path / "yolo").layout.samples("train", masks=False, problems=problems)
    assert len(problems) == len(mistakes)
    for line, (problem, told) in enumerate(zip(problems, mistakes.values(), strict=True), 3):
        assert problem.startswith(f"{file}:{line}: ")
        assert told in problem


def test_labels_of_yolo_that_are_nowhere(coco, tmp_path):
    """A link to a folder of images has its labels beside that folder, as in Ultralytics' code."""
    formats.yolo(coco, tmp_path / "yolo")
    root = tmp_path / "linked"
    root.mkdir()
    (root / "data.yaml").write_text((tmp_path / "yolo/data.yaml").read_text())
    (root / "images").symlink_to(tmp_path / "yolo/images")
    check_same(root, coco, masks=True)
    (tmp_path / "yolo/labels").rename(tmp_path / "yolo/elsewhere")
    problems = {part: [] for part in ("train", "test")}
    for part, told in problems.items():
        DetectionData(root).layout.samples(part, masks=False, problems=told)
    expected = root / "labels/train/000001.txt"
    assert problems["train"] == [f"{root / 'data.yaml'}: train: none of 8 images has labels; no {expected}"]
    assert problems["test"] == []


def test_labels_of_yolo_under_another_spelling(coco, tmp_path):
    """Label Studio encodes the names of labels and not those of images; an image without labels would be empty."""
    formats.yolo(coco, tmp_path / "yolo")
    labels = sorted((tmp_path / "yolo/labels/train").iterdir())[:2]
    for i, (old, new) in enumerate((("%C3%A9%20a", "\u00e9 a"), ("\u00e9 b", "e\u0301 b"))):
        image = tmp_path / f"yolo/images/train/{labels[i].stem}.png"
        image.rename(image.with_stem(new))
        labels[i] = labels[i].rename(labels[i].with_name(f"{old}.txt"))
    found = DetectionData(tmp_path / "yolo").layout.samples("train", masks=False)
    expected = CocoFiles(coco).samples("train", masks=False)
    assert sorted(found.images.objects) == sorted(expected.images.objects)
    labels[0].rename(labels[0].with_name("other.txt"))
    formats.write(tmp_path / "yolo/labels/train/classes.txt", "a\nb\n")  # LabelImg's
    problems = []
    DetectionData(tmp_path / "yolo").layout.samples("train", masks=False, problems=problems)
    (problem,) = problems
    assert re.search(r"labels/train/other\.txt: no image other\.\*, while \d images have no labels", problem)


def test_two_images_whose_names_differ_in_the_extension(coco, tmp_path):
    """`dgmn predict --labels` tells them apart by the whole name."""
    formats.yolo(coco, tmp_path / "yolo")
    images, labels = (tmp_path / f"yolo/{kind}/train" for kind in ("images", "labels"))
    expected = CocoFiles(coco).samples("train", masks=False).images
    with Image.open(images / "000003.png") as picture:
        picture.save(images / "000002.bmp")
    (images / "000003.png").unlink()
    (labels / "000003.txt").rename(labels / "000002.bmp.txt")
    (labels / "000002.txt").rename(labels / "000002.png.txt")
    found = DetectionData(tmp_path / "yolo").layout.samples("train", masks=False).images
    by_name = {image.path.name: image.objects for image in found}
    wanted = {image.path.name: image.objects for image in expected}

    def boxes(entries):
        return [entry["bbox"] for entry in entries]

    assert boxes(by_name["000002.bmp"]) == boxes(wanted["000003.png"])
    assert boxes(by_name["000002.png"]) == boxes(wanted["000002.png"])


def test_where_the_images_of_coco_lie(coco, tmp_path):
    (tmp_path / "images").mkdir()
    shutil.copytree(coco / "annotations", tmp_path / "annotations")
    expected = CocoFiles(coco).samples("train", masks=False)
    (tmp_path / "images/train").symlink_to(coco / "train")
    assert len(CocoFiles(tmp_path).samples("train", masks=False).images) == len(expected.images)
    (tmp_path / "images/train").unlink()
    (tmp_path / "images").rmdir()
    (tmp_path / "images").symlink_to(coco / "train")  # all parts in one folder
    assert len(CocoFiles(tmp_path).samples("train", masks=False).images) == len(expected.images)
    with pytest.raises(InputError, match=r"no image .*pictures/000001"):
        CocoFiles(tmp_path, images="pictures").samples("train", masks=False)


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory):
    root = tmp_path_factory.mktemp("two_classes")
    formats.write(root / "data.yaml", "train: images\nnames: [a, b]")
    return root


@given(data=st.data(), width=st.integers(1, 8000), height=st.integers(1, 8000))
def test_lines_of_yolo(two_classes, data, width, height):
    """Boxes and polygons with up to 3 decimals in pixels come back as they were, from lines with all their digits.

    Tools often write 6 decimals. Then each side is off by at most 0.75e-6 of the image: half of the last decimal of the
    centre, and a quarter of it for half of the size.
    """
    sides = (width, height)

    def pixels(most):
        return data.draw(st.integers(0, most * 1000)) / 1000

    def read(line):
        (two_classes / "a.txt").write_text(line)
        labels = find_layout(LAYOUTS, two_classes, "yolo").labels(two_classes / "a.txt", (height, width))
        assert labels.problems == []
        return labels.objects[0]

    size = [max(pixels(side), 0.001) for side in sides]
    start = [round(pixels(side) * (side - length) / side, 3) for side, length in zip(sides, size, strict=True)]
    box = [*start, *size]
    line = formats.yolo_line(1, {"bbox": box}, *sides)
    thing = read(line)
    assert (thing.category, thing.box, thing.polygons) == ("b", box, [])
    short = [f"{float(value):.6f}" for value in line.split()[1:]]
    near = read(" ".join(("1", *short))).box
    assert all(abs(a - b) <= 0.75e-6 * max(sides) + 1e-8 for a, b in zip(near, box, strict=True))
    polygon = [pixels(sides[i % 2]) for i in range(2 * data.draw(st.integers(3, 6)))]
    thing = read(formats.yolo_line(0, {"segmentation": [polygon]}, *sides))
    assert thing.polygons == [polygon]
    assert thing.box[:2] == [min(polygon[::2]), min(polygon[1::2])]
    x, y, w, h = thing.box
    assert (x + w, y + h) == pytest.approx((max(polygon[::2]), max(polygon[1::2])), abs=1e-9)


@given(content=st.one_of(st.binary(max_size=60), st.text("0123456789.+-eE \n\r\t\0", max_size=60).map(str.encode)))
def test_any_file_of_labels_is_read_or_refused(two_classes, content):
    root = two_classes
    for folder in ("images", "labels"):
        (root / folder).mkdir(exist_ok=True)
    Image.new("RGB", (20, 10)).save(root / "images/a.png")
    (root / "labels/a.txt").write_bytes(content)
    problems = []
    found = find_layout(LAYOUTS, root).samples("train", masks=False, problems=problems)
    assert all(problem.startswith(str(root / "labels/a.txt")) for problem in problems)
    for entry in (*found.images[0].objects, *found.images[0].left_out):
        x, y, w, h = entry["bbox"]
        assert 0 <= x <= 20.3
        assert 0 <= y <= 10.2
        assert x + w <= 20 + 1e-9
        assert y + h <= 10 + 1e-9


def test_a_part_whose_name_has_a_plus(tmp_path):
    shape = {"label": "dot", "points": [[1, 1], [5, 6]], "shape_type": "rectangle"}
    for part in ("train+extra", "val", "test"):
        (tmp_path / part).mkdir()
        Image.new("RGB", (20, 10)).save(tmp_path / part / "a.png")
        content = {"shapes": [shape], "imagePath": "a.png", "imageHeight": 10, "imageWidth": 20}
        (tmp_path / part / "a.json").write_text(json.dumps(content))
    layout = find_layout(LAYOUTS, tmp_path)
    assert "train+extra" in layout.splits()
    for split, number in {"train+extra": 1, "val+test": 2}.items():
        assert len(layout.samples(split, False, []).images) == number
