"""The base class of all layouts of images and objects."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from dgmn.errors import InputError
from dgmn.images import load_annotated
from dgmn.layout import DataLayout
from dgmn.objects.coco import to_target
from dgmn.objects.coco_set import CocoImage, CocoSet

Target = dict[str, Any]

WHOLE = "all"
"""The part of a dataset without parts."""


class Layout(DataLayout):
    """How images and their objects lie on disk. Every format is a subclass."""

    undivided: ClassVar[tuple[str, ...]] = (WHOLE, "default")
    """A part of such a name holds all images, if it is the only one: tools call it so."""

    @abstractmethod
    def samples(self, split: str, masks: bool, problems: list[str] | None = None) -> CocoSet:
        """The images of a part with their objects, and the categories.

        Args:
            split: name of the part.
            masks: keep the segmentations.
            problems: a list that gets all mistakes, one line each; None raises the first mistake.

        Raises:
            InputError: there is no such part, or (without `problems`) an entry is wrong; the message names it.
        """

    @abstractmethod
    def truth(self, split: str) -> Path | dict[str, Any]:
        """The annotations of a part in COCO's format, a file or its content, for the evaluation."""

    @abstractmethod
    def source(self, split: str) -> Path:
        """Where the objects of a part are from, for messages."""

    def no_part(self, part: str, expected: str) -> InputError:
        """The error that there is no such part."""
        known = self.splits()
        there = f"; there are {', '.join(known)} (--data.train, --data.val choose)" if known else ""
        return InputError(f"data: no part {part!r} in {self.root}: expected {expected}{there}")

    def read(self, entry: CocoImage, categories: CocoSet, masks: bool) -> tuple[Tensor, Target]:
        """An image (3, H, W), uint8, and its target: `boxes`, `labels`, `image_id` and, if asked for, `masks`.

        Raises:
            InputError: the image or its target cannot be read, or the image's size differs from the annotations.
        """
        try:
            image = load_annotated(entry.path, entry.size)
        except FileNotFoundError as error:
            raise InputError(f"{entry.path}: missing image") from error
        if image.size != entry.size[::-1]:
            here, there = (f"{width} x {height}" for width, height in (image.size, entry.size[::-1]))
            raise InputError(f"{entry.path}: {here} pixels, the annotations say {there}")
        try:
            target: Target = to_target(entry, categories.ids, masks)
        except InputError as error:
            raise InputError(f"{entry.path}: {error}") from error
        return TF.pil_to_tensor(image), {**target, "image_id": entry.id}
