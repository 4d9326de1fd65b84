"""A run that is killed again and again ends with the weights of an undisturbed run."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import lightning as L
import pytest
import torch

import dgmn_cli

from digits import RECIPE

EPOCHS = 4


class KillInEpoch(L.Callback):
    def __init__(self, epoch: int, number: int, rank: int = 0) -> None:
        self.epoch = epoch
        self.number = number
        self.rank = rank

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        if (trainer.current_epoch, trainer.fit_loop.batch_idx, trainer.global_rank) == (self.epoch, 1, self.rank):
            os.kill(os.getpid(), self.number)


def _kill_while_writing(folder: Path) -> None:
    while True:
        if any(folder.glob("checkpoints/*.partial")):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1e-4)


def _fit(
    data: Path,
    run: Path,
    kill_epoch: int | None = None,
    number: int = signal.SIGKILL,
    kill_while_writing: bool = False,
) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores SIGINT
    if kill_while_writing:
        threading.Thread(target=_kill_while_writing, args=(run,), daemon=True).start()
    arguments = ["-c", RECIPE, "--data.root", str(data), "--trainer.default_root_dir", str(run)]
    arguments += ["--model.num_classes", "3", "--data.batch_size", "20", "--trainer.max_epochs", str(EPOCHS)]
    # Turn on everything that draws random numbers: workers, augmentation, mixup, stochastic depth, dropout.
    arguments += ["--data.num_workers", "2", "--model.mixup", "0.8", "--model.cutmix", "1.0"]
    arguments += [
        "--model.model_args",
        "{drop_path_rate: 0.2, proj_drop_rate: 0.1}",
        "--data.augmentation.hflip",
        "0.5",
    ]
    arguments += ["--model.ema_decay", "0.9", "--model.layer_decay", "0.9", "--model.freeze", "[stages.0]"]
    arguments += ["--model.class_weights", "balanced", "--model.patience", "9"]
    arguments += ["--trainer.enable_progress_bar", "false", "--ckpt_path", "last"]
    if kill_epoch is not None:
        arguments += [f"--trainer.callbacks+={__name__}.KillInEpoch", f"--trainer.callbacks.epoch={kill_epoch}"]
        arguments += [f"--trainer.callbacks.number={int(number)}", "--trust-code", __name__.partition(".")[0]]
    sys.exit(dgmn_cli.run(["fit", *arguments]))


def _run(expected: int, *args: object, **kwargs: object) -> None:
    process = multiprocessing.get_context("forkserver").Process(target=_fit, args=args, kwargs=kwargs)
    process.start()
    process.join()
    assert process.exitcode == expected


@pytest.mark.slow
def test_killed_run_ends_with_the_same_weights(few_digits: Path, tmp_path: Path) -> None:
    multiprocessing.get_context("forkserver").set_forkserver_preload(["dgmn.cli", "dgmn.classification.task"])
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    _run(0, few_digits, calm)

    last = killed / "checkpoints" / "last.ckpt"
    _run(-signal.SIGKILL, few_digits, killed, kill_epoch=1)
    _run(130, few_digits, killed, kill_epoch=2, number=signal.SIGINT)  # Ctrl-C
    before = last.read_bytes()
    _run(-signal.SIGKILL, few_digits, killed, kill_while_writing=True)
    assert list(last.parent.glob("*.partial")), "was not killed while a checkpoint was written"
    assert last.read_bytes() == before, "the last good checkpoint was lost"
    _run(-signal.SIGKILL, few_digits, killed, kill_epoch=3)
    assert last.read_bytes() != before, "did not go on"
    _run(0, few_digits, killed)

    a, b = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (calm, killed))
    assert a["epoch"] == b["epoch"] == EPOCHS - 1
    assert a["global_step"] == b["global_step"] == EPOCHS * 5
    for entry in ("state_dict", "current_model_state"):  # averaged and raw weights
        assert a[entry].keys() == b[entry].keys()
        for name, tensor in a[entry].items():
            assert torch.equal(tensor, b[entry][name]), (entry, name)
    moments = [c["optimizer_states"][0]["state"] for c in (a, b)]
    for index, state in moments[0].items():
        assert torch.equal(state["exp_avg"], moments[1][index]["exp_avg"])
