"""Runs whose numbers are no numbers end with one line, and keep what they had; continued runs say what they change."""

import csv
import io
import json
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import dgmn
from dgmn.classification.layouts import ClassFolders
from dgmn.errors import InputError
from dgmn.training.checkpoint import AtomicCheckpointIO
from dgmn_cli import run

RECIPE = "recipes/classification/finetune.yaml"


@pytest.fixture
def colors(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for channel, name in enumerate(("red", "green")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = random.integers(0, 60, (32, 32, 3), dtype=np.uint8)
                pixels[..., channel] = 220
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


@pytest.fixture
def fit(colors: Path, tmp_path: Path):
    def fit(*options: str, epochs: int = 1, batch: int = 4, folder: str = "run") -> int:
        arguments = [
            "-c",
            RECIPE,
            "--model.model",
            "dgmn2_nano",
            "--model.num_classes",
            "2",
            "--model.lr_batch",
            "null",
        ]
        arguments += ["--data.root", str(colors), "--data.image_size", "32", "--data.num_workers", "0"]
        arguments += ["--data.batch_size", str(batch), "--trainer.max_epochs", str(epochs)]
        arguments += ["--trainer.default_root_dir", str(tmp_path / folder), "--trainer.enable_progress_bar", "false"]
        return run(["fit", *arguments, "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1", *options])

    return fit


def error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dgmn: error: ")]
    assert len(lines) == 1
    return lines[0]


def test_a_loss_that_is_nan_ends_the_run(fit, tmp_path, capsys):
    checkpoints = tmp_path / "run/checkpoints"
    assert fit() == 0
    before = {file.name: file.read_bytes() for file in checkpoints.iterdir()}
    assert before.keys() == {"best.ckpt", "last.ckpt"}
    capsys.readouterr()
    # Continued with a loss that becomes NaN in the next epoch.
    state = torch.load(checkpoints / "last.ckpt", weights_only=True)
    state["state_dict"]["model.head.bias"] += 3e38
    state["state_dict"]["model.head.weight"] += 3e38
    torch.save(state, checkpoints / "last.ckpt")
    broken = (checkpoints / "last.ckpt").read_bytes()
    assert fit("--ckpt_path", "last", epochs=2) == 2
    told = error(capsys)
    assert "no finite number (epoch 2" in told
    assert "try a lower learning rate" in told
    assert (checkpoints / "last.ckpt").read_bytes() == broken
    assert (checkpoints / "best.ckpt").read_bytes() == before["best.ckpt"]


def test_a_learning_rate_that_is_far_too_high(fit, tmp_path, capsys):
    assert fit("--model.optimizer.init_args.lr", "1e30", "--trainer.gradient_clip_val", "null", epochs=3) == 2
    assert "try a lower learning rate (it is" in error(capsys)
    for file in (tmp_path / "run").rglob("*.ckpt"):
        weights = torch.load(file, weights_only=True)["state_dict"]
        assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


def test_weights_that_are_nan_are_refused(fit, tmp_path, capsys):
    assert fit() == 0
    file = tmp_path / "run/checkpoints/last.ckpt"
    state = torch.load(file, weights_only=True)
    state["state_dict"]["model.head.bias"][0] = torch.nan
    torch.save(state, file)
    capsys.readouterr()
    message = r"last\.ckpt: 1 of \d+ tensors hold NaN, (model\.)?head\.bias among them"
    with pytest.raises(InputError, match=message):
        dgmn.load(file)
    with pytest.raises(InputError, match=message):
        AtomicCheckpointIO().load_checkpoint(file)
    picture = tmp_path / "train/red/0.png"
    assert run(["predict", str(picture), "--ckpt_path", str(file), "--json", str(tmp_path / "out.json")]) == 2
    assert "hold NaN" in error(capsys)
    assert not (tmp_path / "out.json").exists()
    assert fit("--model.checkpoint", str(file), folder="other") == 2
    assert "hold NaN" in error(capsys)
    # A network in memory, and one whose scores overflow.
    good = dgmn.load(tmp_path / "run/checkpoints/best.ckpt")
    with torch.no_grad():
        good.network.head.bias[0] = torch.inf
    with pytest.raises(InputError, match="the network gives scores that are not finite"):
        good.predict(picture)
    with torch.no_grad():
        good.network.head.bias[0] = torch.nan
    with pytest.raises(InputError, match=r"DGMN2: 1 of .* hold NaN"):
        type(good)(good.network, good.names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.optimizer.init_args.lr", "-1"], "model.optimizer: Invalid learning rate: -1.0"),
        (["--model.optimizer.init_args.lr", ".nan"], "model.optimizer: Invalid learning rate: nan"),
        (["--model.optimizer.init_args.lr", ".inf"], "lr must be a finite number of at least 0, got inf"),
        (["--model.optimizer.init_args.weight_decay", "-0.1"], "model.optimizer: Invalid weight_decay value: -0.1"),
        (["--model.lr_batch", "0"], "model.lr_batch must be at least 1, or null for no scaling, got 0"),
        (["--model.label_smoothing", "1.5"], "model.label_smoothing must be at least 0 and below 1, got 1.5"),
        (["--model.mixup", "-0.5"], "model.mixup must be a finite number of at least 0, got -0.5"),
        (["--seed_everything", "-3"], "seed_everything must be in 0..4294967295, got -3"),
        (["--trainer.accumulate_grad_batches", "0"], "trainer.accumulate_grad_batches must be at least 1, got 0"),
        (["--trainer.gradient_clip_val", "-1"], "trainer.gradient_clip_val must be at least 0, got -1"),
        (["--model.schedule.init_args.warmup", "1.5"], "warmup is the share of steps that warm up"),
        (["--model.schedule.init_args.start", "-1"], "start is a share of the learning rate, in 0..1, got -1"),
    ],
)
def test_numbers_out_of_range_are_named_before_the_data_is_read(options, message, fit, tmp_path, capsys):
    assert fit(*options) == 2
    assert message in error(capsys)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_is_too_small_for_batch_norm(fit, capsys):
    assert fit(batch=1) == 2
    assert "batch norm needs more than one value of every channel: give a --data.batch_size" in error(capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.optimizer.init_args.lr", "1e-5"], "lr was 0.0002, now it is 1e-05"),
        (["--model.schedule.init_args.warmup", "0.101"], "but the schedule is another one"),
        (["--model.decay_norms_and_biases", "true"], "decay_norms_and_biases was False, now it is True"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (["--model.optimizer.init_args.weight_decay", "0.5"], "weight_decay was 0.05, now it is 0.5"),
                (
                    ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.init_args.lr", "0.1"],
                    "optimizer was AdamW, now it is SGD",
                ),
                (["--model.schedule.init_args.warmup", "0.5"], "but the schedule is another one"),
                (["--model.lr_batch", "8"], "lr_batch was None, now it is 8"),
            )
        ),
    ],
)
def test_a_continued_run_refuses_another_optimiser(options, message, fit, tmp_path, capsys):
    assert fit() == 0
    last = tmp_path / "run/checkpoints/last.ckpt"
    before = last.read_bytes()
    capsys.readouterr()
    assert fit(*options, "--ckpt_path", "last", epochs=2) == 2
    told = error(capsys)
    assert "a continued run keeps its optimiser and schedule" in told
    assert message in told
    assert last.read_bytes() == before
    written = [yaml.safe_load(file.read_text()) for file in (tmp_path / "run/logs").glob("*/config.yaml")]
    assert len(written) == 1  # the refused run wrote no configuration
    assert written[0]["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 2e-4


@pytest.mark.slow
def test_a_continued_run_says_what_else_changes(fit, colors, tmp_path, capsys):
    assert fit() == 0
    Image.new("RGB", (32, 32), "red").save(colors / "train/red/4.png")
    for i in range(3):
        Image.new("RGB", (32, 32), "green").save(colors / f"train/green/{4 + i}.png")
    capsys.readouterr()
    assert fit("--ckpt_path", "last", "--data.num_workers", "1", "--seed_everything", "5", epochs=2) == 0
    out = capsys.readouterr().out
    assert "continued with 6 instead of 2 training steps" in out
    assert "continued with 12 instead of 8 training images" in out
    assert "continued with 1 instead of 0 data.num_workers" in out
    assert "continued with the seed of its start, 0, instead of 5" in out
    rows = list(csv.DictReader((tmp_path / "run/logs/version_1/metrics.csv").open()))
    assert {row["epoch"] for row in rows} - {""} == {"1"}


def test_json_of_a_detector_is_valid(tmp_path):
    """A score that is NaN is refused, and never written as the bare word NaN, which is no JSON."""
    from dgmn.detection.metrics import write_results

    with pytest.raises(ValueError, match="JSON"):
        write_results(
            [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": float("nan")}], tmp_path / "a.json"
        )
    write_results([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}], tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())[0]["score"] == 0.5


def test_hidden_folders_are_no_classes(fit, colors, capsys):
    for split in ("train", "val"):
        (colors / split / ".ipynb_checkpoints").mkdir()
        (colors / split / "red/._0.png").write_bytes(b"no image")
        Image.new("RGB", (32, 32)).save(colors / split / ".ipynb_checkpoints/0.png")
    assert fit() == 0
    assert "8 training and 8 validation images of 2 classes" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_without_the_facts_of_its_training(fit, tmp_path, capsys):
    """Checkpoints of earlier versions lack them. Other groups of parameters are refused all the same."""
    assert fit() == 0
    last = tmp_path / "run/checkpoints/last.ckpt"
    state = torch.load(last, weights_only=True)
    del state["dgmn"]["training"]
    torch.save(state, last)
    capsys.readouterr()
    assert fit("--model.decay_norms_and_biases", "true", "--ckpt_path", "last", epochs=2) == 2
    assert "the checkpoint has 2 groups of parameters, but here there are 1" in error(capsys)
    assert fit("--ckpt_path", "last", epochs=2) == 0


@pytest.mark.slow
def test_an_evaluation_of_weights_that_overflow(fit, colors, tmp_path, capsys):
    assert fit() == 0
    best = tmp_path / "run/checkpoints/best.ckpt"
    state = torch.load(best, weights_only=True)
    state["state_dict"]["model.head.weight"] += 3e38
    torch.save(state, best)
    capsys.readouterr()
    arguments = ["-c", RECIPE, "--model.model", "dgmn2_nano", "--model.num_classes", "2", "--data.image_size", "32"]
    arguments += ["--data.root", str(colors), "--trainer.default_root_dir", str(tmp_path / "run")]
    assert run(["validate", *arguments, "--ckpt_path", "best", "--trainer.accelerator", "cpu"]) == 2
    assert "val/loss is no finite number" in error(capsys)


def test_a_killed_loader_is_one_line(fit, tmp_path, capsys, monkeypatch):
    """As the system does when the memory is full."""
    main = os.getpid()

    class Killed(ClassFolders):
        def __getitem__(self, index):
            if os.getpid() != main:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    monkeypatch.setattr("dgmn.classification.data.ClassFolders", Killed)
    assert fit("--data.num_workers", "1") == 2
    message = error(capsys)
    assert "a process that loads images was killed" in message
    assert "fewer --data.num_workers or a smaller --data.batch_size" in message


@pytest.mark.parametrize("limit", [100, 20_000, 100_000])
def test_a_full_disk_is_one_line(limit, fit, tmp_path, capsys):
    """Every file of a run stops at `limit` bytes: the configuration, the metrics, the checkpoint."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        assert fit() == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in error(capsys)
    assert not list((tmp_path / "run").rglob("*.ckpt"))
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_names_that_are_not_utf8(fit, colors, tmp_path, capsys, monkeypatch):
    """Of the folder of the data, a class, an image, the results and the pictures; but not in options of training."""
    strange = os.fsdecode(b"gr\xfcn")
    root = tmp_path / strange
    for split in ("train", "val"):
        (colors / split / "green" / "0.png").rename(colors / split / "green" / f"{strange}.png")
        (colors / split / "green").rename(colors / split / strange)
        (root / split).parent.mkdir(exist_ok=True)
        (colors / split).rename(root / split)
    monkeypatch.chdir(root)
    assert fit("--data.root", ".") == 0
    found = tmp_path / f"found {strange}.json"
    arguments = ["--ckpt_path", str(tmp_path / "run/checkpoints/last.ckpt"), "--device", "cpu", "--json", str(found)]
    assert run(["predict", str(root / "val"), *arguments, "--pictures", str(tmp_path / "pictures")]) == 0
    content = json.loads(found.read_text(encoding="utf-8"))
    images = sorted((root / "val").rglob("*.png"))
    assert [entry["image"] for entry in content] == [str(image) for image in images]
    assert {top["class"] for entry in content for top in entry["top"]} == {"red", strange}
    assert (tmp_path / "pictures" / strange / f"{strange}.jpg").is_file()
    assert str(root / "val").encode("utf-8", "backslashreplace").decode() in capsys.readouterr().out
    assert run(["validate-data", "-c", RECIPE, "--data.root", ".", "--picture", str(tmp_path / "x.jpg")]) == 0
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", console)
        assert run(["predict", str(root / "val"), *arguments]) == 0
    assert b"/gr\\udcfcn/val/red/0.png" in console.buffer.getvalue()
    capsys.readouterr()
    for options in ({"folder": f"run {strange}"}, {"folder": "again", "root": root}):
        assert fit("--data.root", str(options.pop("root", ".")), **options) == 2
        assert "training takes options and folders in UTF-8 only, got" in error(capsys)


def test_the_best_of_several_validations_in_an_epoch(fit, tmp_path):
    more = (
        "--trainer.val_check_interval",
        "0.5",
        "--model.optimizer.init_args.lr",
        "0.02",
        "--trainer.limit_val_batches",
        "1",
    )
    assert fit(*more, epochs=4, batch=2) == 0
    (file,) = (tmp_path / "run").glob("logs/*/metrics.csv")
    with file.open(newline="") as lines:
        found = {int(row["step"]): float(row["val/top1"]) for row in csv.DictReader(lines) if row["val/top1"]}
    assert len(found) == 8
    best = max(found, key=lambda step: found[step])
    state = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert state["global_step"] == best + 1
    page = (tmp_path / "run/summary.md").read_text()
    assert f"| val/top1 | {found[best]:.4f} | {found[max(found)]:.4f} |" in page


def test_a_class_whose_name_no_checkpoint_may_hold(fit, colors, tmp_path, capsys):
    for split in ("train", "val"):
        (colors / split / "red").rename(colors / split / "red\tcar")
    assert fit() == 2
    assert r"data: got the class name 'red\tcar'; accepted a text" in error(capsys)
    assert not list((tmp_path / "run").rglob("*.ckpt"))
