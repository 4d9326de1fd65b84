"""Datasets in COCO's layout."""

import json
import re

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dgmn.detection.data import DetectionData, DetectionDataset, collate
from dgmn.detection.transforms import augmentation, transformed
from dgmn.errors import InputError
from dgmn.pictures import boxed, distinct_colors
from dgmn.training.sampling import GroupedBatches


@pytest.fixture
def root(tmp_path):
    """Six training and two validation images, wide and tall ones; every image has a red and a green rectangle."""
    random = np.random.default_rng(0)
    for split, count in (("train2017", 6), ("val2017", 2)):
        (tmp_path / split).mkdir()
        content = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 5, "name": "green"}, {"id": 1, "name": "red"}],
        }
        for i in range(count):
            width, height = ((60, 40), (40, 60))[i % 2]
            pixels = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
            for category, channel in ((1, 0), (5, 1)):
                x, y = (int(n) for n in random.integers(2, 18, 2))
                pixels[y : y + 15, x : x + 20, channel] = 250
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": i + 10,
                        "category_id": category,
                        "bbox": [x, y, 20, 15],
                        "area": 300,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + 20, y, x + 20, y + 15, x, y + 15]],
                    }
                )
            content["images"].append({"id": i + 10, "file_name": f"{i}.png", "width": width, "height": height})
            Image.fromarray(pixels).save(tmp_path / split / f"{i}.png")
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return tmp_path


def change(root, edit, split="train2017"):
    file = root / f"annotations/instances_{split}.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def dataset(root, **options):
    layout = DetectionData(root).layout
    return DetectionDataset(layout, layout.samples("train2017", masks=False), masks=False, **options)


def check(data):
    return data.validate(lambda split, total, done: None)


def test_images_and_targets(root):
    data = DetectionData(root, masks=True, hflip=1.0)
    data.setup("fit")
    assert data.names == ("red", "green")
    assert data.describe() == {"classes": ["red", "green"], "category_ids": [1, 5]}
    for split in ("train", "val"):  # the training images are mirrored
        dataset = data._sets[split]
        for image, target in (dataset[i] for i in range(len(dataset))):
            assert image.dtype == torch.float32
            assert 0 <= image.min() <= image.max() <= 1
            for box, label in zip(target["boxes"], target["labels"], strict=True):
                x1, y1, x2, y2 = box.int().tolist()
                assert (image[label, y1:y2, x1:x2] > 0.9).all()
            # The validation has no masks in its targets. The evaluation reads them from the file.
            assert ("masks" in target) == (split == "train")
            for box, mask in zip(target["boxes"], target.get("masks", ()), strict=split == "train"):
                x1, y1, x2, y2 = box.int().tolist()
                assert mask.sum() == mask[y1:y2, x1:x2].sum() == (x2 - x1) * (y2 - y1)
            truth = data.truth_of(split, target["image_id"])
            assert truth["masks"].shape == (len(target["boxes"]), 1, *image.shape[1:])
            assert torch.equal(truth["boxes"], target["boxes"]) == (split == "val")
            for (x1, y1, x2, y2), mask in zip(truth["boxes"].int().tolist(), truth["masks"], strict=True):
                assert mask.sum() == mask[0, y1:y2, x1:x2].sum() == (x2 - x1) * (y2 - y1)
    mirror = augmentation(hflip=1.0, crop=0.0)
    assert torch.equal(transformed(mirror, *transformed(mirror, image, target))[0], image)


def test_a_part_of_an_image(root):
    """Rectangles in a part are where its boxes and masks say. A rectangle without a box is gone."""
    data = DetectionData(root, masks=True, hflip=0.5, crop=1.0)
    data.setup("fit")
    sizes, kept = set(), set()
    for index in [*range(6)] * 20:
        image, target = data._sets["train"][index]
        sizes.add(tuple(image.shape[1:]))
        kept.add(len(target["boxes"]))
        assert target["masks"].shape[1:] == image.shape[1:]
        assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])
        for box, label, mask in zip(target["boxes"], target["labels"], target["masks"], strict=True):
            x1, y1, x2, y2 = box.int().tolist()
            assert 0 <= x1 < x2 <= image.shape[2]
            assert 0 <= y1 < y2 <= image.shape[1]
            # The image is ten times as large or more, so its edges are blurred over some pixels.
            inner = image[label, y1 + 12 : max(y2 - 12, 0), x1 + 12 : max(x2 - 12, 0)]
            assert (inner > 0.9).all()
            covered = mask[y1 : y2 + 1, x1 : x2 + 1].sum()
            assert mask.sum() == covered
            assert abs(covered - (x2 - x1) * (y2 - y1)) <= 2 * (x2 - x1 + y2 - y1)
        for label in {0, 1} - set(target["labels"].tolist()):
            assert (image[label] < 0.9).all()
    assert len(sizes) > 20
    assert all(384 <= side <= 600 for size in sizes for side in size)
    assert {1, 2} <= kept
    # The validation images are whole.
    assert {tuple(data._sets["val"][i][0].shape[1:]) for i in range(2)} == {(40, 60), (60, 40)}


@pytest.mark.slow
def test_the_sides_of_a_part():
    """The image gets a short side of 400, 500 or 600. The part has sides of 384 to 600."""
    image, target = torch.zeros(3, 480, 960), {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}
    crop = augmentation(hflip=0.0, crop=1.0)
    sizes = torch.tensor([transformed(crop, image, target)[0].shape[1:] for _ in range(300)])
    heights, widths = sizes.T
    for side in (heights, widths):
        assert 384 <= side.min() < 390
        assert 590 < side.max() <= 600
    one = {"boxes": torch.tensor([[0.0, 0, 1, 1]]), "labels": torch.zeros(1)}
    tiny, left = transformed(crop, torch.zeros(3, 1, 1), one)
    assert 384 <= tiny.shape[1] <= 600
    assert left["boxes"].tolist() == [[0, 0, tiny.shape[2], tiny.shape[1]]]
    thin, _ = transformed(crop, torch.zeros(3, 1, 3000), target)
    assert thin.shape[1] >= 1
    assert 384 <= thin.shape[2] <= 600


def test_resizing_before_a_part_averages_pixels():
    """A fine chequerboard becomes grey. Without antialiasing it would keep its black and white."""
    board = torch.arange(1600)[:, None] + torch.arange(1600)
    image = (255 * (board % 2)).to(torch.uint8).expand(3, -1, -1)
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}
    part, _ = transformed(augmentation(hflip=0.0, crop=1.0), image, target)
    assert 100 < part[:, 2:-2, 2:-2].min() <= part[:, 2:-2, 2:-2].max() < 155


def test_batches(root):
    images, targets = collate([dataset(root)[i] for i in (0, 1)])
    assert [tuple(x.shape) for x in images] == [(3, 40, 60), (3, 60, 40)]
    assert [target["image_id"] for target in targets] == [10, 11]
    assert "masks" not in targets[0]


@settings(max_examples=60)
@given(groups=st.lists(st.booleans(), min_size=1, max_size=40), size=st.integers(1, 6))
def test_batches_of_one_group(groups, size):
    sampler = list(range(len(groups)))
    batches = GroupedBatches(sampler, groups, size)
    drawn = list(batches)
    assert len(drawn) == len(batches) == len(groups) // size
    assert all(len(batch) == size for batch in drawn)
    flat = [index for batch in drawn for index in batch]
    assert len(set(flat)) == len(flat)
    mixed = [batch for batch in drawn if len({groups[i] for i in batch}) > 1]
    assert len(mixed) <= 1  # from what is left at the end: less than a batch of each group


def test_a_damaged_image(root, capsys):
    path = root / "train2017/2.png"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"train2017/2.png: damaged image"):
        dataset(root)[2]
    assert dataset(root, skip_bad_images=True)[2] is None
    training = dataset(root, transform=augmentation(0, 0), skip_bad_images=True)
    _, target = training[2]
    assert target["image_id"] == 13  # the next image
    assert "left out:" in (err := capsys.readouterr().err)
    assert "train2017/2.png: damaged image" in err
    for file in (root / "train2017").iterdir():
        file.write_bytes(b"")
    with pytest.raises(InputError, match="none of the images can be read"):
        training[0]


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("upright", [True, False])
def test_cameras_that_were_turned(root, orientation, upright):
    """Annotations are for the image as shown, or as stored; after a quarter turn the size tells which."""
    path = root / "train2017/0.png"
    stored = Image.open(path).transpose({3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation])
    shown = Image.open(path).copy()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(path, exif=exif)
    if not upright:
        size = {"width": stored.width, "height": stored.height}
        change(root, lambda content: content["images"][0].update(size))
    image, _ = dataset(root)[0]
    expected = stored if not upright and orientation == 6 else shown
    assert np.array_equal((image * 255).byte().permute(1, 2, 0), np.asarray(expected))


def test_slivers_are_left_out(root, capsys):
    """A box of less than a pixel is left out, also if its area is lost in the training's precision."""
    box = [59.9999999, 5, 10, 20]
    change(root, lambda content: content["annotations"][0].update(bbox=box))
    change(root, lambda content: content["annotations"][1].update(bbox=[3, 5, 0.01, 20]))
    data = DetectionData(root)
    data.setup("fit")
    assert "left out: 2 boxes of less than a pixel" in capsys.readouterr().out
    _, target = data._sets["train"][0]
    assert target["boxes"].shape == (0, 4)


def test_images_that_mmdet_leaves_out(root):
    """Without objects (a crowd is none), or with a side below 32 pixels; only of the training, if asked for."""

    def edit(content):
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 11]
        for entry in content["annotations"]:
            entry["iscrowd"] = int(entry["image_id"] == 12)
        thin = Image.new("RGB", (100, 31))
        thin.save(root / "train2017/thin.png")
        content["images"].append({"id": 50, "file_name": "thin.png", "width": 100, "height": 31})
        box = {"bbox": [1, 1, 20, 20], "category_id": 1, "image_id": 50, "iscrowd": 0}
        content["annotations"].append({"id": 100, **box})

    change(root, edit)
    for asked, kept in ((False, [10, 11, 12, 13, 14, 15, 50]), (True, [10, 13, 14, 15])):
        data = DetectionData(root, leave_out_empty=asked)
        data.setup("fit")
        assert [image.id for image in data._sets["train"].coco.images] == kept
        assert len(data._sets["val"]) == 2


def test_batches_without_groups(root):
    for grouped in (True, False):
        data = DetectionData(root, batch_size=2, num_workers=0, group_by_aspect=grouped)
        data.trainer = L.Trainer(logger=False, max_epochs=1)
        data.setup("fit")
        loader = data.train_dataloader()
        assert isinstance(loader.batch_sampler, GroupedBatches) == grouped
        assert len(loader) == 3


def test_labels_that_are_category_ids(root):
    data = DetectionData(root, ids_as_labels=True)
    data.setup("fit")
    assert data.names == ("no category 0", "red", "no category 2", "no category 3", "no category 4", "green")
    assert data.describe()["category_ids"] == [0, 1, 2, 3, 4, 5]
    assert sorted(data._sets["train"][0][1]["labels"].tolist()) == [1, 5]
    change(root, lambda content: content["categories"].append({"id": 10**6, "name": "blue"}))
    change(root, lambda content: content["categories"].append({"id": 10**6, "name": "blue"}), "val2017")
    with pytest.raises(InputError, match=r"data.ids_as_labels: category ids must be in 0\.\.999, got 1\.\.1000000"):
        DetectionData(root, ids_as_labels=True).setup("fit")


def test_only_crowds_are_nothing_to_learn_from(root):
    change(root, lambda content: [entry.update(iscrowd=1) for entry in content["annotations"]])
    with pytest.raises(InputError, match=r"no objects to learn from: iscrowd is 1 everywhere"):
        DetectionData(root).setup("fit")
    assert any("iscrowd is 1 everywhere" in problem for problem in check(DetectionData(root)).problems)


def test_what_is_left_out_must_leave_something(root):
    """With only crowds, or only thin images, nothing is left. The check says so, as the training does."""
    change(root, lambda content: [image.update(width=60, height=31) for image in content["images"]])
    for file in (root / "train2017").iterdir():
        Image.new("RGB", (60, 31)).save(file)
    data = DetectionData(root, leave_out_empty=True)
    assert any("leave_out_empty leaves no image" in problem for problem in check(data).problems)
    with pytest.raises(InputError, match="leave_out_empty leaves no image: all have a side below 32 pixels"):
        data.setup("fit")
    change(root, lambda content: [entry.update(iscrowd=1) for entry in content["annotations"]])
    with pytest.raises(InputError, match="iscrowd is 1 everywhere"):
        DetectionData(root, leave_out_empty=True).setup("fit")


def test_masks_of_slivers_are_checked(root):
    """The training leaves them out, but the evaluation counts them."""
    change(
        root, lambda content: content["annotations"][0].update(bbox=[3, 3, 0.5, 6], segmentation=[[1, 2]]), "val2017"
    )
    (problem,) = check(DetectionData(root, masks=True)).problems
    assert "a polygon needs three points or more" in problem


def test_boxes_have_no_masks(root):
    """One line for all of them, before the training and in the check."""
    change(root, lambda content: [entry.pop("segmentation", None) for entry in content["annotations"]])
    number = len(json.loads((root / "annotations/instances_train2017.json").read_text())["annotations"])
    told = rf"annotation \d+: segmentation must be polygons.* \(nor have {number - 1} more objects one\); data.masks"
    (problem,) = check(DetectionData(root, masks=True)).problems
    assert re.search(told, problem)
    with pytest.raises(InputError, match=told):
        DetectionData(root, masks=True).setup("fit")
    DetectionData(root).setup("fit")


def test_whole_numbers_with_a_point(root):
    """pandas writes whole numbers of a column with gaps as 640.0."""
    wanted = [(entry.size, entry.objects) for entry in DetectionData(root).layout.samples("train2017", True).images]

    def change_numbers(content):
        for key, names in {
            "images": ("id", "width", "height"),
            "annotations": ("id", "image_id", "category_id"),
        }.items():
            for entry in content[key]:
                entry.update({name: float(entry[name]) for name in names if name in entry})
        for entry in content["categories"]:
            entry["id"] = float(entry["id"])

    change(root, change_numbers)
    read = DetectionData(root).layout.samples("train2017", True)
    assert [(entry.size, entry.objects) for entry in read.images] == wanted
    assert "1.0" not in str([entry.id for entry in read.images])
    change(root, lambda content: content["images"][0].update(width=8.5))
    assert any("width and height as whole numbers" in problem for problem in check(DetectionData(root)).problems)


def test_an_extension_in_capitals(root):
    for file in (root / "train2017").iterdir():
        file.rename(file.with_suffix(".PNG"))
    assert check(DetectionData(root)).problems == []


def test_crowds_need_no_run_lengths(root):
    change(root, lambda content: content["annotations"][0].update(iscrowd=1, segmentation=[]))
    assert check(DetectionData(root, masks=True)).problems == []


def test_the_check_compares_the_parts(root):
    change(root, lambda content: content["categories"].append({"id": 9, "name": "blue"}), "val2017")
    change(root, lambda content: content["annotations"].clear())
    problems = check(DetectionData(root)).problems
    assert [p for p in problems if "different categories (blue)" in p]
    assert [p for p in problems if "no objects to learn from" in p]


def test_notes_of_the_check(root):
    """The same images in both parts, and images without objects, may be meant so."""
    change(root, lambda content: [e.update(image_id=content["images"][0]["id"]) for e in content["annotations"]])
    count = len(list((root / "train2017").iterdir()))
    report = check(DetectionData(root, val="train2017"))
    assert f"train: {count - 1} images without objects: background, or not annotated yet" in report.notes
    some = min((root / "train2017").iterdir())
    told = f"{count} of the {count} images in val are also in train, such as {some}; the metrics are too good then"
    assert told in report.notes


def test_a_missing_image_is_one_problem(root):
    (root / "train2017/1.png").unlink()
    assert len(check(DetectionData(root)).problems) == 1


def wrong_size(root):
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(root / "train2017/1.png")
    return r"train2017/1.png: 8 x 9 pixels, the annotations say 40 x 60"


def wrong_box(root):
    change(root, lambda content: content["annotations"][3].update(bbox=[1, 2, -3, 4]))
    return r"instances_train2017.json: annotations\[3\] \(id 4\): bbox has a negative size"


def wrong_category(root):
    change(root, lambda content: content["annotations"][0].update(category_id=4))
    return r"annotations\[0\] \(id 1\): the category_id 4 is not declared; there are \[1, 5\]"


def wrong_mask(root):
    change(root, lambda content: content["annotations"][0].update(segmentation=[[1, 2]]))
    return r"train2017/0.png: annotation 1: segmentation: a polygon needs three points"


def no_image(root):
    (root / "train2017/0.png").unlink()
    return r"images\[0\]: no image .*train2017/0.png"


def empty_file(root):
    (root / "annotations/instances_train2017.json").write_text("")
    return r"instances_train2017.json: not JSON \(it is empty\)"


@pytest.mark.parametrize("damage", [wrong_size, wrong_box, wrong_category, wrong_mask, no_image, empty_file])
def test_the_check_names_mistakes(root, damage):
    assert check(DetectionData(root, masks=True)).problems == []
    message = damage(root)
    problems = check(DetectionData(root, masks=True)).problems
    assert any(re.search(message, problem) for problem in problems), problems


def test_the_check_counts(root):
    report = check(DetectionData(root))
    assert report.rows == [("red", 6, 6, 2, 2), ("green", 6, 6, 2, 2)]
    assert len(report.samples) == 6
    pixels = np.asarray(report.samples[0])
    assert pixels.shape == (320, 480, 3)  # enlarged


def test_categories_of_the_parts_must_agree(root):
    change(root, lambda content: content["categories"].append({"id": 9, "name": "blue"}), "val2017")
    with pytest.raises(InputError, match=r"train and val have different categories \(blue\)"):
        DetectionData(root).setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"data.batch_size must be a whole number of at least 1, got 0"),
        ({"hflip": 2}, r"data.hflip must be in 0..1, got 2"),
        ({"crop": -0.5}, r"data.crop must be in 0..1, got -0.5"),
        ({"train": "train2018"}, r"no part 'train2018' in .*: expected .*instances_train2018.json; there are "),
    ],
)
def test_wrong_options_are_named(root, options, message):
    with pytest.raises(InputError, match=message):
        DetectionData(root, **options).setup("fit")
    with pytest.raises(InputError, match=r"data.root .*nowhere: there is no such folder"):
        DetectionData(root / "nowhere").setup("fit")


@pytest.mark.parametrize("scale", [1, 5])
def test_boxes_are_drawn_where_they_are(scale):
    """A small image is enlarged."""
    side, box = 500 // scale, [n // scale for n in (100, 150, 300, 350)]
    mask = np.zeros((1, side, side), bool)
    mask[0, 200 // scale : 300 // scale, 150 // scale : 250 // scale] = True
    picture, left_out = boxed(Image.new("RGB", (side, side)), [box], ["a"], [(255, 0, 0)], mask)
    assert left_out == 0
    drawn = np.asarray(picture)
    assert drawn.shape == (500, 500, 3)
    red = (drawn == (255, 0, 0)).all(-1)
    assert red[150, 100:300].all()
    assert red[349, 100:300].all()
    assert red[150:350, 100].all()
    assert red[150:350, 299].all()
    assert not red[160:190, 110:290].any()
    assert red[:150].any()  # the caption is above
    assert (drawn[205:295, 155:245, 0] > 0).all()  # the mask, with its border
    assert red[200, 150:250].all()


def test_among_many_boxes_captions_cover_no_other():
    boxes = [[60 * i, 60 * j, 60 * i + 56, 60 * j + 56] for i in range(8) for j in range(8)]
    colors = distinct_colors(len(boxes))

    def picture(count, caption):
        canvas = Image.new("RGB", (480, 480))
        drawn, left_out = boxed(canvas, boxes[:count], [caption] * count, colors[:count])
        return np.asarray(drawn).astype(int), left_out

    (with_captions, left_out), (without, none) = picture(64, "a long caption"), picture(64, "")
    assert (with_captions == without).all()
    assert (left_out, none) == (64, 0)
    few, left_out = picture(8, "a")
    assert (few != picture(8, "")[0]).any()
    assert left_out == 0
