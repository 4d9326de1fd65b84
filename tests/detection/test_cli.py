"""The command, as users run it, on small real data."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import dgmn
from dgmn.objects.coco import read_coco
from dgmn.weights import read_checkpoint
from dgmn_base.recipes import recipe_names
from dgmn_cli import run


def recipe(model):
    return f"recipes/detection/scenes_{model}.yaml"


def metrics(folder, version=0):
    rows = list(csv.DictReader((folder / f"logs/version_{version}/metrics.csv").open()))
    return {k: float(v) for row in rows for k, v in row.items() if v}


def fit(root, folder, *options, model="retinanet"):
    arguments = ["fit", "-c", recipe(model), "--data.root", str(root), "--trainer.default_root_dir", str(folder)]
    return run([*arguments, "--data.batch_size", "4", "--model.lr_batch", "4", *options])


# Both learn for half a minute. By default, shorter runs and the tests of each part take their place.
@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow) for name in ("mask_rcnn", "retinanet")]
)
def trained(request, few_coco_scenes, tmp_path_factory):
    """A run long enough to find some of the objects that it was trained on."""
    folder = tmp_path_factory.mktemp("run")
    options = ["--data.val", "train", "--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1"]
    options += ["--data.epoch_steps", {"retinanet": "60", "mask_rcnn": "40"}[request.param]]
    assert fit(few_coco_scenes, folder, *options, model=request.param) == 0
    return folder, request.param


def test_a_run_learns_and_leaves_everything(trained):
    folder, model = trained
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    rows = csv.DictReader((folder / "logs/version_0/metrics.csv").open())
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    found = metrics(folder)
    assert found["val/box_AP50"] > 0.02
    assert ("val/mask_AP50" in found) == (model == "mask_rcnn")
    with Image.open(folder / "pictures/epoch_0000.jpg") as picture:
        assert picture.height > 1000
    description = read_checkpoint(folder / "checkpoints/last.ckpt").description
    assert (description["task"], description["model"]) == ("detection", model)
    assert description["classes"] == [str(digit) for digit in range(10)]
    assert description["category_ids"] == list(range(1, 11))


def test_test_gives_the_numbers_of_pycocotools(trained, few_coco_scenes, tmp_path, capsys):
    """pycocotools gets the results that the command writes for the test server."""
    folder, model = trained
    arguments = ["-c", recipe(model), "--data.root", str(few_coco_scenes), "--data.test", "train"]
    arguments += ["--ckpt_path", str(folder / "checkpoints/last.ckpt"), "--trainer.default_root_dir", str(tmp_path)]
    assert run(["test", *arguments]) == 0
    out = capsys.readouterr().out
    table = out[out.index("category") :].splitlines()[2:12]
    assert [line.split()[0] for line in table] == [str(digit) for digit in range(10)]
    truth = COCO(str(few_coco_scenes / "annotations/instances_train.json"))
    for kind, name in {"bbox": "box", "segm": "mask"}.items():
        if kind == "segm" and model != "mask_rcnn":
            continue
        evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        for metric, value in zip(("AP", "AP50", "AP75"), evaluation.stats, strict=False):
            assert metrics(tmp_path)[f"test/{name}_{metric}"] == pytest.approx(value, abs=1e-6)
    assert metrics(tmp_path)["test/box_AP"] == pytest.approx(metrics(folder)["val/box_AP"], abs=1e-6)


@pytest.mark.slow
def test_two_processes_find_the_same(trained, few_coco_scenes, tmp_path):
    """Two processes count each of the seven images once."""
    folder, model = trained
    if model == "retinanet":
        pytest.skip("what differs is in Mask R-CNN, whose masks are gathered too")
    root = shutil.copytree(few_coco_scenes, tmp_path / "scenes")
    file = root / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    gone = content["images"].pop()["id"]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != gone]
    file.write_text(json.dumps(content))
    common = ["validate", "-c", recipe(model), "--data.root", str(root), "--data.val", "train"]
    common += ["--ckpt_path", str(folder / "checkpoints/last.ckpt"), "--trainer.default_root_dir", str(tmp_path)]
    two = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = subprocess.run(
        [sys.executable, "-m", "dgmn_cli", *common, *two], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert run(common) == 0
    one, both = metrics(tmp_path, 1), metrics(tmp_path, 0)
    assert one == pytest.approx(both, abs=1e-6)
    assert one["val/box_AP50"] > 0


def test_predict(trained, few_coco_scenes, tmp_path, capsys):
    folder, model = trained
    images = sorted((few_coco_scenes / "train").iterdir())
    arguments = ["predict", str(few_coco_scenes / "train"), "--ckpt_path", str(folder / "checkpoints/last.ckpt")]
    arguments += ["--score", "0.1", "--pictures", str(tmp_path / "p"), "--json", str(tmp_path / "found.json")]
    assert run(arguments) == 0
    out = capsys.readouterr().out
    content = json.loads((tmp_path / "found.json").read_text())
    predictor = dgmn.load(folder / "checkpoints/last.ckpt", device="cpu")
    for path, image in zip(images, content["images"], strict=True):
        assert image["file_name"] == str(path)
        found = predictor.predict(path, score=0.1)
        here = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        assert [entry["score"] for entry in here] == sorted(found.scores.tolist(), reverse=True)
        assert [entry["category_id"] - 1 for entry in here] == found.labels.tolist()
        assert f"{path}  {len(here):>7}" in out
    assert content["annotations"], "something is found"
    assert min(entry["score"] for entry in content["annotations"]) >= 0.1
    assert len(list((tmp_path / "p").iterdir())) == len(images)
    # The written file is a dataset in COCO's format again.
    shutil.copytree(few_coco_scenes / "train", tmp_path / "again")
    content["images"] = [{**image, "file_name": str(images[i])} for i, image in enumerate(content["images"])]
    (tmp_path / "again.json").write_text(json.dumps(content))
    coco = read_coco(tmp_path / "again.json", tmp_path)
    assert sum(len(image.objects) for image in coco.images) + coco.left_out == len(content["annotations"])
    with_masks = all("segmentation" in entry for entry in content["annotations"])
    assert with_masks == (model == "mask_rcnn")


def test_nothing_found(trained, few_coco_scenes, tmp_path, capsys):
    folder, _ = trained
    image = few_coco_scenes / "val/000001.png"
    arguments = ["predict", str(image), "--ckpt_path", str(folder / "checkpoints/last.ckpt"), "--score", "1"]
    assert run([*arguments, "--pictures", str(tmp_path), "--json", str(tmp_path / "found.json")]) == 0
    assert f"{image}        0" in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text())["annotations"] == []
    assert (tmp_path / "000001.jpg").is_file()


def test_captions_do_not_cover_each_other():
    """Forty objects are at nearly one place. Every box is drawn, but only the captions that have room."""
    from dgmn.detection.predictor import drawn

    boxes = torch.tensor([[20.0 + i, 20.0 + i, 70.0 + i, 60.0 + i] for i in range(40)])
    found = {"boxes": boxes, "scores": torch.linspace(0.9, 0.3, 40), "labels": torch.zeros(40, dtype=torch.long)}
    few = {key: value[:1] for key, value in found.items()}
    grey = Image.new("RGB", (500, 300), (128, 128, 128))
    many, one = (np.asarray(drawn(grey, x, ["thing"])).astype(int) for x in (found, few))
    assert (many != 128).any(-1).sum() > (one != 128).any(-1).sum()
    assert (one[:20] == many[:20]).all(), "the caption of the first is on top"


@pytest.mark.slow
def test_published_models(official_weights, cache_dir, tmp_path, capsys):
    torch.save({"state_dict": official_weights("e_retinanet_tiny")}, tmp_path / "official.pth")
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(photo)
    name = "retinanet_dgmn2_tiny"
    assert run(["predict", str(photo), "--model", name]) == 2
    assert f"then: dgmn zoo download {name} --file FILE" in capsys.readouterr().err
    assert run(["predict", str(photo), "--model", name, "--ckpt_path", str(tmp_path / "official.pth")]) == 0
    assert run(["zoo", "download", name, "--file", str(tmp_path / "official.pth")]) == 0
    predictor = dgmn.load(name, device="cpu")
    assert (predictor.names[0], predictor.names[-1]) == ("person", "toothbrush")
    assert (len(predictor.category_ids), predictor.category_ids[-1]) == (80, 90)


def test_starting_from_other_weights(trained, few_coco_scenes, tmp_path, official_weights, capsys):
    """A classifier's weights fill the backbone. A run with other classes fills all but the classifier."""
    folder, model = trained
    steps = ["--trainer.fast_dev_run", "1"]
    torch.save({"model": official_weights("a_cls_tiny")}, tmp_path / "tiny.pth")
    backbone = ["--model.backbone", "dgmn2_tiny", "--model.checkpoint", str(tmp_path / "tiny.pth")]
    assert fit(few_coco_scenes, tmp_path / "a", *backbone, *steps, model=model) == 0
    assert "backbone: loaded" in capsys.readouterr().out
    root = shutil.copytree(few_coco_scenes, tmp_path / "scenes")
    for file in (root / "annotations").iterdir():
        content = json.loads(file.read_text())
        content["categories"].append({"id": 77, "name": "ten"})
        file.write_text(json.dumps(content))
    other = ["--model.num_classes", "11", "--model.checkpoint", str(folder / "checkpoints/last.ckpt")]
    assert fit(root, tmp_path / "b", *other, *steps, model=model) == 0
    assert "its classifier is left out" in capsys.readouterr().out


@pytest.mark.slow
def test_a_damaged_image_in_the_middle_of_training(coco_scenes, tmp_path, capsys):
    image = coco_scenes / "train/000003.png"
    image.write_bytes(image.read_bytes()[:500])
    options = ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--data.batch_size", "2"]
    assert fit(coco_scenes, tmp_path / "a", *options) == 2
    assert f"{image}: damaged image" in capsys.readouterr().err
    assert fit(coco_scenes, tmp_path / "b", *options, "--data.skip_bad_images", "true") == 0
    assert f"left out: {image}: damaged image" in capsys.readouterr().err
    assert read_checkpoint(tmp_path / "b/checkpoints/last.ckpt").description is not None


def test_a_damaged_image_of_the_validation(trained, coco_scenes, tmp_path, capsys):
    """The image does not count, and no other image counts in its place."""
    folder, model = trained
    image = coco_scenes / "val/000002.png"
    image.write_bytes(image.read_bytes()[:500])
    arguments = ["validate", "-c", recipe(model), "--data.root", str(coco_scenes)]
    arguments += ["--ckpt_path", str(folder / "checkpoints/last.ckpt"), "--data.batch_size", "1"]
    arguments += ["--trainer.default_root_dir", str(tmp_path)]
    assert run(arguments) == 2
    assert f"{image}: damaged image" in capsys.readouterr().err
    assert run([*arguments, "--data.skip_bad_images", "true"]) == 0
    assert f"left out: {image}: damaged image" in capsys.readouterr().err
    file = coco_scenes / "annotations/instances_val.json"
    content = json.loads(file.read_text())
    content["images"] = [entry for entry in content["images"] if entry["id"] != 2]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 2]
    file.write_text(json.dumps(content))
    assert run(arguments) == 0
    assert metrics(tmp_path, 1) == metrics(tmp_path, 2)


def test_predict_with_a_recipe(trained, few_coco_scenes, capsys):
    """The run's recipe gives the same predictions as its checkpoint alone."""
    folder, _ = trained
    arguments = ["predict", str(few_coco_scenes / "val"), "--ckpt_path", str(folder / "checkpoints/last.ckpt")]
    assert run(arguments) == 0
    expected = capsys.readouterr().out
    assert run([*arguments, "-c", str(folder / "logs/version_0/config.yaml")]) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.num_classes", "5"], "model.num_classes is 5, but the data has 10 classes (0, 1, 2, 3, 4 ...)"),
        (["--model.model", "yolo"], "model: no network 'yolo'; one of retinanet, mask_rcnn"),
        (["--model.backbone", "resnet19"], "backbone: timm knows no 'resnet19'"),
        (["--model.model_args", "{wings: 2}"], "retinanet cannot be built with {'wings': 2}"),
        (["--model.model", "mask_rcnn", "--model.model_args", "{}"], "mask_rcnn needs masks: give --data.masks true"),
        (["--data.root", "nowhere"], "data.root nowhere: there is no such folder"),
        (["--data.train", "trein"], "instances_trein.json; there are "),
    ],
)
def test_mistakes_get_one_line(options, message, few_coco_scenes, tmp_path, capsys):
    assert fit(few_coco_scenes, tmp_path, *options) == 2
    err = capsys.readouterr().err.strip()
    assert message in err
    assert len(err.splitlines()) == 1


def test_options_of_another_task(trained, few_coco_scenes, capsys):
    folder, _ = trained
    arguments = [str(few_coco_scenes / "val"), "--ckpt_path", str(folder / "checkpoints/last.ckpt")]
    assert run(["predict", *arguments, "--submission", "out"]) == 2
    assert "--submission is for segmentation, this model is for detection" in capsys.readouterr().err
    assert not os.path.exists("out")
    with pytest.raises(SystemExit):
        run(["predict", *arguments, "--score", "40"])
    assert "must be a number from 0 to 1, got '40'" in capsys.readouterr().err


def test_validate_data(coco_scenes, tmp_path, capsys):
    picture = tmp_path / "data.png"
    arguments = ["validate-data", "-c", recipe("mask_rcnn"), "--data.root", str(coco_scenes)]
    arguments += ["--picture", str(picture)]
    assert run(arguments) == 0
    assert "no mistakes found" in capsys.readouterr().out
    with Image.open(picture) as image:
        assert image.width > 1000
    file = coco_scenes / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][2] = 0
    content["categories"] += [{"id": 50 + i, "name": name} for i, name in enumerate(("rbc", "RB C"))]
    file.write_text(json.dumps(content))
    run(arguments)
    told = capsys.readouterr().out
    assert "train: 1 box of less than a pixel in the image; no training learns from them" in told
    assert "the classes 'rbc', 'RB C' differ in capitals or spaces only: are they one?" in told
    content["annotations"][4]["category_id"] = 44
    file.write_text(json.dumps(content))
    assert run(arguments) == 1
    assert "annotations[4] (id 5): the category_id 44 is not declared" in capsys.readouterr().out


# The usual recipes run by default. The papers' differ from them in numbers, and run before every release.
WHOLE = [
    pytest.param(name, marks=[pytest.mark.slow] * ("finetune" not in name and "scenes_mask_rcnn" not in name))
    for name in recipe_names()
    if "/detection/" in name
]


@pytest.mark.parametrize("name", WHOLE)
def test_every_recipe_runs(name, few_coco_scenes, tmp_path):
    small = "{min_size: 96, max_size: 144}"
    if "sparse" in name:
        small = "{min_size: 96, max_size: 144, channels: 32, num_stages: 2}"
    elif "mask" in name:
        small = "{min_size: 96, max_size: 144, channels: 32, representation_size: 64}"
    options = ["--trainer.fast_dev_run", "1", "--data.num_workers", "0", "--model.backbone", "dgmn2_nano"]
    options += ["--model.num_classes", "10", "--data.batch_size", "2", "--model.model_args", small]
    options += ["--data.train", "train", "--data.val", "val", "--data.root", str(few_coco_scenes)]
    assert run(["fit", "-c", name, "--trainer.default_root_dir", str(tmp_path), *options]) == 0


def test_labels_that_are_category_ids(coco_scenes, tmp_path, capsys):
    """Categories with gaps keep their ids as labels, from the training to the JSON of a prediction."""
    for file in (coco_scenes / "annotations").iterdir():
        content = json.loads(file.read_text())
        for entry in content["categories"]:
            entry["id"] = 2 * entry["id"] + 1
        for entry in content["annotations"]:
            entry["category_id"] = 2 * entry["category_id"] + 1
        file.write_text(json.dumps(content))
    largest = max(entry["id"] for entry in content["categories"])
    options = ["--model.backbone", "dgmn2_nano", "--model.model_args", "{min_size: 96, max_size: 144, channels: 32}"]
    options += ["--data.root", str(coco_scenes), "--data.train", "train", "--data.val", "val"]
    options += ["--data.ids_as_labels", "true", "--data.num_workers", "0", "--data.batch_size", "2"]
    options += [
        "--data.epoch_steps",
        "1",
        "--trainer.max_epochs",
        "1",
        "--trainer.default_root_dir",
        str(tmp_path / "run"),
    ]
    recipe = ["-c", "recipes/detection/finetune_coco_format.yaml", *options]
    assert run(["fit", *recipe, "--model.num_classes", "10"]) == 2
    assert f"give --model.num_classes {largest + 1}" in capsys.readouterr().err
    assert run(["fit", *recipe, "--model.num_classes", str(largest + 1)]) == 0
    table = capsys.readouterr().out.split("box AP\n")[1]
    assert "no category" not in table
    picture = next((coco_scenes / "val").glob("*.*"))
    checkpoint = str(tmp_path / "run/checkpoints/last.ckpt")
    arguments = ["predict", str(picture), "--ckpt_path", checkpoint, "--score", "0", "--json", str(tmp_path / "a.json")]
    assert run(arguments) == 0
    categories = json.loads((tmp_path / "a.json").read_text())["categories"]
    assert [entry["id"] for entry in categories] == list(range(largest + 1))


@pytest.mark.slow
def test_the_recipe_with_dgmn_in_a_resnet(few_coco_scenes, tmp_path, capsys):
    """A small network starts from a plain ResNet's weights, as in the paper. It trains, evaluates and predicts."""
    sizes = {"layers": [1, 1, 2, 1], "channels": [8, 8, 16, 16]}
    plain = timm.create_model("resnet50", **sizes)
    torch.save(plain.state_dict(), tmp_path / "resnet.pth")
    backbone = {**sizes, "at": "c4_c5", "frozen_norms": True, "frozen_stages": 1}
    args = {"min_size": 96, "max_size": 144, "channels": 32, "representation_size": 64, "backbone_args": backbone}
    options = ["--model.model_args", json.dumps(args), "--model.num_classes", "10", "--data.batch_size", "2"]
    options += ["--data.train", "train", "--data.val", "val", "--data.root", str(few_coco_scenes)]
    options += ["--data.epoch_steps", "2", "--trainer.max_epochs", "1", "--data.num_workers", "0"]
    options += ["--trainer.default_root_dir", str(tmp_path / "run")]
    recipe = ["-c", "recipes/detection/mask_rcnn_r50_dgmn_coco_1x.yaml"]
    assert run(["fit", *recipe, *options, "--model.checkpoint", str(tmp_path / "resnet.pth")]) == 0
    assert "that the file lacks start anew" in capsys.readouterr().out
    checkpoint = tmp_path / "run/checkpoints/last.ckpt"
    trained = torch.load(checkpoint, weights_only=True)["state_dict"]
    name = "model.backbone.body.model.layer{}.0.conv2.weight"
    assert torch.equal(trained[name.format(1)], plain.layer1[0].conv2.weight)
    assert not torch.equal(trained[name.format(4)], plain.layer4[0].conv2.weight)
    assert "model.backbone.body.model.layer3.1.act2.module.beta.0" in trained
    # A run's own checkpoint has all weights, so the file that the run started from may be gone.
    (tmp_path / "resnet.pth").unlink()
    start = ["--model.checkpoint", str(tmp_path / "resnet.pth")]
    assert run(["validate", *recipe, *options, *start, "--ckpt_path", "best"]) == 0
    pretrained = ["--model.model_args", json.dumps({**args, "pretrained": True})]
    assert run(["fit", *recipe, *options, *pretrained, "--trainer.max_epochs", "2", "--ckpt_path", "last"]) == 0
    found = tmp_path / "found.json"
    arguments = [str(few_coco_scenes / "val"), "--ckpt_path", str(checkpoint), "--score", "0", "--json", str(found)]
    assert run(["predict", *arguments]) == 0
    assert all("segmentation" in entry for entry in json.loads(found.read_text())["annotations"])


def test_images_of_a_test_server(trained, coco_scenes, tmp_path):
    """The file has no annotations: results are written, but not scored."""
    folder, model = trained
    file = coco_scenes / "annotations/instances_test.json"
    content = json.loads(file.read_text())
    del content["annotations"]
    file.write_text(json.dumps(content))
    arguments = ["-c", recipe(model), "--data.root", str(coco_scenes), "--trainer.default_root_dir", str(tmp_path)]
    assert run(["test", *arguments, "--ckpt_path", str(folder / "checkpoints/last.ckpt")]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert {result["image_id"] for result in results} == {1, 2, 3}
    assert all(("segmentation" in result) == (model == "mask_rcnn") for result in results)
    assert metrics(tmp_path)["test/box_AP"] == -1


@pytest.mark.parametrize("model", ["deformable_detr", pytest.param("sparse_rcnn", marks=pytest.mark.slow)])
def test_detectors_that_predict_sets(model, few_coco_scenes, tmp_path, capsys):
    """A run of two steps, its evaluation and its prediction work as for the other detectors."""
    options = ["--data.epoch_steps", "2", "--trainer.max_epochs", "1"]
    assert fit(few_coco_scenes, tmp_path / "run", *options, model=model) == 0
    checkpoint = tmp_path / "run/checkpoints/last.ckpt"
    arguments = ["-c", recipe(model), "--data.root", str(few_coco_scenes), "--ckpt_path", str(checkpoint)]
    assert run(["validate", *arguments, "--trainer.default_root_dir", str(tmp_path)]) == 0
    assert metrics(tmp_path)["val/box_AP"] == pytest.approx(metrics(tmp_path / "run")["val/box_AP"], abs=1e-6)
    arguments = [str(few_coco_scenes / "val"), "--ckpt_path", str(checkpoint), "--score", "0"]
    assert run(["predict", *arguments, "--json", str(tmp_path / "found.json")]) == 0
    content = json.loads((tmp_path / "found.json").read_text())
    assert {entry["image_id"] for entry in content["annotations"]} == {1, 2, 3, 4, 5}
    assert all(entry["bbox"][2] >= 0 for entry in content["annotations"])


def test_the_name_of_a_network_alone(few_coco_scenes, cache_dir, capsys):
    image = str(few_coco_scenes / "val/000001.png")
    for name, model in {"sparse_rcnn": "sparse_rcnn_dgmn2_small", "retinanet": "retinanet_dgmn2_tiny"}.items():
        assert run(["predict", image, "--model", name]) == 2
        assert f"{model} could not be downloaded" in capsys.readouterr().err
