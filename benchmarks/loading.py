"""Images a second and core that our data loading gives, beside timm's and torchvision's on the same files.

    uv run python benchmarks/loading.py --coco FOLDER --cityscapes FOLDER

FOLDER is a dataset as COCO, or Cityscapes, unpacks. Both sides of a row read, decode, resize, crop and normalise the
same images to the same sizes, in one process on one core, in turn. Torchvision's side is made as its reference scripts
for training are (transforms v2 on tensors, for detection on PIL images). Writes `loading_cpu.csv`, and its rows as the
table of `docs/train.md`.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from dgmn.about import Preprocessing
from dgmn.classification.data import Augmentation as ClassificationAugmentation
from dgmn.classification.data import _Transformed
from dgmn.classification.transforms import eval_transform
from dgmn.detection.data import DetectionData
from dgmn.images import load_image
from dgmn.segmentation.data import SegmentationData
from dgmn.segmentation.transforms import Augmentation

from pages import publish

ROUNDS, IMAGES = 21, 24
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Loader = Callable[[int], Any]


class Files:
    """Images of files, without labels."""

    def __init__(self, paths: list[Path], read: Callable[[Path], Any]) -> None:
        self.paths, self.read = paths, read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.read(self.paths[index]), 0


def pillow(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def rates_of(loaders: dict[str, Loader], images: int) -> tuple[dict[str, float], float]:
    """Images a second of each, and ours over the best other's: medians over the rounds, in which all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    names = list(loaders)
    for step in range(ROUNDS + 1):
        total = dict.fromkeys(names, 0.0)
        for i in range(images):
            first = (step + i) % len(names)
            for name in names[first:] + names[:first]:
                # timm draws its crops from Python's generator, torchvision from PyTorch's.
                random.seed(step * images + i)
                torch.manual_seed(step * images + i)
                start = time.perf_counter()
                loaders[name](i)
                total[name] += time.perf_counter() - start
        for name in names if step else ():  # the first one warms up
            seconds[name].append(total[name])
    rates = {name: images / statistics.median(values) for name, values in seconds.items()}
    best = max((name for name in rates if name != "dgmn"), key=lambda name: rates[name])
    ratios = [other / own for other, own in zip(seconds[best], seconds["dgmn"], strict=True)]
    return rates, statistics.median(ratios)


def classification(paths: list[Path]) -> dict[str, dict[str, Loader]]:
    preprocessing = Preprocessing()
    ours, plain = Files(paths, load_image), Files(paths, pillow)
    augmentation = ClassificationAugmentation(auto_augment=None, color_jitter=0.0, erasing=0.0)
    timm_train = create_transform(224, is_training=True, color_jitter=0.0, re_prob=0.0, interpolation="bicubic")
    finish = [v2.PILToTensor(), v2.ToDtype(torch.float, scale=True), v2.Normalize(MEAN, STD)]
    crop = v2.RandomResizedCrop(224, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    reference = v2.Compose([crop, v2.RandomHorizontalFlip(), *finish])
    resize = v2.Resize(256, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    reference_eval = v2.Compose([resize, v2.CenterCrop(224), *finish])
    return {
        "classification, training": {
            "dgmn": _Transformed(ours, augmentation.transform(224, preprocessing)).__getitem__,
            "timm": _Transformed(plain, timm_train).__getitem__,
            "torchvision": _Transformed(plain, reference).__getitem__,
        },
        "classification, evaluation": {
            "dgmn": _Transformed(ours, eval_transform(224, preprocessing)).__getitem__,
            "timm": _Transformed(plain, create_transform(224, interpolation="bicubic", crop_pct=0.875)).__getitem__,
            "torchvision": _Transformed(plain, reference_eval).__getitem__,
        },
    }


def detection(root: Path, split: str) -> dict[str, dict[str, Loader]]:
    rows = {}
    for masks in (False, True):
        data = DetectionData(root, train=split, val=split, masks=masks, group_by_aspect=False)
        folder, file = root / split, root / f"annotations/instances_{split}.json"
        targets = {"boxes", "labels"} | ({"masks"} if masks else set())
        finish = [v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float, scale=True), v2.ToPureTensor()]
        reference = CocoDetection(folder, file, transforms=v2.Compose(finish))
        wrapped = wrap_dataset_for_transforms_v2(reference, target_keys=targets)
        name = "detection with masks" if masks else "detection"
        rows[name] = {"dgmn": data.dataset("train").__getitem__, "torchvision": wrapped.__getitem__}
    return rows


def segmentation(root: Path) -> dict[str, dict[str, Loader]]:
    # Torchvision's script changes no colours, and draws one crop.
    data = SegmentationData(root, augmentation=Augmentation(distortion=False, max_share=1.0))
    dataset = data.dataset("train")
    steps = [
        v2.RandomHorizontalFlip(),
        v2.RandomCrop(data.augmentation.crop, pad_if_needed=True),
        v2.ToDtype({tv_tensors.Image: torch.float, "others": None}, scale=True),
        v2.Normalize(MEAN, STD),
    ]
    low, high = (round(720 * scale) for scale in data.augmentation.scale)
    reference = v2.Compose([v2.RandomResize(low, high, antialias=True), *steps])

    def load(index: int) -> Any:
        sample = dataset.samples[index]
        image = tv_tensors.Image(v2.functional.pil_to_tensor(pillow(sample.image)))
        with Image.open(sample.mask) as mask:
            return reference(image, tv_tensors.Mask(v2.functional.pil_to_tensor(mask)[0]))

    return {"segmentation, training": {"dgmn": dataset.__getitem__, "torchvision": load}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=Path, required=True)
    parser.add_argument("--split", default="train2017")
    parser.add_argument("--cityscapes", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="the CSV; by default that of benchmarks/results, and the page's table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted((options.coco / options.split).glob("*.jpg"))
    rows = []
    tables = classification(paths) | detection(options.coco, options.split) | segmentation(options.cityscapes)
    for name, loaders in tables.items():
        rates, ratio = rates_of(loaders, min(IMAGES, len(paths)))
        row = {"images a second on one core": name}
        row |= {other: f"{rates[other]:.1f}" if other in rates else "" for other in ("dgmn", "timm", "torchvision")}
        rows.append(row | {"dgmn over the best other": f"{ratio:.2f}"})
    publish(Path(__file__), "train.md", rows, options.out, "cpu")


if __name__ == "__main__":
    main()
