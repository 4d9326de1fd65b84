"""Two processes on the CPU (gloo) give the metrics of one."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dgmn_cli import run

from digits import RECIPE


@pytest.mark.slow
def test_two_processes_count_every_image_once(
    few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    common = ["-c", RECIPE, "--data.root", str(few_digits), "--trainer.default_root_dir", str(folder)]
    common += ["--model.num_classes", "3", "--data.batch_size", "10", "--trainer.enable_progress_bar", "false"]
    two = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    command = [sys.executable, "-m", "dgmn_cli", "fit", *common, *two, "--trainer.max_epochs", "2"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    assert "total batch of 64; here it is 20 (10 x 2 device(s) x 1 accumulated)" in result.stdout
    assert result.stdout.count("after 2 epochs") == 1, "told once for all processes"

    with next(folder.glob("logs/version_0/metrics.csv")).open() as file:
        two_processes = [row for row in csv.DictReader(file) if row["val/top1"]][-1]
    # There are 41 validation images. A sampler that pads would count one twice.
    right = float(two_processes["val/top1"]) * 41
    assert right == pytest.approx(round(right), abs=1e-4)
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2 * (100 // 2 // 10)

    assert run(["validate", *common, "--ckpt_path", "last"]) == 0
    one_process = dict(
        line.split()
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("val/") and len(line.split()) == 2
    )
    for metric in ("val/top1", "val/top5", "val/loss"):
        assert float(one_process[metric]) == pytest.approx(float(two_processes[metric]), abs=1e-4), metric
