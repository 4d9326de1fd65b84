"""Scenes: handwritten digits scattered over photographs, in COCO's layout, with boxes and masks."""

import argparse
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from dgmn.about import about
from dgmn.detection.metrics import average_precision
from dgmn.images import save_image
from dgmn.loading import load
from dgmn.objects.coco import encode_mask
from dgmn.pictures import contact_sheet
from dgmn.quickstart.digits import Scenes
from dgmn_base.files import writing_folder

FOLDER = "scenes"
DATA = "Scenes of handwritten digits on photographs (scikit-learn), with boxes and masks as in COCO,"
_COUNTS = {"train": 720, "val": 32, "test": 60}
_SIZE = (96, 144)  # height and width of a scene


def recipe(options: argparse.Namespace) -> str:
    return f"recipes/detection/scenes_{options.model or 'mask_rcnn'}.yaml"


def write(folder: Path, counts: Mapping[str, int] = MappingProxyType(_COUNTS)) -> None:
    """Writes `counts` scenes per split, and their annotations."""
    with writing_folder(folder) as partial:
        (partial / "annotations").mkdir()
        scenes = Scenes(_SIZE, grid=(2, 3), digit_sizes=(26, 42), share=0.6)
        for split, count in counts.items():
            (partial / split).mkdir()
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for i in range(1, count + 1):
                pixels, things = scenes.draw(split)
                name = f"{i:06d}.png"
                Image.fromarray(pixels).save(partial / split / name)
                images.append({"id": i, "file_name": name, "height": _SIZE[0], "width": _SIZE[1]})
                for digit, mask in things:
                    annotations.append({"id": len(annotations) + 1, "image_id": i, **_annotation(digit, mask)})
            categories = [{"id": digit + 1, "name": str(digit)} for digit in range(10)]
            content = {"images": images, "annotations": annotations, "categories": categories}
            (partial / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _annotation(digit: int, mask: Any) -> dict[str, Any]:
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(xs[0]), int(ys[0])
    return {
        "category_id": digit + 1,
        "bbox": [left, top, int(xs[-1]) + 1 - left, int(ys[-1]) + 1 - top],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": encode_mask(mask),
    }


def draw(data: Path, checkpoint: Path, picture: Path) -> list[tuple[str, object]]:
    """Predicts the test scenes and draws some."""
    truth = json.loads((data / "annotations" / "instances_test.json").read_text())
    predictor = load(checkpoint, device="cpu")
    results: list[dict[str, Any]] = []
    pictures: list[Image.Image] = []
    files = [data / "test" / image["file_name"] for image in truth["images"]]
    for image, found in zip(truth["images"], predictor.predict(files, score=0.05), strict=True):
        results += found.to_coco(image["id"])
        if len(pictures) < 12:
            pictures.append(found.above(0.5).draw())
    save_image(contact_sheet(pictures), picture)
    rows: list[tuple[str, object]] = [("test scenes, of digits never trained on", len(files))]
    kinds = {"bbox": "box", "segm": "mask"} if about(predictor.network).masks else {"bbox": "box"}
    for kind, name in kinds.items():
        scores, _ = average_precision(truth, results, kind)
        rows += [(f"{name} AP", f"{scores['AP']:.1%}"), (f"{name} AP50", f"{scores['AP50']:.1%}")]
    return rows


def next_commands(data: Path, checkpoint: Path) -> list[str]:
    recipe = "recipes/detection/finetune_coco_format.yaml"
    return [
        shlex.join(["dgmn", "predict", str(data / "test"), "--ckpt_path", str(checkpoint), "--pictures", "out"]),
        f"dgmn validate-data -c {recipe} --data.root YOUR_IMAGES",
        f"dgmn fit -c {recipe} --data.root YOUR_IMAGES --model.num_classes N --model.model_args.pretrained true",
        "dgmn fit --help",
    ]
