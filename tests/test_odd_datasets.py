"""Datasets as they are found: nothing gets another label, and nothing is left out without a word."""

import io
import json
import os
import shutil
import tarfile
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from dgmn.classification.data import ClassificationData
from dgmn.classification.layouts import listed
from dgmn.classification.readers import reader_set
from dgmn.detection.data import DetectionData
from dgmn.errors import InputError
from dgmn.images import image_size, load_image
from dgmn.layout import find_layout
from dgmn.objects.layouts import LAYOUTS
from dgmn.report import in_threads
from dgmn.segmentation.data import SegmentationData
from dgmn.segmentation.layouts import LAYOUTS as MASKS
from dgmn.split import for_validation
from dgmn_cli import run


def image(path, size=(40, 20), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    own = zlib.crc32(os.fsencode(path))  # equal images would be told
    pixels = np.random.default_rng(own).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def xml(*boxes, filename=None):
    named = f"<filename>{filename}</filename>" if filename else ""
    sides = ("xmin", "ymin", "xmax", "ymax")
    corners = ["".join(f"<{side}>{x}</{side}>" for side, x in zip(sides, box, strict=True)) for box in boxes]
    objects = "".join(f"<object><name>x</name><bndbox>{each}</bndbox></object>" for each in corners)
    return f"<annotation>{named}{objects}</annotation>"


def found(root, part):
    """The images of a part with the number of their objects, and what is wrong."""
    problems = []
    coco = find_layout(LAYOUTS, root).samples(part, False, problems)
    return {entry.path.name: len(entry.objects) for entry in coco.images}, problems


def checked(data):
    return data.validate(lambda *_: None)


# ---------------------------------------------------------------------------------------------- several names, one file


def test_rows_of_a_table_that_are_one_image(tmp_path):
    """Frames of several videos that overwrote each other."""
    image(tmp_path / "0001.jpg")
    write(tmp_path / "labels.csv", "file,label,split\nvideo1/0001.jpg,cat,train\nvideo2/0001.jpg,dog,val\n")
    with pytest.raises(InputError, match=r"csv:3: video2/0001.jpg, of which there is only 0001.jpg, is 'dog' here and"):
        listed(tmp_path, 0.2)


def test_lines_of_a_list_that_are_one_image(tmp_path):
    for name in ("0001", "0002"):
        image(tmp_path / f"images/{name}.jpg")
        Image.new("L", (40, 20)).save(image(tmp_path / f"masks/{name}.png"))
    write(tmp_path / "classes.txt", "a\nb\n")
    write(tmp_path / "train.txt", 'images/0002.jpg\n./images/0002.jpg\n"images/0002"\n')  # one image, said thrice
    write(tmp_path / "val.txt", "video1/0001.jpg\nvideo2/0001.jpg\n")
    layout = find_layout(MASKS, tmp_path, options={"images": "images", "masks": "masks/{name}.png"})
    assert len(layout.samples("train")) == 1
    with pytest.raises(InputError, match=r"val.txt:2: video2/0001.jpg is 0001, as is video1/0001.jpg in line 1"):
        layout.samples("val")


def test_lines_of_yolo_that_are_one_image(tmp_path):
    image(tmp_path / "images/a.jpg")
    write(tmp_path / "labels/a.txt", "0 .5 .5 .5 .5\n")
    write(tmp_path / "data.yaml", "names: [x]\ntrain: train.txt\nval: val.txt\n")
    write(tmp_path / "train.txt", "images/a.jpg\n./images/a.jpg\n")
    write(tmp_path / "val.txt", "one/images/a.jpg\nother/images/a.jpg\n")
    assert found(tmp_path, "train") == ({"a.jpg": 1}, [])
    _, (problem,) = found(tmp_path, "val")
    assert "val.txt:2: other/images/a.jpg is " in problem
    assert problem.endswith("as is one/images/a.jpg in line 1")


def test_images_in_two_parts_are_noted(tmp_path):
    for i in range(4):
        Image.new("L", (40, 20), i % 2).save(image(tmp_path / f"masks/{i}.png"))
        image(tmp_path / f"images/{i}.jpg")
    write(tmp_path / "classes.txt", "a\nb\n")
    write(tmp_path / "train.txt", "0\n1\n2\n3\n")
    write(tmp_path / "val.txt", "2\n3\n")
    data = SegmentationData(tmp_path, images="images", masks="masks/{name}.png")
    told = f"2 of the 2 images in val are also in train, such as {tmp_path / 'images/2.jpg'}; "
    assert told + "the metrics are too good then" in checked(data).notes


def test_copies_in_two_parts_are_noted(tmp_path):
    """Also under other names; an image of another size or of the same size with other bytes is none."""
    for part, numbers in {"train": (1, 2, 3), "val": (3, 4)}.items():
        for i in numbers:
            for name in ("a", "b"):
                path = tmp_path / part / name / f"{part}_{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40, 20), (i, 0, ord(name))).save(path)
    (tmp_path / "val/b/val_3.png").unlink()
    told = f"1 of the 3 images in val is also in train: {tmp_path / 'val/a/val_3.png'}; the metrics are too good then"
    report = checked(ClassificationData(tmp_path))
    assert (report.notes, report.problems) == ([told], [])
    shutil.copy(tmp_path / "train/a/train_1.png", tmp_path / "train/b/other.png")
    (told,) = checked(ClassificationData(tmp_path)).problems
    both = f"{tmp_path / 'train/a/train_1.png'}, {tmp_path / 'train/b/other.png'}"
    assert told == f"{both}: the same image, but of the classes a, b"


# ----------------------------------------------------------------------------------------------------- names of files


def test_images_that_differ_in_the_extension(tmp_path):
    """The file of VOC says which of them has its objects."""
    for name in ("a.jpg", "a.png", "photo.jpg"):
        image(tmp_path / "JPEGImages" / name)
    write(tmp_path / "Annotations/a.xml", xml((1, 1, 5, 5), filename="a.jpg"))
    write(tmp_path / "Annotations/0001.xml", xml((1, 1, 5, 5), (6, 6, 9, 9), filename="photo.jpg"))
    assert found(tmp_path, "all") == ({"a.jpg": 1, "a.png": 0, "photo.jpg": 2}, [])
    write(tmp_path / "ImageSets/Main/fold1_train.txt", "a\n0001\n")
    write(tmp_path / "ImageSets/Main/cat_train.txt", "a  1\n0001 -1\n")  # a list of a class
    assert find_layout(LAYOUTS, tmp_path).splits() == ["fold1_train"]
    assert found(tmp_path, "fold1_train") == ({"a.jpg": 1, "photo.jpg": 2}, [])


def test_masks_of_images_that_differ_in_the_extension(tmp_path):
    for name in ("a.jpg", "a.png"):
        image(tmp_path / "JPEGImages" / name)
    Image.new("L", (40, 20)).save(image(tmp_path / "SegmentationClass/a.png"))
    with pytest.raises(InputError, match=r"a\.jpg: a\.png differs only in the extension: which one is meant\?"):
        find_layout(MASKS, tmp_path).samples(tmp_path.name)


def test_folders_of_cvat_in_voc(tmp_path):
    for folder, value in (("a", 1), ("b", 2)):
        image(tmp_path / f"JPEGImages/{folder}/0001.jpg")
        Image.new("L", (40, 20), value).save(image(tmp_path / f"SegmentationClass/{folder}/0001.png"))
    write(tmp_path / "ImageSets/Segmentation/train.txt", "a/0001\nb/0001\n")
    layout = find_layout(MASKS, tmp_path)
    assert [int(layout.read_mask(sample)[0, 0]) for sample in layout.samples("train")] == [1, 2]


def test_broken_links_are_told(tmp_path):
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            image(tmp_path / part / name / "1.jpg")
    for i in range(3):
        (tmp_path / f"train/cat/x{i}.jpg").symlink_to(tmp_path / "lost.jpg")
    with pytest.warns(UserWarning, match=r"train/cat: 3 broken links, pipes or folders are left out, such as x0\.jpg"):
        checked(ClassificationData(tmp_path))


def test_images_beside_the_parts_are_told(tmp_path):
    shape = {"label": "x", "points": [[0, 0], [5, 5]], "shape_type": "rectangle"}
    facts = {"version": "5", "shapes": [shape], "imageHeight": 20, "imageWidth": 40}
    for name in ("train/a", "val/b", "c"):
        image(tmp_path / f"{name}.jpg")
        write(tmp_path / f"{name}.json", json.dumps(facts))
    with pytest.warns(UserWarning, match=r"1 images with labels are in no part, such as c\.jpg: they lie beside"):
        assert found(tmp_path, "train") == ({"a.jpg": 1}, [])


@pytest.mark.parametrize("part", ["val", "valid", "validation"])
def test_the_validation_of_roboflow(part, tmp_path):
    content = {"images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 40}], "annotations": []}
    content["categories"] = [{"id": 1, "name": "x"}]
    for name in ("train", part):
        image(tmp_path / name / "a.jpg")
        write(tmp_path / name / "_annotations.coco.json", json.dumps(content))
    assert found(tmp_path, "val") == ({"a.jpg": 0}, [])
    with pytest.raises(InputError, match=f"no part 'test' in .*; there are train, {part}"):
        found(tmp_path, "test")


def test_names_of_darknet_that_are_missing(tmp_path):
    image(tmp_path / "train/a.jpg")
    write(tmp_path / "train/a.txt", "0 .5 .5 .5 .5\n")
    write(tmp_path / "train.txt", "train/a.jpg\n")
    write(tmp_path / "obj.data", "classes = 2\ntrain = train.txt\nvalid = train.txt\nnames = data/obj.names\n")
    with pytest.raises(InputError, match=r"obj\.data: names: no file 'data/obj\.names', neither below"):
        found(tmp_path, "train")


def test_annotations_elsewhere_on_the_disk(tmp_path, capsys):
    content = {"images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 40}]}
    content |= {
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}]
    }
    content["categories"] = [{"id": 1, "name": "x"}]
    for part in ("train", "val"):
        image(tmp_path / f"data[1]/{part}/a.jpg")
        write(tmp_path / f"labels [new]/instances_{part}.json", json.dumps(content))
    pattern = f"{tmp_path}/labels [new]/instances_{{split}}.json"
    data = DetectionData(tmp_path / "data[1]", "train", "val", annotations=pattern)
    assert checked(data).problems == []
    assert data.layout.splits() == ["train", "val"]


# ----------------------------------------------------------------------------------------------------------- content


@pytest.mark.parametrize("kind", ["tif", "jpg", "png"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_sizes_of_turned_images(kind, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x112] = orientation
    path = image(tmp_path / f"a.{kind}", exif=exif)
    assert image_size(path) == load_image(path).size[::-1] == ((20, 40) if orientation < 5 else (40, 20))


def test_shapes_of_a_group_in_labelme(tmp_path):
    """They are one object; its pixels are those of the shapes, not of the box around them."""
    one = {"label": "x", "group_id": 1, "points": [[0, 0], [5, 5]], "shape_type": "rectangle"}
    two = {**one, "points": [[30, 10], [35, 15]]}
    out = {"label": "__ignore__", "points": [[10, 0], [14, 0], [14, 4], [10, 4]], "shape_type": "polygon"}
    facts = {"version": "5", "shapes": [one, two, out], "imageHeight": 20, "imageWidth": 40}
    for part in ("train", "val"):
        image(tmp_path / part / "a.jpg")
        write(tmp_path / part / "a.json", json.dumps(facts))
    for names in (None, "__ignore__\n_background_\nx\n"):
        if names is not None:
            write(tmp_path / "labels.txt", names)
        layout = find_layout(MASKS, tmp_path)
        mask = layout.read_mask(layout.samples("train")[0])
        assert layout.classes.names == ("background", "x")
        assert (mask == 1).sum() == 50
        assert mask[2, 12] == 255
        assert found(tmp_path, "train") == ({"a.jpg": 1}, [])


def test_mistakes_of_outlines_are_told_for_every_part(tmp_path):
    """Also where the images have no parts: validation and test drop no objects."""
    for i in range(10):
        image(tmp_path / f"images/{i}.jpg")
        write(tmp_path / f"labels/{i}.txt", "0 .1 .1 .9 .1 .9 .9\n7 .1 .1 .9 .1 .9 .9\n")
    write(tmp_path / "classes.txt", "x\ny\n")
    data = SegmentationData(tmp_path)
    for part in ("train", "val", "test"):
        with pytest.raises(InputError, match=r"0\.txt:2: class 7 is not in 0\.\.1 \(and 9 more"):
            data.dataset(part)
    report = checked(data)
    assert len([problem for problem in report.problems if "class 7" in problem]) == 10


def test_outlines_of_images_that_were_turned_later(tmp_path):
    """As detection reads them: upright, unless only the stored size is that of the annotations."""
    exif = Image.Exif()
    exif[0x112] = 6
    thing = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}
    thing["segmentation"] = [[0, 0, 5, 0, 5, 5, 0, 5]]
    content = {"images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 40}], "annotations": [thing]}
    content["categories"] = [{"id": 1, "name": "x"}]
    for part in ("train", "val"):
        image(tmp_path / part / "a.jpg", exif=exif)
        write(tmp_path / f"annotations/instances_{part}.json", json.dumps(content))
    layout = find_layout(MASKS, tmp_path)
    pixels, mask = layout.read(layout.samples("train")[0])
    assert pixels.shape[1:] == mask.shape == (20, 40)
    assert (mask == 1).sum() == 25


def test_images_of_panoptic_masks(tmp_path):
    """One annotation each: without one they are told, with several they are a mistake."""
    things = [{"image_id": i, "file_name": "a.png", "segments_info": []} for i in (1, 1)]
    content = {"images": [{"id": i, "file_name": f"{i}.jpg"} for i in (1, 2)], "annotations": things[:1]}
    content["categories"] = [{"id": 1, "name": "x", "isthing": 1}]
    for i in (1, 2):
        image(tmp_path / f"val/{i}.jpg")
    image(tmp_path / "annotations/panoptic_val/a.png")
    file = tmp_path / "annotations/panoptic_val.json"
    write(file, json.dumps(content))
    with pytest.warns(UserWarning, match=r"1 image without an annotation, such as 2\.jpg: left out"):
        assert len(find_layout(MASKS, tmp_path).samples("val")) == 1
    write(file, json.dumps({**content, "annotations": things}))
    with pytest.raises(InputError, match=r"annotations\[1\]: 1\.jpg has several"):
        find_layout(MASKS, tmp_path).samples("val")


def test_boxes_of_voc_beside_the_image(tmp_path):
    image(tmp_path / "JPEGImages/a.jpg")
    write(tmp_path / "Annotations/a.xml", xml((-9, 1, -2, 5), (1, -9, 5, -2), (60, 1, 70, 5), (0, 0, 5, 5)))
    assert found(tmp_path, "all") == ({"a.jpg": 1}, [])


@pytest.mark.parametrize(
    ("size", "counts", "message"),
    [
        ([20.0, 40.0], [0, 800], None),
        ([20, 40], [0.0, 800.0], None),
        ([20, 40], [-1, 801], "run lengths must be whole numbers of at least 0, got -1"),
        ([20, 40], [0.5, 799.5], "run lengths must be whole numbers of at least 0, got 0.5"),
    ],
)
def test_run_lengths(size, counts, message, tmp_path):
    thing = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 40, 20], "area": 800, "iscrowd": 0}
    thing["segmentation"] = {"size": size, "counts": counts}
    content = {"images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 40}], "annotations": [thing]}
    content["categories"] = [{"id": 1, "name": "x"}]
    for part in ("train", "val"):
        image(tmp_path / part / "a.jpg")
        write(tmp_path / f"annotations/instances_{part}.json", json.dumps(content))
    problems = checked(DetectionData(tmp_path, "train", "val", masks=True)).problems
    assert (problems == []) if message is None else all(message in problem for problem in problems)


def test_an_unclosed_quote(tmp_path):
    for i in range(6):
        image(tmp_path / f"{i}.jpg")
    rows = [f"{i}.jpg,train,{chr(34) if i == 3 else ''}cat" for i in range(6)]
    write(tmp_path / "labels.csv", "\n".join(["file,split,label", *rows]))
    with pytest.raises(InputError, match=r"labels\.csv:7: not CSV \(unexpected end of data\)"):
        listed(tmp_path, 0.2)


def test_a_table_beside_images_without_folders_of_classes(tmp_path):
    """As Kaggle's competitions have it."""
    for i in range(6):
        image(tmp_path / f"train/{i}.jpg")
    write(
        tmp_path / "train.csv",
        "file,label\n" + "".join(f"train/{i}.jpg,{'cat' if i % 2 else 'dog'}\n" for i in range(6)),
    )
    assert len(listed(tmp_path, 0.3).rows) == 6
    assert listed(tmp_path / "train.csv", 0.3).rows == listed(tmp_path, 0.3).rows
    listed(tmp_path / "train.csv", 0.3).keep()
    assert (tmp_path / "train.split.csv").is_file()
    assert "split as " in listed(tmp_path, 0.3).told


def test_large_files_of_xml(tmp_path):
    image(tmp_path / "JPEGImages/a.jpg")
    write(tmp_path / "Annotations/a.xml", f"<annotation>{'<a/>' * 300_000}</annotation>")
    _, (problem, _) = found(tmp_path, "all")
    assert "a.xml:1: more than 200,000 elements" in problem


# --------------------------------------------------------------------------------------------------- parts and splits


def test_a_name_that_macos_writes_has_the_same_place(tmp_path):
    composed = {f"é{i}.jpg": "" for i in range(20)}
    apart = {f"e\u0301{i}.jpg": "" for i in range(20)}
    chosen = {name.replace("e\u0301", "é") for name in for_validation(apart, 0.3)}
    assert chosen == for_validation(composed, 0.3)


def test_a_split_with_other_spellings(tmp_path):
    for i in range(6):
        image(tmp_path / f"images/{i}.jpg")
        write(tmp_path / f"labels/{i}.txt", "0 .5 .5 .5 .5\n")
    write(tmp_path / "classes.txt", "x\n")
    write(
        tmp_path / "split.csv",
        "file,split\n" + "".join(f"images\\{i}.JPG,{'val' if i > 3 else 'train'}\n" for i in range(6)),
    )
    data = DetectionData(tmp_path, "train", "val")
    assert [entry.path.name for entry in data.layout.samples("val", False).images] == ["4.jpg", "5.jpg"]


def test_a_conversion_keeps_the_split(tmp_path, capsys):
    for i in range(6):
        image(tmp_path / f"yolo/images/{i}.jpg")
        write(tmp_path / f"yolo/labels/{i}.txt", "0 .5 .5 .5 .5\n")
    write(tmp_path / "yolo/classes.txt", "x\n")
    write(
        tmp_path / "yolo/split.csv",
        "file,split\n" + "".join(f"images/{i}.jpg,{'val' if i > 3 else 'train'}\n" for i in range(6)),
    )
    assert run(["convert-data", str(tmp_path / "yolo"), "--out", str(tmp_path / "coco")]) == 0
    names = {part: sorted(path.name for path in (tmp_path / "coco" / part).iterdir()) for part in ("train", "val")}
    assert names == {"train": ["0.jpg", "1.jpg", "2.jpg", "3.jpg"], "val": ["4.jpg", "5.jpg"]}
    (tmp_path / "yolo/split.csv").unlink()
    write(tmp_path / "yolo/train.txt", "".join(f"images/{i}.jpg\n" for i in range(6)))
    write(tmp_path / "yolo/data.yaml", "names: [x]\ntrain: train.txt\n")  # as CVAT writes all images
    assert run(["convert-data", str(tmp_path / "yolo"), "--out", str(tmp_path / "whole")]) == 0
    before, after = (
        [
            entry.path.name
            for entry in DetectionData(tmp_path / name, "train", "val").layout.samples("val", False).images
        ]
        for name in ("yolo", "whole")
    )
    assert before == after


def test_a_conversion_of_two_validation_parts(tmp_path, capsys):
    for part in ("train", "valid", "validation"):
        image(tmp_path / f"in/{part}/{part}.jpg")
        write(tmp_path / f"in/{part}/{part}.xml", xml((1, 1, 5, 5)))
    assert run(["convert-data", str(tmp_path / "in"), "--out", str(tmp_path / "coco")]) == 0
    files = sorted(path.name for path in (tmp_path / "coco/annotations").iterdir())
    assert files == ["instances_train.json", "instances_valid.json", "instances_validation.json"]


def test_numbers_that_json_does_not_have(tmp_path, capsys):
    thing = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "area": float("nan"), "iscrowd": 0}
    content = {"images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 40}], "annotations": [thing]}
    content["categories"] = [{"id": 1, "name": "x"}]
    image(tmp_path / "in/train/a.jpg")
    write(tmp_path / "in/train/_annotations.coco.json", json.dumps(content))
    assert run(["convert-data", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 2
    assert "it holds a number that JSON does not have, NaN or infinity" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_part_for_the_test(tmp_path):
    """It is checked, too; what it lacks gives no class another number."""
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            image(tmp_path / f"classes/{part}/{name}/1.jpg")
    image(tmp_path / "classes/test/dog/1.jpg")
    write(tmp_path / "classes/test/dog/2.jpg", "no image")
    data = ClassificationData(tmp_path / "classes")
    assert data._files("test").samples[0][1] == 1
    report = checked(data)
    assert report.rows == [("cat", 1, 1, 0), ("dog", 1, 1, 1)]
    assert ["2.jpg: not an image" in problem for problem in report.problems] == [True]
    assert report.notes == ["test: no image of the class cat"]
    for part in ("train", "val", "test"):
        image(tmp_path / f"yolo/images/{part}/1.jpg")
        write(tmp_path / f"yolo/labels/{part}/1.txt", "nonsense\n" if part == "test" else "0 .5 .5 .5 .5\n")
    write(tmp_path / "yolo/data.yaml", "names: [a]\ntrain: images/train\nval: images/val\ntest: images/test\n")
    problems = checked(DetectionData(tmp_path / "yolo", "train", "val", "test")).problems
    assert ["test/1.txt:1: 'nonsense' is no number" in problem for problem in problems] == [True]


def test_masks_that_the_validation_lacks(tmp_path):
    for part, line in (("train", "0 .1 .1 .9 .1 .9 .9\n"), ("val", "0 .5 .5 .5 .5\n")):
        image(tmp_path / f"images/{part}/1.jpg")
        write(tmp_path / f"labels/{part}/1.txt", line)
    write(tmp_path / "data.yaml", "names: [a]\ntrain: images/train\nval: images/val\n")
    data = DetectionData(tmp_path, "train", "val", masks=True)
    data._sets = {part: data.dataset(part) for part in ("train", "val")}
    with pytest.raises(InputError, match=r"val/1\.jpg: .*data\.masks needs it"):
        data.check()


# ------------------------------------------------------------------------------------------------------------- shards


def shard(path, count, **kinds):
    """A shard of `count` samples with these contents, such as `jpg=b"..."`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {f"{i}.{kind.replace('_', '.')}": content for i in range(count) for kind, content in kinds.items()}
    with tarfile.open(path, "w") as out:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))


def test_images_in_shards_are_counted_once(tmp_path):
    pytest.importorskip("webdataset")
    content = image(tmp_path / "a.jpg").read_bytes()
    shard(tmp_path / "in/train-0.tar", 4, jpg=content, mask_png=b"?", cls=b"1")
    assert len(reader_set("wds/", tmp_path / "in", "train", False, 2)) == 4
    shard(tmp_path / "in/val-0.tar", 1, jpeg=content, cls=b"1")
    with pytest.raises(
        InputError, match=r"no image with a label in val\*\.tar: these are KEY\.cls and KEY\.jpg, .*cls, jpeg"
    ):
        reader_set("wds/", tmp_path / "in", "val", False, 2)


def test_labels_without_a_class(tmp_path, capsys):
    pytest.importorskip("webdataset")
    content = image(tmp_path / "a.jpg", (32, 32)).read_bytes()
    for part in ("train", "val"):
        shard(tmp_path / f"in/{part}-0.tar", 4, jpg=content, cls=b"2")
    options = f"--data.reader wds/ --data.root {tmp_path / 'in'} --data.train_split train --data.val_split val"
    options += " --data.num_workers 0 --data.batch_size 2 --data.image_size 32 --model.model resnet10t --model.mixup 0"
    options += f" --model.cutmix 0 --model.num_classes 2 --trainer.default_root_dir {tmp_path / 'run'}"
    command = ["fit", "-c", "recipes/classification/cifar10.yaml", *options.split(), "--trainer.accelerator", "cpu"]
    assert run(command) == 2
    assert "data: a label is 2, but model.num_classes is 2: labels count from 0" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- memory


def test_few_results_wait():
    done = []
    results = in_threads(lambda i: done.append(i) or i, range(10_000))
    assert [next(results) for _ in range(3)] == [(0, 0), (1, 1), (2, 2)]
    assert len(done) < 1000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [i for i, _ in results] == list(range(3, 10_000))
