"""Handwritten digits in one folder per class."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from dgmn.images import save_image
from dgmn.loading import load
from dgmn.pictures import prediction_grid
from dgmn.quickstart.digits import digits, enlarged
from dgmn_base.files import writing_folder

FOLDER = "digits"
DATA = "Handwritten digits (scikit-learn), train/<digit>/*.png, val, test,"
_SIZE = 32


def recipe(options: argparse.Namespace) -> str:
    return "recipes/classification/digits.yaml"


def write(folder: Path) -> None:
    """Writes the digits as PNG files in ImageFolder layout."""
    with writing_folder(folder) as partial:
        for split, digit, index, pixels in digits():
            target = partial / split / str(digit)
            target.mkdir(parents=True, exist_ok=True)
            enlarged(pixels, _SIZE).save(target / f"{index:04d}.png")


def draw(data: Path, checkpoint: Path, picture: Path) -> list[tuple[str, object]]:
    """Predicts the test images and draws some, the wrong ones first."""
    results = list(load(checkpoint, device="cpu").predict(data / "test", top=1, batch_size=64))
    wrong = [r for r in results if r.top[0][0] != _truth(r)]
    right = [r for r in results if r.top[0][0] == _truth(r)]
    shown = (wrong + right[:: max(1, len(right) // 40)])[:40]
    grid = prediction_grid([r.image for r in shown], [r.top[0] for r in shown], [_truth(r) for r in shown])
    save_image(grid, picture)
    return [("test images, never trained on", len(results)), ("top-1", f"{len(right) / len(results):.1%}")]


def _truth(result: Any) -> str:
    name: str = result.source.parent.name
    return name


def next_commands(data: Path, checkpoint: Path) -> list[str]:
    return [
        shlex.join(["dgmn", "predict", str(data / "test" / "3"), "--ckpt_path", str(checkpoint)]),
        "dgmn fit -c recipes/classification/finetune.yaml --data.root YOUR_IMAGES --model.num_classes N "
        "--model.model_args.pretrained true",
        "dgmn quickstart --task segmentation",
        "dgmn fit --help",
    ]
