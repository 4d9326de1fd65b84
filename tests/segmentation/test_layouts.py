"""The same images and masks in every layout give the same targets, and mistakes are named."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dgmn.errors import InputError
from dgmn.segmentation import SegmentationData
from dgmn.segmentation.class_lists import read_color_list
from dgmn_cli import run
from segmentation import formats


@pytest.fixture
def labelled(scenes):
    """The scenes, with some pixels of no label."""
    for path in (scenes / "gtFine").rglob("*.png"):
        mask = np.array(Image.open(path))
        mask[:5, 10:40] = 255
        Image.fromarray(mask).save(path)
    return scenes


def check(data):
    return data.validate(lambda split, total, done: None)


@pytest.mark.parametrize(("layout", "name", "write"), formats.WRITERS, ids=[name for _, name, _ in formats.WRITERS])
def test_every_layout_has_the_same_targets(layout, name, write, labelled, tmp_path):
    out = tmp_path / "out"
    write(labelled, out, 4)
    data, truth = SegmentationData(out), SegmentationData(labelled)
    assert data.layout.name == layout
    names = truth.names if layout != "segnet" else data.names
    drawn = layout in ("coco", "yolo", "labelme")  # their first class is the background
    assert data.names == (("background", *names[1:]) if drawn else names)
    for split in ("train", "val"):
        mine, theirs = data.layout.samples(split), truth.layout.samples(split)[:4]
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            for a, b in zip(data.layout.read(one), truth.layout.read(other), strict=True):
                assert torch.equal(a, b)
    report = check(data)
    assert report.told == f"{data.layout.title} layout, 11 classes, 8 images"
    assert [problem for problem in report.problems if "no pixel of" not in problem] == []
    data.setup("fit")
    assert len(data.dataset("val")) == 4


def test_a_colour_of_no_class_is_named(labelled, tmp_path):
    formats.kaggle(labelled, tmp_path / "out", 1)
    path = next((tmp_path / "out/train_labels").iterdir())
    mask = np.array(Image.open(path))
    mask[0, 0] = (1, 2, 3)
    Image.fromarray(mask).save(path)
    (problem,) = (p for p in check(SegmentationData(tmp_path / "out")).problems if "no pixel" not in p)
    assert problem == f"{path}: the colour (1, 2, 3) is of no class in the list of colours"
    mask = np.array(Image.open(path).convert("RGBA"))
    mask[0, 0] = (*formats.CAMVID[4], 0)  # also a transparent pixel has its colour
    Image.fromarray(mask).save(path)
    data = SegmentationData(tmp_path / "out")
    assert data.layout.read_mask(data.layout.samples("train")[0])[0, 0] == 4


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("class_dict.csv", "name,r,g,b\na,1,2,3\nb,1,2\n", r"class_dict.csv:3: a row is a name and its colour"),
        ("class_dict.csv", "name,r,g,b\na,1,2,3\nb,1,2,256\n", r"class_dict.csv:3: a row is a name and its colour"),
        ("class_dict.csv", "name,r,g,b\na,1,2,3\nb,1,2,3\n", r"the colour \(1, 2, 3\) of a and b is there twice"),
        ("label_colors.txt", "1 2 3 a\n1 2 3 Void\n4 5 6 b\n", r"the colour \(1, 2, 3\) of a is there twice"),
        ("label_colors.txt", "1 2 3 a\n4 5 6\n", r"label_colors.txt:2: a row is"),
        ("label_colors.txt", "1 2 3 a\n4 5 6 a\n", r"'a' is there twice"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\na:1,2,3::\nb:1,2::\n", r"labelmap.txt:3: a row is"),
        ("label_colors.txt", "1 2 3 a\n", r"classes: 2 to 255 are accepted, got 1"),
        ("label_colors.txt", b"\xff\xfe", r"not text in UTF-8"),
    ],
)
def test_lists_of_colours(name, text, told, tmp_path):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=told):
        read_color_list(path)


def test_names_and_places_in_a_list_of_colours(tmp_path):
    """The places are the values in greyscale masks; a name may hold commas or spaces."""
    (tmp_path / "class_dict.csv").write_text('﻿name, r, g, b\nunlabelled, 0, 0, 0\n"a, b", 1, 2, 3\nc, 9, 9, 9\n')
    classes = read_color_list(tmp_path / "class_dict.csv")
    assert (classes.names, classes.ids, classes.ignored) == (("a, b", "c"), (1, 2), (0,))
    (tmp_path / "label_colors.txt").write_text("# comment\n1 2 3 Road  Marking\n0 0 9 c\n")
    assert read_color_list(tmp_path / "label_colors.txt").names == ("Road Marking", "c")


def test_what_could_be_several_is_refused(labelled, tmp_path, capsys):
    out = tmp_path / "out"
    formats.panoptic(labelled, out, 1)
    formats.coco(labelled, out, 1)
    arguments = ["validate-data", "-c", "recipes/segmentation/finetune_folder.yaml", "--data.root", str(out)]
    assert run([*arguments, "--picture", str(tmp_path / "a.jpg")]) == 2
    told = r"it could be COCO panoptic (annotations/panoptic_train2017.json and its PNG files) or COCO (annotations/"
    assert told in (error := capsys.readouterr().err)
    assert "choose with --data.layout panoptic or --data.layout coco" in error
    for layout, title in {"panoptic": "COCO panoptic", "coco": "COCO"}.items():
        run([*arguments, "--data.layout", layout, "--picture", str(tmp_path / "a.jpg")])
        assert f"{title} layout, 11 classes, 2 images" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"data.layout 'cocoo': no such layout, did you mean coco\?"):
        SegmentationData(out, layout="cocoo").setup("fit")
    with pytest.raises(InputError, match=r"data.labels is for the layout cityscapes or voc, data.layout is coco"):
        SegmentationData(out, layout="coco", labels="gtFine").setup("fit")
    with pytest.raises(InputError, match=r"data.masks and data.annotations: no layout has all of these"):
        SegmentationData(out, masks="{name}.png", annotations="a.json").setup("fit")


def test_cvats_folders_of_coco(labelled, tmp_path):
    """CVAT puts the images into images/train. `images` alone does not say that there are masks."""
    formats.coco(labelled, tmp_path / "out", 1)
    for split in ("train", "val"):
        (tmp_path / "out/images").mkdir(exist_ok=True)
        (tmp_path / "out" / split).rename(tmp_path / "out/images" / split)
    data = SegmentationData(tmp_path / "out", images="images/{split}")
    data.setup("fit")
    assert data.layout.name == "coco"


def test_roboflows_masks(labelled, tmp_path):
    out = tmp_path / "out"
    formats.roboflow_masks(labelled, out, 1)
    (out / "classes.txt").write_text("\n".join(["none", *formats.names_of(labelled)]))
    data = SegmentationData(out)
    assert data.layout.name == "roboflow_masks"
    assert data.names[0] == "none", "a list of the user's own counts more"
    with pytest.raises(InputError, match=r"no images for 'test' in .*test: there is no such folder"):
        data.layout.samples("test")
    (out / "valid/_classes.csv").write_text("Pixel Value, Class\n0, a\n0, b\n")
    with pytest.raises(InputError, match=r"valid/_classes.csv:3: a row is a value of its own and a name"):
        SegmentationData(out).setup("fit")
    (out / "valid/_classes.csv").write_text("Pixel Value, Class\n0, a\n1, b\n")
    with pytest.raises(InputError, match=r"valid/_classes.csv: other classes than in .*train/_classes.csv"):
        SegmentationData(out).setup("fit")


def test_masks_beside_their_images(labelled, tmp_path):
    formats.roboflow_masks(labelled, tmp_path / "out", 2)
    for path in (tmp_path / "out").glob("*/*_mask.png"):
        path.rename(path.with_name(path.name.replace("_mask", "_seg")))
    (tmp_path / "out/classes.txt").write_text("\n".join(["none", *formats.names_of(labelled)]))
    data = SegmentationData(tmp_path / "out", images="{split}", masks="{split}/{name}_seg.png")
    assert len(data.layout.samples("train")) == 2


def test_all_mistakes_of_outlines_are_listed(labelled, tmp_path):
    out = tmp_path / "out"
    formats.labelme(labelled, out, 2)
    files = sorted((out / "train").glob("*.json"))
    for file in files:
        content = json.loads(file.read_text())
        content["shapes"][0]["shape_type"] = "line"
        file.write_text(json.dumps(content))
    told = [problem for problem in check(SegmentationData(out)).problems if "no pixel" not in problem]
    assert [problem.split(":")[0] for problem in told] == [str(file) for file in files]
    with pytest.raises(InputError, match=r"shapes\[0\]: a 'line' .* \(and 1 more: dgmn validate-data names them\)"):
        SegmentationData(out).setup("fit")


def test_a_box_of_yolo_is_no_outline(labelled, tmp_path):
    formats.yolo(labelled, tmp_path / "out", 1)
    next((tmp_path / "out/labels/train").iterdir()).write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(InputError, match=r"\.png: annotation 1: segmentation must be polygons"):
        SegmentationData(tmp_path / "out").setup("fit")


def test_segments_that_are_not_listed(labelled, tmp_path):
    formats.panoptic(labelled, tmp_path / "out", 1)
    file = tmp_path / "out/annotations/panoptic_train.json"
    content = json.loads(file.read_text())
    first = content["annotations"][0]["segments_info"].pop()
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"holds the segment {first['id']}, which .*annotations\[0\] does not list"):
        SegmentationData(tmp_path / "out").setup("fit")
    content["annotations"][0]["segments_info"].append({**first, "category_id": 4})
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"annotations\[0\]: segments_info\[\d+\]: the category_id 4 is not declared"):
        SegmentationData(tmp_path / "out").setup("fit")
    content["annotations"][0]["file_name"] = "../../elsewhere.png"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"annotations\[0\] needs file_name as text without \.\."):
        SegmentationData(tmp_path / "out").setup("fit")


def test_parts_of_voc(labelled, tmp_path):
    formats.voc(labelled, tmp_path / "out", 2)
    folder = tmp_path / "out/VOCdevkit/VOC2012"
    with pytest.raises(InputError, match=r"no part 'dev' .* expected .*Segmentation/dev.txt; there are train, val"):
        SegmentationData(tmp_path / "out").layout.samples("dev")
    (folder / "ImageSets/Segmentation/train.txt").write_text("none\n")
    with pytest.raises(InputError, match=r"train.txt:1: no image .*JPEGImages/none\.\*"):
        SegmentationData(tmp_path / "out").setup("fit")
    (folder / "SegmentationClass").rename(folder / "SegmentationClassAug")
    assert len(SegmentationData(tmp_path / "out", labels="SegmentationClassAug").layout.samples("val")) == 2


def test_images_without_splits_need_lists(labelled, tmp_path):
    """Otherwise the validation would be on the training images."""
    formats.camvid(labelled, tmp_path / "out", 2)
    (tmp_path / "out/val.txt").unlink()
    with pytest.raises(InputError, match=r"no .*val.txt: all images are in one folder, so it must name those of 'val'"):
        SegmentationData(tmp_path / "out").setup("fit")
    (tmp_path / "out/val.txt").write_text("missing.png\n")
    with pytest.raises(InputError, match=r"val.txt:1: no image missing.png"):
        SegmentationData(tmp_path / "out").setup("fit")
