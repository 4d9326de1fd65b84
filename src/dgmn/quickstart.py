"""`dgmn quickstart`: the whole way from images to a trained classifier, on handwritten digits."""

import argparse
import csv
import os
import shutil
import time
from pathlib import Path

from dgmn.classification.predict import Classifier
from dgmn.cli import run_training  # says what to install where lightning is missing
from dgmn.errors import InputError
from dgmn.tables import format_table
from dgmn.training.images import find_images
from dgmn.weights import read_checkpoint

_RECIPE = "recipes/classification/digits.yaml"
_SIZE = 32
_SPLITS = ("train", "train", "train", "val", "test")  # of every five images of a digit


def quickstart(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    output = Path(options.output)
    data, run = output / "digits", output / "run"
    finished = run / "finished"
    if finished.exists():
        raise InputError(f"{output} holds a finished quickstart: look there, or choose another --output")
    resume = (run / "checkpoints" / "last.ckpt").exists()
    if not data.is_dir():
        write_digits(data)
    print(f"Handwritten digits (scikit-learn) in {data}: train/<digit>/*.png, val, test")
    print(f"Training with {_RECIPE}{', continuing where it stopped' if resume else ''}.\n")
    common = ["-c", _RECIPE, "--data.root", str(data), "--trainer.default_root_dir", str(run)]
    run_training("fit", [*common, *(["--ckpt_path", "last"] if resume else [])])
    run_training("test", [*common, "--ckpt_path", "best"])

    best = run / "checkpoints" / "best.ckpt"
    picture = output / "predictions.png"
    accuracy, images = _draw_predictions(data / "test", best, picture)
    finished.touch()
    rows = [
        ("test images, never trained on", images),
        ("top-1", f"{accuracy:.1%}"),
        ("time", f"{time.perf_counter() - start:.0f} s"),
        ("checkpoint", best),
        ("metrics", _metrics_file(run)),
        ("pictures of predictions", picture),
    ]
    print(f"\n{format_table(('quickstart', ''), rows)}\n")
    print("Next:")
    print(f"  dgmn predict {data / 'test' / '3'} --ckpt_path {best}")
    print("  dgmn fit -c recipes/classification/finetune.yaml --data.root YOUR_IMAGES --model.num_classes N")
    print("  dgmn fit --help")
    return 0


def write_digits(folder: Path) -> None:
    """The 1,797 digits of scikit-learn as PNG in ImageFolder layout, three fifths of them for training."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for digit in range(10):
        of_digit = np.flatnonzero(digits.target == digit)
        for split in set(_SPLITS):
            (partial / split / str(digit)).mkdir(parents=True)
        for rank, index in enumerate(of_digit):
            split = _SPLITS[rank % len(_SPLITS)]
            pixels = (digits.images[index] * (255 / 16)).astype(np.uint8)
            image = Image.fromarray(pixels).resize((_SIZE, _SIZE), Image.Resampling.BICUBIC)
            image.save(partial / split / str(digit) / f"{index:04d}.png")
    os.replace(partial, folder)


def _draw_predictions(folder: Path, checkpoint: Path, picture: Path) -> tuple[float, int]:
    """Accuracy on a folder and how many images it has; draws some of them, the wrong ones first."""
    from dgmn.visualize import prediction_grid

    description = read_checkpoint(checkpoint).description
    assert description is not None, "a run of ours describes its network"
    classifier = Classifier.from_description(description, checkpoint)
    paths = find_images([folder])
    results = list(classifier.predict(paths, top=1, batch_size=64))
    wrong = [r for r in results if r.top[0][0] != r.path.parent.name]
    right = [r for r in results if r.top[0][0] == r.path.parent.name]
    shown = (wrong + right[:: max(1, len(right) // 40)])[:40]
    grid = prediction_grid([r.path for r in shown], [r.top[0] for r in shown], [r.path.parent.name for r in shown])
    grid.save(picture)
    return len(right) / len(results), len(results)


def _metrics_file(run: Path) -> Path:
    files = sorted(run.glob("logs/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    with_training = [f for f in files if "train/loss" in next(csv.reader(f.open()), [])]
    return with_training[-1]
