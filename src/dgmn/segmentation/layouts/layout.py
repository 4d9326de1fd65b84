"""The base of all layouts of images and masks."""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from dgmn.errors import InputError
from dgmn.images import load_image
from dgmn.layout import DataLayout
from dgmn.segmentation.labels import Classes


@dataclass(frozen=True)
class Sample:
    """The paths of an image and its mask; the files need not exist."""

    image: Path
    mask: Path


class Layout(DataLayout):
    """How images and masks lie on disk. Each format is a subclass.

    Attributes:
        classes: the classes in the masks.
    """

    classes: Classes

    @abstractmethod
    def samples(self, split: str) -> list[Sample]:
        """The images of a split with their masks, in order; "train+val" gives both splits.

        Raises:
            InputError: the split has no image; the message says what is there.
        """

    @abstractmethod
    def read_mask(self, path: Path) -> NDArray[np.uint8]:
        """A mask (H, W) of class numbers; 255 is no label.

        Raises:
            InputError: the mask cannot be read, or holds a value that no class has; the message names the file.
        """

    def read(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """An image (3, H, W) and its mask (H, W), both uint8.

        Raises:
            InputError: one of them cannot be read, or their sizes differ.
        """
        mask = self.read_mask(sample.mask)
        try:
            image: Tensor = TF.pil_to_tensor(load_image(sample.image))
        except FileNotFoundError as error:
            raise InputError(f"{sample.image}: missing image") from error
        if image.shape[1:] != mask.shape:
            sizes = f"{mask.shape[1]} x {mask.shape[0]} pixels, its image {image.shape[2]} x {image.shape[1]}"
            stored = load_image(sample.image, upright=False).size
            turned = " (turned upright as its EXIF entry says)" if stored == mask.shape[::-1] else ""
            raise InputError(f"{sample.mask}: {sizes}{turned}: they must be equal")
        return image, torch.from_numpy(mask)
