"""Predicts an image with a file of `dgmn export`: python onnx_predict.py model.onnx photo.jpg

Needs numpy, Pillow and onnxruntime; neither PyTorch nor dgmn. A classifier prints its five best classes. A segmenter
writes the classes of the pixels beside the image, in their colours, and prints their shares.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FILTERS = {each.name.lower(): each for each in Image.Resampling}


def normalised(image: Image.Image, facts: dict) -> np.ndarray:
    pixels = np.asarray(image, np.float32) / 255
    scaled = (pixels - np.array(facts["mean"], np.float32)) / np.array(facts["std"], np.float32)
    return scaled.transpose(2, 0, 1)[None].astype(np.float32)


def cropped(image: Image.Image, size: int, facts: dict) -> Image.Image:
    """The middle of the image, as classifiers see it."""
    short = int(size / facts["crop_pct"])
    scale = short / min(image.size)
    sides = [int(side * scale) if side != min(image.size) else short for side in image.size]
    if facts["crop_mode"] == "squash":
        sides = [short, short]
    elif facts["crop_mode"] != "center":
        sys.exit(f"crop_mode {facts['crop_mode']} is not shown here")
    image = image.resize(sides, FILTERS[facts["interpolation"]])
    left, top = (round((side - size) / 2) for side in image.size)
    return image.crop((left, top, left + size, top + size))


def main(model: str, photo: str) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map["dgmn"])
    image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
    classes = facts["classes"]
    if facts["task"] == "classification":
        part = cropped(image, facts["image_size"], facts["preprocessing"])
        (logits,) = session.run(None, {"images": normalised(part, facts["preprocessing"])})
        odds = np.exp(logits[0] - logits[0].max())
        for i in np.argsort(-odds)[:5]:
            print(f"{odds[i] / odds.sum():6.1%}  {classes[i]}")
    else:
        (logits,) = session.run(None, {"images": normalised(image, facts["preprocessing"])})
        labels = logits[0].argmax(0)
        colors = np.array(facts["colors"], np.uint8)[labels]
        Image.fromarray(colors).save(Path(photo).with_suffix(".classes.png"))
        for i in np.argsort(-np.bincount(labels.ravel(), minlength=len(classes)))[:5]:
            print(f"{(labels == i).mean():6.1%}  {classes[i]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
