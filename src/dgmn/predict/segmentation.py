"""Prediction of segmenters: shares of the classes, overlays, label images, a folder for Cityscapes' test server."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dgmn.errors import InputError
from dgmn.predict.nodes import write_nodes
from dgmn.predict.outputs import checked_folders, write_json
from dgmn.segmentation.cityscapes import CITYSCAPES, submission_name, to_label_ids
from dgmn.segmentation.inference import PAPER_SCALES
from dgmn.segmentation.labels import paint
from dgmn.segmentation.predict import SegmentationPredictor
from dgmn.tables import format_table, show_progress
from dgmn.training.images import load_image
from dgmn.visualize import legend, overlay, stacked

_LARGEST = 2000  # pixels of a side of a written overlay


def run(
    options: argparse.Namespace, paths: Sequence[Path], description: dict[str, Any] | None, device: torch.device
) -> None:
    """Predicts image by image, writes what was asked for, and prints a table."""
    checkpoint = Path(options.ckpt_path) if options.ckpt_path else None
    if description is None:
        predictor = SegmentationPredictor.from_zoo(options.model, checkpoint)
    else:
        assert checkpoint is not None, "a description belongs to a checkpoint"
        predictor = SegmentationPredictor.from_description(description, checkpoint)
    if options.multi_scale:
        predictor.inference = replace(predictor.inference, scales=PAPER_SCALES, flip=True)
    if options.submission:
        if predictor.classes != CITYSCAPES.names:
            raise InputError("--submission is for models of the 19 classes of Cityscapes")
        for path in paths:
            submission_name(path)  # before the first hour
    folders = checked_folders(options, ("pictures", "labels", "submission", "nodes"))
    shares: list[Any] = []
    failure = None
    for done, path in enumerate(paths):

        def windows(seen: int, of: int, done: int = done) -> None:
            show_progress(done + seen / of, len(paths), "images", quiet=len(paths) == 1 and of <= 4)

        try:
            if "nodes" in folders:
                write_nodes(options, done, path, load_image(path), predictor, device)
            labels = predictor.predict(path, device, windows)
        except InputError as error:  # what was predicted before is kept
            failure = error
            break
        shares.append(np.bincount(labels.ravel(), minlength=len(predictor.classes)) / labels.size)
        stem = f"{done:05d}_{path.stem}"  # numbered, because images of different folders may share a name
        if "pictures" in folders:
            _overlay(path, labels, predictor).save(folders["pictures"] / f"{stem}.jpg", quality=92)
        if "labels" in folders:
            paint(labels, predictor.colors).save(folders["labels"] / f"{stem}.png")
        if "submission" in folders:
            Image.fromarray(to_label_ids(labels)).save(folders["submission"] / submission_name(path))
    paths = paths[: len(shares)]
    print(shares_table(paths, shares, predictor.classes))
    if options.json:
        content = [
            {"image": str(p), "shares": {n: round(float(x), 6) for n, x in zip(predictor.classes, s, strict=True) if x}}
            for p, s in zip(paths, shares, strict=True)
        ]
        write_json(content, Path(options.json))
        print(f"\nshares: {options.json}")
    for name, folder in folders.items():
        print(f"\n{name}: {folder}")
    if failure is not None:
        raise failure


def shares_table(paths: Sequence[Path], shares: Sequence[Any], names: Sequence[str], columns: int = 5) -> str:
    """One row per image: the classes that fill most of it."""
    rows = []
    for path, share in zip(paths, shares, strict=True):
        best = [i for i in np.argsort(-share) if share[i] > 0][:columns]
        cells = [f"{names[i]} {share[i]:.1%}" for i in best]
        rows.append((str(path), *cells, *[""] * (columns - len(cells))))
    return format_table(("image", *(f"{i + 1}." for i in range(columns))), rows)


def _overlay(path: Path, labels: Any, predictor: SegmentationPredictor) -> Image.Image:
    picture = overlay(load_image(path), labels, predictor.colors)
    picture.thumbnail((_LARGEST, _LARGEST))
    present = [i for i in range(len(predictor.classes)) if (labels == i).any()]
    names, colors = [predictor.classes[i] for i in present], [predictor.colors[i] for i in present]
    return stacked([picture, legend(names, colors, picture.width)])
