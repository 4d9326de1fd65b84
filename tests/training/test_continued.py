"""Continuing runs otherwise than after Ctrl-C: in moved folders, in those of other runs, with other lengths."""

import json
from pathlib import Path

import lightning as L
import pytest
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from timm.layers import DropPath

import dgmn
from dgmn.classification import Augmentation, ClassificationData, ClassificationTask
from dgmn.pictures import curves
from dgmn.training.callbacks import DropPathSchedule
from dgmn_cli import run

from digits import RECIPE


@pytest.fixture
def fit(few_digits, tmp_path, capsys):
    """Trains in a folder below `tmp_path`, expects the exit code, and returns all that was said."""

    def train(folder: str, *more: str, code: int = 0, command: str = "fit") -> str:
        few = ["--model.num_classes", "3", "--data.batch_size", "20", "--data.num_workers", "0"]
        model = ["--model.model", "resnet10t", "--model.mixup", "0", "--model.cutmix", "0"]
        place = ["--data.root", str(few_digits), "--trainer.default_root_dir", str(tmp_path / folder)]
        assert run([command, "-c", RECIPE, *place, *few, *model, *more]) == code
        said = capsys.readouterr()
        return said.out + said.err

    return train


def best_of(folder: Path) -> float:
    states = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["callbacks"]
    return float(next(state["best_model_score"] for name, state in states.items() if "'val/top1'" in name))


def test_a_moved_run_keeps_its_best(fit, tmp_path):
    """The first score is made so high that what comes after the move is worse."""
    fit("run", "--trainer.max_epochs", "1")
    file = tmp_path / "run/checkpoints/last.ckpt"
    state = torch.load(file, weights_only=True)
    kept = next(
        state for name, state in state["callbacks"].items() if name.startswith("ModelCheckpoint{'monitor': 'val/top1'")
    )
    kept["best_model_score"] = torch.tensor(0.999)
    # Lightning deletes what the file calls the best one before.
    mine = tmp_path / "mine.txt"
    mine.touch()
    kept["best_k_models"], kept["kth_best_model_path"] = {str(mine): torch.tensor(-1.0)}, str(mine)
    torch.save(state, file)
    best = (tmp_path / "run/checkpoints/best.ckpt").read_bytes()

    (tmp_path / "run").rename(tmp_path / "moved")
    said = fit("moved", "--trainer.max_epochs", "2", "--ckpt_path", "last")
    assert "best val/top1: 0.9990" in said
    assert (tmp_path / "moved/checkpoints/best.ckpt").read_bytes() == best
    assert best_of(tmp_path / "moved") == pytest.approx(0.999)
    assert mine.exists()


def test_no_training_overwrites_the_checkpoints_of_another(fit, tmp_path):
    for name in ("a", "b"):
        fit(name, "--trainer.max_steps", "1")
    files = [tmp_path / "b/checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    before = [file.read_bytes() for file in files]
    elsewhere = str(tmp_path / "a/checkpoints/last.ckpt")
    for path in (elsewhere, str(tmp_path / "a")):
        said = fit("b", "--trainer.max_steps", "2", "--ckpt_path", path, code=2)
        assert "b already holds a run: continue it with --ckpt_path last, or write" in said
    assert [file.read_bytes() for file in files] == before

    files[1].unlink()  # the larger one, that nobody needs who does not go on
    for more in ([], ["--ckpt_path", "last"]):
        assert "continue it with --ckpt_path best, or write" in fit("b", "--trainer.max_steps", "2", *more, code=2)
    assert files[0].read_bytes() == before[0]

    (tmp_path / "b/checkpoints/.last.ckpt.partial").touch()  # of a run that was killed
    fit("b", "--trainer.max_steps", "2", "--ckpt_path", "best")
    assert sorted(file.name for file in (tmp_path / "b/checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    fit("new", "--trainer.max_steps", "2", "--ckpt_path", elsewhere)


def test_the_first_step_of_a_continued_run_has_the_rate_of_its_own_schedule(fit, monkeypatch):
    """The optimiser's state has the rate of the last step, which was the end of a shorter schedule."""
    rates: list[float] = []
    step = ClassificationTask.training_step

    def watched(task, *arguments):
        rates.append(task.optimizers().param_groups[0]["lr"])
        return step(task, *arguments)

    monkeypatch.setattr(ClassificationTask, "training_step", watched)
    fit("run", "--trainer.max_epochs", "1")
    fit("run", "--trainer.max_epochs", "2", "--ckpt_path", "last")
    continued = [rates.pop(0) for _ in range(10)][5:]
    fit("whole", "--trainer.max_epochs", "2")
    assert continued == pytest.approx(rates[5:])


class Watched(ClassificationData):
    """Notes the images that a training reads."""

    def dataset(self, split):
        found = super().dataset(split)
        if split == "train":
            read = found.__getitem__
            noted = type("Noted", (type(found),), {"__getitem__": lambda _, i: self.seen.append(i) or read(i)})
            found.__class__ = noted
        return found


@pytest.mark.parametrize("cut", [3, 8])
@pytest.mark.parametrize("steps", [-1, 15])
def test_a_run_that_was_cut_off_within_an_epoch_sees_its_other_images(few_digits, tmp_path, cut, steps):
    """Three epochs of five steps; the run is ended in the first or the second, then continued."""
    rates: list[float] = []

    class Rates(L.Callback):
        def on_train_batch_start(self, trainer, task, batch, batch_idx):
            rates.append(max(part.drop_prob for part in task.modules() if isinstance(part, DropPath)))

    def fit(steps: int, **path: str) -> tuple[list[int], L.Trainer]:
        once = Augmentation(repeats=1)
        data = Watched(few_digits, image_size=32, batch_size=20, num_workers=0, augmentation=once)
        data.seen = []
        options = {"logger": False, "default_root_dir": tmp_path, "use_distributed_sampler": False}
        kept = ModelCheckpoint(tmp_path, filename="last")
        trainer = L.Trainer(max_epochs=3, max_steps=steps, callbacks=[kept, DropPathSchedule(2), Rates()], **options)
        task = ClassificationTask("resnet10t", 3, mixup=0, cutmix=0, model_args={"drop_path_rate": 0.1})
        trainer.fit(task, data, weights_only=True, **path)
        return data.seen, trainer

    first, _ = fit(cut)
    rest, trainer = fit(steps, ckpt_path=str(tmp_path / "last.ckpt"))
    assert [len(first), len(rest)] == [20 * cut, 300 - 20 * cut]
    whole = first + rest
    assert all(sorted(whole[i : i + 100]) == list(range(100)) for i in (0, 100, 200))
    assert (trainer.global_step, trainer.current_epoch) == (15, 3)
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 15
    assert rates == pytest.approx(10 * [0.0] + 5 * [0.1])


def test_a_checkpoint_callback_of_the_user_does_not_decide_what_is_best(fit, tmp_path):
    mine = "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {monitor: val/loss, "
    mine += f"dirpath: {tmp_path / 'mine'}}}}}"
    said = fit("run", "--trainer.max_epochs", "1", "--trainer.callbacks", f"[{mine}]")
    top1 = next(line.split()[1] for line in said.splitlines() if line.startswith("val/top1"))
    assert f"best val/top1: {top1}, in" in said
    assert list((tmp_path / "mine").iterdir())


def test_settings_that_a_checkpoint_cannot_hold_as_they_are(fit, tmp_path):
    optimizer = ("--model.optimizer", "timm.optim.AdafactorBigVision", "--model.optimizer.lr", "1e-3")
    fit("run", "--trainer.max_steps", "1", *optimizer)  # one of its settings is a type of numbers
    assert dgmn.load(tmp_path / "run").describe()["classes"] == ["0", "1", "2"]
    fit("run", "--trainer.max_steps", "2", *optimizer, "--ckpt_path", "last")


def test_a_network_for_one_size_of_images(fit, tmp_path):
    said = fit("run", "--model.model", "vit_tiny_patch16_224", "--model.model_args", "{depth: 1}", code=2)
    assert "image_size 32: the network does not take it (Input height (32) doesn't match model (224)" in said
    assert "give its own size, as a rule 224, or build it for this size with img_size 32 in model_args" in said
    said = fit("run", "--model.model", "mixer_s32_224", code=2)
    assert "image_size 32: the network does not take it" in said
    model = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=2)
    with pytest.raises(ValueError, match="image_size 96: the network does not take it"):
        dgmn.save(model, tmp_path / "shared", classes=["a", "b"], image_size=96)
    assert not (tmp_path / "shared").exists()


def test_what_a_run_says_that_was_cut_off_within_an_epoch(fit, tmp_path, monkeypatch):
    """Five steps an epoch; the chart's axis has the epochs that were trained."""
    charts = []
    draw = curves.training_chart
    monkeypatch.setattr(curves, "training_chart", lambda *lines: charts.append(lines) or draw(*lines))
    fit("run", "--trainer.max_steps", "3")
    said = fit("run", "--trainer.max_steps", "3", "--ckpt_path", "last")
    assert "Nothing to train: the run has done 3 steps; raise --trainer.max_steps, or leave it out" in said
    halves = ("--data.batch_size", "10", "--trainer.accumulate_grad_batches", "2", "--ckpt_path", "last")
    said = fit("run", "--trainer.max_epochs", "2", *halves, code=2)
    assert "ended within epoch 1: it goes on with batch_size 20, not 10" in said
    said = fit("run", "--trainer.max_epochs", "2", "--ckpt_path", "last")
    assert "goes on within epoch 1, after 3 batches of it\n" in said
    assert "continued within epoch 1 from" in (tmp_path / "run/summary.md").read_text()
    said = fit("run", "--trainer.max_epochs", "1", "--ckpt_path", "last", code=2)
    assert "trainer.max_epochs is 1, but the run has done 2: give more to go on" in said
    _, metrics, _ = charts[-1]
    assert [epoch for epoch, _ in metrics["val/top1"]] == pytest.approx([0.6, 1.0, 2.0])


def test_a_continued_run_says_which_options_are_others(fit):
    fit("run", "--trainer.max_epochs", "1", "--model.label_smoothing", "0.2")
    said = fit("run", "--trainer.max_epochs", "2", "--ckpt_path", "last", "--data.crop_pct", "0.9")
    assert "continued with model.label_smoothing 0.1 instead of 0.2\n" in said
    assert "continued with data.crop_pct 0.9 instead of 1.0\n" in said
    changes = [line for line in said.splitlines() if line.startswith("continued with ")]
    assert len(changes) == 3, changes
    assert "training steps" in "".join(changes)
    others = ["--data.crop_pct", "0.8", "--seed_everything", "3"]
    assert "continued" not in fit("run", "--ckpt_path", "last", *others, command="validate")
    other = ["--model.model", "resnet18", "--model.optimizer.init_args.lr", "1"]
    said = fit("run", "--trainer.max_epochs", "3", "--ckpt_path", "last", *other, code=2)
    assert "the checkpoint was trained with model resnet10t, but here it is resnet18" in said


def test_patience_needs_validations(fit):
    said = fit("run", "--model.patience", "2", "--trainer.limit_val_batches", "0", code=2)
    assert "model.patience" in said
    assert "limit_val_batches" in said


def test_a_shared_network_that_would_fill_the_memory(tmp_path):
    small = {"depths": (2, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 1, 1, 1)}
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=2, **small)
    dgmn.save(model, tmp_path, classes=["a", "b"])
    dgmn.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for more in ({"img_size": 28672}, {"img_size": 8000, "window_size": 1000}):
        (tmp_path / "config.json").write_text(json.dumps({**config, "model_args": {**config["model_args"], **more}}))
        with pytest.raises(ValueError, match="needs far more memory than its weights"):
            dgmn.load(tmp_path)


def test_a_data_module_of_ones_own_need_not_know_a_size(few_digits, tmp_path):
    class Mine(ClassificationData):
        def __init__(self) -> None:
            super().__init__(few_digits, image_size=32, batch_size=20, num_workers=0)
            self.size = vars(self).pop("image_size")

        def describe(self):
            return {"classes": self.names, "image_size": 32}

        def dataset(self, split):
            self.image_size = self.size
            found = super().dataset(split)
            del self.image_size
            return found

    task = ClassificationTask("resnet10t", 3, mixup=0, cutmix=0)
    trainer = L.Trainer(max_steps=1, logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    trainer.fit(task, Mine())
    assert trainer.global_step == 1


@pytest.mark.skipif(torch.accelerator.is_available(), reason="it has one")
def test_a_gpu_that_is_not_there(fit):
    assert "trainer.accelerator gpu: this machine has no GPU" in fit("run", "--trainer.accelerator", "gpu", code=2)
