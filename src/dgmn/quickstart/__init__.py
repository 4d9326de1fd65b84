"""The command `dgmn quickstart`: from images to a trained network, with data that comes with scikit-learn."""

import argparse
import csv
import os
import time
from importlib import import_module
from pathlib import Path

from dgmn.errors import InputError
from dgmn_base.terminal import format_table


def quickstart(options: argparse.Namespace) -> int:
    from dgmn.cli import run_training  # its import error says what to install for training

    start = time.perf_counter()
    example = import_module(f"dgmn.quickstart.{options.task}")
    recipe = example.recipe(options)
    output = Path(options.output)
    data, run = output / example.FOLDER, output / "run"
    finished = run / "finished"
    if finished.exists():
        raise InputError(f"{output} holds a finished quickstart: look there, or choose another --output")
    resume = (run / "checkpoints" / "last.ckpt").exists()
    if not data.is_dir():
        example.write(data)
    print(f"{example.DATA} in {data}")
    print(f"Training with {recipe}{', continuing where it stopped' if resume else ''}.\n")
    common = ["-c", recipe, "--data.root", str(data), "--trainer.default_root_dir", str(run)]
    run_training("fit", [*common, *(["--ckpt_path", "last"] if resume else [])])
    run_training("test", [*common, "--ckpt_path", "best"])

    best = run / "checkpoints" / "best.ckpt"
    picture = output / "predictions.png"
    results = example.draw(data, best, picture)
    finished.touch()
    rows = [
        *results,
        ("time", f"{time.perf_counter() - start:.0f} s"),
        ("checkpoint", best),
        ("metrics", _metrics_file(run)),
        ("pictures of predictions", picture),
    ]
    print(f"\n{format_table(('quickstart', ''), rows)}\n")
    print("Next:")
    prefix = "uv run " if "UV" in os.environ else ""  # uv sets it; the command is not on the path then
    for line in example.next_commands(data, best):
        print(f"  {prefix}{line}")
    return 0


def _metrics_file(run: Path) -> Path:
    files = sorted(run.glob("logs/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    with_training = [f for f in files if "train/loss" in next(csv.reader(f.open()), [])]
    return with_training[-1]
