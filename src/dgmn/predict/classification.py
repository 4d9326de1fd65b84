"""Prediction of classifiers: a table of classes, JSON, captioned pictures."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dgmn.classification.predict import Classifier, Prediction
from dgmn.predict.nodes import write_nodes
from dgmn.predict.outputs import checked_folders, write_json
from dgmn.tables import format_table, show_progress
from dgmn.training.images import load_image


def run(
    options: argparse.Namespace, paths: Sequence[Path], description: dict[str, Any] | None, device: torch.device
) -> None:
    """Predicts, prints a table and writes what was asked for."""
    checkpoint = Path(options.ckpt_path) if options.ckpt_path else None
    if description is None:
        classifier = Classifier.from_zoo(options.model, checkpoint)
    else:
        assert checkpoint is not None, "a description belongs to a checkpoint"
        classifier = Classifier.from_description(description, checkpoint)
    folders = checked_folders(options, ("pictures", "nodes"))
    pictures = folders.get("pictures")
    results = []
    for result in classifier.predict(paths, options.top or 5, options.batch_size, device):
        results.append(result)
        show_progress(len(results), len(paths), "images", quiet=len(paths) <= options.batch_size)
    print(results_table(results))
    if options.json:
        content = [
            {"image": str(r.path), "top": [{"class": name, "probability": round(p, 6)} for name, p in r.top]}
            for r in results
        ]
        write_json(content, Path(options.json))
        print(f"\nall results: {options.json}")
    if pictures:
        write_pictures(results, pictures)
        print(f"\npictures: {pictures}")
    if "nodes" in folders:
        for i, path in enumerate(paths):
            write_nodes(options, i, path, load_image(path), classifier, device)
        print(f"\nnodes: {options.nodes}")


def results_table(results: Sequence[Prediction]) -> str:
    """One row per image, one column per rank."""
    ranks = max(len(result.top) for result in results)
    header = ("image", *(f"{rank + 1}." for rank in range(ranks)))
    rows = [(str(r.path), *(f"{name} {probability:.1%}" for name, probability in r.top)) for r in results]
    return format_table(header, rows)


def write_pictures(results: Sequence[Prediction], folder: Path) -> None:
    from dgmn.visualize import captioned

    for i, result in enumerate(results):
        lines = [f"{name}  {probability:.1%}" for name, probability in result.top]
        # Numbered, because images of different folders may share a name.
        captioned(load_image(result.path), lines).save(folder / f"{i:05d}_{result.path.stem}.png")
