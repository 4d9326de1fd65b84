"""Finds the objects in an image with a file of `dgmn export`: python onnx_detect.py model.onnx photo.jpg

Needs numpy, Pillow and onnxruntime; neither PyTorch nor dgmn. Prints the objects, and draws them beside the image.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps


def main(model: str, photo: str, least: float = 0.5) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    classes = json.loads(session.get_modelmeta().custom_metadata_map["dgmn"])["classes"]
    image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
    (given,) = session.get_inputs()
    height, width = given.shape[1:]
    if isinstance(height, int):  # a file for one size: the image is resized to fit, and padded
        scale = min(height / image.height, width / image.width)
        small = image.resize([max(1, round(side * scale)) for side in image.size])
        seen = Image.new("RGB", (width, height))
        seen.paste(small)
    else:
        scale, seen = 1.0, image
    pixels = np.asarray(seen, np.float32).transpose(2, 0, 1) / 255
    values = session.run(None, {given.name: pixels})
    found = {output.name: value for output, value in zip(session.get_outputs(), values, strict=True)}
    drawing = ImageDraw.Draw(image)
    for i in np.argsort(-found["scores"]):
        if found["scores"][i] < least:
            break
        box, name = found["boxes"][i] / scale, classes[found["labels"][i]]
        print(f"{found['scores'][i]:6.1%}  {name}  {' '.join(f'{corner:.1f}' for corner in box)}")
        if "masks" in found:  # the probability of the object in 28 x 28 parts of its box
            x0, y0, x1, y1 = box.round().astype(int)
            part = Image.fromarray((found["masks"][i, 0] * 255).astype(np.uint8))
            mask = part.resize((max(1, x1 - x0), max(1, y1 - y0))).point(lambda value: 110 if value >= 128 else 0)
            image.paste((255, 60, 60), (int(x0), int(y0)), mask)
        drawing.rectangle(box.tolist(), outline=(255, 60, 60))
        drawing.text((box[0] + 2, box[1] + 1), name, fill=(255, 255, 255))
    image.save(Path(photo).with_suffix(".objects.png"))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(float, sys.argv[3:]))
