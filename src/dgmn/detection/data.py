"""Datasets of images with boxes and masks, in one of the layouts."""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF
from typing_extensions import override

from dgmn.detection.transforms import augmentation, transformed
from dgmn.errors import InputError
from dgmn.layout import find_layout
from dgmn.objects.coco import decode_mask, to_target
from dgmn.objects.coco_set import CocoImage, CocoSet
from dgmn.objects.layouts import LAYOUTS, Divided, Layout, Target, parts_of
from dgmn.pictures import boxed, distinct_colors, legend
from dgmn.report import DataReport, alike, equal_files, in_several, read_all, say
from dgmn.training.data import ImageData
from dgmn_base.terminal import counted

_COCO = ("{split}", "annotations/instances_{split}.json")
_LEAST = 32  # pixels of the short side of an image that `leave_out_empty` keeps


class DetectionDataset(Dataset[tuple[Tensor, Target] | None]):
    """Images (3, H, W) in 0..1 with targets: `boxes`, `labels`, `image_id` and, if asked for, `masks`.

    Args:
        layout: reads the images and their objects.
        coco: the images and their objects.
        masks: whether the targets have masks.
        transform: changes a training image and its objects together; None for evaluation.
        skip_bad_images: leave out an image that cannot be read, and report it; otherwise it is an error. In training,
            the next image takes its place. In evaluation, its sample is None.
    """

    def __init__(
        self,
        layout: Layout,
        coco: CocoSet,
        masks: bool,
        transform: v2.Transform | None = None,
        skip_bad_images: bool = False,
    ) -> None:
        self.layout = layout
        self.coco = coco
        self.masks = masks
        self.transform = transform
        self.skip_bad_images = skip_bad_images

    def __len__(self) -> int:
        return len(self.coco.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Target] | None:
        training = self.transform is not None
        for step in range(len(self) if training else 1):
            entry = self.coco.images[(index + step) % len(self)]
            try:
                image, target = self.layout.read(entry, self.coco, self.masks)
                break
            except InputError as error:
                if not self.skip_bad_images:
                    raise
                # Every process prints, because each reads other images.
                print(f"left out: {error}", file=sys.stderr, flush=True)
        else:
            if not training:
                return None
            raise InputError("data: none of the images can be read")
        if self.transform is not None:
            image, target = transformed(self.transform, image, target)
        return image.float().div_(255), target


def collate(batch: list[tuple[Tensor, Target] | None]) -> tuple[list[Tensor], list[Target]]:
    """Makes lists of images and targets. The images have different sizes; the network pads them."""
    there = [pair for pair in batch if pair is not None]
    return [image for image, _ in there], [target for _, target in there]


class DetectionData(ImageData):
    """Images with objects, in the layout of COCO, YOLO, Pascal VOC, Roboflow or LabelMe.

    Args:
        root: folder with the images and annotations. COCO unpacks them as `train2017/*.jpg`, `val2017/*.jpg`,
            `annotations/instances_train2017.json`; `docs/formats.md` shows the others.
        train: name of the training part.
        val: name of the validation part.
        test: name of the part for `dgmn test`; None takes `val`.
        images: in COCO's layout, the folder with a part's images, below `root`.
        annotations: in COCO's layout, the file with a part's annotations, below `root`.
        layout: "coco", "yolo", "voc", "roboflow" or "labelme"; None looks into the folder.
        val_share: share of the images that are for validation, if the dataset has no parts.
        masks: also load the masks, for Mask R-CNN.
        hflip: probability of mirroring a training image.
        crop: probability of resizing and cropping a training image as DETR does; see
            [`DetrCrop`][dgmn.detection.transforms.DetrCrop].
        leave_out_empty: leave images without objects (crowds do not count), and images with a side below 32 pixels, out
            of the training, as mmdet does.
        group_by_aspect: make training batches of wide images and of tall images, which need less padding.
        ids_as_labels: the labels are the category ids themselves, as in DETR's code, and not their places among the
            ids. The network then needs as many classes as the largest id, and one more: 91 for COCO.
        epoch_steps: steps of an epoch, after which the validation runs; None passes through the set once.
        batch_size: images per device in a training step.
        num_workers: processes per device that load images.
        skip_bad_images: leave out an image that cannot be read, and report it; otherwise it ends the run. An image
            that is left out of the validation does not count.
    """

    collate: ClassVar[Callable[..., Any] | None] = staticmethod(collate)

    def __init__(
        self,
        root: Path | str,
        train: str = "train2017",
        val: str = "val2017",
        test: str | None = None,
        images: str = "{split}",
        annotations: str = "annotations/instances_{split}.json",
        layout: str | None = None,
        val_share: float = 0.2,
        masks: bool = False,
        hflip: float = 0.5,
        crop: float = 0.0,
        leave_out_empty: bool = False,
        group_by_aspect: bool = True,
        ids_as_labels: bool = False,
        epoch_steps: int | None = None,
        batch_size: int = 2,
        num_workers: int = 4,
        skip_bad_images: bool = False,
    ) -> None:
        super().__init__(batch_size, num_workers, epoch_steps)
        for name, share in {"hflip": hflip, "crop": crop}.items():
            if not 0 <= share <= 1:
                raise InputError(f"data.{name} must be in 0..1, got {share}")
        if not 0 < val_share < 1:
            raise InputError(f"data.val_share must be above 0 and below 1, got {val_share}")
        self.root = Path(root)
        self.val_share = val_share
        self.splits = {"train": train, "val": val, "test": test or val}
        self.masks = masks
        self.hflip = hflip
        self.crop = crop
        self.leave_out_empty = leave_out_empty
        self.group_by_aspect = group_by_aspect
        self.ids_as_labels = ids_as_labels
        self.skip_bad_images = skip_bad_images
        # Other values than the defaults say that the layout is COCO's.
        self._places = {"images": images, "annotations": annotations} if (images, annotations) != _COCO else {}
        self._layout_name = layout

    @cached_property
    def layout(self) -> Layout:
        """The layout of the dataset; `Divided` if it has no parts.

        Raises:
            InputError: there is no such folder, or no layout fits it, or several do.
        """
        layout = find_layout(LAYOUTS, self.root, self._layout_name, self._places)
        return parts_of(layout, self.splits, self.val_share)

    @override
    def prepare_data(self) -> None:
        """Writes a split down, in one process."""
        if isinstance(self.layout, Divided):
            say(f"data: {self.layout.keep()}")

    @cached_property
    def categories(self) -> CocoSet:
        """A part of the dataset, for its categories.

        Before `setup`, as in a prediction with a recipe, it is read from the files.
        """
        loaded = next(iter(self._sets.values()), None)
        return self._read("val", masks=False) if loaded is None else loaded.coco

    @property
    @override
    def names(self) -> tuple[str, ...]:
        return self.categories.names

    def truth(self, split: str) -> Any:
        """The annotations of "train", "val" or "test", for the evaluation."""
        return self.layout.truth(self.splits[split])

    def truth_of(self, split: str, image_id: int | str) -> Target:
        """The true objects of an image of a loaded part in the form of detections, with masks if these are loaded."""
        coco = self._sets[split].coco
        image = next(image for image in coco.images if image.id == image_id)
        try:
            target = to_target(image, coco.ids, self.masks)
        except InputError as error:
            raise InputError(f"{image.path}: {error}") from error
        return {**target, "masks": target["masks"][:, None].bool()} if self.masks else target

    def _read(self, split: str, masks: bool, problems: list[str] | None = None) -> CocoSet:
        coco = self.layout.samples(self.splits[split], masks, problems)
        coco = coco.labelled_by_id() if self.ids_as_labels else coco
        if split == "train" and self.leave_out_empty:
            useful = (coco.images.to_learn > 0) & (coco.images.sizes.min(1) >= _LEAST)
            # If none is useful, the check says why.
            return replace(coco, images=coco.images[useful]) if useful.any() else coco
        return coco

    @override
    def dataset(self, split: str) -> DetectionDataset:
        training = split == "train"
        transform = augmentation(self.hflip, self.crop) if training else None
        masks = self.masks and training  # the evaluation reads the masks from the file, and pictures need few of them
        return DetectionDataset(self.layout, self._read(split, self.masks), masks, transform, self.skip_bad_images)

    @override
    def check(self) -> None:
        train, val = (self._sets[split].coco for split in ("train", "val"))
        no_masks = (problem for coco in (train, val) if self.masks for problem in _without_outline(coco))
        for problem in (*self._mistakes(train, val), *no_masks):
            raise InputError(problem)
        counts = f"{len(train.images)} training and {counted(len(val.images), 'validation image')}"
        left_out = f"; left out: {counted(train.left_out, 'box')} of less than a pixel" if train.left_out else ""
        say(f"data: {self.layout.title} layout, {counts} of {counted(len(val.names), 'category')}{left_out}")

    def _mistakes(self, train: CocoSet, val: CocoSet) -> list[str]:
        """What is wrong with the training and validation sets together."""
        found = []
        images = train.images
        if not images.to_learn.any():
            crowds = images.objects.any()
            why = (
                ": iscrowd is 1 everywhere, and crowds are not learnt; for single objects it must be 0"
                if crowds
                else ""
            )
            found.append(f"{self.layout.source(self.splits['train'])}: no objects to learn from{why}")
        elif self.leave_out_empty and (images.sizes.min(1)[images.to_learn > 0] < _LEAST).all():
            found.append(
                f"{self.layout.source(self.splits['train'])}: leave_out_empty leaves no image: "
                f"all have a side below {_LEAST} pixels"
            )
        return found + _other_categories(train, val, "val")

    @property
    @override
    def has_test(self) -> bool:
        return self.splits["test"] != self.splits["val"]

    @override
    def validate(self, progress: Callable[[str, int, int], None]) -> DataReport:
        splits = ["train", "val"]
        test = self.splits["test"]
        if test not in (self.splits["train"], self.splits["val"]) and test in self.layout.splits():
            splits.append("test")
        report = DataReport(("category", *(f"{split} {what}" for split in splits for what in ("images", "objects"))))
        columns: list[tuple[tuple[str, ...], Counter[str], Counter[str]]] = []
        sets: dict[str, CocoSet] = {}
        in_samples: dict[str, tuple[int, int, int]] = {}
        for split in splits:
            try:
                coco = self._read(split, self.masks, report.problems)
            except InputError as error:
                report.problems += {str(error)} - {*report.problems}  # it may be about both parts
                continue
            sets[split] = coco
            labels = dict(zip(coco.ids, coco.names, strict=True))
            colors = dict(zip(coco.ids, distinct_colors(len(coco.ids)), strict=True))
            read = partial(self.layout.read, categories=coco, masks=False)
            images, objects = Counter[str](), Counter[str]()
            shown = {entry.id for entry in coco.images[:: max(1, len(coco.images) // 8)]} if split == "train" else set()
            tell = partial(progress, split, len(coco.images))
            for entry, (image, target) in read_all(coco.images, read, report.problems, tell):
                names = [labels[thing["category_id"]] for thing in entry.to_learn]
                images.update(set(names))
                objects.update(names)
                if entry.id in shown and len(report.samples) < 8:
                    drawn = [colors[thing["category_id"]] for thing in entry.to_learn]
                    sample, _ = boxed(TF.to_pil_image(image), target["boxes"].tolist(), names, drawn)
                    report.samples.append(sample)
                    in_samples.update(dict(zip(names, drawn, strict=True)))
            if self.masks:
                report.problems += _masks_that_cannot_be_read(coco)
            empty = int((coco.images.objects == 0).sum())
            if empty:
                without = counted(empty, "image")
                report.notes.append(f"{split}: {without} without objects: background, or not annotated yet")
            if coco.left_out:
                boxes = counted(coco.left_out, "box")
                report.notes.append(f"{split}: {boxes} of less than a pixel in the image; no training learns from them")
            columns.append((coco.names, images, objects))
        if in_samples:
            report.legend = partial(legend, list(in_samples), list(in_samples.values()))
        for name in dict.fromkeys(name for names, _, _ in columns for name in names):
            report.rows.append((name, *(counts[name] for _, *both in columns for counts in both)))
        if sets:
            some = next(iter(sets.values()))
            report.notes += alike(some.names)
            total = sum(len(coco.images) for coco in sets.values())
            classes = counted(len(some.names), "class")
            split = f"; {self.layout.parts[1]}" if isinstance(self.layout, Divided) else ""
            report.told = f"{self.layout.title} layout, {classes}, {counted(total, 'image')}{split}"
        paths = {split: {image.path for image in coco.images} for split, coco in sets.items()}
        report.notes += in_several(paths, equal_files(*paths.values()))
        if len(sets) == len(splits):
            # If no image can be read, there are problems enough.
            if sets["train"].images or not report.problems:
                report.problems += self._mistakes(sets["train"], sets["val"])
            for split in splits[2:]:
                report.problems += _other_categories(sets["train"], sets[split], split)
        else:
            report.rows.clear()  # a table of one part would not fit the header
        return report

    @override
    def describe(self) -> dict[str, Any]:
        return {"classes": list(self.names), "category_ids": list(self.categories.ids)}

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        dataset = self._sets["train"]
        sizes = dataset.coco.images.sizes
        wide = (sizes[:, 1] >= sizes[:, 0]).tolist() if self.group_by_aspect else None
        return self.train_loader(dataset, steps=self.epoch_steps, groups=wide)


def _other_categories(train: CocoSet, other: CocoSet, split: str) -> list[str]:
    if (train.names, train.ids) == (other.names, other.ids):
        return []
    odd = sorted(set(train.names) ^ set(other.names))
    return [f"data: train and {split} have different categories ({', '.join(odd[:5]) or 'other ids'})"]


def _masks_that_cannot_be_read(coco: CocoSet) -> list[str]:
    problems = _without_outline(coco)
    for image in coco.images:
        outlined = (entry for entry in image.objects if entry.get("segmentation"))
        slivers = (entry for entry in image.left_out if entry.get("segmentation") or not entry["iscrowd"])
        for entry in (*outlined, *slivers):
            problems += _mask_problem(image, entry)
    return problems


def _without_outline(coco: CocoSet) -> list[str]:
    """One line if objects to learn have no outline; of a crowd, the evaluation takes the box."""
    missing = coco.images.to_learn - coco.images.outlined
    if not missing.any():
        return []
    image = coco.images[int(missing.nonzero()[0][0])]
    (problem, *_) = _mask_problem(image, next(entry for entry in image.to_learn if not entry.get("segmentation")))
    more = f" (nor have {missing.sum() - 1} more objects one)" if missing.sum() > 1 else ""
    return [f"{problem}{more}; data.masks needs it, and detectors of boxes train without data.masks"]


def _mask_problem(image: CocoImage, entry: dict[str, Any]) -> list[str]:
    try:
        decode_mask(entry, image.size)
    except InputError as error:
        return [f"{image.path}: {error}"]
    return []
