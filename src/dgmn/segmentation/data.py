"""Images and masks: Cityscapes as it unpacks, or any folders of them."""

import string
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF
from typing_extensions import override

from dgmn.errors import InputError
from dgmn.segmentation.cityscapes import CITYSCAPES, CITYSCAPES_IDS, find_samples
from dgmn.segmentation.labels import Classes, read_classes, read_mask
from dgmn.segmentation.losses import IGNORED
from dgmn.segmentation.transforms import Augmentation, normalise
from dgmn.training.data import ImageData
from dgmn.training.images import EXTENSIONS, load_image
from dgmn.training.messages import say
from dgmn.training.report import DataReport, read_all
from dgmn.visualize import legend, overlay

Sample = tuple[Path, Path]  # image, mask


@dataclass(frozen=True)
class Splits:
    """The names of the parts of a dataset; "train+val" is both.

    Attributes:
        train: to train on.
        val: to validate on.
        test: for `dgmn test`.
    """

    train: str = "train"
    val: str = "val"
    test: str = "val"


class MaskDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images (3, H, W) with masks (H, W), uint8, whose values are classes and 255.

    Args:
        samples: files of images and masks.
        classes: what the values of the masks mean.
        transform: of both together.
        palette: see [`read_mask`][dgmn.segmentation.labels.read_mask].
    """

    def __init__(
        self, samples: list[Sample], classes: Classes, transform: Callable[..., Any], palette: bool = False
    ) -> None:
        self.samples = samples
        self.classes = classes
        self.transform = transform
        self.palette = palette

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """An image and its mask as they are.

        Raises:
            InputError: one of them cannot be read, or their sizes differ.
        """
        path, mask_path = sample
        classes = self.classes
        if classes is CITYSCAPES and mask_path.stem.endswith("_labelIds"):
            classes = CITYSCAPES_IDS
        mask = read_mask(mask_path, classes, self.palette)
        try:
            image = TF.pil_to_tensor(load_image(path))
        except FileNotFoundError as error:
            raise InputError(f"{path}: missing image") from error
        if image.shape[1:] != mask.shape:
            sizes = f"{mask.shape[1]} x {mask.shape[0]} pixels, its image {image.shape[2]} x {image.shape[1]}"
            turned = " (turned upright as its EXIF entry says)" if image.shape[:0:-1] == mask.shape else ""
            raise InputError(f"{mask_path}: {sizes}{turned}: they must be equal")
        return image, torch.from_numpy(mask)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.read(self.samples[index])
        image, mask = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return image.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor)


class SegmentationData(ImageData):
    """Images with a class for every pixel.

    `root` holds either Cityscapes as it unpacks (`leftImg8bit`, `gtFine`, `gtCoarse`; with a `classes.json` beside
    them other classes), or folders of images and masks, and `classes.txt` or `classes.json`
    (see [`read_classes`][dgmn.segmentation.labels.read_classes]).

    Args:
        root: the folder.
        splits: the names of the parts.
        images: folder of the images of a part, below `root`; not for Cityscapes.
        masks: mask of an image of a part, below `root`; `{name}` is the image's path below `images` without its ending.
        labels: of Cityscapes, "gtFine" or "gtCoarse".
        palette_masks: masks with a palette hold class numbers as indices, as those of PASCAL VOC do.
        augmentation: of the training images.
        epoch_steps: steps of an epoch, after which the validation runs; None passes through the set once.
        batch_size: of each device in training; validation takes one image at a time, at its own size.
        num_workers: processes of each device that load images.
    """

    def __init__(
        self,
        root: Path | str,
        splits: Splits = Splits(),
        images: str = "images/{split}",
        masks: str = "masks/{split}/{name}.png",
        labels: str = "gtFine",
        palette_masks: bool = False,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 - the command line shows its defaults
        epoch_steps: int | None = None,
        batch_size: int = 8,
        num_workers: int = 4,
    ) -> None:
        super().__init__()
        if labels not in ("gtFine", "gtCoarse"):
            raise InputError(f'data.labels must be "gtFine" or "gtCoarse", got {labels!r}')
        if batch_size < 1 or num_workers < 0 or (epoch_steps is not None and epoch_steps < 1):
            raise InputError(
                "data: batch_size and epoch_steps must be at least 1 and num_workers at least 0, "
                f"got {batch_size}, {epoch_steps} and {num_workers}"
            )
        for option, pattern, needed in (("images", images, ()), ("masks", masks, ("name",))):
            _check_pattern(option, pattern, needed)
        self.root = Path(root)
        self.splits = splits
        self.images = images
        self.masks = masks
        self.labels = labels
        self.palette_masks = palette_masks
        self.augmentation = augmentation
        self.epoch_steps = epoch_steps
        self.batch_size = batch_size
        self.num_workers = num_workers
        self._sets: dict[str, MaskDataset] = {}
        self._classes: Classes | None = None

    # -------------------------------------------------------------------------------------------------- the set

    @property
    def is_cityscapes(self) -> bool:
        return (self.root / "leftImg8bit").is_dir()

    @property
    def classes(self) -> Classes:
        """Of the dataset.

        Raises:
            InputError: there is no such folder, or no file of classes in it.
        """
        if self._classes is None:
            if not self.root.is_dir():
                raise InputError(f"data.root {self.root}: there is no such folder")
            files = [self.root / "classes.json", self.root / "classes.txt"]
            found = next((file for file in files if file.is_file()), None)
            if found is None and not self.is_cityscapes:
                there = ", ".join(sorted(p.name for p in self.root.iterdir())[:6]) or "nothing"
                raise InputError(
                    f"data.root {self.root}: expected classes.txt with one name a line (the first is 0 in the masks), "
                    f"or Cityscapes' leftImg8bit; found {there}"
                )
            self._classes = CITYSCAPES if found is None else read_classes(found)
        return self._classes

    def samples(self, split: str) -> list[Sample]:
        """The images of a split and their masks, which need not exist.

        Raises:
            InputError: no image in it.
        """
        if self.is_cityscapes:
            return find_samples(self.root, split, self.labels)
        samples = []
        for part in split.split("+"):
            folder = self.root / self.images.format(split=part)
            files = sorted(path for path in folder.rglob("*") if _is_image(path))
            if not files:
                what = "is empty" if folder.is_dir() else "there is no such folder"
                raise InputError(f"data: no images for {part!r} in {folder}: {what}")
            for file in files:
                name = file.relative_to(folder).with_suffix("").as_posix()
                samples.append((file, self.root / self.masks.format(split=part, name=name)))
            masks = [mask for _, mask in samples]
            shared = next((b for a, b in pairwise(masks) if a == b), None)
            if shared is not None:
                raise InputError(f"{shared}: the mask of two images, which differ in their ending only")
        return samples

    def _dataset(self, split: str, transform: Callable[..., Any]) -> MaskDataset:
        classes = self.classes  # first: it tells whether there is such a folder at all
        return MaskDataset(self.samples(split), classes, transform, self.palette_masks)

    @override
    def setup(self, stage: str) -> None:
        wanted = {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",))
        for name in wanted:
            transform = self.augmentation.transform() if name == "train" else normalise()
            self._sets[name] = self._dataset(getattr(self.splits, name), transform)
        if stage == "fit":
            self._check(budget=256 * 2**20)

    def _check(self, budget: int) -> None:
        """Finds mistakes before hours are spent: all files must be there, some are decoded."""
        samples = [(dataset, sample) for dataset in self._sets.values() for sample in dataset.samples]
        for _, (_, mask) in samples:
            if not mask.is_file():
                raise InputError(f"{mask}: missing mask")
        checked, pixels = 0, np.zeros(256, np.int64)
        for i in torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist():
            dataset, sample = samples[i]
            pixels += np.bincount(dataset.read(sample)[1].numpy().ravel(), minlength=256)
            checked += 1
            budget -= sum(path.stat().st_size for path in sample)
            if budget <= 0:
                break
        problem = _nothing_to_learn(pixels)
        if problem is not None:
            if checked == len(samples):
                raise InputError(f"data: {problem}")
            warnings.warn(f"of {checked} images read: {problem}", stacklevel=2)
        train, val = (len(self._sets[name]) for name in ("train", "val"))
        say(
            f"data: {train} training and {val} validation images of {len(self.classes.names)} classes; "
            f"{checked if checked < len(samples) else 'all'} of them read without an error"
        )

    def validate(self, progress: Callable[[str, int, int], None]) -> DataReport:
        """Reads every image and mask of the training and validation sets.

        Args:
            progress: is told the split, how many images it has, and how many of them are read.
        """
        names = self.classes.names
        splits = ["train", "val"]
        if self.splits.test not in (self.splits.train, self.splits.val):
            splits.append("test")
        header = [f"{split} {what}" for split in splits for what in ("images", "pixels")]
        report = DataReport(("class", *header))
        columns: list[list[object]] = []
        for split in splits:
            try:
                dataset = self._dataset(getattr(self.splits, split), normalise())
            except InputError as error:
                report.problems.append(str(error))
                columns += [["-"] * (len(names) + 1)] * 2
                continue
            pixels, images = np.zeros(256, np.int64), np.zeros(256, np.int64)
            tell = partial(progress, split, len(dataset))
            spread = dataset.samples[:: max(1, len(dataset) // 8)]
            for sample, (image, mask) in read_all(dataset.samples, dataset.read, report.problems, tell):
                counts = np.bincount(mask.numpy().ravel(), minlength=256)
                pixels += counts
                images += counts > 0
                if len(report.samples) < 8 and sample in spread:
                    report.samples.append(overlay(TF.to_pil_image(image), mask.numpy(), self.classes.colors))
            order = [*range(len(names)), IGNORED]
            columns += [[int(images[i]) for i in order], [f"{pixels[i] / max(pixels.sum(), 1):.2%}" for i in order]]
            never = [names[i] for i in range(len(names)) if pixels[i] == 0]
            if never and pixels.sum():
                report.problems.append(f"{split}: no pixel of {', '.join(never[:5])}{' ...' if len(never) > 5 else ''}")
            problem = _nothing_to_learn(pixels)
            if problem is not None:
                report.problems.append(f"{split}: {problem}")
        report.legend = partial(legend, names, self.classes.colors)
        report.rows = list(zip([*names, "(no label)"], *columns, strict=True))
        return report

    def describe(self) -> dict[str, Any]:
        """What prediction needs to know of the data, as plain values."""
        return {"classes": list(self.classes.names), "colors": [list(color) for color in self.classes.colors]}

    # -------------------------------------------------------------------------------------------------- loaders

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        return self.train_loader(self._sets["train"], steps=self.epoch_steps)

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        return self.eval_loader(self._sets["val"], "val", batch_size=1)

    @override
    def test_dataloader(self) -> DataLoader[Any]:
        return self.eval_loader(self._sets["test"], "test", batch_size=1)


def _is_image(path: Path) -> bool:
    # Hidden files are what file managers leave beside images.
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()


def _check_pattern(option: str, pattern: str, needed: tuple[str, ...]) -> None:
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(pattern) if field is not None}
    except ValueError:
        fields = {"?"}
    accepted = {"split", *needed}
    if not fields <= accepted or not set(needed) <= fields:
        example = {"images": "images/{split}", "masks": "masks/{split}/{name}.png"}[option]
        must = f" and must hold {{{needed[0]}}}" if needed else ""
        raise InputError(
            f"data.{option} may hold {', '.join(f'{{{name}}}' for name in sorted(accepted))}{must}, "
            f'for instance "{example}", got {pattern!r}'
        )


def _nothing_to_learn(pixels: NDArray[np.int64]) -> str | None:
    """What is wrong with masks of such values, counted, or None."""
    if pixels[:IGNORED].sum() == 0:
        return "no pixel has a label: all masks hold 255 only"
    if pixels[1:IGNORED].sum() == 0 and pixels[IGNORED] > 0:
        return "the masks hold 0 and 255 only, and 255 is no label: save the second class as 1"
    return None
