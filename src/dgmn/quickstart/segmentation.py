"""Scenes: handwritten digits painted on photographs, in Cityscapes' layout, with a class for every pixel."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dgmn.quickstart.digits import digits, enlarged
from dgmn.segmentation.cityscapes import find_samples
from dgmn.segmentation.labels import named, read_mask
from dgmn.segmentation.metrics import scores
from dgmn.segmentation.predict import SegmentationPredictor
from dgmn.training.images import load_image
from dgmn.visualize import comparison, distinct_colors, legend, stacked
from dgmn.weights import read_checkpoint

RECIPE = "recipes/segmentation/scenes.yaml"
FOLDER = "scenes"
DATA = "Scenes of handwritten digits on photographs (scikit-learn), leftImg8bit and gtFine as in Cityscapes,"
CLASSES = named(("photo", *map(str, range(10))), ((70, 70, 70), *distinct_colors(10)))
_COUNTS = {"train": 800, "val": 40, "test": 40}
_SIZE = (64, 96)  # height and width of a scene


def write(folder: Path, counts: Mapping[str, int] = MappingProxyType(_COUNTS)) -> None:
    """The scenes, as many of every split as `counts` says, their masks and the classes."""
    from sklearn.datasets import load_sample_images

    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    glyphs: dict[str, list[tuple[int, NDArray[np.uint8]]]] = {split: [] for split in ("train", "val", "test")}
    for split, digit, _, pixels in digits():
        glyphs[split].append((digit, pixels))
    photos = load_sample_images().images
    random = np.random.default_rng(0)
    for split, count in counts.items():
        images, masks = partial / "leftImg8bit" / split / "scenes", partial / "gtFine" / split / "scenes"
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for i in range(count):
            image, mask = _scene(random, photos, glyphs[split], split)
            name = f"scenes_{i:06d}_000000"
            Image.fromarray(image).save(images / f"{name}_leftImg8bit.png")
            Image.fromarray(mask).save(masks / f"{name}_gtFine_labelTrainIds.png")
    classes = [{"name": n, "color": c} for n, c in zip(CLASSES.names, CLASSES.colors, strict=True)]
    (partial / "classes.json").write_text(json.dumps({"classes": classes}, indent=1) + "\n")
    os.replace(partial, folder)


def _scene(
    random: np.random.Generator, photos: list[Any], glyphs: list[tuple[int, NDArray[np.uint8]]], split: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A part of a photograph with digits painted on it, and its mask."""
    height, width = _SIZE
    photo = photos[random.integers(len(photos))]
    # The right third of a photograph is for validation and test.
    edge = photo.shape[1] * 2 // 3
    left, right = (0, edge - width) if split == "train" else (edge, photo.shape[1] - width)
    x, y = int(random.integers(left, right + 1)), int(random.integers(0, photo.shape[0] - height + 1))
    image = photo[y : y + height, x : x + width].copy()
    mask = np.zeros(_SIZE, np.uint8)
    for column in range(2):  # one in each half, so that none covers another
        digit, pixels = glyphs[random.integers(len(glyphs))]
        size = int(random.integers(36, 49))
        ink = np.asarray(enlarged(pixels, size), np.float32)[..., None] / 255
        left, top = column * (width // 2) + int(random.integers(0, 49 - size)), int(random.integers(0, height - size))
        here = (slice(top, top + size), slice(left, left + size))
        color = random.uniform(160, 255, 3) if image[here].mean() < 128 else random.uniform(0, 80, 3)
        image[here] = (image[here] * (1 - ink) + color * ink).astype(np.uint8)
        mask[here][ink[..., 0] > 0.4] = digit + 1
    return image, mask


def draw(data: Path, checkpoint: Path, picture: Path) -> list[tuple[str, object]]:
    """Predicts the test scenes and draws some."""
    description = read_checkpoint(checkpoint).description
    assert description is not None, "a run of ours describes its network"
    predictor = SegmentationPredictor.from_description(description, checkpoint)
    samples = find_samples(data, "test", "gtFine")
    count = len(CLASSES.names)
    confusion = np.zeros((count, count), np.int64)
    rows = []
    for i, (path, mask_path) in enumerate(samples):
        truth, labels = read_mask(mask_path, CLASSES), predictor.predict(path)
        np.add.at(confusion, (truth.ravel(), labels.ravel()), 1)
        if i < 6:
            rows.append(comparison(load_image(path), truth, labels, CLASSES.colors, width=256))
    stacked([*rows, legend(CLASSES.names, CLASSES.colors, rows[0].width)]).save(picture)
    import torch

    result = scores(torch.from_numpy(confusion))
    return [
        ("test scenes, of digits never trained on", len(samples)),
        ("mIoU", f"{result.miou:.1%}"),
        ("pixels that are right", f"{result.accuracy:.1%}"),
    ]


def next_commands(data: Path, checkpoint: Path) -> list[str]:
    return [
        f"dgmn predict {data / 'leftImg8bit/test'} --ckpt_path {checkpoint} --pictures out",
        "dgmn validate-data -c recipes/segmentation/finetune_folder.yaml --data.root YOUR_IMAGES",
        "dgmn fit -c recipes/segmentation/finetune_folder.yaml --data.root YOUR_IMAGES --model.num_classes N",
        "dgmn fit --help",
    ]
