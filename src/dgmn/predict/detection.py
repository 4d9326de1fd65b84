"""Prediction of detectors: a table of what is there, pictures, JSON in COCO's format."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dgmn.detection.predict import DetectionPredictor, Found
from dgmn.errors import InputError
from dgmn.predict.nodes import write_nodes
from dgmn.predict.outputs import checked_folders, write_json
from dgmn.tables import format_table, show_progress
from dgmn.training.images import load_image


def run(
    options: argparse.Namespace, paths: Sequence[Path], description: dict[str, Any] | None, device: torch.device
) -> None:
    """Predicts image by image, writes what was asked for, and prints a table."""
    checkpoint = Path(options.ckpt_path) if options.ckpt_path else None
    if description is None:
        predictor = DetectionPredictor.from_zoo(options.model, checkpoint)
    else:
        assert checkpoint is not None, "a description belongs to a checkpoint"
        predictor = DetectionPredictor.from_description(description, checkpoint)
    threshold = 0.3 if options.score is None else options.score
    folders = checked_folders(options, ("pictures", "nodes"))
    pictures = folders.get("pictures")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    rows = []
    failure = None
    for number, path in enumerate(paths, 1):
        try:
            image = load_image(path)
            if "nodes" in folders:
                write_nodes(options, number - 1, path, image, predictor, device)
        except InputError as error:  # what was predicted before is kept
            failure = error
            break
        found = predictor.predict(image, threshold, device)
        rows.append((str(path), len(found["scores"]), _summary(found, predictor.classes)))
        if options.json:
            images.append({"id": number, "file_name": str(path), "width": image.width, "height": image.height})
            for annotation in predictor.to_coco(number, found):
                annotations.append({"id": len(annotations) + 1, **annotation})
        if pictures:
            # Numbered, because images of different folders may share a name.
            file = pictures / f"{number - 1:05d}_{path.stem}.jpg"
            predictor.draw(image, found).save(file, quality=92)
        show_progress(number, len(paths), "images", quiet=len(paths) == 1)
    print(format_table(("image", "objects", f"with a score of at least {threshold:g}"), rows))
    if options.json:
        content = {"images": images, "categories": predictor.categories(), "annotations": annotations}
        write_json(content, Path(options.json))
        print(f"\nresults in COCO's format: {options.json}")
    for name, folder in folders.items():
        print(f"\n{name}: {folder}")
    if failure is not None:
        raise failure


def _summary(found: Found, names: Sequence[str], most: int = 6) -> str:
    """Categories by how often they were found, with the best score of each."""
    best: dict[int, float] = {}
    for label, score in zip(found["labels"].tolist(), found["scores"].tolist(), strict=True):
        best[label] = max(best.get(label, 0.0), score)
    counts = Counter(found["labels"].tolist()).most_common()
    parts = [f"{count} {names[label]} ({best[label]:.0%})" for label, count in counts[:most]]
    return ", ".join(parts) + (f" and {len(counts) - most} more" if len(counts) > most else "")
