"""Datasets, transforms and the check of a whole set."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors

from dgmn.errors import InputError
from dgmn.segmentation import Augmentation, SegmentationData, Splits
from dgmn.segmentation.transforms import ClassCrop, PhotometricDistortion, RandomScale
from dgmn.training.sampling import StepSampler


@pytest.fixture
def folder(scenes, tmp_path):
    """The same images as plain folders, three levels deep, with a list of names."""
    root = tmp_path / "folder"
    for split in ("train", "val"):
        for path in (scenes / "leftImg8bit" / split).rglob("*.png"):
            name = path.name.replace("_leftImg8bit", "")
            for kind, source in (
                ("images", path),
                ("masks", scenes / f"gtFine/{split}/scenes" / name.replace(".png", "_gtFine_labelTrainIds.png")),
            ):
                target = root / kind / split / "a" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    names = [entry["name"] for entry in json.loads((scenes / "classes.json").read_text())["classes"]]
    (root / "classes.txt").write_text("\n".join(names))
    return root


def check(data):
    return data.validate(lambda split, total, done: None)


def first_mask(root):
    return sorted(root.rglob("*TrainIds.png"))[0]


def test_both_layouts_read_the_same(scenes, folder):
    a, b = (SegmentationData(root, augmentation=Augmentation(crop=(64, 96))) for root in (scenes, folder))
    for data in (a, b):
        data.setup("fit")
    assert [type(data.layout).__name__ for data in (a, b)] == ["Cityscapes", "MaskFolders"]
    assert a.layout.splits() == ["test", "train", "val"]
    assert b.layout.splits() == ["train", "val"]
    assert len(a.names) == 11
    assert a.names == b.names
    for name in ("train", "val"):
        assert len(a._sets[name]) == len(b._sets[name]) == {"train": 24, "val": 7}[name]
    image, mask = a._sets["val"][3]
    assert image.shape == (3, 64, 96)
    assert (image.dtype, mask.dtype) == (torch.float32, torch.uint8)
    assert torch.equal(image, b._sets["val"][3][0])
    assert torch.equal(mask, b._sets["val"][3][1])
    assert abs(float(image.mean())) < 3  # normalised


def test_several_splits(scenes):
    data = SegmentationData(scenes, Splits(train="train+val", val="test"))
    assert len(data.layout.samples("train+val")) == 31
    with pytest.raises(InputError, match=r"leftImg8bit/valid: expected <city>/\*_leftImg8bit.png, .* test, train, val"):
        data.layout.samples("valid")


def test_label_ids_of_cityscapes(scenes):
    """A folder in this layout without classes.json is Cityscapes. Its train ids win over its label ids."""
    (scenes / "classes.json").unlink()
    mask = first_mask(scenes / "gtFine/val")
    values = np.full((64, 96), 7, np.uint8)
    values[:10] = 3
    Image.fromarray(values).save(str(mask).replace("TrainIds", "Ids"))
    data = SegmentationData(scenes)
    data.setup("validate")
    with_train_ids = data._sets["val"][0][1]
    assert with_train_ids.max() <= 10
    mask.unlink()
    data.setup("validate")
    labels = data._sets["val"][0][1]
    assert labels[:10].unique().tolist() == [255]
    assert labels[10:].unique().tolist() == [0]  # road


def test_coarse_labels(scenes):
    shutil.move(scenes / "gtFine", scenes / "gtCoarse")
    for path in list((scenes / "gtCoarse").rglob("*.png")):
        path.rename(path.with_name(path.name.replace("gtFine", "gtCoarse")))
    data = SegmentationData(scenes, labels="gtCoarse")
    data.setup("validate")
    assert data._sets["val"][0][1].shape == (64, 96)


def test_validation_counts(scenes):
    report = check(SegmentationData(scenes))
    assert report.problems == [] or all("no pixel of" in p for p in report.problems)
    table = {row[0]: row[1:] for row in report.rows}
    assert table["photo"][0] == 24
    assert table["photo"][2] == 7
    shares = [float(row[2].rstrip("%")) for row in report.rows]
    assert sum(shares) == pytest.approx(100, abs=0.1)
    assert len(report.samples) == 8
    assert report.samples[0].size == (96, 64)


def damage_missing(root):
    first_mask(root).unlink()
    return r"labelTrainIds.png: missing mask"


def damage_size(root):
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(first_mask(root))
    return r"labelTrainIds.png: 20 x 10 pixels, its image 96 x 64: they must be equal"


def damage_ids(root):
    Image.fromarray(np.full((64, 96), 11, np.uint8)).save(first_mask(root))
    return r"labelTrainIds.png: holds 11, which no class has; the 11 classes are 0..10, 255 is no label"


def damage_image(root):
    path = sorted(root.rglob("*_leftImg8bit.png"))[0]
    path.write_bytes(path.read_bytes()[:300])
    return r"leftImg8bit.png: damaged image"


@pytest.mark.parametrize("damage", [damage_missing, damage_size, damage_ids, damage_image])
def test_mistakes_are_found_before_the_training(scenes, damage):
    message = damage(scenes / "gtFine/train" if damage is not damage_image else scenes / "leftImg8bit/train")
    data = SegmentationData(scenes)
    with pytest.raises(InputError, match=message):
        data.setup("fit")
    (problem,) = (p for p in check(SegmentationData(scenes)).problems if "no pixel" not in p)
    assert re.search(message, problem)


def test_empty_and_missing_folders(scenes, tmp_path):
    with pytest.raises(InputError, match=r"data.root .*nowhere: there is no such folder"):
        SegmentationData(tmp_path / "nowhere").setup("fit")
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match=r"bare: no known layout \(Folders: .*; Pascal VOC: .*it is empty"):
        SegmentationData(tmp_path / "bare").setup("fit")
    with pytest.raises(InputError, match=r"bare: expected classes.txt with one name a line .* it is empty"):
        SegmentationData(tmp_path / "bare", masks="m/{split}/{name}.png").setup("fit")
    (tmp_path / "bare/classes.txt").write_text("a\nb\n")
    (tmp_path / "bare/masks/train").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no images for 'train' in .*images/train: there is no such folder"):
        SegmentationData(tmp_path / "bare", layout="folders").setup("fit")
    shutil.rmtree(scenes / "leftImg8bit/val")
    report = check(SegmentationData(scenes))
    assert any("leftImg8bit/val: expected" in problem for problem in report.problems)


def test_masks_of_0_and_255_are_pointed_out(folder):
    (folder / "classes.txt").write_text("background\nthing\n")
    for path in (folder / "masks").rglob("*.png"):
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask > 0, 255, 0).astype(np.uint8)).save(path)
    problems = check(SegmentationData(folder)).problems
    assert any("hold 0 and 255 only" in problem for problem in problems)
    with pytest.raises(InputError, match=r"data: the masks hold 0 and 255 only, .* save the second class as 1"):
        SegmentationData(folder).setup("fit")
    for path in (folder / "masks").rglob("*.png"):
        Image.fromarray(np.full((64, 96), 255, np.uint8)).save(path)
    with pytest.raises(InputError, match=r"data: no pixel has a label: all masks hold 255 only"):
        SegmentationData(folder).setup("fit")


def test_a_part_without_labels_is_pointed_out(folder):
    for path in (folder / "masks/val").rglob("*.png"):
        Image.fromarray(np.full((64, 96), 255, np.uint8)).save(path)
    with pytest.raises(InputError, match=r"data: no pixel of val has a label: all its masks hold 255 only"):
        SegmentationData(folder).setup("fit")


def test_palettes_that_contradict_each_other(folder):
    """The same number has another colour in another mask: it probably means another class."""
    masks = sorted((folder / "masks").rglob("*.png"))
    for path in masks:
        mask = Image.fromarray(np.asarray(Image.open(path)))
        mask.putpalette([0, 0, 0, 250, 0, 0, 0, 250, 0] + [9] * 759)
        mask.save(path)

    def told():
        return [text for text in check(SegmentationData(folder, palette_masks=True)).problems if "palette" in text]

    assert told() == []
    odd = next(path for path in masks[1:] if 1 in np.asarray(Image.open(path)))
    mask = Image.fromarray(np.asarray(Image.open(odd)))
    mask.putpalette([0, 0, 0, 0, 250, 0, 250, 0, 0] + [9] * 759)
    mask.save(odd)
    (problem,) = told()
    assert f"{odd}: " in problem
    assert "(0, 250, 0) in its palette, but (250, 0, 0) in " in problem
    with pytest.warns(UserWarning, match="do they mean one class"):
        SegmentationData(folder, palette_masks=True).setup("fit")


def test_masks_that_cannot_be_read_are_not_called_empty(folder):
    for path in (folder / "masks").rglob("*.png"):
        Image.open(path).convert("RGB").save(path)
    problems = check(SegmentationData(folder)).problems
    assert problems
    assert all("has colours" in problem for problem in problems)


def test_files_beside_the_images(folder):
    """Files that file managers leave behind are skipped. Two images cannot share a mask."""
    images = folder / "images/train/a"
    (images / "._hidden.png").write_bytes(b"x")
    (images / "a_folder.png").mkdir()
    data = SegmentationData(folder)
    assert len(data.layout.samples("train")) == 24
    first = sorted(images.glob("scenes*.png"))[0]
    shutil.copy(first, first.with_suffix(".PNG"))
    with pytest.raises(InputError, match=r"masks/train/a/scenes.*.png: the mask of two images"):
        data.layout.samples("train")


def test_a_turned_image_is_told(folder):
    path = sorted((folder / "images/train").rglob("*.png"))[0]
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    with pytest.raises(
        InputError, match=r"96 x 64 pixels, its image 64 x 96 \(turned upright as its EXIF entry says\)"
    ):
        SegmentationData(folder).setup("fit")


def test_names_of_masks(folder):
    for path in list((folder / "masks").rglob("*.png")):
        path.rename(path.with_name(path.stem + "_L.png"))
    data = SegmentationData(folder, masks="masks/{split}/{name}_L.png")
    data.setup("validate")
    assert data._sets["val"][0][1].shape == (64, 96)
    for pattern in (
        "masks/{split}",
        "{name}{foo}.png",
        "{name}{",
        "{name:>1000000000}.png",
        "{split:9}{name}",
        "{name!r}",
    ):
        with pytest.raises(
            InputError, match=r"data.masks may hold \{name\}, \{split\} and must hold \{name\}, for inst"
        ):
            SegmentationData(folder, masks=pattern).setup("fit")
    with pytest.raises(InputError, match=r"data.images may hold \{split\}, for instance"):
        SegmentationData(folder, images="{foo}").setup("fit")
    with pytest.raises(InputError, match=r"data.images may hold \{split\}, for instance"):
        SegmentationData(folder, images="{split:>1000000000}").setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "fine"}, r'data.labels must be "gtFine" or "gtCoarse", got \'fine\''),
        ({"batch_size": 0}, r"data.batch_size must be a whole number of at least 1, got 0"),
        ({"epoch_steps": 0}, r"data.epoch_steps must be a whole number of at least 1, got 0"),
        ({"num_workers": -1}, r"data.num_workers must be a whole number of at least 0, got -1"),
    ],
)
def test_wrong_options_are_named(scenes, options, message):
    with pytest.raises(InputError, match=message):
        SegmentationData(scenes, **options).setup("fit")


# ----------------------------------------------------------------------------------------------------- transforms


@settings(max_examples=60)
@given(height=st.integers(1, 60), width=st.integers(1, 60), crop=st.tuples(st.integers(1, 50), st.integers(1, 50)))
@example(height=2, width=1, crop=(1, 1))  # resized to one pixel
def test_augmented_images_have_the_size_of_the_crop(height, width, crop):
    torch.manual_seed(height * 61 + width)
    image = tv_tensors.Image(torch.randint(0, 256, (3, height, width), dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.randint(0, 3, (height, width), dtype=torch.uint8))
    image, mask = Augmentation(crop=crop).transform()(image, mask)
    assert image.shape == (3, *crop)
    assert mask.shape == crop
    assert set(mask.unique().tolist()) <= {0, 1, 2, 255}


def test_image_and_mask_stay_together():
    """After augmentation the image is still bright where the mask is 1. The padding has no label and is grey."""
    mask = torch.zeros(40, 50, dtype=torch.uint8)
    mask[5:30, 10:20] = 1
    image = tv_tensors.Image((mask * 200).expand(3, -1, -1).contiguous())
    transform = Augmentation(crop=(64, 64), distortion=False, max_share=1.0).transform()
    for seed in range(20):
        torch.manual_seed(seed)
        out, labels = transform(image, tv_tensors.Mask(mask))
        inside, outside = out[0][labels == 1], out[0][labels == 0]
        if len(inside):
            assert inside.median() > 0.99 * (200 / 255 - 0.485) / 0.229  # edge pixels are mixed
        assert outside.median() < -2.1
        assert (out[0][labels == 255] == 0).all()


def test_scale_and_fit():
    image = tv_tensors.Image(torch.zeros(3, 1024, 2048, dtype=torch.uint8))
    assert RandomScale((1.0, 1.0), fit=(1025, 2049))(image).shape == (3, 1025, 2049)  # as mmcv rounds
    sizes = [RandomScale((0.5, 2.0))(image[:, :100, :200]).shape[-1] for _ in range(50)]
    assert 100 <= min(sizes) < 150
    assert 300 < max(sizes) <= 400


def test_crops_in_which_one_class_fills_too_much_are_drawn_anew():
    mask = torch.zeros(100, 100, dtype=torch.uint8)
    mask[:, 90:] = 1  # most crops have no pixel of class 1
    varied = 0
    for seed in range(50):
        torch.manual_seed(seed)
        part = ClassCrop((20, 20), 0.75)(tv_tensors.Mask(mask))
        varied += bool(0.25 <= part.float().mean() <= 0.75)
    torch.manual_seed(0)
    plain = sum(bool(0.25 <= ClassCrop((20, 20), 1.0)(tv_tensors.Mask(mask)).float().mean() <= 0.75) for _ in range(50))
    assert plain <= 12
    assert varied >= 20


def test_distortion_by_hand():
    """Brightness is added and contrast multiplied. torchvision's own keeps black black and mixes with grey."""
    grey = tv_tensors.Image(torch.full((3, 4, 4), 100, dtype=torch.uint8))
    black = tv_tensors.Image(torch.zeros(3, 4, 4, dtype=torch.uint8))
    torch.manual_seed(0)
    values = [int(PhotometricDistortion()(grey)[0, 0, 0]) for _ in range(600)]
    assert 34 <= min(values) <= 45  # (100 - 32) * 0.5
    assert 175 <= max(values) <= 198  # (100 + 32) * 1.5
    assert max(int(PhotometricDistortion()(black).max()) for _ in range(200)) > 20
    distortion = PhotometricDistortion()
    color = tv_tensors.Image(torch.tensor([200, 100, 150], dtype=torch.uint8).view(3, 1, 1))
    for params, expected in (
        ({"saturation": 0.5, "contrast_first": True}, [200, 150, 175]),
        ({"saturation": 1.5, "contrast_first": True}, [200, 50, 125]),
        ({"brightness": 80.0, "contrast": 0.5, "contrast_first": True}, [128, 90, 115]),  # clipped at 255 in between
        ({"hue": 0.0, "contrast_first": False}, [200, 100, 150]),
    ):
        assert distortion.transform(color, params).flatten().tolist() == pytest.approx(expected, abs=1), params
    mask = tv_tensors.Mask(torch.ones(4, 4, dtype=torch.uint8))
    assert torch.equal(distortion.transform(mask, {"brightness": 9.0, "contrast_first": True}), mask)


def test_distortion_keeps_the_channels():
    image = tv_tensors.Image(torch.tensor([200, 100, 50], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8).contiguous())
    torch.manual_seed(0)
    outs = [PhotometricDistortion()(image).float().mean((1, 2)) for _ in range(40)]
    assert all(out.argmax() == 0 for out in outs)  # torchvision's own permutes them half of the time
    assert torch.stack(outs).std(0).min() > 1


def test_wrong_augmentation_is_named():
    with pytest.raises(InputError, match=r"scale a range above 0, got \[769, 769\] and \[2.0, 1.0\]"):
        Augmentation(scale=(2.0, 1.0))
    with pytest.raises(InputError, match=r"data.augmentation.fit must be a height and a width of at least 1"):
        Augmentation(fit=(-1, 0))
    with pytest.raises(InputError, match=r"max_share and hflip must be in 0..1, got 0 and 0.5"):
        Augmentation(max_share=0)


@settings(max_examples=50)
@given(size=st.integers(1, 40), steps=st.integers(1, 7), batch=st.integers(1, 5), replicas=st.integers(1, 3))
def test_steps_pass_through_the_set_again_and_again(size, steps, batch, replicas):
    """All processes and epochs together see every image equally often, whatever an epoch's length."""
    samplers = [StepSampler(size, steps, batch, 3, rank, replicas) for rank in range(replicas)]
    stream = []
    for epoch in range(6):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        columns = [list(sampler) for sampler in samplers]
        assert {len(column) for column in columns} == {steps * batch}
        stream += [index for together in zip(*columns, strict=True) for index in together]
    whole = len(stream) // size
    for i in range(whole):
        assert sorted(stream[i * size : (i + 1) * size]) == list(range(size))


def test_the_test_part_follows_val(scenes):
    assert Splits(val="val2017").name("test") == "val2017"
    data = SegmentationData(scenes, Splits(train="train", val="test"))
    assert [x.image for x in data.dataset("test").samples] == [x.image for x in data.dataset("val").samples]
    assert "test" in data.dataset("test").samples[0].image.parts
