"""`dgmn.load` with every kind of network, input and mistake."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import dgmn
from dgmn.errors import InputError
from dgmn.predictor import Nodes, Predictor, Result
from dgmn.weights import read_checkpoint
from dgmn_base.terminal import format_table
from dgmn_cli import run

from small_runs import KINDS, train

TASKS = {kind: recipe.split("/")[0] for kind, (recipe, _) in KINDS.items()}
OF_EACH_TASK = ("classifier", "semantic_fpn", "mask_rcnn")


@pytest.fixture(scope="module")
def load(small_run):
    """`load("setr_pup")`: a small trained network of this kind."""
    loaded = {}

    def of(kind):
        if kind not in loaded:
            loaded[kind] = dgmn.load(small_run(kind), device="cpu")
        return loaded[kind]

    return of


@pytest.fixture(scope="module")
def photo(few_coco_scenes):
    return sorted((few_coco_scenes / "val").iterdir())[0]


def predict(model, images, **options):
    """Calls `model.predict`. Detectors keep every score, so that even an untrained one finds something."""
    return model.predict(images, **({"score": 0.0} if model.task == "detection" else {}), **options)


def content(result):
    """What a result found, without the name of its image."""
    values = result.to_dict()
    values.pop("image")
    return values


# ---------------------------------------------------------------------------------------------------- what comes out


# The others differ from these only in what other tests compare: their networks.
USUAL = ("classifier", "mask_rcnn", "deformable_detr", "setr_pup")
MOST = [pytest.param(k, marks=[pytest.mark.slow] * (k not in USUAL)) for k in KINDS]


@pytest.mark.parametrize("kind", MOST)
def test_every_kind_of_network(kind, load, small_run, photo):
    model = load(kind)
    assert isinstance(model, Predictor)
    assert model.task == TASKS[kind]
    assert model.names[:2] in {("0", "1"), ("photo", "0")}
    assert isinstance(model.network, torch.nn.Module)
    assert not model.network.training
    result = predict(model, photo)
    assert isinstance(result, Result)
    assert str(result)
    assert str(photo) in repr(result)
    json.dumps(result.to_dict(), allow_nan=False)
    assert result.image.size == (144, 96)
    assert result.draw().width >= 144
    assert len(result.cells()) == len(model.columns(len(result.cells())))
    assert format_table(("image", *model.columns(len(result.cells()))), [(result.name, *result.cells())])
    # A notebook shows a result as a picture.
    assert result._repr_png_().startswith(b"\x89PNG")
    # The run's folder, its checkpoint and its folder of checkpoints load the same network.
    for place in ("checkpoints/best.ckpt", "checkpoints"):
        again = dgmn.load(str(small_run(kind) / place), device=torch.device("cpu"))
        assert content(predict(again, photo)) == content(result)


@pytest.mark.parametrize("kind", MOST)
def test_what_is_saved_predicts_the_same(kind, load, photo, tmp_path):
    model = load(kind)
    again = dgmn.load(dgmn.save(model, tmp_path), device="cpu")
    assert content(predict(again, photo)) == content(predict(model, photo))
    assert again.describe() == model.describe()


def test_classes(load, photo):
    result = load("classifier").predict(photo, top=2)
    assert [name for name, _ in result.top] == [entry["class"] for entry in result.to_dict()["top"]]
    assert 1 > result.top[0][1] >= result.top[1][1] > 0
    assert len(load("classifier").predict(photo).top) == 3
    assert str(result).splitlines()[0].endswith(f"  {result.top[0][0]}")


def test_objects(load, photo):
    model = load("mask_rcnn")
    result = model.predict(photo, score=0.0)
    count = len(result)
    assert count > 0
    assert result.boxes.shape == (count, 4)
    assert result.masks.shape == (count, 96, 144)
    assert result.masks.dtype == bool
    assert (np.diff(result.scores) <= 0).all()
    assert result.names.tolist() == [model.names[label] for label in result.labels]
    assert str(result).startswith(f"{count} object")
    high = float(result.scores[0])
    assert 1 <= len(result.above(high)) == len(model.predict(photo, score=high)) < count
    assert str(model.predict(photo, score=1.0)) == "0 objects"
    coco = result.to_coco(7)
    assert {row["image_id"] for row in coco} == {7}
    for row, box, label in zip(coco, result.boxes.tolist(), result.labels.tolist(), strict=True):
        x, y, width, height = row["bbox"]
        assert (x, y, x + width, y + height) == pytest.approx(tuple(box), abs=1e-3)
        assert row["category_id"] == model.category_ids[label] == label + 1
        assert row["segmentation"]["size"] == [96, 144]
    (first, *_) = result.to_dict()["objects"]
    assert first["name"] == result.names[0]
    assert first["mask"] == coco[0]["segmentation"]
    assert load("retinanet").predict(photo).masks is None


def test_objects_in_supervision(load, photo):
    pytest.importorskip("supervision", exc_type=ImportError)
    result = load("mask_rcnn").predict(photo, score=0.0)
    detections = result.to_supervision()
    assert len(detections) == len(result)
    assert np.array_equal(detections.xyxy, result.boxes)
    assert np.array_equal(detections.mask, result.masks)
    assert detections["class_name"].tolist() == result.names.tolist()
    some = detections[detections.confidence > np.median(result.scores)]
    assert 0 < len(some) < len(detections)


def test_classes_of_pixels(load, photo):
    model = load("semantic_fpn")
    result = model.predict(photo)
    assert result.labels.shape == (96, 144)
    assert result.probabilities is None
    assert sum(result.shares.values()) == pytest.approx(1)
    assert list(result.shares.values()) == sorted(result.shares.values(), reverse=True)
    assert set(result.shares) <= set(model.names)
    assert np.array_equal(np.asarray(result.label_image()), result.labels)
    more = model.predict(photo, probabilities=True)
    assert more.probabilities.shape == (11, 96, 144)
    assert np.array_equal(more.labels, result.labels)
    np.testing.assert_allclose(more.probabilities.sum(0), 1, atol=1e-5)
    scales = model.predict(photo, multi_scale=True, probabilities=True)
    assert not np.allclose(scales.probabilities, more.probabilities)


def test_classes_of_the_same_name_share_their_pixels(load, photo):
    model = copy.copy(load("semantic_fpn"))
    model.names = ("a",) * len(model.names)
    assert predict(model, photo).shares == {"a": pytest.approx(1)}


@pytest.mark.parametrize("kind", MOST)
def test_the_default_device_is_of_no_concern(kind, load, photo):
    """What lies on it is put nowhere near the images and the network."""
    model = load(kind)
    expected, nodes = content(predict(model, photo)), model.nodes(photo)
    with torch.device("meta"):
        result, others = predict(model, photo), model.nodes(photo)
        assert result.draw().size == predict(model, photo).draw().size
        assert others.draw().size == nodes.draw().size
    assert content(result) == expected


@pytest.mark.parametrize("kind", OF_EACH_TASK)
def test_nodes(kind, load, photo):
    model = load(kind)
    nodes = model.nodes(photo, at=(70, 40))
    assert isinstance(nodes, Nodes)
    assert len(nodes) == len(list(nodes)) > len(nodes.layers) > 1
    assert nodes[0].layer == nodes.layers[0]
    assert repr(nodes) == str(nodes)
    assert str(nodes).startswith(f"the nodes of (70, 40) in {len(nodes.layers)} layers, {nodes.layers[0]} to ")
    assert len(repr(nodes.maps[0])) < 400
    assert nodes.draw().size == nodes.draw(nodes.layers[-1]).size
    assert nodes.draw(nodes.layers[0]).tobytes() != nodes.draw().tobytes()
    stages = nodes.select("stages")
    for stage in range(4):  # as networks and as metrics name them
        assert nodes.select(f"stage{stage + 1}")[-1] == nodes.select(stages[stage].partition(".blocks")[0])[-1]
    assert nodes._repr_png_().startswith(b"\x89PNG")
    middle = model.nodes(np.asarray(Image.open(photo).convert("RGB")))
    assert [n.receiver for n in middle] == [n.receiver for n in model.nodes(photo, at=(72, 48))]
    with pytest.raises(InputError, match=r"at must lie in the image, 0 <= x < 144 .* got x = 144"):
        model.nodes(photo, at=(144, 3))


# ------------------------------------------------------------------------------------------------------ what goes in


def inputs(photo):
    image = Image.open(photo).convert("RGB")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    return {
        "path": photo,
        "text": str(photo),
        "bytes": photo.read_bytes(),
        "PIL image": image,
        "array": array,
        "array of another stride": np.asfortranarray(array),
        "tensor": tensor,
        "tensor in 0..1": tensor / 255,
        "tensor with a gradient": (tensor / 255).requires_grad_(),
    }


@pytest.mark.parametrize("kind", MOST)
def test_one_image_in_every_form(kind, load, photo):
    model = load(kind)
    expected = content(predict(model, photo))
    for name, image in inputs(photo).items():
        result = predict(model, image)
        assert content(result) == expected, name
        assert (result.name == str(photo)) == (name in ("path", "text"))


@pytest.mark.parametrize("kind", ["classifier", "semantic_fpn", pytest.param("mask_rcnn", marks=pytest.mark.slow)])
def test_many_images(kind, load, few_coco_scenes, photo):
    model = load(kind)
    folder = few_coco_scenes / "val"
    files = sorted(folder.iterdir())
    single = [content(predict(model, file)) for file in files]
    alone = {"batch_size": 1}  # in larger batches, sums may differ in the last digit
    for images in (folder, str(folder), f"{folder}/*.png", files, tuple(files), iter(files)):
        results = predict(model, images, **alone)
        assert iter(results) is results
        assert [content(result) for result in results] == single
    assert list(predict(model, [])) == []
    done = []
    results = list(predict(model, [*files, photo], batch_size=4, progress=done.append))
    assert len(results) == len(files) + 1
    if model.task == "segmentation":  # a segmenter takes images one by one anyway
        assert [content(result) for result in results] == [*single, content(predict(model, photo))]
    assert done == sorted(done)
    assert done[-1] == len(files) + 1


def test_images_are_read_when_their_turn_comes(load, photo, tmp_path):
    images = (tmp_path / f"{i}.png" for i in range(10**9))
    shutil.copy(photo, tmp_path / "0.png")
    results = load("retinanet").predict(images, batch_size=1)
    assert next(results).name.endswith("0.png")
    with pytest.raises(FileNotFoundError, match=r"1\.png"):
        next(results)


def test_an_image_turned_by_the_camera(load, photo, tmp_path):
    image = Image.open(photo).convert("RGB").resize((60, 40))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    for source in (
        tmp_path / "turned.jpg",
        Image.open(tmp_path / "turned.jpg"),
        (tmp_path / "turned.jpg").read_bytes(),
    ):
        assert load("semantic_fpn").predict(source).labels.shape == (60, 40)


def test_bad_images_among_many(load, photo, tmp_path):
    for name in ("a.png", "c.png"):
        shutil.copy(photo, tmp_path / name)
    (tmp_path / "b.png").write_text("no image")
    model, told = load("classifier"), []
    results = list(model.predict(tmp_path, on_error=lambda image, error: told.append((image, str(error)))))
    assert [Path(result.name).name for result in results] == ["a.png", "c.png"]
    ((source, message),) = told
    assert source == tmp_path / "b.png"
    assert message.startswith(f"{source}: not an image of a known format: JPEG, PNG")
    with pytest.raises(InputError, match=r"b\.png: not an image"):
        list(model.predict(tmp_path))


@pytest.mark.parametrize("kind", OF_EACH_TASK)
def test_the_command_decodes_an_image_once(kind, small_run, few_coco_scenes, tmp_path, monkeypatch):
    model = str(small_run(kind))
    opened, open_image = [], Image.open
    monkeypatch.setattr(Image, "open", lambda source, **more: opened.append(source) or open_image(source, **more))
    folder = few_coco_scenes / "val"
    outputs = [part for name in ("pictures", "nodes") for part in (f"--{name}", str(tmp_path / name))]
    arguments = ["--ckpt_path", model, "--json", str(tmp_path / "found.json"), "--device", "cpu"]
    assert run(["predict", str(folder), *arguments, *outputs]) == 0
    assert sorted(opened) == sorted(folder.iterdir())
    assert len(list((tmp_path / "pictures").iterdir())) == len(list((tmp_path / "nodes").iterdir())) == len(opened)
    assert json.loads((tmp_path / "found.json").read_text())


CLOSED = Image.new("RGB", (4, 5))
CLOSED.close()
NO_IMAGES = {
    "closed": (CLOSED, r"image: a PIL image that cannot be read: Operation on closed image"),
    "another mode": (Image.new("La", (4, 5)), r"image: a PIL image that cannot be read: conversion from La"),
    "a very long path": ("a" * 5000, r"aaa"),
    "a very long name": ("a" * 300 + ".mp4", r"aaa"),
    "nothing": (None, r"image must be a path, .* got NoneType"),
    "a number": (3, r"image must be a path, .* got int"),
    "no file": ("nowhere.jpg", r"nowhere\.jpg"),
    "no image": (b"no image", r"image \(8 bytes\): not an image"),
    "no bytes": (b"", r"image \(0 bytes\): not an image"),
    "channels first": (np.zeros((3, 4, 5), np.uint8), r"must be \(H, W, 3\) of uint8 in RGB, got \(3, 4, 5\) of uint8"),
    "with alpha": (np.zeros((4, 5, 4), np.uint8), r"got \(4, 5, 4\) of uint8"),
    "floats": (np.zeros((4, 5, 3), np.float32), r"got \(4, 5, 3\) of float32"),
    "empty array": (np.zeros((0, 5, 3), np.uint8), r"got \(0, 5, 3\) of uint8"),
    "channels last": (torch.zeros(4, 5, 3), r"a tensor must be \(3, H, W\), .* got \(4, 5, 3\)"),
    "a batch": (torch.zeros(1, 3, 4, 5), r"got \(1, 3, 4, 5\)"),
    "normalised": (torch.full((3, 4, 5), -2.0), r"got numbers from -2 to -2"),
    "not a number": (torch.full((3, 4, 5), float("nan")), r"got numbers from nan to nan"),
    "whole numbers": (torch.zeros(3, 4, 5, dtype=torch.int64), r"got torch\.int64"),
}


@pytest.mark.parametrize(("image", "message"), NO_IMAGES.values(), ids=NO_IMAGES)
def test_what_is_no_image(image, message, load):
    for call in (load("classifier").predict, load("classifier").nodes):
        with pytest.raises((InputError, FileNotFoundError), match=message):
            call(image)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("classifier", {"top": 0}, "top must be a whole number of at least 1, got 0"),
        ("classifier", {"batch_size": -1}, "batch_size must be a whole number of at least 1, got -1"),
        ("mask_rcnn", {"score": 40}, r"score must be in 0\.\.1, got 40"),
        ("mask_rcnn", {"score": float("nan")}, r"score must be in 0\.\.1, got nan"),
    ],
)
def test_wrong_options(kind, options, message, load, photo):
    for images in (photo, [photo]):  # the call itself fails, before any result
        with pytest.raises(InputError, match=message):
            load(kind).predict(images, **options)


# --------------------------------------------------------------------------------------------------- what is opened


def test_published_weights(official_weights, cache_dir, tmp_path, photo):
    torch.save({"model": official_weights("a_cls_tiny")}, tmp_path / "official.pth")
    with pytest.raises(ConnectionError, match="then: dgmn zoo download dgmn2_tiny --file FILE"):
        dgmn.load("dgmn2_tiny")
    with pytest.raises(
        InputError, match=r"official\.pth does not say what network it is for: give the published model"
    ):
        dgmn.load(tmp_path / "official.pth")
    model = dgmn.load(tmp_path / "official.pth", model="dgmn2_tiny", device="cpu")
    assert (len(model.names), model.names[0]) == (1000, "tench")
    own = dgmn.save(timm.create_model("dgmn2_nano", num_classes=2), tmp_path / "own", classes=["a", "b"])
    with pytest.raises(InputError, match=r"model dgmn2_tiny: .* is of dgmn2_nano, and says so itself: leave model out"):
        dgmn.load(own, model="dgmn2_tiny")
    dgmn.weights.download("dgmn2_tiny", tmp_path / "official.pth")
    assert content(dgmn.load("dgmn2_tiny", device="cpu").predict(photo)) == content(model.predict(photo))


def test_a_recipe_says_what_a_file_does_not(small_run, tmp_path, photo):
    folder = small_run("retinanet")
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    torch.save(checkpoint["state_dict"], tmp_path / "weights.pth")
    model = dgmn.load(tmp_path / "weights.pth", recipe=folder / "logs/version_0/config.yaml", device="cpu")
    expected = dgmn.load(folder / "checkpoints/last.ckpt", device="cpu")
    assert content(predict(model, photo)) == content(predict(expected, photo))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.ckpt", r"nowhere\.ckpt: no such file"),
        ("runs/nowhere", r"runs/nowhere: no such file"),
        ("mask_rcnn_dgmn2_tny", r"no published model 'mask_rcnn_dgmn2_tny', did you mean mask_rcnn_dgmn2_tiny"),
        ("", r"source must be a file, a folder or the name of a published model, got nothing"),
        ("{folder}", r"not a run's folder: it has neither checkpoints/best\.ckpt nor checkpoints/last\.ckpt"),
        ("{text}", r"text\.ckpt: damaged or not a PyTorch checkpoint"),
        ("{empty}", r"empty\.ckpt: no weights in it"),
        ("{task}", r"task\.ckpt: dgmn\.task: got 'poetry'; accepted one of classification, detection, segmentation"),
        ("{lacking}", r"lacking\.ckpt: dgmn\.model: is missing; accepted the name of a network"),
    ],
)
def test_what_cannot_be_opened(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"folder": tmp_path / "folder"}
    places["folder"].mkdir()
    weights = timm.create_model("dgmn2_nano", num_classes=2).state_dict()
    for name, file in {
        "empty": {},
        "task": {"state_dict": weights, "dgmn": {"task": "poetry"}},
        "lacking": {"state_dict": weights, "dgmn": {"task": "classification"}},
    }.items():
        places[name] = tmp_path / f"{name}.ckpt"
        torch.save(file, places[name])
    places["text"] = tmp_path / "text.ckpt"
    places["text"].write_text("no checkpoint")
    with pytest.raises(InputError, match=message):
        dgmn.load(source.format(**places))


def test_no_such_device(small_run):
    with pytest.raises(InputError, match=r"device cuda:99: not available here"):
        dgmn.load(small_run("classifier"), device="cuda:99")
    with pytest.raises(InputError, match=r"device toaster: not available here"):
        dgmn.load(small_run("classifier"), device="toaster")


# ---------------------------------------------------------------------------------------------------- preprocessing

OVERLAY = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.5, 0.25], "interpolation": "bilinear", "crop_pct": 1.0}


@pytest.mark.parametrize("kind", OF_EACH_TASK)
@pytest.mark.slow
def test_preprocessing_belongs_to_the_weights(kind, few_digits, few_scenes, few_coco_scenes, tmp_path, photo):
    """Training, validation and prediction use the network's own normalisation. Its checkpoint holds it."""
    overlay = json.dumps({"pretrained_cfg_overlay": OVERLAY})
    sizes = {"min_size": 64, "max_size": 96, "channels": 16, "representation_size": 32}
    detector = json.dumps({**sizes, "backbone_args": json.loads(overlay)})
    more, data = {
        "classifier": (["--model.model_args", overlay, "--model.num_classes", "3"], few_digits),
        "semantic_fpn": (["--model.model_args", f'{{"backbone_args": {overlay}, "channels": 16}}'], few_scenes),
        "mask_rcnn": (["--model.model_args", detector], few_coco_scenes),
    }[kind]
    if kind == "classifier":
        more += ["--data.crop_pct", "null", "--trainer.limit_train_batches", "1"]
    checkpoint = train(kind, data, tmp_path / "run", *more) / "checkpoints/last.ckpt"
    stored = read_checkpoint(checkpoint).description["preprocessing"]
    assert {name: stored[name] for name in OVERLAY} == OVERLAY

    model = dgmn.load(checkpoint, device="cpu")
    seen = []
    first = next(module for module in model.network.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    grey = Image.new("RGB", (64, 64), (102, 102, 102))
    predict(model, grey)
    expected = (0.4 - torch.tensor(OVERLAY["mean"])) / torch.tensor(OVERLAY["std"])
    torch.testing.assert_close(seen[0][0, :, 20, 20], expected, rtol=1e-4, atol=1e-4)

    # The checkpoint holds the preprocessing itself: without the arguments the result is the same.
    content = torch.load(checkpoint, weights_only=True)
    arguments = content["dgmn"]["model_args"]
    (arguments if kind == "classifier" else arguments["backbone_args"]).pop("pretrained_cfg_overlay")
    torch.save(content, tmp_path / "other.ckpt")
    predict(dgmn.load(tmp_path / "other.ckpt", device="cpu"), grey)
    again = dgmn.load(tmp_path / "other.ckpt", device="cpu")
    first = next(module for module in again.network.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    predict(again, grey)
    assert torch.equal(seen[0], seen[1])
    # A training that starts from the checkpoint keeps its preprocessing.
    started = train(kind, data, tmp_path / "next", *_without_overlay(kind, more), "--model.checkpoint", str(checkpoint))
    assert read_checkpoint(started / "checkpoints/last.ckpt").description["preprocessing"] == stored


def _without_overlay(kind, options):
    place = options.index("--model.model_args") + 1
    arguments = json.loads(options[place])
    (arguments if kind == "classifier" else arguments["backbone_args"]).pop("pretrained_cfg_overlay")
    return [*options[:place], json.dumps(arguments), *options[place + 1 :]]


def test_checkpoints_of_before_have_imagenet_s(small_run, tmp_path, photo):
    content = torch.load(small_run("classifier") / "checkpoints/last.ckpt", weights_only=True)
    stored = content["dgmn"].pop("preprocessing")
    content["dgmn"]["crop_pct"] = stored["crop_pct"]
    torch.save(content, tmp_path / "old.ckpt")
    old, new = (dgmn.load(file, device="cpu") for file in (tmp_path / "old.ckpt", small_run("classifier")))
    assert old.predict(photo).to_dict() == new.predict(photo).to_dict()
