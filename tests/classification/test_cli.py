"""`dgmn` as a user runs it: from images to predictions, and its messages for mistakes."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import dgmn
from dgmn_base.recipes import recipe_names
from dgmn_cli import run

from digits import RECIPE

SMALL = ["--model.num_classes", "3", "--data.batch_size", "20", "--trainer.enable_progress_bar", "false"]


def fit(data: Path, folder: Path, *more: str, recipe: str = RECIPE, command: str = "fit") -> int:
    return run(
        [command, "-c", recipe, "--data.root", str(data), "--trainer.default_root_dir", str(folder), *SMALL, *more]
    )


@pytest.fixture(scope="module")
def trained(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few epochs with weak augmentation."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert fit(few_digits, folder, "--trainer.max_epochs", "6", "--data.augmentation.scale", "[0.9, 1]") == 0
    return folder


def test_run_learns_and_writes_its_folder(trained: Path, few_digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "logs/version_0/metrics.csv"):
        assert (trained / name).is_file(), name
    assert "num_classes: 3" in (trained / "logs/version_0/config.yaml").read_text()
    assert fit(few_digits, trained, "--ckpt_path", "last", command="test") == 0
    out = capsys.readouterr().out
    top1 = float(next(line for line in out.splitlines() if line.startswith("test/top1")).split()[1])
    assert top1 > 0.8, out
    assert "top5" not in out  # of three classes


def test_predict_tables_json_pictures(
    trained: Path, few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(few_digits / "test" / "0"), str(few_digits / "test" / "1" / "*.png")]
    checkpoint = str(trained / "checkpoints" / "last.ckpt")
    result, pictures = tmp_path / "out" / "result.json", tmp_path / "pictures"
    arguments = ["predict", *images, "--ckpt_path", checkpoint, "--top", "2", "--json", str(result)]
    arguments += ["--batch_size", "4", "--device", "cpu"]  # other batches may round differently
    assert run([*arguments, "--pictures", str(pictures)]) == 0
    out = capsys.readouterr().out
    found = json.loads(result.read_text())
    assert len(found) == 14 == len(list(pictures.rglob("*.jpg")))
    for entry in found:
        assert entry["image"] in out
        assert len(entry["top"]) == 2
        assert entry["top"][0]["probability"] >= entry["top"][1]["probability"]
        assert entry["top"][0]["class"] in {"0", "1", "2"}
    right = sum(entry["top"][0]["class"] == Path(entry["image"]).parent.name for entry in found)
    assert right >= 10
    # The recipe says the same about the network as the checkpoint.
    assert run([*arguments, "-c", str(trained / "logs/version_0/config.yaml")]) == 0
    again = json.loads(result.read_text())
    assert again == found


def test_trained_weights_load_elsewhere(trained: Path) -> None:
    checkpoint = trained / "checkpoints" / "last.ckpt"
    network = timm.create_model("dgmn2_nano", num_classes=3)
    report = dgmn.load_checkpoint(network, checkpoint)
    stored = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert torch.equal(network.head.weight, stored["model.head.weight"])
    assert report.ignored == ()
    backbone = timm.create_model("dgmn2_nano", features_only=True)
    assert dgmn.load_checkpoint(backbone, checkpoint).ignored == ("head.weight", "head.bias")


def test_finetune_recipe_starts_from_weights(
    trained: Path, few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--model.model", "dgmn2_nano", "--model.checkpoint", str(trained / "checkpoints/last.ckpt")]
    more += ["--data.image_size", "32", "--data.num_workers", "0", "--trainer.max_epochs", "1"]
    recipe = "recipes/classification/finetune.yaml"
    assert fit(few_digits, tmp_path / "run", *more, recipe=recipe) == 0
    out = capsys.readouterr().out
    assert "loaded" in out
    assert "learning rate 0.0002 is for a total batch of 64; here it is 20" in out
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["dgmn"]["classes"] == ["0", "1", "2"]


def test_an_evaluation_says_what_it_is_of(
    trained: Path, few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for split in ("train", "val"):
        shutil.copytree(few_digits / split, data / split)
    best = ["--ckpt_path", str(trained / "checkpoints/best.ckpt")]
    assert fit(data, tmp_path / "run", *best, "--data.image_size", "40", command="test") == 0
    out = capsys.readouterr().out
    assert "trained at 32 x 32 pixels, evaluated at 40 x 40: give --data.image_size 32" in out
    assert "there are no images for the test alone: it takes those of the validation" in out
    assert fit(few_digits, tmp_path / "run", *best, command="test") == 0
    out = capsys.readouterr().out
    assert "evaluated at" not in out
    assert "the test alone" not in out


def test_other_classes_keep_the_backbone(
    trained: Path, few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = tmp_path / "two"
    for split in ("train", "val"):
        for digit in ("0", "1"):
            shutil.copytree(few_digits / split / digit, two / split / digit)
    more = ["--model.checkpoint", str(trained / "checkpoints/last.ckpt"), "--model.num_classes", "2"]
    assert fit(two, tmp_path / "run", *more, "--trainer.max_epochs", "1") == 0
    assert "the checkpoint has other classes" in capsys.readouterr().out


def test_any_torchvision_dataset_and_any_timm_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake = ["torchvision.datasets.FakeData", "size=40", "image_size=[3,40,40]", "num_classes=6"]
    more = [item for name in ("train", "val") for item in _dataset(name, fake)]
    more += ["--model.model", "resnet10t", "--trainer.max_epochs", "1", "--trainer.default_root_dir", str(tmp_path)]
    assert run(["fit", "-c", RECIPE, *SMALL, "--model.num_classes", "6", *more]) == 0
    assert "val/top5" in capsys.readouterr().out


def _dataset(name: str, fake: list[str]) -> list[str]:
    return [f"--data.{name}={fake[0]}", *(f"--data.{name}.{argument}" for argument in fake[1:])]


@pytest.mark.parametrize("recipe", [name for name in recipe_names() if "/classification/" in name])
def test_every_recipe_runs(recipe: str, few_digits: Path, tmp_path: Path) -> None:
    more = ["--trainer.fast_dev_run", "2", "--data.image_size", "32", "--data.num_workers", "0"]
    more += [
        "--model.model",
        "dgmn2_nano",
        "--trainer.precision",
        "bf16-mixed",
        "--trainer.accumulate_grad_batches",
        "2",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert fit(few_digits, tmp_path / "run", *more, recipe=recipe) == 0


MISTAKES = {
    "no such folder": (["--data.root", "nowhere"], "data.root nowhere"),
    "no data": (["--data.root", "null"], "--data.root FOLDER"),
    "wrong number of classes": (["--model.num_classes", "7"], "give --model.num_classes 3"),
    "misspelt option": (["--model.modle", "x"], "--model.modle: no such option, did you mean --model.model"),
    "misspelt section": (["--modle.model", "x"], "--modle.model"),
    "wrong class path": (["--model", "foo.Bar"], "foo.Bar"),
    "unknown network": (["--model.model", "dgmn2_tny"], "dgmn2_tiny"),
    "wrong type": (["--trainer.max_epochs", "many"], "trainer.max_epochs"),
    "no such weights": (["--model.checkpoint", "none.pth"], "none.pth"),
    "no such checkpoint": (["--ckpt_path", "none.ckpt"], "none.ckpt: no such file"),
    "odd batch with mixup": (["--model.mixup", "0.8", "--data.batch_size", "7"], "even"),
    "batch too large": (
        ["--data.batch_size", "1000"],
        "an epoch has only 100 images per device; give --data.batch_size 24",
    ),
    "bad image size": (["--data.image_size", "0"], "image_size must be from 1 to 4096"),
    "endless": (["--trainer.max_epochs", "-1"], "trainer.max_epochs"),
    "no devices": (["--trainer.accelerator", "cpu", "--trainer.devices", "0"], "devices"),
    "bad schedule": (["--model.schedule.warmup", "2"], "warmup is the share"),
    "bad network argument": (["--model.model_args", "{depth_of: 2}"], "depth_of"),
    "no such recipe": (["-c", "nope.yaml"], "nope.yaml"),
}


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_get_one_line(
    arguments: list[str], expected: str, few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(few_digits, tmp_path / "run", *arguments) == 2
    _one_line(capsys, expected)
    assert not (tmp_path / "run" / "checkpoints").exists()


def _one_line(capsys: pytest.CaptureFixture[str], expected: str) -> None:
    err = capsys.readouterr().err.strip()
    assert err.startswith("dgmn: error: ")
    assert "\n" not in err
    assert expected in err


def _broken(few_digits: Path, folder: Path, name: str) -> Path:
    shutil.copytree(few_digits, folder)
    broken = folder / "train" / "1" / "broken.png"
    whole = next((folder / "train" / "1").iterdir())
    if name == "truncated":
        Image.effect_noise((300, 300), 50).save(broken)
        broken.write_bytes(broken.read_bytes()[:20_000])
    elif name == "text":
        broken.write_text("hello")
    elif name == "empty file":
        broken.write_bytes(b"")
    elif name == "no images":
        shutil.rmtree(folder / "train" / "1")
        (folder / "train" / "1").mkdir()
        (folder / "train" / "1" / "notes.txt").write_text("hello")
    elif name == "class missing in val":
        shutil.rmtree(folder / "val" / "2")
    assert whole.parent.exists()
    return folder


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("truncated", "broken.png: damaged"),
        ("text", "broken.png: not an image"),
        ("empty file", "broken.png: not an image"),
        ("no images", "for the classes 1"),
        ("class missing in val", "different classes: 2"),
    ],
)
def test_bad_data_is_named_before_training(
    name: str, expected: str, few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _broken(few_digits, tmp_path / "data", name)
    assert fit(data, tmp_path / "run") == 2
    _one_line(capsys, expected)


def test_bad_image_in_a_worker_is_named(
    few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _broken(few_digits, tmp_path / "data", "text")
    monkeypatch.setattr("dgmn.classification.data.check_images", lambda paths: 0)  # as in a set too large to check
    assert fit(data, tmp_path / "run", "--data.num_workers", "1") == 2
    _one_line(capsys, "broken.png: not an image")


@pytest.mark.slow
def test_checkpoint_of_another_model(
    trained: Path, few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "resnet.pth")
    assert fit(few_digits, tmp_path / "run", "--model.checkpoint", str(tmp_path / "resnet.pth")) == 2
    _one_line(capsys, "not a checkpoint of this DGMN2")
    assert fit(few_digits, tmp_path / "run", "--ckpt_path", str(tmp_path / "resnet.pth")) == 2
    _one_line(capsys, "--model.checkpoint")
    assert fit(few_digits, trained, "--ckpt_path", "best", "--model.model", "dgmn2_tiny", command="validate") == 2
    _one_line(capsys, "trained with model dgmn2_nano, but here it is dgmn2_tiny")


def test_a_run_is_not_overwritten(trained: Path, few_digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "checkpoints/last.ckpt").read_bytes()
    assert fit(few_digits, trained) == 2
    _one_line(capsys, "already holds a run")
    assert (trained / "checkpoints/last.ckpt").read_bytes() == before


def test_a_run_continues_only_as_it_was(
    trained: Path, few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(few_digits, trained, "--ckpt_path", "last", "--trainer.max_epochs", "6") == 0
    assert "Nothing to train: the run has done 6 epochs" in capsys.readouterr().out
    assert fit(few_digits, trained, "--ckpt_path", "last", "--data.batch_size", "10") == 2
    _one_line(capsys, "total_batch 20, but here it is 10: change batch_size or accumulate_grad_batches")
    assert fit(few_digits, tmp_path / "new", command="validate") == 2
    _one_line(capsys, "needs weights: --ckpt_path best")
    renamed = tmp_path / "renamed"
    shutil.copytree(few_digits, renamed)
    (renamed / "val" / "0").rename(renamed / "val" / "9")
    assert fit(renamed, trained, "--ckpt_path", "last", command="validate") == 2
    _one_line(capsys, "classes ['0', '1', '2'], but here it is ['1', '2', '9']")


def test_predict_needs_a_whole_recipe(
    trained: Path, few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(trained / "checkpoints/last.ckpt")
    for content in ("", "model: {}", "a: [b"):
        (tmp_path / "bad.yaml").write_text(content)
        arguments = [str(few_digits / "test"), "--ckpt_path", checkpoint, "-c", str(tmp_path / "bad.yaml")]
        assert run(["predict", *arguments]) == 2
        _one_line(capsys, "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere.jpg"], "nowhere.jpg: no such file, folder or glob"),
        (["{empty}"], "no images in this folder"),
        (["{text}"], "text.png: not an image"),
        (["{image}", "--ckpt_path", "none.ckpt"], "none.ckpt: no such file"),
        (["{image}", "--model", "dgmn2_tny"], "did you mean dgmn2_tiny"),
        (
            ["{image}", "--model", "dgmn2_tiny", "--score", "0"],
            "--score is for detection, this model is",
        ),
        (["{image}", "--device", "cuda:99"], "device cuda:99: not available here"),
    ],
)
def test_predict_mistakes(
    arguments: list[str],
    expected: str,
    trained: Path,
    few_digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("hello")
    image = next((few_digits / "test" / "0").iterdir())
    filled = [a.format(empty=tmp_path / "empty", text=tmp_path / "text.png", image=image) for a in arguments]
    if "--ckpt_path" not in filled and "--model" not in filled:
        filled += ["--ckpt_path", str(trained / "checkpoints/last.ckpt")]
    assert run(["predict", *filled]) == 2
    _one_line(capsys, expected)


def test_help_needs_no_torch(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["fit", "--help"], ["validate", "-h"], ["test"], ["--version"]):
        assert run(arguments) == 0
        assert "dgmn" in capsys.readouterr().out
    assert run(["train"]) == 2
    _one_line(capsys, "did you mean fit?")
    assert run(["fit", "--data.root", "x"]) == 2
    _one_line(capsys, "give a recipe")
    for command in ("predict", "zoo", "complexity", "quickstart"):
        with pytest.raises(SystemExit) as stop:
            run([command, "--help"])
        assert stop.value.code == 0


def test_zoo_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["zoo"]) == 0
    out = capsys.readouterr().out
    for name in ("dgmn2_tiny", "mask_rcnn_dgmn2_large", "setr_mla_dgmn2_small", "sparse_rcnn_dgmn2_small"):
        assert name in out
    assert run(["zoo", "--task", "detection"]) == 0
    assert "setr" not in capsys.readouterr().out
    assert run(["zoo", "download", "dgmn2_tny"]) == 2
    _one_line(capsys, "did you mean dgmn2_tiny")


def test_a_list_of_images_as_root(few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        f"{file},{file.parent.name},{part}"
        for part in ("train", "val")
        for file in sorted((few_digits / part).rglob("*.png"))
    ]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["file,label,split", *rows]))
    options = ["-c", "recipes/classification/finetune.yaml", "--data.root", str(table)]
    assert run(["validate-data", *options]) == 0
    assert "no mistakes found" in capsys.readouterr().out
    assert run(["validate-data", *options[:2], "--data.root", str(tmp_path / "none.csv")]) == 2
    assert "none.csv: there is no such folder" in capsys.readouterr().err
