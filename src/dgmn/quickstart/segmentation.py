"""Scenes: handwritten digits painted on photographs, in Cityscapes' layout, with a class for every pixel."""

import argparse
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image

from dgmn.images import save_image, stacked
from dgmn.loading import load
from dgmn.pictures import comparison, distinct_colors, legend
from dgmn.quickstart.digits import Scenes
from dgmn.segmentation.labels import named
from dgmn.segmentation.layouts import Cityscapes
from dgmn.segmentation.metrics import scores
from dgmn_base.files import writing_folder

FOLDER = "scenes"
DATA = "Scenes of handwritten digits on photographs (scikit-learn), leftImg8bit and gtFine as in Cityscapes,"
CLASSES = named(("photo", *map(str, range(10))), ((70, 70, 70), *distinct_colors(10)))
_COUNTS = {"train": 800, "val": 40, "test": 40}
_SIZE = (64, 96)  # height and width of a scene


def recipe(options: argparse.Namespace) -> str:
    return "recipes/segmentation/scenes.yaml"


def write(folder: Path, counts: Mapping[str, int] = MappingProxyType(_COUNTS)) -> None:
    """Writes `counts` scenes per split, their masks and the classes."""
    with writing_folder(folder) as partial:
        scenes = Scenes(_SIZE, grid=(1, 2), digit_sizes=(36, 48))
        for split, count in counts.items():
            images, masks = partial / "leftImg8bit" / split / "scenes", partial / "gtFine" / split / "scenes"
            images.mkdir(parents=True)
            masks.mkdir(parents=True)
            for i in range(count):
                image, things = scenes.draw(split)
                mask = np.zeros(_SIZE, np.uint8)
                for digit, ink in things:
                    mask[ink] = digit + 1
                name = f"scenes_{i:06d}_000000"
                Image.fromarray(image).save(images / f"{name}_leftImg8bit.png")
                Image.fromarray(mask).save(masks / f"{name}_gtFine_labelTrainIds.png")
        classes = [{"name": n, "color": c} for n, c in zip(CLASSES.names, CLASSES.colors, strict=True)]
        (partial / "classes.json").write_text(json.dumps({"classes": classes}, indent=1) + "\n")


def draw(data: Path, checkpoint: Path, picture: Path) -> list[tuple[str, object]]:
    """Predicts the test scenes and draws some."""
    layout = Cityscapes(data)
    samples = layout.samples("test")
    count = len(CLASSES.names)
    confusion = np.zeros((count, count), np.int64)
    rows: list[Image.Image] = []
    results = load(checkpoint, device="cpu").predict([sample.image for sample in samples])
    for sample, result in zip(samples, results, strict=True):
        truth = layout.read_mask(sample)
        np.add.at(confusion, (truth.ravel(), result.labels.ravel()), 1)
        if len(rows) < 6:
            rows.append(comparison(result.image, truth, result.labels, CLASSES.colors, width=256))
    save_image(stacked([*rows, legend(CLASSES.names, CLASSES.colors, rows[0].width)]), picture)
    result = scores(torch.from_numpy(confusion))
    return [
        ("test scenes, of digits never trained on", len(samples)),
        ("mIoU", f"{result.miou:.1%}"),
        ("pixels that are right", f"{result.accuracy:.1%}"),
    ]


def next_commands(data: Path, checkpoint: Path) -> list[str]:
    return [
        shlex.join(
            ["dgmn", "predict", f"{data / 'leftImg8bit/test'}", "--ckpt_path", str(checkpoint), "--pictures", "out"]
        ),
        "dgmn validate-data -c recipes/segmentation/finetune_folder.yaml --data.root YOUR_IMAGES",
        "dgmn fit -c recipes/segmentation/finetune_folder.yaml --data.root YOUR_IMAGES --model.num_classes N "
        "--model.model_args.pretrained true",
        "dgmn fit --help",
    ]
