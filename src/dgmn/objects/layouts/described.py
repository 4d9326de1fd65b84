"""The base class of the layouts in other formats: they are read into COCO's description, and checked as it is."""

from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import override

from dgmn.errors import InputError
from dgmn.images import image_size
from dgmn.objects.coco import check_coco
from dgmn.objects.coco_set import CocoSet
from dgmn.objects.layouts.layout import Layout

DECIMALS = 9
"""Coordinates in pixels keep so many decimals: what a tool wrote as an integer is read as one."""


@dataclass
class Thing:
    """An object in an image.

    Attributes:
        where: file and place in it, for messages.
        category: name of its class.
        box: x, y, width, height in pixels.
        polygons: its outline as COCO has it, x, y, x, y and so on in pixels; none if only the box is known.
        crowd: whether it is neither learnt nor counted.
        parts: of an object of several shapes, not all with an outline: their polygons, those of rectangles too.
    """

    where: str
    category: str
    box: list[float]
    polygons: list[list[float]] = field(default_factory=list)
    crowd: bool = False
    parts: list[list[float]] = field(default_factory=list)

    @property
    def area(self) -> float:
        """The area of the polygons, or else of the box, in square pixels."""
        return sum(map(_area, self.polygons)) if self.polygons else self.box[2] * self.box[3]


@dataclass
class Labels:
    """What a file says about an image.

    Attributes:
        objects: the objects.
        size: height and width of the image; None if the file does not say it.
        image: name of the image; None if the file does not say it.
        problems: one line for each mistake, with the file and the line or entry.
    """

    objects: list[Thing] = field(default_factory=list)
    size: tuple[int, int] | None = None
    image: str | None = None
    problems: list[str] = field(default_factory=list)


class DescribedLayout(Layout):
    """A format with a file for every image. Ids of categories count from 1, in the order of the classes.

    A part can be several joined by a plus: `VOC2007/trainval+VOC2012/trainval`.
    """

    left_out: Sequence[str] = ()
    """Names of objects that are none."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._contents: dict[str, tuple[dict[str, Any], list[str]]] = {}

    @property
    @abstractmethod
    def classes(self) -> Sequence[str]:
        """The names of the classes, in the order of the labels."""

    @abstractmethod
    def pairs(self, part: str, problems: list[str]) -> list[tuple[Path, Path | None]]:
        """The images of a part, in order, each with its file of labels; None if it has none.

        Raises:
            InputError: there is no such part.
        """

    @abstractmethod
    def labels(self, file: Path, size: tuple[int, int]) -> Labels:
        """Reads a file of labels, of an image of `size` (height, width)."""

    @override
    def samples(self, split: str, masks: bool, problems: list[str] | None = None) -> CocoSet:
        content, found = self._content(split)
        if problems is not None:
            problems += found
        elif found:
            more = f" (and {len(found) - 1} more: dgmn validate-data names them)" if len(found) > 1 else ""
            raise InputError(f"{found[0]}{more}")
        return check_coco(content, self.source(split), self.root, problems, masks)

    @override
    def truth(self, split: str) -> dict[str, Any]:
        return self._content(split)[0]

    @override
    def source(self, split: str) -> Path:
        return self.root

    def _content(self, split: str) -> tuple[dict[str, Any], list[str]]:
        """The description of a part, and its mistakes. It is read once."""
        if split not in self._contents:
            problems: list[str] = []
            numbers = {name: i for i, name in enumerate(self.classes, 1)}
            pairs = [pair for part in self.parts_of(split) for pair in self.pairs(part, problems)]
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            with ThreadPoolExecutor() as pool:  # of a network's disk, many files are read in the time of one
                for (image, _), labels in zip(pairs, pool.map(self._read, pairs), strict=True):
                    problems += labels.problems
                    height, width = labels.size or (1, 1)
                    number = len(images) + 1
                    images.append({"id": number, "file_name": self._name(image), "width": width, "height": height})
                    for thing in labels.objects:
                        if thing.category in self.left_out:
                            continue
                        if thing.category not in numbers:
                            known = f"{len(numbers)} classes of {self.source(split)}"
                            problems.append(f"{thing.where}: {thing.category!r} is none of the {known}")
                            continue
                        annotations.append(
                            {
                                **{"id": len(annotations) + 1, "image_id": number},
                                **{"category_id": numbers[thing.category], "bbox": thing.box, "area": thing.area},
                                **{"iscrowd": int(thing.crowd)},
                                **({"segmentation": thing.polygons} if thing.polygons else {}),
                                **({"parts": thing.parts} if thing.parts else {}),
                            }
                        )
            # Not by `numbers`, which has a name once: the check finds names that are there twice.
            categories = [{"id": i, "name": name} for i, name in enumerate(self.classes, 1)]
            content = {"images": images, "annotations": annotations, "categories": categories}
            self._contents[split] = content, problems
        return self._contents[split]

    def _read(self, pair: tuple[Path, Path | None]) -> Labels:
        image, file = pair
        try:
            size = image_size(image)
        except (InputError, FileNotFoundError):
            return Labels()  # who reads the image will say what is wrong with it, or leave it out
        try:
            labels = Labels() if file is None else self.labels(file, size)
        except InputError as error:
            return Labels(size=size, problems=[str(error)])
        labels.size = labels.size or size
        return labels

    def _name(self, image: Path) -> str:
        return str(image.relative_to(self.root) if image.is_relative_to(self.root) else image.absolute())


def exact(value: float) -> float:
    """A coordinate in pixels, without the noise of its computation."""
    return round(value, DECIMALS)


def around(polygons: Sequence[Sequence[float]]) -> list[float]:
    """The box around polygons: x, y, width, height."""
    xs, ys = ([value for polygon in polygons for value in polygon[axis::2]] for axis in (0, 1))
    return [min(xs), min(ys), exact(max(xs) - min(xs)), exact(max(ys) - min(ys))]


def _area(polygon: Sequence[float]) -> float:
    xs, ys = polygon[::2], polygon[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2
