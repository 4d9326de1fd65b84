"""The base of all layouts of images and masks."""

from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from dgmn.errors import InputError
from dgmn.images import load_image
from dgmn.layout import DataLayout
from dgmn.segmentation.labels import Classes


@dataclass(frozen=True)
class Sample:
    """An image and the file that its mask is read from; the files need not exist.

    Attributes:
        image: path of the image.
        mask: path of the mask, or of the file that describes it.
        facts: what else its layout needs to read the mask.
    """

    image: Path
    mask: Path
    facts: Any = field(default=None, compare=False, repr=False)


class Layout(DataLayout):
    """How images and masks lie on disk. Each format is a subclass.

    Attributes:
        classes: the classes in the masks.
        palette_masks: masks may have a palette, whose indices are the class numbers.
    """

    classes: Classes
    palette_masks = False

    @abstractmethod
    def samples(self, split: str) -> list[Sample]:
        """The images of a split with their masks, in order; "train+val" gives both splits.

        Raises:
            InputError: the split has no image; the message says what is there.
        """

    @abstractmethod
    def read_mask(self, sample: Sample) -> NDArray[np.uint8]:
        """The mask (H, W) of an image, in class numbers; 255 is no label.

        Raises:
            InputError: the mask cannot be read, or holds a value that no class has; the message names the file.
        """

    def mistakes(self, split: str) -> list[str]:
        """All that is wrong with the description of a split, a line each, where `samples` raises the first."""
        return []

    def keep_split(self) -> str:
        """Writes the split of a dataset without parts down; what is to be said about it, in one line, or nothing."""
        return ""

    def read(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """An image (3, H, W) and its mask (H, W), both uint8.

        Raises:
            InputError: one of them cannot be read, or their sizes differ.
        """
        mask = self.read_mask(sample)
        try:
            image: Tensor = TF.pil_to_tensor(self.load(sample))
        except FileNotFoundError as error:
            raise InputError(f"{sample.image}: missing image") from error
        if image.shape[1:] != mask.shape:
            sizes = f"{mask.shape[1]} x {mask.shape[0]} pixels, its image {image.shape[2]} x {image.shape[1]}"
            stored = load_image(sample.image, upright=False).size
            turned = " (turned upright as its EXIF entry says)" if stored == mask.shape[::-1] else ""
            raise InputError(f"{sample.mask}: {sizes}{turned}: they must be equal")
        return image, torch.from_numpy(mask)

    def load(self, sample: Sample) -> Image.Image:
        """The image of a sample, upright."""
        return load_image(sample.image)

    def no_part(self, part: str, expected: str) -> InputError:
        """The error that there is no such split."""
        known = self.splits()
        there = f"; there are {', '.join(known)} (--data.splits.train, .val and .test choose)" if known else ""
        return InputError(f"data: no part {part!r} in {self.root}: expected {expected}{there}")
