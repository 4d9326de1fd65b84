"""Images with their objects, held so that the processes that load images share them."""

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from dgmn.errors import InputError


@dataclass
class CocoImage:
    """An image and its annotations.

    Attributes:
        id: id of the image in the file.
        path: path of the image.
        size: height and width according to the file.
        objects: annotations with `category_id`, `bbox` within the image, `iscrowd` (0 or 1) and, if there are some and
            they are wanted, `id` and `segmentation`.
        left_out: the same of those of which less than a pixel is in the image. The evaluation counts them.
    """

    id: int | str
    path: Path
    size: tuple[int, int]
    objects: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)

    @property
    def to_learn(self) -> list[dict[str, Any]]:
        """The objects that are no crowds."""
        return [entry for entry in self.objects if not entry["iscrowd"]]


class CocoImages(Sequence[CocoImage]):
    """A sequence of images that is held as arrays; an image is made anew whenever it is asked for.

    A process that loads images shares the memory of the process that started it, until it writes to it. Python writes
    to every object that it looks at, to count references, so each of these processes would get its own copy of all
    objects. It writes into no array.

    Args:
        images: the images.

    Attributes:
        sizes: height and width of every image, (N, 2).
        to_learn: how many objects of every image are no crowds, (N,).
        objects: how many objects every image has, (N,).
        left_out: how many boxes of every image are left out, (N,).
        outlined: how many of the objects that are no crowds have a segmentation, (N,).
    """

    def __init__(self, images: Iterable[CocoImage]) -> None:
        content, facts = bytearray(), []
        for image in images:
            start = len(content)
            content += pickle.dumps(image, pickle.HIGHEST_PROTOCOL)
            outlined = sum(bool(entry.get("segmentation")) for entry in image.to_learn)
            counts = (len(image.to_learn), len(image.objects), len(image.left_out), outlined)
            facts.append((start, len(content), *image.size, *counts))
        self._content = np.frombuffer(content, np.uint8)
        self._facts: NDArray[np.int64] = np.array(facts, np.int64).reshape(-1, 8)

    @property
    def sizes(self) -> NDArray[np.int64]:
        return self._facts[:, 2:4]

    @property
    def to_learn(self) -> NDArray[np.int64]:
        return self._facts[:, 4]

    @property
    def objects(self) -> NDArray[np.int64]:
        return self._facts[:, 5]

    @property
    def left_out(self) -> NDArray[np.int64]:
        return self._facts[:, 6]

    @property
    def outlined(self) -> NDArray[np.int64]:
        return self._facts[:, 7]

    @override
    def __len__(self) -> int:
        return len(self._facts)

    @overload
    def __getitem__(self, index: int) -> CocoImage: ...
    @overload
    def __getitem__(self, index: slice | NDArray[Any]) -> "CocoImages": ...
    @override
    def __getitem__(self, index: int | slice | NDArray[Any]) -> "CocoImage | CocoImages":
        """An image; or those of a slice, or where an array is true, which share their content with these."""
        if isinstance(index, slice | np.ndarray):
            some = CocoImages(())
            some._content, some._facts = self._content, self._facts[index]
            return some
        start, end = self._facts[index, :2]
        image: CocoImage = pickle.loads(self._content[start:end].data)  # only what this class has written
        return image


@dataclass(frozen=True)
class CocoSet:
    """Images and categories of a file.

    Attributes:
        images: images in the order of their ids.
        names: names of the categories, in the order of the labels.
        ids: ids of the categories in the file; label i is category ids[i].
    """

    images: CocoImages
    names: tuple[str, ...]
    ids: tuple[int, ...]

    @property
    def left_out(self) -> int:
        """The number of boxes that are left out because less than a pixel of them is in the image."""
        return int(self.images.left_out.sum())

    def labelled_by_id(self) -> "CocoSet":
        """The same with a label for every number up to the largest id, so that an object's label is its category id.

        Raises:
            InputError: an id is below 0, or above 999.
        """
        if not self.ids:
            return self
        if not 0 <= self.ids[0] <= self.ids[-1] < 1000:
            raise InputError(f"data.ids_as_labels: category ids must be in 0..999, got {self.ids[0]}..{self.ids[-1]}")
        names = dict(zip(self.ids, self.names, strict=True))
        ids = range(self.ids[-1] + 1)
        return replace(self, names=tuple(names.get(number, f"no category {number}") for number in ids), ids=tuple(ids))
