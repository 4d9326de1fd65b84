"""The command, as users run it, on small real data."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dgmn
from dgmn.segmentation import Inference, SegmentationData
from dgmn.segmentation.cityscapes import CITYSCAPES_IDS
from dgmn.weights import read_checkpoint
from dgmn_base.recipes import recipe_names
from dgmn_cli import run

from scenes import RECIPE

SMALL = ["--data.batch_size", "8", "--data.epoch_steps", "2", "--model.lr_batch", "8", "--trainer.max_epochs", "1"]


def metrics(folder, version=0):
    rows = list(csv.DictReader((folder / f"logs/version_{version}/metrics.csv").open()))
    return {k: float(v) for row in rows for k, v in row.items() if v}


def fit(root, folder, *options):
    return run(
        ["fit", "-c", RECIPE, "--data.root", str(root), "--trainer.default_root_dir", str(folder), *SMALL, *options]
    )


@pytest.fixture(scope="module")
def trained(few_scenes, tmp_path_factory):
    """A complete run of two steps, too short for good predictions."""
    folder = tmp_path_factory.mktemp("run")
    assert fit(few_scenes, folder) == 0
    return folder


def test_a_run_leaves_everything(trained, few_scenes, capsys):
    assert {p.name for p in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert 0 <= metrics(trained)["val/miou"] <= 1
    with Image.open(trained / "pictures/epoch_0000.jpg") as picture:
        assert picture.width > 1000
    description = read_checkpoint(trained / "checkpoints/last.ckpt").description
    assert description["task"] == "segmentation"
    assert description["classes"][:2] == ["photo", "0"]
    assert description["inference"]["mode"] == "whole"


@pytest.mark.slow
def test_the_loss_falls_and_more_training_continues(few_scenes, tmp_path, capsys):
    options = ["--data.epoch_steps", "12", "--data.batch_size", "16", "--model.lr_batch", "16"]
    options += ["--trainer.log_every_n_steps", "1"]
    assert fit(few_scenes, tmp_path, *options, "--trainer.max_epochs", "2") == 0
    losses = [
        float(r["train/loss"])
        for r in csv.DictReader((tmp_path / "logs/version_0/metrics.csv").open())
        if r["train/loss"]
    ]
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    assert fit(few_scenes, tmp_path, *options, "--trainer.max_epochs", "2") == 2
    assert "already holds a run" in capsys.readouterr().err


def test_validation_gives_the_same_numbers_and_a_table(trained, few_scenes, tmp_path, capsys):
    arguments = ["-c", RECIPE, "--data.root", str(few_scenes), "--ckpt_path", str(trained / "checkpoints/last.ckpt")]
    arguments += ["--trainer.default_root_dir", str(tmp_path)]
    assert run(["validate", *arguments]) == 0
    out = capsys.readouterr().out
    assert f"val/miou      {metrics(trained)['val/miou']:.4f}" in out
    table = out[out.index("class ") :].splitlines()[2:13]
    assert [line.split()[0] for line in table] == ["photo", *map(str, range(10))]
    # Windows that cover the whole image give the same scores; several scales give others.
    whole = ["--model.inference.mode", "slide", "--model.inference.crop", "96", "--model.inference.stride", "96"]
    assert run(["validate", *arguments, *whole]) == 0
    assert metrics(tmp_path, 1)["val/miou"] == metrics(tmp_path, 0)["val/miou"]
    # After two steps, the network finds one class everywhere; another classifier finds several.
    state = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    weight = state["state_dict"]["model.head.classifier.weight"].normal_(generator=torch.Generator().manual_seed(0))
    weight -= weight.mean(1, keepdim=True)  # all features are positive
    torch.save(state, tmp_path / "varied.ckpt")
    arguments += ["--ckpt_path", str(tmp_path / "varied.ckpt")]
    assert run(["validate", *arguments]) == 0
    scales = ["--model.inference.scales", "[0.5, 1.5]", "--model.inference.flip", "true"]
    assert run(["validate", *arguments, *scales]) == 0
    assert metrics(tmp_path, 3)["val/accuracy"] != metrics(tmp_path, 2)["val/accuracy"]


@pytest.mark.slow
def test_two_processes_count_the_same(trained, few_scenes, tmp_path):
    """Two processes count each of the seven images once."""
    command = [sys.executable, "-m", "dgmn_cli", "validate", "-c", RECIPE, "--data.root", str(few_scenes)]
    command += ["--ckpt_path", str(trained / "checkpoints/last.ckpt"), "--trainer.default_root_dir", str(tmp_path)]
    command += ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert metrics(tmp_path)["val/miou"] == metrics(trained)["val/miou"]
    assert metrics(tmp_path)["val/accuracy"] == metrics(trained)["val/accuracy"]


def test_predict(trained, few_scenes, tmp_path, capsys):
    images = few_scenes / "leftImg8bit/val"
    checkpoint = trained / "checkpoints/last.ckpt"
    arguments = ["--pictures", str(tmp_path / "p"), "--labels", str(tmp_path / "l"), "--json", str(tmp_path / "s.json")]
    assert run(["predict", str(images), "--ckpt_path", str(checkpoint), *arguments]) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith(str(images))]) == 7
    shares = json.loads((tmp_path / "s.json").read_text())
    assert all(sum(entry["shares"].values()) == pytest.approx(1, abs=1e-4) for entry in shares)
    predictor = dgmn.load(checkpoint, device="cpu")
    for path in sorted(images.rglob("*.png")):
        output = path.relative_to(images).with_suffix("")
        with Image.open(tmp_path / f"l/{output}.png") as labels:
            assert np.array_equal(np.asarray(labels), predictor.predict(path).labels)
            assert np.asarray(labels.convert("RGB"))[0, 0].tolist() == list(predictor.colors[np.asarray(labels)[0, 0]])
        with Image.open(tmp_path / f"p/{output}.jpg") as picture:
            assert picture.height > 64  # the legend is below
    assert (tmp_path / "l/classes.txt").read_text().splitlines() == list(predictor.names)
    shutil.copytree(images, tmp_path / "again/images/val")
    shutil.copytree(tmp_path / "l", tmp_path / "again/masks/val")
    (tmp_path / "again/masks/val/classes.txt").rename(tmp_path / "again/classes.txt")
    data = SegmentationData(tmp_path / "again", palette_masks=True)
    assert data.names == predictor.names
    assert len([data.layout.read(sample) for sample in data.layout.samples("val")]) == 7


@pytest.mark.slow
def test_large_images_are_predicted_by_windows(trained, tmp_path):
    checkpoint = trained / "checkpoints/last.ckpt"
    predictor = dgmn.load(checkpoint, device="cpu")
    sizes, told = set(), []
    predictor.network.register_forward_pre_hook(lambda module, args: sizes.add(tuple(args[0].shape[-2:])))
    path = tmp_path / "large.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (2100, 2050, 3), dtype=np.uint8)).save(path)
    assert predictor.inference.mode == "whole"
    labels = predictor.predict(path, progress=told.append).labels
    assert labels.shape == (2100, 2050)
    assert sizes == {(769, 769)}
    assert told == sorted(told)
    assert told[-1] == 1
    assert len(told) > 4


def test_published_models_and_the_test_server(official_weights, cache_dir, tmp_path, capsys):
    torch.save({"state_dict": official_weights("d_seg_fpn_tiny")}, tmp_path / "official.pth")
    photo = tmp_path / "berlin_000000_000019_leftImg8bit.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)).save(photo)
    name = "semantic_fpn_dgmn2_tiny"
    arguments = ["predict", str(photo), "--model", name, "--submission", str(tmp_path / "results")]
    assert run(arguments) == 2
    assert f"then: dgmn zoo download {name} --file FILE" in capsys.readouterr().err
    assert run(["zoo", "download", name, "--file", str(tmp_path / "official.pth")]) == 0
    assert run(arguments) == 0
    with Image.open(tmp_path / "results/berlin_000000_000019_pred_labelIds.png") as result:
        assert (result.size, result.mode) == ((128, 64), "L")
        assert set(np.unique(np.asarray(result)).tolist()) <= set(CITYSCAPES_IDS.ids)
    assert dgmn.load(name, device="cpu").inference == Inference("slide")


@pytest.mark.slow
def test_starting_from_other_weights(trained, few_scenes, official_weights, tmp_path, capsys):
    """Weights come from a run with other classes, or from the backbone of an official segmenter."""
    checkpoint = trained / "checkpoints/last.ckpt"
    (tmp_path / "scenes").mkdir()
    shutil.copytree(few_scenes, tmp_path / "scenes", dirs_exist_ok=True)
    classes = json.loads((tmp_path / "scenes/classes.json").read_text())["classes"]
    classes.append({"name": "ten", "color": [9, 9, 9]})
    (tmp_path / "scenes/classes.json").write_text(json.dumps(classes))
    options = ["--model.num_classes", "12", "--model.checkpoint", str(checkpoint)]
    assert fit(tmp_path / "scenes", tmp_path / "a", *options) == 0
    out = capsys.readouterr().out
    assert "its classifier is left out" in out
    assert f"from {checkpoint}" in out
    torch.save({"state_dict": official_weights("d_seg_setr_pup_tiny")}, tmp_path / "official.pth")
    options = ["--model.backbone", "dgmn2_tiny", "--model.checkpoint", str(tmp_path / "official.pth")]
    assert fit(few_scenes, tmp_path / "b", *options) == 0
    out = capsys.readouterr().out
    assert "backbone: loaded" in out
    assert "left out" in out


def test_nothing_random_is_evaluated(trained, few_scenes, official_weights, tmp_path, capsys):
    """Weights for only a part of the network are refused: the scores would be those of an untrained head."""
    torch.save({"state_dict": official_weights("d_seg_setr_pup_tiny")}, tmp_path / "official.pth")
    arguments = ["-c", RECIPE, "--data.root", str(few_scenes), "--trainer.default_root_dir", str(tmp_path)]
    part = ["--model.backbone", "dgmn2_tiny", "--model.checkpoint", str(tmp_path / "official.pth")]
    for command in ("validate", "test"):
        assert run([command, *arguments, *part]) == 2
        assert "filled only a part of the network, the rest is new" in capsys.readouterr().err
    whole = ["--model.checkpoint", str(trained / "checkpoints/last.ckpt")]
    assert run(["validate", *arguments, *whole]) == 0


def test_a_damaged_image_loses_no_result(trained, scenes, tmp_path, capsys):
    images = sorted((scenes / "leftImg8bit/val").rglob("*.png"))
    images[4].write_bytes(b"no image")
    arguments = ["predict", str(scenes / "leftImg8bit/val"), "--ckpt_path", str(trained / "checkpoints/last.ckpt")]
    assert run([*arguments, "--json", str(tmp_path / "shares.json")]) == 2
    captured = capsys.readouterr()
    assert f"{images[4]}: not an image" in captured.err
    assert len([line for line in captured.out.splitlines() if line.startswith(str(scenes))]) == 6
    found = [entry["image"] for entry in json.loads((tmp_path / "shares.json").read_text())]
    assert found == [str(path) for path in images if path != images[4]]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["shares.json"]
    (tmp_path / "file").touch()
    assert run([*arguments, "--labels", str(tmp_path / "file")]) == 2
    assert "this is a file, give a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.num_classes", "5"], "model.num_classes is 5, but the data has 11 classes (photo, 0, 1, 2, 3 ...)"),
        (["--model.model", "unet"], "model: no network 'unet'; one of semantic_fpn, setr_naive"),
        (["--model.backbone", "resnet19"], "backbone: timm knows no 'resnet19'"),
        (["--model.model_args", "{wings: 2}"], "semantic_fpn cannot be built with {'wings': 2}"),
        (["--model.model_args", "{channels: -3}"], "semantic_fpn cannot be built with {'channels': -3}"),
        (["--model.backbone", "swin_tiny_patch4_window7_224"], "takes images of its own size only"),
        (["--model.inference.mode", "all"], "inference.mode"),
        (["--data.root", "nowhere"], "data.root nowhere: there is no such folder"),
    ],
)
def test_mistakes_get_one_line(options, message, few_scenes, tmp_path, capsys):
    assert fit(few_scenes, tmp_path, *options) == 2
    err = capsys.readouterr().err.strip()
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_damaged_image_in_training_is_named(scenes, tmp_path, capsys):
    """The first check is turned off, as if the disk failed after it."""
    from dgmn.segmentation import SegmentationData

    for path in (scenes / "leftImg8bit/train").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:400])
    check = SegmentationData.check
    SegmentationData.check = lambda self: None
    try:
        assert fit(scenes, tmp_path) == 2
    finally:
        SegmentationData.check = check
    assert "_leftImg8bit.png: damaged image" in capsys.readouterr().err


def test_validate_data(scenes, tmp_path, capsys):
    picture = tmp_path / "data.png"
    arguments = ["validate-data", "-c", RECIPE, "--data.root", str(scenes), "--picture", str(picture)]
    run(arguments)
    out = capsys.readouterr().out
    assert "photo" in out
    with Image.open(picture) as image:
        assert image.width > 1000
    mask = sorted((scenes / "gtFine/train").rglob("*.png"))[3]
    Image.fromarray(np.full((64, 96), 77, np.uint8)).save(mask)
    assert run(arguments) == 1
    assert f"{mask}: holds 77, which no class has" in capsys.readouterr().out


def test_a_class_that_the_validation_lacks_is_no_mistake(scenes, capsys):
    arguments = ["validate-data", "-c", RECIPE, "--data.root", str(scenes), "--data.splits.test", "val"]
    first = sorted((scenes / "gtFine/train").rglob("*.png"))[0]
    mask = np.array(Image.open(first))
    mask[0, :11] = range(11)  # every class
    Image.fromarray(mask).save(first)
    assert run(arguments) == 0
    assert "\n1 note:\n  val: no pixel of 2, 4\n\nno mistakes found\n" in capsys.readouterr().out
    for path in (scenes / "gtFine/train").rglob("*.png"):
        mask = np.array(Image.open(path))
        mask[mask == 4] = 0
        Image.fromarray(mask).save(path)
    assert run(arguments) == 1
    assert "  val: no pixel of 2, 4\n\n1 problem:\n  train: no pixel of 3\n" in capsys.readouterr().out


def test_validate_data_of_classifiers(few_digits, tmp_path, capsys):
    root = Path(shutil.copytree(few_digits, tmp_path / "digits"))
    arguments = ["validate-data", "-c", "recipes/classification/digits.yaml", "--data.root", str(root)]
    arguments += ["--picture", str(tmp_path / "data.png")]
    assert run(arguments) == 0
    assert "no mistakes found" in capsys.readouterr().out
    image = sorted((root / "train/1").iterdir())[0]
    image.write_bytes(b"no image")
    assert run(arguments) == 1
    assert f"{image}: not an image" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--model.num_classes", "3"], []])
def test_validate_data_says_what_it_takes(arguments, capsys):
    with pytest.raises(SystemExit):
        run(["validate-data", *(["-c", RECIPE] if arguments else []), *arguments])
    assert "takes only --data options" in (err := capsys.readouterr().err) or "give a recipe" in err


def test_options_of_another_task(trained, few_digits, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(next(few_digits.rglob("*.png")).read_bytes())
    assert run(["predict", str(tmp_path / "a.png"), "--model", "retinanet_dgmn2_tiny", "--submission", "x"]) == 2
    assert "--submission is for segmentation, this model is for detection" in capsys.readouterr().err
    assert (
        run(
            [
                "predict",
                str(tmp_path / "a.png"),
                "--ckpt_path",
                str(trained / "checkpoints/last.ckpt"),
                "--submission",
                "x",
            ]
        )
        == 2
    )
    assert "--submission is for models of the 19 classes of Cityscapes" in capsys.readouterr().err


# The usual recipes run by default. The papers' differ from them in numbers, and run before every release.
USUAL = ("finetune_folder.yaml", "semantic_fpn_cityscapes_40k.yaml", "camvid.yaml")
WHOLE = [
    pytest.param(name, marks=[pytest.mark.slow] * (not name.endswith(USUAL)))
    for name in recipe_names()
    if "/segmentation/" in name and "cityscapes_test" not in name
]


@pytest.mark.parametrize("recipe", WHOLE)
def test_every_recipe_runs(recipe, scenes, tmp_path):
    (scenes / "classes.json").unlink()  # the data counts as Cityscapes, though its masks have 11 classes
    options = ["--trainer.fast_dev_run", "2", "--data.num_workers", "0", "--model.backbone", "dgmn2_nano"]
    options += ["--model.num_classes", "19", "--data.augmentation.crop", "[64, 96]", "--data.batch_size", "2"]
    options += ["--data.augmentation.fit", "[64, 96]", "--model.inference.fit", "[64, 96]"]
    if "/fcn_" in recipe:  # nothing is downloaded: the recipe's pretrained weights are off
        options += ["--model.model_args", "{module: dgmn, module_args: {sampling_rates: [1, 6], fusion: concat}}"]
    arguments = ["fit", "-c", recipe, "--data.root", str(scenes), "--trainer.default_root_dir", str(tmp_path)]
    assert run([*arguments, *options]) == 0


@pytest.mark.parametrize("head", ["semantic_fpn", "setr_naive", "setr_pup", "setr_mla"])
@pytest.mark.slow
def test_recipes_of_the_paper_can_be_built(head, scenes, tmp_path, capsys):
    """Each phase of the test server is laid over a recipe. Our data, in Cityscapes' layout, has other classes."""
    for phase in ("1", "2", "3"):
        recipes = ["-c", f"recipes/segmentation/{head}_cityscapes_40k.yaml"]
        recipes += ["-c", f"recipes/segmentation/cityscapes_test_{phase}.yaml"]
        assert run(["fit", *recipes, "--data.root", str(scenes), "--trainer.default_root_dir", str(tmp_path)]) == 2
        problem = capsys.readouterr().err
        assert "train_extra" in problem if phase == "2" else "model.num_classes is 19, but the data has 11" in problem
