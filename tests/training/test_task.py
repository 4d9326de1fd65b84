"""Optimiser, schedule, stochastic depth."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from dgmn.classification import Augmentation, ClassificationData, ClassificationTask
from dgmn.errors import InputError
from dgmn.nodes import node_maps
from dgmn.training import DropPathSchedule, WarmupCosine


def test_warmup_cosine_by_hand() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = WarmupCosine(optimizer, 100, warmup=0.1, start=0.0, end=0.1)
    rates = []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == 0
    assert rates[5] == pytest.approx(1.0)
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(2 * (0.1 + 0.9 / 2))
    assert rates[100] == pytest.approx(0.2)
    assert rates[40] == pytest.approx(2 * (0.1 + 0.45 * (1 + math.cos(math.pi / 3))))
    with pytest.raises(ValueError, match="warmup"):
        WarmupCosine(optimizer, 100, warmup=5)


class Spy(L.Callback):
    def __init__(self) -> None:
        self.rates: list[float] = []
        self.optimizer: Any = None
        self.schedule: Any = None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        drop_paths = [m for m in pl_module.modules() if isinstance(m, DropPath)]
        self.rates.append(max(m.drop_prob for m in drop_paths))
        self.optimizer = trainer.optimizers[0]
        self.schedule = trainer.lr_scheduler_configs[0].scheduler


def fit(data: Path, tmp_path: Path, task: ClassificationTask, **trainer: Any) -> Spy:
    spy = Spy()
    module = ClassificationData(
        root=str(data), image_size=32, crop_pct=1.0, batch_size=20, num_workers=0, augmentation=Augmentation(repeats=1)
    )
    options: Any = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, **trainer}
    options["callbacks"] = [*options.get("callbacks", []), spy]
    L.Trainer(default_root_dir=tmp_path, use_distributed_sampler=False, **options).fit(task, module)
    return spy


def test_decay_groups_steps_and_learning_rate(few_digits: Path, tmp_path: Path) -> None:
    task = ClassificationTask(
        "dgmn2_nano",
        3,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.3),
        schedule=lambda optimizer, steps: WarmupCosine(optimizer, steps, start=1.0, end=0.0),
        lr_batch=80,
    )
    spy = fit(few_digits, tmp_path, task, max_epochs=2, accumulate_grad_batches=2)
    groups = spy.optimizer.param_groups
    assert [g["weight_decay"] for g in groups] == [0.0, 0.3]
    assert [g["initial_lr"] for g in groups] == [pytest.approx(1e-2 * 40 / 80)] * 2
    names = {id(p): name for name, p in task.model.named_parameters()}
    plain, decayed = ({names[id(p)] for p in g["params"]} for g in groups)
    assert all(name.endswith((".bias", "bn.weight", "norm1.weight", "norm2.weight")) for name in plain)
    assert "stages.0.blocks.0.attn.rel_pos.rel_height" in decayed  # as the original recipe does
    assert len(plain) + len(decayed) == len(names)
    assert spy.schedule.last_epoch == 2 * 3  # 5 batches in an epoch, 2 in a step
    assert groups[0]["lr"] == pytest.approx(0, abs=1e-9)  # the schedule was made for exactly these steps


def test_drop_path_starts_late(few_digits: Path, tmp_path: Path) -> None:
    task = ClassificationTask("dgmn2_nano", 3, {"drop_path_rate": 0.3})
    spy = fit(few_digits, tmp_path, task, max_epochs=3, callbacks=[DropPathSchedule(start_epoch=2)])
    assert spy.rates == pytest.approx([0, 0, 0.3])


def test_repeated_augmentation_repeats(all_digits: Path) -> None:
    data = ClassificationData(root=all_digits, image_size=32, batch_size=64, num_workers=0)
    assert data.augmentation.repeats == 3
    data.trainer = L.Trainer(logger=False, max_epochs=1)
    data.setup("fit")
    loader = data.train_dataloader()
    indices = list(loader.batch_sampler.sampler)
    assert len(indices) == 1079 // 256 * 256
    for i in range(0, 30, 3):
        assert indices[i] == indices[i + 1] == indices[i + 2]
    assert len(set(indices)) == math.ceil(len(indices) / 3)


def test_mixed_batches_train_on_soft_targets(few_digits: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = ClassificationTask("dgmn2_nano", 3, mixup=0.8, cutmix=1.0, label_smoothing=0.1)
    assert task.mixup is not None
    _, targets = task.mixup(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))
    assert targets.shape == (4, 3)
    assert torch.allclose(targets.sum(1), torch.ones(4))
    assert targets.max() <= 0.9 + 0.1 / 3 + 1e-6
    assert ClassificationTask("dgmn2_nano", 3, mixup=0, cutmix=0).mixup is None


def test_walks_have_a_rate_of_their_own_and_their_length_is_logged(few_digits: Path, tmp_path: Path) -> None:
    """A step at ten times the rate moves the predictors of walks ten times as far; what is logged is their length."""

    class Watch(L.Callback):
        lengths: dict[str, float]
        moved: float

        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.before = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            step = {name: p.detach() - self.before[name] for name, p in pl_module.named_parameters()}
            attention = "model.stages.2.blocks.0.attn"
            ratio = step[f"{attention}.offset.weight"].abs().max() / step[f"{attention}.qkv.weight"].abs().max()
            self.moved = ratio.item()
            self.lengths = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("walks/")}
            layers: dict[str, list[Tensor]] = {}
            batch = next(iter(trainer.datamodule.val_dataloader()))[0]
            for image in batch:
                for layer in node_maps(pl_module.model, image[None]):
                    layers.setdefault(layer.stage, []).append(layer.walks.norm(dim=-1).mean())
            self.expected = {name: torch.stack(means).mean().item() for name, means in layers.items()}

    watch = Watch()
    optimizer = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.0)  # noqa: E731 - as the others of this file
    schedule = lambda optimizer, steps: WarmupCosine(optimizer, steps, start=1.0)  # noqa: E731
    task = ClassificationTask(
        "dgmn2_nano", 3, optimizer=optimizer, schedule=schedule, lr_batch=None, lr_multipliers={"attn.offset": 10.0}
    )
    fit(few_digits, tmp_path, task, max_steps=1, limit_train_batches=1, num_sanity_val_steps=0, callbacks=[watch])
    assert watch.moved == pytest.approx(10, rel=1e-3)
    assert sorted(watch.lengths) == [f"walks/stage{number}" for number in (1, 2, 3, 4)]
    for number in (1, 2, 3, 4):
        assert watch.lengths[f"walks/stage{number}"] == pytest.approx(watch.expected[f"stages.{number - 1}"], rel=1e-4)


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"max_steps": 3}, 3),
        ({"max_epochs": 2}, 10),
        ({"max_epochs": 2, "max_steps": 100}, 10),
        ({"max_epochs": 2, "max_steps": 7}, 7),
    ],
)
def test_the_schedule_ends_with_the_training(
    limits: dict[str, int], steps: int, few_digits: Path, tmp_path: Path
) -> None:
    """Whatever ends it first; the few digits are five batches."""
    asked = []

    def schedule(optimizer: Any, steps: int) -> WarmupCosine:
        asked.append(steps)
        return WarmupCosine(optimizer, steps, start=1.0, end=0.0)

    spy = fit(few_digits, tmp_path, ClassificationTask("dgmn2_nano", 3, schedule=schedule), **limits)
    assert asked[-1] == steps == spy.schedule.last_epoch
    assert spy.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_an_optimizer_without_a_learning_rate() -> None:
    with pytest.raises(InputError, match=r"model\.optimizer: lr must be a finite number of at least 0, got None"):
        ClassificationTask("dgmn2_nano", 3, optimizer=lambda p: timm.optim.Adafactor(p))
