"""Images with boxes and masks in COCO's format."""

import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as TF
from typing_extensions import override

from dgmn.detection.coco import CocoImage, CocoSet, decode_mask, read_coco, to_target
from dgmn.errors import InputError
from dgmn.training.data import ImageData
from dgmn.training.images import load_image
from dgmn.training.messages import say
from dgmn.training.report import DataReport, read_all
from dgmn.visualize import boxed, distinct_colors, legend

Target = dict[str, Any]


class DetectionDataset(Dataset[tuple[Tensor, Target] | None]):
    """Images (3, H, W) in 0..1 with targets: `boxes`, `labels`, `masks` where asked for, and `image_id`.

    Args:
        coco: images and categories.
        masks: with masks.
        training: give the next image instead of one that is left out; otherwise None, as none may count twice.
        hflip: probability to mirror an image.
        crop: probability to take a part of an image; see [`cropped`][dgmn.detection.data.cropped].
        skip_bad_images: leave out an image that cannot be read, and say so; otherwise it is an error.
    """

    def __init__(
        self,
        coco: CocoSet,
        masks: bool,
        training: bool = False,
        hflip: float = 0.0,
        crop: float = 0.0,
        skip_bad_images: bool = False,
    ) -> None:
        self.coco = coco
        self.masks = masks
        self.training = training
        self.hflip = hflip
        self.crop = crop
        self.skip_bad_images = skip_bad_images

    def __len__(self) -> int:
        return len(self.coco.images)

    def read(self, entry: CocoImage) -> tuple[Tensor, Target]:
        """An image and its target as they are.

        Raises:
            InputError: one of them cannot be read, or the image has another size than the annotations say.
        """
        try:
            image = load_image(entry.path)
            if image.size != entry.size[::-1]:  # perhaps annotated before it was turned upright
                image = load_image(entry.path, upright=False)
        except FileNotFoundError as error:
            raise InputError(f"{entry.path}: missing image") from error
        if image.size != entry.size[::-1]:
            here, there = (f"{width} x {height}" for width, height in (image.size, entry.size[::-1]))
            raise InputError(f"{entry.path}: {here} pixels, the annotations say {there}")
        try:
            target: Target = to_target(entry, self.coco.ids, self.masks)
        except InputError as error:
            raise InputError(f"{entry.path}: {error}") from error
        return TF.pil_to_tensor(image), {**target, "image_id": entry.id}

    def __getitem__(self, index: int) -> tuple[Tensor, Target] | None:
        for step in range(len(self) if self.training else 1):
            entry = self.coco.images[(index + step) % len(self)]
            try:
                image, target = self.read(entry)
                break
            except InputError as error:
                if not self.skip_bad_images:
                    raise
                # Of every process, as each reads other images.
                print(f"left out: {error}", file=sys.stderr, flush=True)
        else:
            if not self.training:
                return None
            raise InputError("data: none of the images can be read")
        if self.hflip > 0 and torch.rand(()) < self.hflip:
            image, target = mirrored(image, target)
        if self.crop > 0 and torch.rand(()) < self.crop:
            image, target = cropped(image, target)
        return image.float() / 255, target


def mirrored(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """An image and its target, left and right exchanged."""
    boxes = target["boxes"].clone()
    boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
    target = {**target, "boxes": boxes}
    if "masks" in target:
        target["masks"] = target["masks"].flip(-1)
    return image.flip(-1), target


def cropped(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """A random part of an image, and what is left in it of the objects.

    Were the short side 400, 500 or 600 pixels long (chosen by chance), the sides of the part would be 384 to 600. The
    part keeps its resolution; the network resizes it.

    Source: the augmentation of DETR (https://arxiv.org/abs/2005.12872) and its relatives.
    """
    scale = (400, 500, 600)[int(torch.randint(3, ()))] / min(image.shape[1:])
    begin, size = [], []
    for side in image.shape[1:]:
        low, high = (min(n, round(side * scale)) for n in (384, 600))
        size.append(min(side, round(int(torch.randint(low, high + 1, ())) / scale)))
        begin.append(int(torch.randint(side - size[-1] + 1, ())))
    (y, x), (height, width) = begin, size
    boxes = target["boxes"] - torch.tensor([x, y, x, y])
    boxes[:, 0::2] = boxes[:, 0::2].clamp(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clamp(0, height)
    inside = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)  # less cannot be learnt
    target = {**target, "boxes": boxes[inside], "labels": target["labels"][inside]}
    if "masks" in target:
        target["masks"] = target["masks"][inside, y : y + height, x : x + width]
    return image[:, y : y + height, x : x + width], target


class DetectionData(ImageData):
    """Images with objects, in COCO's format.

    Args:
        root: folder with the images and annotations, as COCO unpacks: `train2017/*.jpg`, `val2017/*.jpg`,
            `annotations/instances_train2017.json`.
        train, val: the names of the parts.
        test: of the part for `dgmn test`; None takes `val`.
        images: folder of a part's images, below `root`.
        annotations: file of a part, below `root`.
        masks: also the masks, for Mask R-CNN.
        hflip: probability to mirror a training image.
        crop: probability to take a part of a training image, of about two thirds of its short side or more, as
            DETR does.
        epoch_steps: steps of an epoch, after which the validation runs; None passes through the set once.
        batch_size: of each device. A batch has images that are all wide or all tall.
        num_workers: processes of each device that load images.
        skip_bad_images: leave out an image that cannot be read, and say so; otherwise it ends the run. One that is
            left out of the validation does not count.
    """

    def __init__(
        self,
        root: Path | str,
        train: str = "train2017",
        val: str = "val2017",
        test: str | None = None,
        images: str = "{split}",
        annotations: str = "annotations/instances_{split}.json",
        masks: bool = False,
        hflip: float = 0.5,
        crop: float = 0.0,
        epoch_steps: int | None = None,
        batch_size: int = 2,
        num_workers: int = 4,
        skip_bad_images: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0 or (epoch_steps is not None and epoch_steps < 1):
            raise InputError(
                "data: batch_size and epoch_steps must be at least 1 and num_workers at least 0, "
                f"got {batch_size}, {epoch_steps} and {num_workers}"
            )
        for name, share in {"hflip": hflip, "crop": crop}.items():
            if not 0 <= share <= 1:
                raise InputError(f"data.{name} must be in 0..1, got {share}")
        self.root = Path(root)
        self.splits = {"train": train, "val": val, "test": test or val}
        self.images = images
        self.annotations = annotations
        self.masks = masks
        self.hflip = hflip
        self.crop = crop
        self.epoch_steps = epoch_steps
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.skip_bad_images = skip_bad_images
        self._sets: dict[str, DetectionDataset] = {}

    def read(self, split: str, problems: list[str] | None = None) -> CocoSet:
        """Images and categories of "train", "val" or "test"; see [`read_coco`][dgmn.detection.coco.read_coco]."""
        name = self.splits[split]
        if not self.root.is_dir():
            raise InputError(f"data.root {self.root}: there is no such folder")
        folder = self.root / self.images.replace("{split}", name)
        return read_coco(self.annotation_file(split), folder, problems, self.masks)

    def annotation_file(self, split: str) -> Path:
        """Of "train", "val" or "test"."""
        return self.root / self.annotations.replace("{split}", self.splits[split])

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the categories in the order of their labels."""
        return self._categories().names

    def _categories(self) -> CocoSet:
        # Before `setup`, as for a prediction with a recipe, the file says.
        return next(iter(self._sets.values())).coco if self._sets else self.read("val")

    @override
    def setup(self, stage: str) -> None:
        wanted = {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",))
        for split in wanted:
            training = split == "train"
            augmented = {"hflip": self.hflip, "crop": self.crop} if training else {}
            self._sets[split] = DetectionDataset(
                self.read(split),
                self.masks and training,  # the evaluation reads those of the file
                training,
                **augmented,
                skip_bad_images=self.skip_bad_images,
            )
        if stage == "fit":
            train, val = (self._sets[split].coco for split in ("train", "val"))
            for problem in self._mistakes(train, val):
                raise InputError(problem)
            counts = f"{len(train.images)} training and {len(val.images)} validation images"
            left_out = f"; {train.left_out} boxes of less than a pixel are left out" if train.left_out else ""
            say(f"data: {counts} of {len(val.names)} categories{left_out}")

    def _mistakes(self, train: CocoSet, val: CocoSet) -> list[str]:
        """What is wrong with the two together."""
        found = []
        if not any(image.objects for image in train.images):
            found.append(f"{self.annotation_file('train')}: no objects to learn from")
        if (train.names, train.ids) != (val.names, val.ids):
            odd = sorted(set(train.names) ^ set(val.names))
            found.append(f"data: train and val have different categories ({', '.join(odd[:5]) or 'other ids'})")
        return found

    def validate(self, progress: Callable[[str, int, int], None]) -> DataReport:
        """Reads every image, and every mask where masks are wanted, of the training and validation sets.

        Args:
            progress: is told the split, how many images it has, and how many of them are read.
        """
        report = DataReport(
            ("category", *(f"{split} {what}" for split in ("train", "val") for what in ("images", "objects")))
        )
        columns: list[tuple[tuple[str, ...], Counter[str], Counter[str]]] = []
        sets: list[CocoSet] = []
        in_samples: dict[str, tuple[int, int, int]] = {}
        for split in ("train", "val"):
            try:
                coco = self.read(split, report.problems)
            except InputError as error:
                report.problems.append(str(error))
                continue
            sets.append(coco)
            labels = dict(zip(coco.ids, coco.names, strict=True))
            colors = dict(zip(coco.ids, distinct_colors(len(coco.ids)), strict=True))
            dataset = DetectionDataset(coco, masks=False)
            images, objects = Counter[str](), Counter[str]()
            shown = coco.images[:: max(1, len(coco.images) // 8)] if split == "train" else ()
            tell = partial(progress, split, len(coco.images))
            for entry, (image, target) in read_all(coco.images, dataset.read, report.problems, tell):
                names = [labels[thing["category_id"]] for thing in entry.objects if not thing.get("iscrowd")]
                images.update(set(names))
                objects.update(names)
                if any(entry is other for other in shown) and len(report.samples) < 8:
                    things = [thing for thing in entry.objects if not thing.get("iscrowd")]
                    drawn = [colors[thing["category_id"]] for thing in things]
                    report.samples.append(boxed(TF.to_pil_image(image), target["boxes"].tolist(), names, drawn))
                    in_samples.update(dict(zip(names, drawn, strict=True)))
            if self.masks:
                report.problems += _masks_that_cannot_be_read(coco)
            columns.append((coco.names, images, objects))
        if in_samples:
            report.legend = partial(legend, list(in_samples), list(in_samples.values()))
        for name in dict.fromkeys(name for names, _, _ in columns for name in names):
            report.rows.append((name, *(counts[name] for _, *both in columns for counts in both)))
        if len(sets) == 2:
            report.problems += self._mistakes(*sets)
        else:
            report.rows.clear()  # a table of one part would not fit the header
        return report

    def describe(self) -> dict[str, Any]:
        """What prediction needs to know of the data, as plain values."""
        coco = self._categories()
        return {"classes": list(coco.names), "category_ids": list(coco.ids)}

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        dataset = self._sets["train"]
        wide = [image.size[1] >= image.size[0] for image in dataset.coco.images]
        return self.train_loader(dataset, steps=self.epoch_steps, groups=wide, collate_fn=collate)

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        return self.eval_loader(self._sets["val"], "val", collate_fn=collate)

    @override
    def test_dataloader(self) -> DataLoader[Any]:
        return self.eval_loader(self._sets["test"], "test", collate_fn=collate)


def collate(batch: list[tuple[Tensor, Target] | None]) -> tuple[list[Tensor], list[Target]]:
    """Images and targets as lists: the images have different sizes, the network pads them."""
    there = [pair for pair in batch if pair is not None]
    return [image for image, _ in there], [target for _, target in there]


def _masks_that_cannot_be_read(coco: CocoSet) -> list[str]:
    problems = []
    for image in coco.images:
        for entry in image.objects:
            try:
                decode_mask(entry, image.size)
            except InputError as error:
                problems.append(f"{image.path}: {error}")
    return problems
