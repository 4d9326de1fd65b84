"""Handwritten digits in one folder per class."""

import argparse
import os
import shutil
from pathlib import Path

from dgmn.classification.predict import Classifier
from dgmn.quickstart.digits import digits, enlarged
from dgmn.training.images import find_images
from dgmn.visualize import prediction_grid
from dgmn.weights import read_checkpoint

FOLDER = "digits"
DATA = "Handwritten digits (scikit-learn), train/<digit>/*.png, val, test,"
_SIZE = 32


def recipe(options: argparse.Namespace) -> str:
    return "recipes/classification/digits.yaml"


def write(folder: Path) -> None:
    """The digits as PNG in ImageFolder layout."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split, digit, index, pixels in digits():
        target = partial / split / str(digit)
        target.mkdir(parents=True, exist_ok=True)
        enlarged(pixels, _SIZE).save(target / f"{index:04d}.png")
    os.replace(partial, folder)


def draw(data: Path, checkpoint: Path, picture: Path) -> list[tuple[str, object]]:
    """Predicts the test images and draws some, the wrong ones first."""
    description = read_checkpoint(checkpoint).description
    assert description is not None, "a run of ours describes its network"
    classifier = Classifier.from_description(description, checkpoint)
    results = list(classifier.predict(find_images([data / "test"]), top=1, batch_size=64))
    wrong = [r for r in results if r.top[0][0] != r.path.parent.name]
    right = [r for r in results if r.top[0][0] == r.path.parent.name]
    shown = (wrong + right[:: max(1, len(right) // 40)])[:40]
    grid = prediction_grid([r.path for r in shown], [r.top[0] for r in shown], [r.path.parent.name for r in shown])
    grid.save(picture)
    return [("test images, never trained on", len(results)), ("top-1", f"{len(right) / len(results):.1%}")]


def next_commands(data: Path, checkpoint: Path) -> list[str]:
    return [
        f"dgmn predict {data / 'test' / '3'} --ckpt_path {checkpoint}",
        "dgmn fit -c recipes/classification/finetune.yaml --data.root YOUR_IMAGES --model.num_classes N",
        "dgmn quickstart --task segmentation",
        "dgmn fit --help",
    ]
