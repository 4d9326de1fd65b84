"""What annotation tools export without parts: all images in one, read as COCO's files and split once and for all."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from detection import formats
from dgmn.detection import DetectionData
from dgmn.detection.metrics import average_precision
from dgmn.errors import InputError
from dgmn.layout import find_layout
from dgmn.objects.layouts import LAYOUTS, CocoFiles
from dgmn.segmentation import SegmentationData
from dgmn_cli import run

NAMES = {"train": "train", "val": "val"}


@pytest.fixture
def coco(coco_scenes):
    """A part with polygons, of which one image has no objects."""
    for part in ("val", "test"):
        (coco_scenes / f"annotations/instances_{part}.json").unlink()
    content = formats.contents(coco_scenes)["train"]
    first = content["images"][0]["id"]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != first]
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["segmentation"] = [[x + 1, y, x + w, y + 2, x + w, y + h - 1, x, y + h]]
    (coco_scenes / "annotations/instances_train.json").write_text(json.dumps(content))
    return coco_scenes


def _one_json(coco, out, images, file, prefix=""):
    shutil.copytree(coco / "train", out / images)
    content = formats.contents(coco)["train"]
    for entry in content["images"]:
        entry["file_name"] = prefix + entry["file_name"]
    formats.write(out / file, json.dumps(content))


def _yolo(coco, out):
    formats.yolo_without_description(coco, out)
    for kind in ("images", "labels"):
        for path in sorted((out / kind / "train").iterdir()):
            path.rename(out / kind / path.name)
        (out / kind / "train").rmdir()


def yolo_of_label_studio(coco, out):
    _yolo(coco, out)
    formats.write(out / "notes.json", json.dumps({"categories": [{"id": 0, "name": "0"}], "info": {"year": 2026}}))


def yolo_of_labelimg(coco, out):
    _yolo(coco, out)
    for path in (*(out / "images").iterdir(), *(out / "labels").iterdir()):
        path.rename(out / path.name)
    for kind in ("images", "labels"):
        (out / kind).rmdir()


def yolo_of_cvat(coco, out):
    formats.yolo_of_cvat(coco, out)


def coco_of_label_studio(coco, out):
    _one_json(coco, out, "images", "result.json", "images/")


def coco_of_cvat(coco, out):
    _one_json(coco, out, "images/default", "annotations/instances_default.json")


def coco_of_fiftyone(coco, out):
    _one_json(coco, out, "data", "labels.json")


def coco_in_one_folder(coco, out):
    _one_json(coco, out, ".", "_annotations.coco.json")


def labelme(coco, out):
    formats.labelme(coco, out)
    for path in sorted((out / "train").iterdir()):
        path.rename(out / path.name)
    (out / "train").rmdir()


def voc_of_labelimg(coco, out):
    formats.voc_beside(coco, out)
    for path in sorted((out / "train").iterdir()):
        path.rename(out / path.name)
    (out / "train").rmdir()


def voc_without_lists(coco, out):
    formats.voc_devkit(coco, out)
    shutil.rmtree(out / "VOCdevkit/VOC2007/ImageSets")


def voc_of_cvat(coco, out):
    formats.voc_devkit(coco, out)
    main = out / "VOCdevkit/VOC2007/ImageSets/Main"
    (main / "train.txt").rename(main / "default.txt")


def voc_in_small_letters(coco, out):
    voc_of_labelimg(coco, out)
    for suffix, folder in ((".png", "images"), (".xml", "annotations")):
        (out / folder).mkdir()
        for path in sorted(out.glob(f"*{suffix}")):
            path.rename(out / folder / path.name)


POLYGONS = [
    *(yolo_of_label_studio, yolo_of_labelimg, yolo_of_cvat),
    *(coco_of_label_studio, coco_of_cvat, coco_of_fiftyone, coco_in_one_folder, labelme),
]
BOXES = [voc_of_labelimg, voc_without_lists, voc_of_cvat, voc_in_small_letters]


@pytest.mark.parametrize("writer", [*POLYGONS, *BOXES])
def test_exports_without_parts(writer, coco, tmp_path):
    root, masks = tmp_path / "other", writer in POLYGONS
    writer(coco, root)
    (part,) = find_layout(LAYOUTS, root).splits()
    expected = CocoFiles(coco).samples("train", masks)
    read = CocoFiles(coco)

    def objects(image, categories, layout):
        pixels, target = layout.read(image, categories, masks)
        return pixels, {key: target[key] for key in ("boxes", "labels", *(("masks",) if masks else ()))}

    whole = DetectionData(root, train=part, val=part).layout
    ours = whole.samples(part, masks)
    assert ours.names == expected.names
    for mine, theirs in zip(ours.images, expected.images, strict=True):
        (image, target), (wanted_image, wanted) = objects(mine, ours, whole), objects(theirs, expected, read)
        assert torch.equal(image, wanted_image)
        assert all(torch.equal(target[key], wanted[key]) for key in wanted)
    data = DetectionData(root, **NAMES)
    names = {part: [image.path.name for image in data.layout.samples(part, masks).images] for part in NAMES}
    assert names["val"]
    assert len(names["train"]) > len(names["val"])
    assert sorted(names["train"] + names["val"]) == sorted(image.path.name for image in ours.images)
    # The evaluation knows the images of its part only.
    truth = data.truth("val")
    assert [Path(entry["file_name"]).name for entry in truth["images"]] == names["val"]
    perfect = [
        {"image_id": e["image_id"], "category_id": e["category_id"], "score": 1.0, "bbox": e["bbox"]}
        for e in truth["annotations"]
    ]
    assert average_precision(truth, perfect)[0]["AP"] == pytest.approx(1.0)


def test_the_split_is_the_same_in_every_format(coco, tmp_path):
    found = []
    for writer in (yolo_of_label_studio, coco_of_cvat, labelme, voc_of_labelimg):
        writer(coco, tmp_path / writer.__name__)
        layout = DetectionData(tmp_path / writer.__name__, **NAMES).layout
        found.append([image.path.name for image in layout.samples("val", masks=False).images])
    assert found[0]
    assert found == [found[0]] * 4


def test_the_split_is_kept(coco, tmp_path, capsys):
    root = tmp_path / "other"
    labelme(coco, root)
    recipe = ["-c", "recipes/detection/finetune_coco_format.yaml", "--data.root", str(root)]
    assert run(["validate-data", *recipe]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "LabelMe layout, 10 classes, 8 images; 8 images without parts split into 6 training and 2 validation" in out
    assert not (root / "split.csv").exists()
    data = DetectionData(root, **NAMES)
    data.prepare_data()
    assert f"images, written to {root / 'split.csv'}" in capsys.readouterr().out
    with (root / "split.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == {path.name for path in root.glob("*.png")}
    chosen = [row["file"] for row in rows if row["split"] == "val"]
    assert [image.path.name for image in data.layout.samples("val", masks=False).images] == sorted(chosen)
    # A split that is there counts, with a part for the test.
    parts = dict(zip((row["file"] for row in rows), ["test", "val", *["train"] * 6], strict=True))
    (root / "split.csv").write_text("file,split\n" + "".join(f"{name},{part}\n" for name, part in parts.items()))
    mine = DetectionData(root, **NAMES, test="test")
    mine.prepare_data()
    counts = "6 for training, 1 for validation, 1 for test"
    assert capsys.readouterr().out == f"data: split as {root / 'split.csv'} says, {counts}\n"
    for part in ("train", "val", "test"):
        found = [image.path.name for image in mine.layout.samples(part, masks=False).images]
        assert found == sorted(name for name, of in parts.items() if of == part)
    shutil.copyfile(coco / "train/000001.png", root / "new.png")
    assert "this file: 1 image, such as new.png" in DetectionData(root, **NAMES).layout.parts[1]
    # Without a name for the test, its images are in no part.
    default = DetectionData(root, **NAMES).layout
    assert default.splits() == ["train", "val"]
    assert len(default.samples("val", masks=False).images) == sum(of == "val" for of in parts.values())
    # The same images for segmentation: outlines are drawn.
    assert len(SegmentationData(root).layout.samples("train")) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,1\n", "split.csv: its first line must name the columns file and split"),
        ("file,split\n000001.png,dev\n", "split.csv:2: split must be train, val or test, got 'dev'"),
        ("file,split\n000001.png\n", "split.csv:2: 1 column, the first line has 2"),
        ("file,split\n000001.png,val\n000001.png,val\n", "split.csv:3: 000001.png is there twice"),
        ("file,split\nother.png,val\n", "split.csv: it names 1 image that"),
        ("file,split\n000001.png,train\n", "no part 'val' in"),
    ],
)
def test_mistakes_in_a_split(text, message, coco, tmp_path):
    root = tmp_path / "other"
    labelme(coco, root)
    (root / "split.csv").write_text(text)
    with pytest.raises(InputError) as refused:
        DetectionData(root, **NAMES).layout.samples("val", masks=False)
    assert message in str(refused.value)


def test_what_is_not_split(coco, tmp_path):
    """A part that a person named, and an image alone."""
    with pytest.raises(InputError, match="no part 'val' in"):
        DetectionData(coco, **NAMES).layout.samples("val", masks=False)
    root = tmp_path / "one"
    _one_json(coco, root, "images", "result.json")
    content = json.loads((root / "result.json").read_text())
    content["images"] = content["images"][:1]
    content["annotations"] = []
    (root / "result.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="1 image; to split them, it needs two or more"):
        DetectionData(root, **NAMES).layout.samples("val", masks=False)
    (root / "other.json").write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=r"choose with --data.annotations other.json or --data.annotations result.json"
    ):
        DetectionData(root, **NAMES).layout.samples("val", masks=False)


def test_folders_of_parts_inside(coco, tmp_path):
    """Annotations and images with folders for their parts are split by these."""
    root = tmp_path / "other"
    voc_in_small_letters(coco, root)
    for kind in ("images", "annotations"):
        for i, path in enumerate(sorted((root / kind).iterdir())):
            part = root / kind / ("val" if i > 5 else "train")
            part.mkdir(exist_ok=True)
            path.rename(part / path.name)
    layout = DetectionData(root, **NAMES).layout
    assert layout.splits() == ["train", "val"]
    assert len(layout.samples("val", masks=False).images) == 2


@pytest.mark.parametrize("name", [" a.png", "c\rd.png", "\udce9.png"])
def test_a_split_of_odd_names_is_read_again(name, coco, tmp_path):
    _yolo(coco, tmp_path / "yolo")
    image = sorted((tmp_path / "yolo/images").iterdir())[1]
    (tmp_path / "yolo/labels" / image.with_suffix(".txt").name).rename(
        (tmp_path / "yolo/labels" / name).with_suffix(".txt")
    )
    image.rename(image.with_name(name))
    parts = []
    for _ in range(2):
        data = DetectionData(tmp_path / "yolo", num_workers=0)
        data.prepare_data()
        data.setup("fit")
        parts.append(
            {split: sorted(image["file_name"] for image in data.truth(split)["images"]) for split in ("train", "val")}
        )
    assert (tmp_path / "yolo/split.csv").is_file()
    assert parts[0] == parts[1]
