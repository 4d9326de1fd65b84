"""A run has its folder for itself, says how far it is, and always ends with metrics and a checkpoint."""

import multiprocessing
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dgmn.training import callbacks
from dgmn_base.errors import InputError
from dgmn_base.runs import alone_in
from dgmn_base.terminal import Progress, counted, duration
from dgmn_cli import run

from digits import RECIPE


def arguments(data: Path, folder: Path, *more: str) -> list[str]:
    few = ["--model.num_classes", "3", "--data.batch_size", "20", "--data.num_workers", "0"]
    return ["-c", RECIPE, "--data.root", str(data), "--trainer.default_root_dir", str(folder), *few, *more]


# ---------------------------------------------------------------------------------------------------- one folder


HOLD = """
import sys, pathlib
from dgmn_base.runs import alone_in
with alone_in(pathlib.Path(sys.argv[1])):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_two_processes_never_share_a_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        refusal = rf"process {process.pid} on .* is training here.*--trainer\.default_root_dir"
        with pytest.raises(InputError, match=refusal), alone_in(tmp_path):
            pass
        process.kill()
    with alone_in(tmp_path):  # the death of a process sets its folder free
        pass
    assert not (tmp_path / ".owner").exists()


def _run_again_and_again(data: Path, folder: Path, together, results) -> None:
    torch.set_num_threads(1)
    codes = []
    for i in range(20):
        short = ["--trainer.max_steps", "1", "--trainer.enable_progress_bar", "false"]
        together.wait(300)
        codes.append(run(["fit", *arguments(data, folder / str(i), *short)]))
    results.put(codes)


@pytest.mark.slow
def test_of_two_runs_into_one_folder_one_is_refused(few_digits: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    together, results = context.Barrier(2), context.Queue()
    work = (few_digits, tmp_path, together, results)
    processes = [context.Process(target=_run_again_and_again, args=work) for _ in range(2)]
    for process in processes:
        process.start()
    codes = [results.get(timeout=1500) for _ in processes]
    for process in processes:
        process.join()
    assert [sorted(pair) for pair in zip(*codes, strict=True)] == [[0, 2]] * 20


# ------------------------------------------------------------------------------------------------- short trainings


@pytest.mark.parametrize("limit", [("--trainer.max_steps", "2"), ("--trainer.max_time", "00:00:00:01")])
def test_a_training_shorter_than_an_epoch_is_evaluated(
    limit: tuple[str, str], few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = arguments(few_digits, tmp_path / "run", *limit)
    assert run(["fit", *options]) == 0
    out = capsys.readouterr().out
    assert re.search(r"val/top1 +\d\.\d{4}", out)
    assert re.search(r"best val/top1: \d\.\d{4}, in .*best\.ckpt", out)
    assert run(["validate", *options[:-2], "--ckpt_path", "best"]) == 0


def test_epochs_without_a_validation_are_silent(
    few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    """Lightning would ask a reader to log the metric that the checkpoint waits for."""
    options = ("--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "2")
    assert run(["fit", *arguments(few_digits, tmp_path / "run", *options)]) == 0
    assert re.search(r"best val/top1: \d\.\d{4}, in .*best\.ckpt", capsys.readouterr().out)
    assert not [warning for warning in recwarn if "monitor" in str(warning.message)]


# ------------------------------------------------------------------------------------------------------- progress


def test_lines_where_the_output_is_no_terminal(
    few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fit", *arguments(few_digits, tmp_path / "run", "--trainer.max_epochs", "2")]) == 0
    out = capsys.readouterr().out
    assert "M parameters, from random weights; this run's folder: " in out
    lines = [line for line in out.splitlines() if line.startswith("epoch ")]
    form = r"epoch {} of 2, train/loss \d\.\d{{4}}, val/top1 \d\.\d{{4}}, \d+ s left"
    assert len(lines) == 2
    assert all(re.fullmatch(form.format(i + 1), line) for i, line in enumerate(lines))
    assert "\r" not in out


def test_lines_within_a_long_epoch(
    few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "LINE_EVERY", 0.0)
    assert run(["fit", *arguments(few_digits, tmp_path / "run", "--trainer.max_epochs", "1")]) == 0
    steps = re.findall(r"^epoch 1 of 1, step (\d) of 5, train/loss", capsys.readouterr().out, re.MULTILINE)
    assert steps == list("12345")


def test_lines_of_a_number_of_steps(few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They end the training, not the epochs. There are as many loading processes as cores, or PyTorch would warn."""
    limits = ("--trainer.max_steps", "2", "--trainer.max_epochs", "30", "--data.num_workers", "1000")
    assert run(["fit", *arguments(few_digits, tmp_path / "run", *limits)]) == 0
    said = capsys.readouterr()
    assert re.search(r"^epoch 1, step 2 of 2, train/loss", said.out, re.MULTILINE)
    assert "worker" not in said.err


def test_progress_of_long_work(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 90))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    progress = Progress()
    for done in range(6):
        progress.show(done, 100, "images")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["2 of 100 images, 2 h 27 min left", "4 of 100 images, 2 h 24 min left"]


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_refused_data_leaves_no_logs(command: str, few_digits: Path, small_run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(few_digits / "train", tmp_path / "data/train")  # without val
    start = ("--model.checkpoint", str(small_run("classifier")))
    assert run([command, *arguments(tmp_path / "data", tmp_path / "run", *start)]) == 2
    assert not list(tmp_path.glob("run/logs/*"))


def test_numbers_with_their_nouns() -> None:
    assert [counted(n, "epoch") for n in (0, 1, 2)] == ["0 epochs", "1 epoch", "2 epochs"]
    assert (counted(1, "class"), counted(1000, "class"), counted(2, "box")) == ("1 class", "1,000 classes", "2 boxes")
    assert (counted(1, "category"), counted(3, "category")) == ("1 category", "3 categories")


def test_durations() -> None:
    times = {0.4: "0 s", 89: "89 s", 91: "2 min", 5300: "88 min", 5401: "1 h 30 min"}
    assert {seconds: duration(seconds) for seconds in times} == times
