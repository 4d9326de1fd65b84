"""What Pascal VOC, LabelMe and Roboflow write beside boxes, and folders that could be several layouts."""

import contextlib
import json
import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detection import formats
from dgmn.detection.data import DetectionData
from dgmn.errors import InputError
from dgmn.layout import find_layout
from dgmn.objects.layouts import LAYOUTS
from dgmn_cli import run

RECIPE = "recipes/detection/finetune_coco_format.yaml"
SIZE = (40, 30)


def image(file, size=SIZE, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(file, **options)


def read(root, part="train", masks=False):
    """The names of the classes, and of each image the boxes and labels."""
    layout = DetectionData(root).layout
    found = layout.samples(part, masks)
    return found.names, [layout.read(entry, found, masks)[1] for entry in found.images]


def problems(root, part="train", masks=False):
    told = []
    find_layout(LAYOUTS, root, None).samples(part, masks, told)
    return told


def voc_object(name, corners, more=""):
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>\n"


def voc_file(objects, size=SIZE):
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>\n{objects}</annotation>"


def test_coordinates_of_voc(tmp_path):
    """As in detectron2, the box from pixel 1 to the last one is the whole image. A 0 is the border, too."""
    image(tmp_path / "train/a.jpg")
    boxes = [(1, 1, 40, 30), (0, 0, 40, 30), (11, 6, 11, 6), ("2.5", "3.25", "9", "1e1"), ("2.5", "3.25", "9.", "10")]
    formats.write(
        tmp_path / "train/a.xml", voc_file("".join(voc_object("x", box) for box in boxes if "1e1" not in box))
    )
    _, (target,) = read(tmp_path)
    assert target["boxes"].tolist() == [[0, 0, 40, 30], [0, 0, 40, 30], [10, 5, 11, 6], [1.5, 2.25, 9, 10]]


def test_sizes_and_classes_of_voc(tmp_path):
    """A size of 0 is unknown. Without a list, the classes of all parts are sorted."""
    for name in ("train/a", "train/b", "val/a"):
        image(tmp_path / f"{name}.jpg")
    formats.write(tmp_path / "train/a.xml", voc_file(voc_object("dog &amp; cat", (1, 1, 5, 5)), size=(0, 0)))
    formats.write(tmp_path / "train/b.xml", voc_file(voc_object("bird", (1, 1, 5, 5), "<difficult>1</difficult>")))
    formats.write(tmp_path / "val/a.xml", voc_file(voc_object("ant", (1, 1, 5, 5))))
    names, targets = read(tmp_path)
    assert names == ("ant", "bird", "dog & cat")
    assert [target["labels"].tolist() for target in targets] == [[2], []]
    formats.write(tmp_path / "labelmap.txt", "# label:colour\nbackground:0,0,0::\ndog & cat:1,1,1::\nbird:2,2,2::\n")
    assert read(tmp_path)[0] == ("dog & cat", "bird")
    assert "val/a.xml:2: 'ant' is none of the 2 classes" in problems(tmp_path, "val")[0]
    formats.write(tmp_path / "train/b.xml", voc_file("", size=(41, 30)))
    with pytest.raises(InputError, match="40 x 30 pixels, the annotations say 41 x 30"):
        read(tmp_path)
    with pytest.raises(InputError, match="boxes only, no masks"):
        read(tmp_path, masks=True)


def test_several_years_of_voc(coco_scenes, tmp_path):
    formats.voc_devkit(coco_scenes, tmp_path)
    folder = tmp_path / "VOCdevkit"
    shutil.copytree(folder / "VOC2007", folder / "VOC2012")
    layout = find_layout(LAYOUTS, tmp_path, None)
    assert layout.splits() == [f"VOC{year}/{part}" for year in (2007, 2012) for part in ("test", "train", "val")]
    assert len(layout.samples("VOC2007/train+VOC2012/val", masks=False).images) == 8 + 5
    with pytest.raises(InputError, match=r"no part 'train' in .* there are VOC2007/test, VOC2007/train"):
        layout.samples("train", masks=False)
    (folder / "VOC2012/Annotations/train_000003.xml").unlink()
    (folder / "VOC2012/JPEGImages/train_000005.png").unlink()
    told = []
    layout = find_layout(LAYOUTS, folder, None)
    layout.samples("VOC2012/train", masks=False, problems=told)
    assert [re.sub(r".*/", "", problem.partition(": no ")[0]) for problem in told] == ["train.txt:3", "train.txt:5"]


LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]>\n<annotation>&c;</annotation>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LAUGHS, "a.xml:1: a DOCTYPE is not read"),
        ("<annotation>\n<object>", "a.xml:2: not XML (no element found)"),
        ("", "a.xml:1: not XML (no element found)"),
        ('<?xml version="1.0" encoding="what"?><a/>', "a.xml"),
        ("<a>" * 60, "a.xml:1: elements are nested more than 50 deep"),
        ("\n<html/>", "a.xml:2: not Pascal VOC's XML: it begins with <html>"),
        (voc_file("<object><bndbox/></object>"), "a.xml:2: an object without a name"),
        (
            voc_file("<object><name>x</name><robndbox/></object>"),
            "a.xml:2: 'x' has no bndbox (<robndbox> is a turned one)",
        ),
        (voc_file(voc_object("x", (5, 1, 4, 5))), "a.xml:2: bndbox must have xmin <= xmax"),
        (voc_file(voc_object("x", ("nan", 1, 4, 5))), "a.xml:2: bndbox needs xmin, ymin, xmax and ymax as numbers"),
        (voc_file(voc_object("x", (1, 1, 4, 5), "<difficult>yes</difficult>")), "a.xml:2: difficult must be 0 or 1"),
    ],
)
def test_mistakes_in_xml(content, message, tmp_path):
    image(tmp_path / "train/a.jpg")
    formats.write(tmp_path / "train/a.xml", content)
    told = [problem for problem in problems(tmp_path) if "no categories" not in problem]
    assert len(told) == 1
    assert message in told[0]


def test_shapes_of_labelme(tmp_path):
    """A rectangle has any two corners. Shapes of a group are one object. The image may lie elsewhere."""
    image(tmp_path / "photos/a.jpg")
    image(tmp_path / "train/empty.jpg")
    shapes = [
        {"label": "x", "points": [[9, 8], [3, 2]], "shape_type": "rectangle"},
        {"label": "x", "points": [[1, 1], [5, 1], [5, 5]], "group_id": 4},
        {"label": "x", "points": [[20, 20], [25, 20], [25, 29.5]], "group_id": 4, "shape_type": "polygon"},
        {"label": "y", "points": [[1, 1], [5, 1], [5, 5]], "group_id": 4, "shape_type": "polygon"},
    ]
    facts = {"imagePath": "..\\photos\\a.jpg", "imageHeight": 30, "imageWidth": 40}
    formats.write(tmp_path / "train/b.json", json.dumps({"shapes": shapes, **facts}))
    names, targets = read(tmp_path)
    assert names == ("x", "y")
    boxes, labels = targets[0]["boxes"], targets[0]["labels"]
    assert boxes.tolist() == [[3, 2, 9, 8], [1, 1, 25, 29.5], [1, 1, 5, 5]]
    assert labels.tolist() == [0, 0, 1]
    assert len(targets[1]["boxes"]) == 0
    formats.write(tmp_path / "train/b.json", json.dumps({"shapes": shapes[1:], **facts}))
    _, (target, _) = read(tmp_path, masks=True)
    assert target["masks"].sum((1, 2)).tolist()[0] > target["masks"].sum((1, 2)).tolist()[1] > 5


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            {"points": [[1, 1], [2, 2]], "shape_type": "circle"},
            "shapes[0]: a 'circle' is no object with a box: draw a rectangle or a polygon",
        ),
        ({"points": [[1, 1], [2, 2]]}, "shapes[0]: a polygon needs three points or more, got 2 points"),
        ({"points": [[1, 1]] * 3, "shape_type": "rectangle"}, "shapes[0]: a rectangle needs two corners, got 3 points"),
        ({"points": [[1, 1], [2, 2], [float("nan"), 1]]}, "shapes[0]: points must be a list of [x, y] in pixels"),
        ({"points": [[1, 1], [2, 2], [10**400, 1]]}, "shapes[0]: points must be a list of [x, y] in pixels"),
        ({"points": [], "label": ""}, "shapes[0] needs a label as text"),
    ],
)
def test_mistakes_in_labelme(shape, message, tmp_path):
    image(tmp_path / "train/a.jpg")
    formats.write(tmp_path / "train/a.json", json.dumps({"shapes": [{"label": "x", **shape}]}))
    formats.write(tmp_path / "classes.txt", "x")
    (told,) = problems(tmp_path)
    assert told == f"{tmp_path / 'train/a.json'}: {message}"


def test_superclass_of_roboflow(coco_scenes, tmp_path):
    """It is left out, also if a class has its name. A category with objects is a class."""
    root = tmp_path / "roboflow"
    formats.roboflow(coco_scenes, root)
    file = root / "train/_annotations.coco.json"
    assert find_layout(LAYOUTS, root, None).samples("train", masks=False).names == tuple(map(str, range(10)))
    text = {name: (root / name / file.name).read_text() for name in ("train", "valid", "test")}
    for name, content in text.items():
        (root / name / file.name).write_text(content.replace('"digits"', '"7"'))
    assert find_layout(LAYOUTS, root, None).samples("val", masks=False).names == tuple(map(str, range(10)))
    content = json.loads(text["test"])
    content["annotations"][0]["category_id"] = 0
    for name in ("train", "valid"):
        (root / name / file.name).write_text(text[name])
    (root / "test" / file.name).write_text(json.dumps(content))
    assert find_layout(LAYOUTS, root, None).samples("train", masks=False).names == ("digits", *map(str, range(10)))


def test_a_folder_that_could_be_several_layouts(coco_scenes, tmp_path):
    (coco_scenes / "data.yaml").write_text("train: train\nnames: [a]")
    with pytest.raises(InputError, match=r"could be COCO .* or YOLO .*: choose with --data.layout coco or --data"):
        DetectionData(coco_scenes, train="train").layout  # noqa: B018
    assert DetectionData(coco_scenes, layout="coco").layout.name == "coco"
    assert DetectionData(coco_scenes, layout="yolo").layout.name == "yolo"
    assert DetectionData(coco_scenes, annotations="annotations/{split}.json").layout.name == "coco"
    with pytest.raises(InputError, match=r"data.images is for the layout coco, data.layout is yolo"):
        DetectionData(coco_scenes, layout="yolo", images="images").layout  # noqa: B018
    with pytest.raises(InputError, match=r"data.layout 'yoloo': no such layout, did you mean yolo"):
        DetectionData(coco_scenes, layout="yoloo").layout  # noqa: B018
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no known layout \(COCO: annotations/.*LabelMe: .*\); it is empty"):
        DetectionData(tmp_path / "empty").layout  # noqa: B018
    (coco_scenes / "data.yaml").unlink()
    for name in ("a.yaml", "b.yml"):
        (coco_scenes / name).write_text("train: train\nnames: [a]")
    with pytest.raises(InputError, match=r"a.yaml, b.yml could all be meant: name the right one data.yaml"):
        DetectionData(coco_scenes, layout="yolo").layout  # noqa: B018


def test_images_of_yolo(tmp_path, capsys):
    """An image is turned upright before its labels count. One that is damaged is left out, if that is wanted."""
    formats.write(tmp_path / "data.yaml", "train: images\nval: images\nnames: [a]")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image(tmp_path / "images/turned.jpg", exif=exif)
    image(tmp_path / "images/plain.png")
    for name in ("damaged", "turned", "plain"):
        formats.write(tmp_path / f"labels/{name}.txt", "0 0.5 0.5 1 1\n")
    (tmp_path / "images/damaged.png").write_bytes(b"no image")
    data = DetectionData(tmp_path, train="train", val="val", skip_bad_images=True)
    samples = data.dataset("val")
    assert samples[0] is None
    assert "images/damaged.png: not an image" in capsys.readouterr().err
    for sample, width, height in ((samples[1], 40, 30), (samples[2], 30, 40)):
        assert sample[0].shape == (3, height, width)
        assert sample[1]["boxes"].tolist() == [[0, 0, width, height]]
    (told,) = set(data.validate(lambda *state: None).problems)
    assert "images/damaged.png: not an image" in told


FILES = {
    "train/a.xml": voc_file(voc_object("x", (1, 1, 5, 5))),
    "train/a.json": json.dumps({"shapes": [{"label": "x", "points": [[1, 1], [5, 1], [5, 5]]}], "imagePath": "a.jpg"}),
    "data.yaml": "path: .\ntrain: [train, list.txt]\nnames: {0: x, 1: y}\nnc: 2\nkpt_shape: [1, 2]\n",
    "obj.data": "classes = 2\nnames = obj.names\ntrain = data/list.txt\n",
    "train/_annotations.coco.json": json.dumps(
        {
            "images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}],
            "categories": [{"id": 0, "name": "all"}, {"id": 1, "name": "x", "supercategory": "all"}],
            "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4]}],
        }
    ),
}


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60)
@given(data=st.data())
def test_any_change_of_a_file_is_read_or_refused(name, data, tmp_path_factory):
    root = tmp_path_factory.getbasetemp() / f"changed_{name.replace('/', '_')}"
    image(root / "train/a.jpg")
    for other, text in {"list.txt": "./train/a.jpg\n", "obj.names": "x\ny\n"}.items():
        formats.write(root / other, text)
    text = FILES[name].encode()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 8, len(text))))
    parts = (
        b"null",
        b"-1",
        b"1e999",
        b"true",
        b"[",
        b"]",
        b"{}",
        b"\xff",
        b"\0",
        b"..",
        b"/",
        b"&x;",
        b"<!--",
        b'""',
        b"\n",
    )
    new = data.draw(st.one_of(st.sampled_from(parts), st.binary(max_size=4), st.just(b"9" * 5000)))
    (root / name).write_bytes(text[:start] + new + text[end:])
    layout = {"xml": "voc", "yaml": "yolo", "data": "yolo"}.get(name.rpartition(".")[2], "labelme")
    with contextlib.suppress(InputError):
        found = find_layout(LAYOUTS, root, "roboflow" if "coco" in name else layout)
        samples = found.samples("train", masks=layout != "voc")
        assert all(found.read(entry, samples, masks=False) for entry in samples.images)


def test_commands(coco_scenes, tmp_path, capsys, monkeypatch):
    """A dataset is validated and converted, and what was written has the same targets."""
    root, out = tmp_path / "voc", tmp_path / "converted"
    formats.voc_devkit(coco_scenes, root)
    monkeypatch.chdir(tmp_path)
    assert run(["validate-data", "-c", RECIPE, "--data.root", "voc"]) == 0
    assert "Pascal VOC layout, 10 classes, 13 images\n" in capsys.readouterr().out
    assert run(["validate-data", "-c", RECIPE, "--data.root", "voc", "--data.layout", "labelme"]) == 1
    assert "no part 'train' in voc: expected a folder voc/train with images and .json files" in capsys.readouterr().out
    assert run(["convert-data", "voc", "--to", "coco", "--out", "converted"]) == 0
    assert "Pascal VOC layout, 10 classes, 16 images\n" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["annotations", "test", "train", "val"]
    for part in ("train", "val", "test"):
        (names, mine), (others, wanted) = read(out, part), read(coco_scenes, part)
        assert names == others
        for target, target_of_coco in zip(mine, wanted, strict=True):
            assert all(torch.equal(target[key], target_of_coco[key]) for key in ("boxes", "labels"))
    assert run(["convert-data", "voc", "--out", "converted"]) == 2
    assert "--out converted: it is there already" in capsys.readouterr().err
    assert run(["convert-data", "converted", "--out", "again"]) == 2
    assert "converted: it is in COCO's layout already" in capsys.readouterr().err
    (root / "VOCdevkit/VOC2007/JPEGImages/val_000002.png").write_bytes(b"no image")
    assert run(["convert-data", "voc", "--out", "again"]) == 2
    told = capsys.readouterr()
    assert "voc: 1 problem; nothing is written" in told.err
    assert "val_000002.png: not an image" in told.out
    assert not (tmp_path / "again").exists()
    assert np.asarray(Image.open(out / "train/train_000001.png")).shape == (96, 144, 3)
