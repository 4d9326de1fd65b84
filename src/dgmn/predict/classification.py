"""Prediction of classifiers: a table of classes, JSON, captioned pictures."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dgmn.classification.predict import Classifier, Prediction
from dgmn.errors import InputError
from dgmn.tables import format_table, show_progress
from dgmn.training.images import load_image


def run(
    options: argparse.Namespace, paths: Sequence[Path], description: dict[str, Any] | None, device: torch.device
) -> None:
    """Predicts, prints a table and writes what was asked for."""
    for flag in ("labels", "submission", "multi_scale"):
        if getattr(options, flag):
            raise InputError(f"--{flag} is for segmentation, this model predicts classes of images")
    checkpoint = Path(options.ckpt_path) if options.ckpt_path else None
    if description is None:
        classifier = Classifier.from_zoo(options.model, checkpoint)
    else:
        assert checkpoint is not None, "a description belongs to a checkpoint"
        classifier = Classifier.from_description(description, checkpoint)
    results = []
    for result in classifier.predict(paths, options.top, options.batch_size, device):
        results.append(result)
        show_progress(len(results), len(paths), "images", quiet=len(paths) <= options.batch_size)
    print(results_table(results))
    if options.json:
        write_json(results, Path(options.json))
        print(f"\nall results: {options.json}")
    if options.pictures:
        write_pictures(results, Path(options.pictures))
        print(f"\npictures: {options.pictures}")


def results_table(results: Sequence[Prediction]) -> str:
    """One row per image, one column per rank."""
    ranks = max(len(result.top) for result in results)
    header = ("image", *(f"{rank + 1}." for rank in range(ranks)))
    rows = [(str(r.path), *(f"{name} {probability:.1%}" for name, probability in r.top)) for r in results]
    return format_table(header, rows)


def write_json(results: Sequence[Prediction], file: Path) -> None:
    content = [
        {"image": str(r.path), "top": [{"class": name, "probability": round(p, 6)} for name, p in r.top]}
        for r in results
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_pictures(results: Sequence[Prediction], folder: Path) -> None:
    from dgmn.visualize import captioned

    folder.mkdir(parents=True, exist_ok=True)
    for i, result in enumerate(results):
        lines = [f"{name}  {probability:.1%}" for name, probability in result.top]
        # Numbered, because images of different folders may share a name.
        captioned(load_image(result.path), lines).save(folder / f"{i:05d}_{result.path.stem}.png")
