"""`dgmn predict`: names what is in images."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dgmn.classification.predict import Classifier, Prediction
from dgmn.errors import InputError
from dgmn.tables import format_table
from dgmn.training.images import find_images, load_image
from dgmn.weights import read_checkpoint


def predict(options: argparse.Namespace) -> int:
    paths = find_images(options.images)
    classifier = _classifier(options)
    device = _device(options.device)
    results = []
    for result in classifier.predict(paths, options.top, options.batch_size, device):
        results.append(result)
        if len(paths) > options.batch_size and sys.stderr.isatty():
            print(f"\r{len(results)} of {len(paths)} images", end="", file=sys.stderr, flush=True)
    if len(paths) > options.batch_size and sys.stderr.isatty():
        print(file=sys.stderr)
    print(results_table(results))
    if options.json:
        write_json(results, Path(options.json))
        print(f"\nall results: {options.json}")
    if options.pictures:
        write_pictures(results, Path(options.pictures))
        print(f"\npictures: {options.pictures}")
    return 0


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


def _classifier(options: argparse.Namespace) -> Classifier:
    checkpoint = Path(options.ckpt_path) if options.ckpt_path else None
    if checkpoint is not None and not checkpoint.is_file():
        raise InputError(f"--ckpt_path {checkpoint}: no such file")
    if options.model:
        return Classifier.from_zoo(options.model, checkpoint)
    if checkpoint is None:
        raise InputError("give --ckpt_path FILE, a checkpoint of a run, or --model NAME, a published model")
    description = _from_recipe(options.config) if options.config else read_checkpoint(checkpoint).description
    if description is None:
        raise InputError(
            f"--ckpt_path {checkpoint} does not say what network it is for: give --model dgmn2_tiny, "
            "if it is a published one, or the recipe that it was trained with as -c"
        )
    return Classifier.from_description(description, checkpoint)


def _from_recipe(recipe: str) -> dict[str, Any]:
    from dgmn.cli import describe_recipe

    return describe_recipe(recipe)


def _device(name: str) -> torch.device:
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not available here ({str(error).splitlines()[0]})") from error
    return torch.device(name)
