"""Images and masks for training and evaluation, read by one of the layouts."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF
from typing_extensions import override

from dgmn.errors import InputError
from dgmn.layout import find_layout
from dgmn.pictures import legend, overlay
from dgmn.report import DataReport, alike, equal_files, in_several, in_threads, read_all, say
from dgmn.segmentation.labels import Palettes, painted_colors
from dgmn.segmentation.layouts import LAYOUTS, Layout
from dgmn.segmentation.losses import IGNORED
from dgmn.segmentation.transforms import Augmentation, normalise
from dgmn.training.data import ImageData
from dgmn_base.files import is_image
from dgmn_base.terminal import Progress, counted


@dataclass(frozen=True)
class Splits:
    """The names of the splits of a dataset; "train+val" takes both.

    Attributes:
        train: split to train on.
        val: split to validate on.
        test: split for `dgmn test`; None takes that of `val`.
    """

    train: str = "train"
    val: str = "val"
    test: str | None = None

    def name(self, part: str) -> str:
        """The split for "train", "val" or "test"."""
        return (self.test or self.val) if part == "test" else str(getattr(self, part))


class MaskDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images (3, H, W) with masks (H, W), uint8, whose values are class numbers, and 255 for no label.

    Args:
        layout: reads the images and masks.
        split: name of the split.
        transform: is applied to an image and its mask together.
    """

    def __init__(self, layout: Layout, split: str, transform: Callable[..., Any]) -> None:
        self.layout = layout
        self.samples = layout.samples(split)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.layout.read(self.samples[index])
        image, mask = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return image.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor)


class SegmentationData(ImageData):
    """Images with a class for every pixel.

    `root` holds folders of images and masks with `classes.txt` or `classes.json` (see
    [`read_classes`][dgmn.segmentation.labels.read_classes]), or another of the layouts in `docs/formats.md`.

    Args:
        root: folder of the dataset.
        splits: names of the splits.
        images: folder of a split's images, below `root`; `{split}` is the name of the split. For folders of masks and
            for COCO's outlines; None looks into the folder.
        masks: path of an image's mask, below `root`; `{name}` is the image's path below `images`, without extension.
            For folders of masks; None looks into the folder.
        labels: folder of the masks: "gtFine" (None) or "gtCoarse" of Cityscapes, "SegmentationClass" (None) or another
            of Pascal VOC.
        annotations: in COCO's layout, the file with a part's annotations, below `root`.
        layout: name of the layout, such as "folders", "cityscapes" or "voc"; None looks into the folder.
        palette_masks: accept masks with a palette; their indices are the class numbers.
        augmentation: augmentation of the training images.
        epoch_steps: training steps of an epoch; the validation runs after them. None passes through the set once.
        batch_size: images per device in a training step. Validation takes one image at a time, at its own size.
        num_workers: processes per device that load images.
    """

    eval_batch_size: ClassVar[int | None] = 1

    def __init__(
        self,
        root: Path | str,
        splits: Splits = Splits(),
        images: str | None = None,
        masks: str | None = None,
        labels: str | None = None,
        annotations: str | None = None,
        layout: str | None = None,
        palette_masks: bool = False,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 - the command line shows its defaults
        epoch_steps: int | None = None,
        batch_size: int = 8,
        num_workers: int = 4,
    ) -> None:
        super().__init__(batch_size, num_workers, epoch_steps)
        self.root = Path(root)
        self.splits = splits
        self.augmentation = augmentation
        self._layout_name = layout
        self._options = {
            **{"images": images, "masks": masks, "labels": labels, "annotations": annotations},
            "palette_masks": palette_masks or None,
        }

    @cached_property
    def layout(self) -> Layout:
        """The layout of the dataset.

        Raises:
            InputError: there is no such folder, or no layout fits it, or several do.
        """
        return find_layout(LAYOUTS, self.root, self._layout_name, self._options)

    @override
    def prepare_data(self) -> None:
        """Writes a split down, in one process."""
        told = self.layout.keep_split()
        if told:
            say(f"data: {told}")

    @property
    @override
    def names(self) -> tuple[str, ...]:
        return self.layout.classes.names

    @override
    def dataset(self, split: str) -> MaskDataset:
        preprocessing = self.preprocessing
        transform = self.augmentation.transform(preprocessing) if split == "train" else normalise(preprocessing)
        return MaskDataset(self.layout, self.splits.name(split), transform)

    @override
    def check(self, budget: int = 256 * 2**20) -> None:
        """Checks that all masks exist, and reads images and masks until `budget` bytes are read."""
        samples = [(split, sample) for split, dataset in self._sets.items() for sample in dataset.samples]
        for _, sample in samples:
            if not sample.mask.is_file():
                raise InputError(f"{sample.mask}: missing mask")
        checked, counts, palettes = 0, {split: np.zeros(256, np.int64) for split in self._sets}, Palettes()
        for i in torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist():
            split, sample = samples[i]
            labels = self._sets[split].layout.read(sample)[1]
            counts[split] += np.bincount(labels.numpy().ravel(), minlength=256)
            contradiction = palettes.compare(sample.mask) if self.layout.palette_masks else None
            if contradiction is not None:
                warnings.warn(contradiction, stacklevel=2)
            checked += 1
            budget -= sum(file.stat().st_size for file in {sample.image, sample.mask} if is_image(file))
            if budget <= 0:
                break
        problem = _nothing_to_learn(sum(counts.values(), np.zeros(256, np.int64)))
        empty = [split for split, pixels in counts.items() if not pixels[:IGNORED].any()]
        if problem is None and empty and checked == len(samples):
            raise InputError(f"data: no pixel of {empty[0]} has a label: all its masks hold 255 only")
        if problem is not None:
            if checked == len(samples):
                raise InputError(f"data: {problem}")
            warnings.warn(f"in {counted(checked, 'image')} that were read: {problem}", stacklevel=2)
        train, val = (len(self._sets[name]) for name in ("train", "val"))
        say(
            f"data: {self.layout.title} layout, {train} training and {counted(val, 'validation image')} "
            f"of {counted(len(self.names), 'class')}; "
            f"{checked if checked < len(samples) else 'all'} of them read without an error"
        )

    @property
    @override
    def has_test(self) -> bool:
        return self.splits.name("test") != self.splits.val

    @override
    def validate(self, progress: Callable[[str, int, int], None]) -> DataReport:
        names, colors = self.names, painted_colors(self.names, self.layout.classes.colors)
        splits = ["train", "val"]
        if self.splits.name("test") not in (self.splits.train, self.splits.val):
            splits.append("test")
        header = [f"{split} {what}" for split in splits for what in ("images", "pixels")]
        report = DataReport(("class", *header))
        columns: list[list[object]] = []
        palettes = Palettes()
        total = 0
        paths: dict[str, set[Path]] = {}
        for split in splits:
            try:
                mistakes = self.layout.mistakes(self.splits.name(split))
                samples = [] if mistakes else self.layout.samples(self.splits.name(split))
            except InputError as error:
                mistakes = [str(error)]
            if mistakes:
                # What is wrong with all images together is told once.
                report.problems += [each for each in mistakes if not each.startswith(tuple(report.problems))]
                columns += [["-"] * (len(names) + 1)] * 2
                continue
            total += len(samples)
            paths[split] = {sample.image for sample in samples}
            pixels, images = np.zeros(256, np.int64), np.zeros(256, np.int64)
            tell = partial(progress, split, len(samples))
            spread = samples[:: max(1, len(samples) // 8)]
            for sample, (image, mask) in read_all(samples, self.layout.read, report.problems, tell):
                counts = np.bincount(mask.numpy().ravel(), minlength=256)
                pixels += counts
                images += counts > 0
                contradiction = palettes.compare(sample.mask) if self.layout.palette_masks else None
                if contradiction is not None:
                    report.problems.append(contradiction)
                if len(report.samples) < 8 and sample in spread:
                    report.samples.append(overlay(TF.to_pil_image(image), mask.numpy(), colors))
            order = [*range(len(names)), IGNORED]
            columns += [[int(images[i]) for i in order], [f"{pixels[i] / max(pixels.sum(), 1):.2%}" for i in order]]
            never = [names[i] for i in range(len(names)) if pixels[i] == 0]
            if never and pixels.sum():
                # A small validation set often lacks a rare class; what the training lacks is never learnt.
                told = report.problems if split == "train" else report.notes
                told.append(f"{split}: no pixel of {', '.join(never[:5])}{' ...' if len(never) > 5 else ''}")
            problem = _nothing_to_learn(pixels)
            if problem is not None and pixels.sum():  # if no mask could be read, that is said already
                report.problems.append(f"{split}: {problem}")
        report.told = f"{self.layout.title} layout, {counted(len(names), 'class')}, {counted(total, 'image')}"
        report.notes += [*in_several(paths, equal_files(*paths.values())), *alike(names)]
        report.legend = partial(legend, names, colors)
        report.rows = list(zip([*names, "(no label)"], *columns, strict=True))
        return report

    @override
    def class_counts(self) -> list[int]:
        samples = self._sets["train"].samples
        pixels, progress = np.zeros(256, np.int64), Progress()
        for done, (_, mask) in enumerate(in_threads(self.layout.read_mask, samples), 1):
            pixels += np.bincount(mask.ravel(), minlength=256)
            progress.show(done, len(samples), "masks read for the weights of classes")
        return [int(count) for count in pixels[: len(self.names)]]

    @override
    def describe(self) -> dict[str, Any]:
        return {"classes": list(self.names), "colors": [list(color) for color in self.layout.classes.colors]}


def _nothing_to_learn(pixels: NDArray[np.int64]) -> str | None:
    """What is wrong with masks whose values have these counts; None if nothing is."""
    if pixels[:IGNORED].sum() == 0:
        return "no pixel has a label: all masks hold 255 only"
    if pixels[1:IGNORED].sum() == 0 and pixels[IGNORED] > 0:
        return "the masks hold 0 and 255 only, and 255 is no label: save the second class as 1"
    return None
