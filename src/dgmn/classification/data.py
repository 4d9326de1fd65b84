"""Images in folders of classes or a CSV file, any torchvision dataset, or one of timm's readers."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from timm.data import create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from typing_extensions import override

from dgmn.about import Preprocessing
from dgmn.classification.layouts import ClassFolders, Listed, listed, part_folder
from dgmn.classification.readers import (
    Streamed,
    StreamLoader,
    check_reader,
    class_names,
    listed_labels,
    reader_set,
)
from dgmn.classification.transforms import eval_transform
from dgmn.errors import InputError
from dgmn.images import check_images, load_image
from dgmn.pictures import captioned
from dgmn.report import DataReport, alike, equal_files, in_several, read_all, say
from dgmn.training.checkpoint import seen_batches
from dgmn.training.data import ImageData
from dgmn_base.files import folders_in
from dgmn_base.terminal import counted


@dataclass
class Augmentation:
    """Training augmentation, by timm. The defaults are the paper's for ImageNet.

    Attributes:
        scale: range of the random crop's area, as a share of the image.
        ratio: range of the crop's width over its height.
        hflip: probability of a horizontal flip; 0 for digits and text.
        color_jitter: strength of random brightness, contrast and saturation; used only if `auto_augment` is None.
        auto_augment: a policy such as RandAugment, in timm's notation; None for none.
        erasing: probability of random erasing.
        interpolation: interpolation of the crop; None takes the network's own.
        repeats: how many times in a row an epoch draws each image (repeated augmentation). The epoch then holds
            1 / repeats of the set's different images. 1 turns this off.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    color_jitter: float = 0.4
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    erasing: float = 0.25
    interpolation: str | None = None
    repeats: int = 3

    def __post_init__(self) -> None:
        where = "data.augmentation"
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise InputError(f"{where}.{name} must be a range above 0, got {[low, high]}")
        for name in ("hflip", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{where}.{name} must be in 0..1, got {getattr(self, name)}")
        if not 0 <= self.color_jitter < math.inf:
            raise InputError(f"{where}.color_jitter must be a finite number of at least 0, got {self.color_jitter}")
        if self.repeats < 1:
            raise InputError(f"{where}.repeats must be at least 1, got {self.repeats}")
        try:
            self.transform(32, Preprocessing())
        except (AssertionError, KeyError, ValueError) as error:
            raise InputError(
                f"{where}: timm knows no auto_augment {self.auto_augment!r} or interpolation {self.interpolation!r} "
                f"({error})"
            ) from error

    def transform(self, image_size: int, preprocessing: Preprocessing) -> Any:
        """The transform of an image in training."""
        return create_transform(
            image_size,
            is_training=True,
            scale=self.scale,
            ratio=self.ratio,
            hflip=self.hflip,
            color_jitter=self.color_jitter,
            auto_augment=self.auto_augment,
            interpolation=self.interpolation or preprocessing.interpolation,
            mean=preprocessing.mean,
            std=preprocessing.std,
            re_prob=self.erasing,
            re_mode="pixel",
        )


class _Transformed(Dataset[tuple[Tensor, int]]):
    def __init__(self, images: Dataset[Any], transform: Any) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(cast(Sized, self.images))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return self.transform(image.convert("RGB")), int(label)


class ClassificationData(ImageData):
    """Images with class labels.

    Give `root`, a folder with `train`, `val` and optionally `test`. Each holds one folder of images per class, as in
    ImageNet. It may also hold the folders of classes alone, or a CSV file with the columns `file` and `label`, and
    `split` (train, val or test) or none: what has no parts is split, and `split.csv` keeps the split. Or give datasets,
    for instance `--data.train torchvision.datasets.CIFAR10`.

    Args:
        root: folder with `train/<class>/*.jpg` and `val/<class>/*.jpg`, or with one of the others, or a CSV file.
        train: training set, instead of `root`.
        val: validation set, instead of `root`.
        test: test set; None takes the validation set.
        reader: a dataset by timm's name: "wds/" (shards in `root`), "hfds/NAME" or "tfds/NAME" (kept in `root`).
        train_split: with `reader`, the name of the training split.
        val_split: with `reader`, the name of the validation split.
        val_share: share of the images of each class that are for validation, if `root` has no parts.
        image_size: side of the images that the network gets.
        crop_pct: share of the resized image that the centre crop keeps in evaluation; 0.875 keeps 224 of 256. None
            takes the network's own.
        augmentation: augmentation of the training images.
        batch_size: images per device in a training step.
        num_workers: processes per device that load images.
    """

    def __init__(
        self,
        root: Path | str | None = None,
        train: Dataset | None = None,  # type: ignore[type-arg] # jsonargparse knows no generic classes
        val: Dataset | None = None,  # type: ignore[type-arg] # jsonargparse knows no generic classes
        test: Dataset | None = None,  # type: ignore[type-arg] # jsonargparse knows no generic classes
        reader: str | None = None,
        train_split: str = "train",
        val_split: str = "validation",
        val_share: float = 0.2,
        image_size: int = 224,
        crop_pct: float | None = None,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 - the command line shows its defaults
        batch_size: int = 128,
        num_workers: int = 4,
    ) -> None:
        super().__init__(batch_size, num_workers)
        if image_size is None or not 1 <= image_size <= 4_096 or not (crop_pct is None or 0 < crop_pct <= 1):
            raise InputError(
                "data: image_size must be from 1 to 4096, and crop_pct above 0 and at most 1, "
                f"got {image_size} and {crop_pct}"
            )
        if not 0 < val_share < 1:
            raise InputError(f"data.val_share must be above 0 and below 1, got {val_share}")
        if reader is not None:
            check_reader(reader)
        self.reader = reader
        self._reader_splits = {"train": train_split, "val": val_split, "test": val_split}
        self.val_share = val_share
        self.root = None if root is None else Path(root)
        self.image_size = image_size
        self.crop_pct = crop_pct
        self.augmentation = augmentation
        self._given = {"train": train, "val": val, "test": val if test is None else test}

    @override
    def adapted(self, preprocessing: Preprocessing) -> Preprocessing:
        return preprocessing if self.crop_pct is None else replace(preprocessing, crop_pct=self.crop_pct)

    @cached_property
    def listed(self) -> Listed | None:
        """The images of a CSV file, or of folders without parts; None if the data is of another form."""
        return None if self.root is None or self.reader is not None else listed(self.root, self.val_share)

    @override
    def prepare_data(self) -> None:
        """Writes a split down, in one process."""
        told = "" if self.listed is None else self.listed.keep()
        if told:
            say(told)

    @override
    def setup(self, stage: str) -> None:
        if self.reader is None and (self.root is None) == all(dataset is None for dataset in self._given.values()):
            raise InputError("data: give either --data.root FOLDER or the datasets --data.train and --data.val")
        super().setup(stage)

    @override
    def dataset(self, split: str) -> Dataset[Any]:
        if self.reader is not None:
            name, training = self._reader_splits[split], split == "train"
            images: Any = reader_set(self.reader, self.root, name, training, self.batch_size)
        else:
            images = self._given[split] if self.root is None else self._files(split)
        if images is None:
            raise InputError(f"data: no {split} set; give --data.{split}")
        size, preprocessing = self.image_size, self.preprocessing
        change = self.augmentation.transform if split == "train" else eval_transform
        transform = change(size, preprocessing)
        if isinstance(images, IterableDataset):
            return Streamed(images, transform, self.num_workers)
        return _Transformed(images, transform)

    def _files(self, split: str) -> Any:
        if self.listed is not None:
            return self.listed.part(split)
        root = Path(self.root or "")
        # What is tested may lack classes, and none gets another number by that.
        known = folders_in(root / "train") if split == "test" and (root / "train").is_dir() else ()
        return ClassFolders(part_folder(root, split), known, loader=load_image)

    @property
    @override
    def has_test(self) -> bool:
        if self.reader is not None:
            return False
        if self.root is None:
            return self._given["test"] is not self._given["val"]
        if self.listed is not None:
            return any(part == "test" for _, _, part in self.listed.rows)
        return (Path(self.root or "") / "test").is_dir()

    @override
    def check(self) -> None:
        if self.root is None or self.reader is not None:
            classes = "" if self.names is None else f" of {counted(len(self.names), 'class')}"
            images = f"{self.training_images} training and {counted(self.validation_images, 'validation image')}"
            say(f"data: {images}{classes}{self._shards()}")
            return
        train, val = (self._sets[split].images for split in ("train", "val"))
        if train.classes != val.classes:
            odd = sorted(set(train.classes) ^ set(val.classes))
            raise InputError(f"data.root {self.root}: train and val have different classes: {', '.join(odd[:5])}")
        paths = [path for path, _ in train.samples + val.samples]
        # In random order, so that the budget reaches all classes of a large set.
        order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0)).tolist()
        checked = check_images(paths[i] for i in order)
        say(
            f"data: {len(train)} training and {counted(len(val), 'validation image')} "
            f"of {counted(len(train.classes), 'class')}; "
            f"{checked if checked < len(paths) else 'all'} of them decoded without an error"
        )

    def _shards(self) -> str:
        """The shards of a reader, for messages."""
        files = [dataset.files for dataset in self._sets.values() if isinstance(dataset, Streamed) and dataset.files]
        names = (f"{each[0]} to {each[-1]}" if len(each) > 1 else each[0] for each in files)
        return f"; shards {', '.join(names)} in {self.root}" if files else ""

    @override
    def validate(self, progress: Callable[[str, int, int], None]) -> DataReport:
        if self.root is None or self.reader is not None:
            what = f"data.reader {self.reader}" if self.reader is not None else "data.train and data.val"
            raise InputError(
                f"{what}: validate-data checks files of images only (--data.root FOLDER without a reader); images that "
                "cannot be decoded are told when dgmn fit reads them"
            )
        report = DataReport()
        try:
            report.told = "" if self.listed is None else self.listed.told
        except InputError as error:
            report.problems.append(str(error))
            return report
        splits = ("train", "val", "test") if self.has_test else ("train", "val")
        report.header = ("class", *(f"{split} images" for split in splits))
        counts: dict[str, dict[str, int]] = {}
        paths: dict[str, set[Path]] = {}
        classes: dict[Path, str] = {}
        for split in splits:
            try:
                dataset = self._files(split)
            except InputError as error:
                report.problems.append(str(error))
                continue
            own = {Path(path): dataset.classes[label] for path, label in dataset.samples}
            classes |= own
            paths[split] = {*own}
            tell = partial(progress, split, len(dataset))
            shown = {path for path, _ in dataset.samples[:: max(1, len(dataset) // 8)]} if split == "train" else set()
            for (path, label), _ in read_all(dataset.samples, _read, report.problems, tell):
                name = dataset.classes[label]
                counts.setdefault(name, dict.fromkeys(splits, 0))[split] += 1
                if path in shown and len(report.samples) < 8:
                    report.samples.append(captioned(load_image(path), [name]))
        copies = equal_files(classes)
        report.problems += _in_two_classes(classes, copies)
        report.notes += [*in_several(paths, copies), *alike(counts)]
        for name, of in counts.items():
            report.rows.append((name, *of.values()))
            for split in (split for split, n in of.items() if n == 0):
                # In folders of parts, the classes of both must be the same.
                may_lack = split == "test" or (split == "val" and self.listed is not None)
                told = report.notes if may_lack else report.problems
                told.append(f"{split}: no image of the class {name}")
        return report

    @property
    @override
    def names(self) -> list[str] | None:
        """The class names in the order of their labels; None if the dataset has none."""
        for images in (*(dataset.images for dataset in self._sets.values()), *self._given.values()):
            names = getattr(images, "classes", None) or class_names(images, self.root)
            if names is not None:
                return [str(name) for name in names]
        return None

    @override
    def class_counts(self) -> list[int]:
        images = self._sets["train"].images
        if isinstance(images, IterableDataset):
            raise InputError(f"data.reader {self.reader}: a stream of images does not say how many each class has")
        found = listed_labels(images)
        if found is None:
            found = [int(images[i][1]) for i in range(len(images))]
        labels = torch.as_tensor(found).flatten()
        classes = len(self.names) if self.names is not None else int(labels.max()) + 1
        return torch.bincount(labels.long(), minlength=classes).tolist()

    @override
    def describe(self) -> dict[str, Any]:
        return {"classes": self.names, "image_size": self.image_size}

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        trainer = self._trainer()
        dataset, sampler = self._sets["train"], None
        if isinstance(dataset, Streamed):
            if seen_batches(trainer):
                say("a stream begins the epoch again: images that were seen come again, and others not")
            return self._stream(dataset, drop_last=True)
        if self.augmentation.repeats > 1:
            ranks = {"num_replicas": trainer.world_size, "rank": trainer.global_rank}
            sampler = RepeatAugSampler(dataset, num_repeats=self.augmentation.repeats, **ranks)
        return self.train_loader(dataset, sampler)

    @override
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        labels, module = batch[1], self._trainer().lightning_module
        classes = getattr(module, "network_args", {}).get("num_classes")
        if classes and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            odd = next(label for label in labels.tolist() if not 0 <= label < classes)
            raise InputError(f"data: a label is {odd}, but model.num_classes is {classes}: labels count from 0")
        return batch

    @override
    def eval_loader(self, dataset: Dataset[Any], split: str) -> DataLoader[Any]:
        return self._stream(dataset) if isinstance(dataset, Streamed) else super().eval_loader(dataset, split)

    def _stream(self, dataset: Streamed, drop_last: bool = False) -> DataLoader[Any]:
        """A loader for a dataset that divides itself among processes, and shuffles itself."""
        loader = StreamLoader(
            dataset,
            self.batch_size,
            num_workers=self.num_workers,
            drop_last=drop_last,
            pin_memory=torch.cuda.is_available(),
        )
        trainer = self._trainer()
        loader.epoch = lambda: trainer.fit_loop.epoch_progress.current.processed
        return loader


def _in_two_classes(classes: Mapping[Path, str], copies: Iterable[Sequence[Path]]) -> list[str]:
    """A problem for every image that is in several classes, under several names."""
    groups = [{classes[path]: path for path in group} for group in copies]
    return [
        f"{', '.join(map(str, group.values()))}: the same image, but of the classes {', '.join(group)}"
        for group in groups
        if len(group) > 1
    ]


def _read(sample: tuple[str, int]) -> None:
    load_image(sample[0])
