"""Frozen parts, layer-wise rates, averaged weights, early end, class weights, a limit of time."""

import re
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.optim import param_groups_layer_decay
from timm.utils import ModelEmaV3

from dgmn.classification import Augmentation, ClassificationData, ClassificationTask
from dgmn.detection import DetectionTask
from dgmn.segmentation import PixelLoss, SegmentationData, SegmentationTask
from dgmn.training import WarmupCosine
from dgmn.training.class_weights import class_weight_tensor
from dgmn_cli import run

from digits import RECIPE

PLAIN: dict[str, Any] = {"model": "dgmn2_nano", "num_classes": 3, "mixup": 0.0, "cutmix": 0.0, "lr_batch": None}
SMALL_DETECTOR: dict[str, Any] = {"model_args": {"min_size": 64, "max_size": 96, "channels": 16}}


def fit(data: Path, folder: Path, task: ClassificationTask, *callbacks: L.Callback, **trainer: Any) -> L.Trainer:
    module = ClassificationData(
        root=data, image_size=32, crop_pct=1.0, batch_size=20, num_workers=0, augmentation=Augmentation(repeats=1)
    )
    options: Any = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, **trainer}
    options |= {"default_root_dir": folder, "use_distributed_sampler": False, "callbacks": list(callbacks)}
    done = L.Trainer(**options)
    done.fit(task, module)
    return done


def arguments(data: Path, folder: Path, *more: str) -> list[str]:
    options = ["-c", RECIPE, "--data.root", str(data), "--trainer.default_root_dir", str(folder), *more]
    return [*options, "--model.num_classes", "3", "--data.batch_size", "20", "--trainer.enable_progress_bar", "false"]


# ------------------------------------------------------------------------------------------------------- freezing


def test_frozen_parts_keep_weights_and_statistics(few_digits: Path, tmp_path: Path) -> None:
    task = ClassificationTask(**PLAIN, freeze=["stem", "stages.[01]", "stages.*.downsample"])
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    fit(few_digits, tmp_path, task, max_epochs=1)
    frozen = re.compile(r"(stem|stages\.[01]|stages\.\d\.downsample)\.")
    same = {name for name, tensor in task.model.state_dict().items() if torch.equal(tensor, before[name])}
    assert {name for name in before if frozen.match(name)} <= same
    assert any("running_mean" in name for name in same)
    assert not any(name.startswith(("head.", "stages.3.blocks")) and "weight" in name for name in same)
    assert not any("running_mean" in name and not frozen.match(name) for name in same)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["stages.0", "stages.9.*"], r"'stages\.9\.\*' is the name of no part with parameters, did you mean stages"),
        (["hed"], r"'hed' is the name of no part with parameters, did you mean head"),
        (["backbone.*"], r"'backbone\.\*' is the name of no part with parameters; for instance head, stages, stem"),
        ("hed", r"'hed' is the name of no part with parameters, did you mean head"),
        (["*"], "all of the network is frozen"),
        ([0], r"must be a name or glob, or a list of them, got \[0\]"),
    ],
)
def test_freezing_says_what_is_wrong(patterns: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassificationTask(**PLAIN, freeze=patterns)


def test_one_frozen_part_and_random_weights_are_told(
    few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--trainer.limit_train_batches", "1", "--trainer.max_epochs", "1", "--model.freeze", "stages.*.downsample")
    assert run(["fit", *arguments(few_digits, tmp_path / "first", *small)]) == 0
    told = "model.freeze: stages.*.downsample will keep random weights: to start from trained ones, give --model.check"
    assert capsys.readouterr().out.count(told) == 1
    # From the weights of a run's folder, they are not random.
    start = ("--model.checkpoint", str(tmp_path / "first"))
    assert run(["fit", *arguments(few_digits, tmp_path / "second", *small, *start)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"loaded \d+ tensors from .*first/checkpoints/best\.ckpt", out)
    assert "random weights" not in out


def test_what_is_frozen_in_vain_is_told(few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A learning rate for frozen weights, and a module that was inserted with a gate of 0."""
    inserted = "{insert: {places: stages.1, module: dgmn, gate: 0.0, sampling_rates: [1]}}"
    small = ["--trainer.limit_train_batches", "1", "--trainer.max_epochs", "1", "--model.model_args", inserted]
    rates = ["--model.lr_multipliers", "{walks: 10.0, head: 2.0}"]
    assert run(["fit", *arguments(few_digits, tmp_path / "first", *small, *rates, "--model.freeze", "stages")]) == 0
    out = capsys.readouterr().out
    assert out.count("model.lr_multipliers: walks has no effect, all such parameters are frozen") == 1
    assert out.count("model.freeze: freezes stages.1.module with a gate of 0") == 1
    assert "head has no effect" not in out
    assert run(["fit", *arguments(few_digits, tmp_path / "second", *small, *rates, "--model.freeze", "stem")]) == 0
    out = capsys.readouterr().out
    assert "no effect" not in out
    assert "gate" not in out


# ------------------------------------------------------------------------------------------------ layer-wise rates


@pytest.mark.parametrize("name", ["dgmn2_nano", "resnet10t", "pvt_v2_b0"])
def test_layer_decay_is_timms(name: str) -> None:
    task = ClassificationTask(**{**PLAIN, "model": name}, layer_decay=0.75)
    names = {id(p): n for n, p in task.model.named_parameters()}
    expected = {names[id(p)]: g["lr_scale"] for g in param_groups_layer_decay(task.model) for p in g["params"]}
    assert len(set(expected.values())) > 4
    found = {names[id(p)]: group["lr_multiplier"] for group in task._groups() for p in group["params"]}
    assert found == pytest.approx(expected)


def test_layer_decay_multiplies_and_keeps_the_groups_of_weight_decay(few_digits: Path, tmp_path: Path) -> None:
    task = ClassificationTask(
        **PLAIN,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.3),
        schedule=lambda optimizer, steps: WarmupCosine(optimizer, steps, start=1.0),
        layer_decay=0.5,
        lr_multipliers={"attn.offset": 0.1},
        freeze=["stem"],
    )
    trainer = fit(few_digits, tmp_path, task, max_epochs=1, limit_train_batches=1, limit_val_batches=1)
    names = {id(p): name for name, p in task.model.named_parameters()}
    rates = {
        names[id(p)]: (g["initial_lr"], g["weight_decay"])
        for g in trainer.optimizers[0].param_groups
        for p in g["params"]
    }
    assert rates["head.weight"] == (pytest.approx(1e-2), 0.3)
    assert rates["head.bias"] == (pytest.approx(1e-2), 0.0)
    block = max(n for n in rates if n.startswith("stages.3.blocks.")).rpartition("blocks.")[0] + "blocks.0."
    decayed = rates[f"{block}attn.qkv.weight"][0]
    assert decayed < 1e-2
    assert rates[f"{block}attn.offset.weight"][0] == pytest.approx(decayed / 10)
    assert not any(name.startswith("stem") for name in rates)


def test_layer_decay_and_freezing_inside_other_networks() -> None:
    detector = DetectionTask("retinanet", "dgmn2_nano", 3, **SMALL_DETECTOR, layer_decay=0.5)
    names = {id(p): n for n, p in detector.model.named_parameters()}
    found = {names[id(p)]: group["lr_multiplier"] for group in detector._groups() for p in group["params"]}
    behind = {factor for name, factor in found.items() if "stages" not in name and "stem" not in name}
    backbone = {name: factor for name, factor in found.items() if "stages" in name or "stem" in name}
    assert behind == {1.0}
    whole = ClassificationTask(**PLAIN, layer_decay=0.5)
    plain = {names_: scale for names_, scale in whole._scales.items() if not names_.startswith("head")}
    # A backbone's last layer lies before the head, as in the whole classifier.
    assert sorted(backbone.values()) == pytest.approx(sorted(plain.values()))

    name = next(n.partition("stem")[0] for n in backbone if "stem" in n)
    segmenter = SegmentationTask(
        "setr_naive", "vit_tiny_patch16_224", 3, {"image_size": 64}, freeze=["backbone"], layer_decay=0.9
    )
    assert not any(p.requires_grad for n, p in segmenter.model.named_parameters() if n.startswith("backbone."))
    frozen = DetectionTask("retinanet", "dgmn2_nano", 3, **SMALL_DETECTOR, freeze=[f"{name}stages.*"])
    assert {p.requires_grad for n, p in frozen.model.named_parameters() if "stages" in n} == {False}


@pytest.mark.parametrize("value", [0.0, 1.5, -1.0, float("nan")])
def test_layer_decay_is_a_share(value: float) -> None:
    with pytest.raises(ValueError, match="layer_decay must be above 0 and at most 1"):
        ClassificationTask(**PLAIN, layer_decay=value)


# ------------------------------------------------------------------------------------------------ averaged weights


class TimmAverage(L.Callback):
    """The average of timm, beside ours."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
        model = pl_module.model
        if trainer.global_step == 1:
            self.average = ModelEmaV3(model, decay=0.7, use_warmup=True)
        self.average.update(model, step=trainer.global_step)


def test_average_warms_up_as_timms_and_is_what_is_kept(few_digits: Path, tmp_path: Path) -> None:
    task, theirs = ClassificationTask(**PLAIN, ema_decay=0.7), TimmAverage()
    index = torch.arange(5)
    task.model.register_buffer("index", index.clone())  # as Swin has; an average of whole numbers would be rounded down
    trainer = fit(few_digits, tmp_path, task, theirs, max_epochs=2, limit_val_batches=1)
    assert trainer.global_step == 10  # the warm-up has ended: 1 - 7 ** (-2 / 3) is more than 0.7
    averages = theirs.average.module.state_dict()
    for name, tensor in task.model.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, averages[name], rtol=1e-4, atol=1e-6)
    assert torch.equal(task.model.index, index)


@pytest.mark.slow
def test_best_checkpoint_holds_the_average(
    few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = arguments(few_digits, tmp_path / "run", "--model.ema_decay", "0.5")
    assert run(["fit", *options, "--trainer.max_epochs", "2"]) == 0
    best = re.search(r"best val/top1: (\d\.\d+)", capsys.readouterr().out)
    checkpoint = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert not torch.equal(
        checkpoint["state_dict"]["model.head.weight"], checkpoint["current_model_state"]["model.head.weight"]
    )
    assert run(["validate", *options, "--ckpt_path", "best"]) == 0
    found = re.search(r"val/top1 +(\d\.\d+)", capsys.readouterr().out)
    assert best is not None
    assert found is not None
    assert best[1] == found[1]
    assert (
        run(["fit", *arguments(few_digits, tmp_path / "run"), "--trainer.max_epochs", "3", "--ckpt_path", "last"]) == 2
    )
    assert "ema_decay was 0.5, now it is None" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- early end


@pytest.mark.slow
def test_training_without_progress_ends(few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = arguments(few_digits, tmp_path / "run", "--model.optimizer.lr", "0", "--trainer.max_epochs", "9")
    options += ["--model.freeze", "[stem, stages]"]  # batch norms learn at any rate
    options += ["--data.augmentation.scale", "[1, 1]", "--trainer.limit_train_batches", "1", "--ckpt_path", "last"]
    assert run(["fit", *options, "--model.patience", "2"]) == 0
    out = capsys.readouterr().out
    assert "val/top1 has not improved for 2 evaluations: the training ends (patience)" in out
    assert "after 3 epochs" in out
    assert run(["fit", *options, "--model.patience", "2"]) == 0
    assert "Nothing to train" in capsys.readouterr().out
    assert run(["fit", *options, "--model.patience", "4"]) == 0
    assert "after 5 epochs" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"model\.patience must be a whole number of at least 1, got 0"):
        ClassificationTask(**PLAIN, patience=0)


# --------------------------------------------------------------------------------------------------- limit of time


class Rates(L.Callback):
    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_the_schedule_ends_with_the_time(few_digits: Path, tmp_path: Path) -> None:
    rates = Rates()
    task = ClassificationTask(**PLAIN, schedule=lambda o, steps: WarmupCosine(o, steps, warmup=0.2, start=0.0, end=0.0))
    trainer = fit(few_digits, tmp_path, task, rates, max_epochs=100_000, max_time={"seconds": 3}, limit_val_batches=1)
    assert 1 <= trainer.current_epoch < 100
    assert max(rates.rates) == pytest.approx(1e-3, rel=0.2)
    assert rates.rates[-1] < 1e-4  # the cosine has come down
    peak = int(np.argmax(rates.rates))
    assert rates.rates[: peak + 1] == sorted(rates.rates[: peak + 1])
    assert rates.rates[peak:] == sorted(rates.rates[peak:], reverse=True)


# --------------------------------------------------------------------------------------------------- class weights


def test_class_weights_of_classifiers(few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for given in ([1.0, 2.0, 0.5], {"1": 2.0, "2": 0.5}, "balanced"):
        task = ClassificationTask(**PLAIN, label_smoothing=0.1, class_weights=given)  # type: ignore[arg-type]
        fit(few_digits, tmp_path, task, max_epochs=1, limit_train_batches=1, limit_val_batches=1)
        assert task._weights is not None
        found[str(given)] = task._weights.tolist()
    assert list(found.values())[:2] == [[1.0, 2.0, 0.5]] * 2
    assert found["balanced"] == pytest.approx([100 / 3 / 34, 100 / 3 / 33, 100 / 3 / 33])
    assert "class weights, balanced: 1 1.01, 2 1.01, 0 0.98" in capsys.readouterr().out

    task = ClassificationTask(**PLAIN, label_smoothing=0.1, class_weights=[1.0, 2.0, 0.5])
    losses = {}
    for weights in (None, torch.tensor([1.0, 2.0, 0.5])):
        task._weights = weights
        task.log_step = lambda loss, size: loss  # type: ignore[assignment,method-assign,misc]
        images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 1, 2])
        task.eval()
        loss = task.training_step((images, labels), 0)
        logits = task.model(images)
        losses[weights is None] = loss
        torch.testing.assert_close(loss, F.cross_entropy(logits, labels, weights, label_smoothing=0.1))


def test_a_batch_whose_labels_have_no_weight() -> None:
    """Its loss is 0, and its gradients are; others are as PyTorch has them."""
    task = ClassificationTask(**PLAIN, label_smoothing=0.1, class_weights=[0.0, 1.0, 0.1])
    task._weights = torch.tensor([0.0, 1.0, 0.1])
    task.log_step = lambda loss, size: loss  # type: ignore[assignment,method-assign,misc]
    task.eval()
    images = torch.rand(4, 3, 32, 32)
    loss = task.training_step((images, torch.zeros(4, dtype=torch.long)), 0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in task.parameters())
    labels = torch.tensor([0, 2, 0, 0])
    expected = F.cross_entropy(task.model(images), labels, task._weights, label_smoothing=0.1)
    torch.testing.assert_close(task.training_step((images, labels), 0), expected)


@pytest.mark.slow
def test_class_weights_from_the_command_line(
    few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*arguments(few_digits, tmp_path / "run"), "--trainer.fast_dev_run", "1"]
    for value in ("balanced", "{0: 2.0}", "[1, 2, 3]"):
        assert run(["fit", *options, "--model.class_weights", value]) == 0, value
    for value, message in {
        "[1, 2]": "model.class_weights: 2 weights for 3 classes",
        "{7: 2.0}": "there is no class '7'; there are 0, 1, 2",
        "[0, 0, 0]": "all are 0",
        "[-1, 1, 1]": "finite numbers of at least 0",
        "balance": "class_weights",
    }.items():
        capsys.readouterr()
        assert run(["fit", *options, "--model.class_weights", value]) == 2, value
        assert message in capsys.readouterr().err


def test_class_weights_of_pixels(few_scenes: Path) -> None:
    logits, masks = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    masks[0, 0] = 255
    weights = torch.tensor([1.0, 2.0, 0.5])
    usual = F.cross_entropy(logits, masks, weights, ignore_index=255)
    torch.testing.assert_close(PixelLoss("labelled")(logits, masks, weights), usual)
    total = F.cross_entropy(logits, masks, weights, ignore_index=255, reduction="sum")
    torch.testing.assert_close(PixelLoss()(logits, masks, weights), total / masks.numel())
    assert PixelLoss("labelled")(logits, torch.full_like(masks, 255), weights) == 0

    data = SegmentationData(few_scenes)
    data.setup("fit")
    pixels = np.zeros(256, int)
    for sample in data.layout.samples("train"):
        with Image.open(sample.mask) as mask:
            pixels += np.bincount(np.asarray(mask).ravel(), minlength=256)
    assert data.class_counts() == pixels[: len(data.names)].tolist()
    assert sum(data.class_counts()) > 0


def test_balanced_weights_of_a_dataset_that_lists_no_labels() -> None:
    class Pairs(torch.utils.data.Dataset[tuple[Image.Image, int]]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.new("RGB", (8, 8)), int(index > 0)

    data = ClassificationData(train=Pairs(), val=Pairs(), image_size=8, batch_size=2)
    data.setup("fit")
    assert data.class_counts() == [1, 3]
    # A network may have classes that the data does not know of.
    assert class_weight_tensor("balanced", data, 3).tolist() == pytest.approx([2.0, 2 / 3, 0.0])
