"""Several processes on the CPU (gloo) train what one trains, and end together."""

import csv
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dgmn_cli import run

from digits import RECIPE
from small_runs import options_of

TESTS = Path(__file__).parent.parent
CPU = ["--trainer.accelerator", "cpu"]
TWO = [*CPU, "--trainer.devices", "2"]


def environment() -> dict[str, str]:
    return {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}


def fit(*options: str) -> subprocess.CompletedProcess[str]:
    """`dgmn fit` in a process of its own, which may start others."""
    command = [sys.executable, "-m", "dgmn_cli", "fit", *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)


def fit_by_two_agents(*options: str) -> str:
    """`dgmn fit` under torchrun, as on two machines; returns what both print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--local-addr", "127.0.0.1"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "-m", "dgmn_cli", "fit"]
    command = [sys.executable, *torchrun, *options, *CPU, "--trainer.num_nodes", "2", "--trainer.devices", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment()}
    agents = [subprocess.Popen(command, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    outputs = [agent.communicate() for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    return "".join(out for out, _ in outputs)


def logged(folder: Path) -> dict[str, float]:
    """The metrics of a run's last validation."""
    with next(folder.glob("logs/version_0/metrics.csv")).open() as file:
        row = [row for row in csv.DictReader(file) if any(row[name] for name in row if name.startswith("val/"))][-1]
    return {name: float(value) for name, value in row.items() if name.startswith("val/") and value}


def validated(options: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    """The metrics of a run's last checkpoint in this process."""
    capsys.readouterr()
    assert run(["validate", *options, "--ckpt_path", "last"]) == 0
    pairs = (line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("val/"))
    return {pair[0]: float(pair[1]) for pair in pairs if len(pair) == 2}


@pytest.mark.slow
def test_two_processes_count_every_image_once(
    few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["-c", RECIPE, "--data.root", str(few_digits), "--trainer.default_root_dir", str(tmp_path)]
    common += ["--model.num_classes", "3", "--data.batch_size", "10", "--trainer.enable_progress_bar", "false"]
    told = fit_by_two_agents(*common, "--trainer.max_epochs", "2")
    assert "total batch of 64; here it is 20 (10 x 2 devices x 1 accumulated)" in told
    assert told.count("after 2 epochs") == 1, "told once for all processes"
    # There are 41 validation images. A sampler that pads would count one twice.
    right = logged(tmp_path)["val/top1"] * 41
    assert right == pytest.approx(round(right), abs=1e-4)
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2 * (100 // 2 // 10)
    assert validated(common, capsys) == pytest.approx(logged(tmp_path), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["semantic_fpn", "mask_rcnn"])
def test_metrics_of_two_processes_are_those_of_one(
    kind: str, few_scenes: Path, few_coco_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = few_scenes if kind == "semantic_fpn" else few_coco_scenes
    options = options_of(kind, data, tmp_path)
    if kind == "mask_rcnn":
        options += ["--data.batch_size", "1"]  # beside a larger image, an image has another border
    told = fit_by_two_agents(*options)
    assert told.count("after 1 epoch") == 1
    found = logged(tmp_path)
    assert len(found) >= 2
    assert validated(options, capsys) == pytest.approx(found, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_others_and_the_run_goes_on(few_digits: Path, tmp_path: Path, rank: int) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    common = ["-c", RECIPE, "--data.root", str(few_digits), "--model.num_classes", "3", "--data.batch_size", "10"]
    common += ["--data.num_workers", "1", "--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "3", *TWO]
    assert fit(*common, "--trainer.default_root_dir", str(calm)).returncode == 0

    common += ["--trainer.default_root_dir", str(killed), "--ckpt_path", "last"]
    kill = ["--trainer.callbacks+=training.test_resume.KillInEpoch", "--trainer.callbacks.epoch=1"]
    kill += [f"--trainer.callbacks.number={int(signal.SIGKILL)}", f"--trainer.callbacks.rank={rank}"]
    ended = fit(*common, *kill, "--trust-code", "training")  # returns when the last process has ended
    assert ended.returncode in ((-signal.SIGKILL,) if rank == 0 else (2, -signal.SIGKILL))
    lines = [line for line in ended.stderr.splitlines() if "dgmn" in line or "Traceback" in line or "PID" in line]
    assert len(lines) == 1, ended.stderr
    if rank == 0 or ended.returncode == 2:
        assert lines[0].startswith("dgmn: error: the processes of this run lost each other: one ended"), ended.stderr
        assert "continue with --ckpt_path last" in lines[0]
    else:  # Lightning looks every five seconds, and here it was first
        assert "terminated with code -9. Forcefully terminating all other processes" in lines[0]

    assert fit(*common).returncode == 0
    a, b = (torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (calm, killed))
    assert a["epoch"] == b["epoch"] == 2
    for name, tensor in a["state_dict"].items():
        assert torch.equal(tensor, b["state_dict"][name]), name


def test_batch_norms_of_processes_on_the_cpu_are_not_synchronised(
    few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["-c", RECIPE, "--data.root", str(few_digits), "--model.num_classes", "3"]
    options += ["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.sync_batchnorm", "true"]
    assert run(["fit", *options, *TWO]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dgmn: error: trainer.sync_batchnorm: PyTorch cannot synchronise the batch norms")
    assert not (tmp_path / "run").exists()
