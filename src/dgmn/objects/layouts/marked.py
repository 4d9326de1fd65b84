"""The base class of the layouts whose files name the classes of their objects: Pascal VOC and LabelMe."""

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from typing_extensions import override

from dgmn.objects.layouts.described import DescribedLayout, Labels
from dgmn.objects.layouts.layout import WHOLE
from dgmn_base.files import files_in, folders_in, images_in, is_file, is_hidden, is_image, numbered_lines

_NO_CLASSES = ("__ignore__", "_background_")  # LabelMe's lists begin with them


class MarkedLayout(DescribedLayout):
    """A folder for each part, with images, and beside each a file with its objects. Images without a file are empty.

    If the files lie in the dataset's folder itself, as annotation tools leave them, they are the part "all".

    The classes are those of `classes.txt` or `labels.txt`, one name a line. If there is none, they are the names in the
    files of all parts, sorted.
    """

    suffix: ClassVar[str]
    left_out: Sequence[str] = _NO_CLASSES

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._read_files: dict[Path, Labels] = {}

    @abstractmethod
    def parsed(self, file: Path) -> Labels:
        """Reads a file of labels; mistakes are in the result."""

    @override
    def labels(self, file: Path, size: tuple[int, int]) -> Labels:
        if file not in self._read_files:
            self._read_files[file] = self.parsed(file)
        return self._read_files[file]

    @cached_property
    def classes(self) -> Sequence[str]:
        listed = self.class_list()
        if listed is not None:
            return listed
        found = [self.labels(file, (1, 1)) for part in self.splits() for file in self.files(part)]
        names = {thing.category for labels in found for thing in labels.objects}
        return sorted(names - {*self.left_out})

    def class_list(self) -> list[str] | None:
        """The names in the list of classes; None if there is no list."""
        file = next((file for name in ("classes.txt", "labels.txt") if (file := self.root / name).is_file()), None)
        return None if file is None else [name for _, name in numbered_lines(file) if name not in self.left_out]

    def files(self, part: str) -> list[Path]:
        """The files with the objects of a part."""
        return files_in(self.folder(part), (self.suffix,))

    def folder(self, part: str) -> Path:
        """The folder of a part."""
        return self.root if part == WHOLE and not holds(self.root / part, self.suffix) else self.root / part

    @override
    def splits(self) -> list[str]:
        return parts_with(self.root, self.suffix)

    def tell_of_others(self, part: str) -> None:
        """Warns of images with labels beside the folders of the parts."""
        if part == WHOLE or not holds(self.root, self.suffix):
            return
        inside = [path for path in self.root.iterdir() if is_image(path) and path.with_suffix(self.suffix).is_file()]
        if inside:
            where = f"beside the folders {', '.join(self.splits())}"
            what = f"{len(inside)} images with labels are in no part, such as {inside[0].name}"
            warnings.warn(f"{self.root}: {what}: they lie {where}", stacklevel=2)

    @override
    def pairs(self, part: str, problems: list[str]) -> list[tuple[Path, Path | None]]:
        folder = self.folder(part)
        if not part or not folder.is_dir():
            raise self.no_part(part, f"a folder {folder} with images and {self.suffix} files")
        self.tell_of_others(part)
        images = images_in(folder)
        beside = {image.with_suffix(""): image for image in images}
        of_image: dict[Path, Path | None] = dict.fromkeys(images)
        for file in self.files(part):
            named = (self.labels(file, (1, 1)).image or "").replace("\\", "/")
            places = [file.parent / named, file.parent / named.rpartition("/")[2]] if named else []
            stem = file.with_suffix("")
            # The name tells a.jpg from a.png. But after files were renamed, it is often the old one.
            image = next((place for place in places if place.with_suffix("") == stem and place in of_image), None)
            image = image or beside.get(stem) or next((place for place in places if is_file(place)), None)
            if image is None:
                problems.append(f"{file}: no image {stem}.*{f' or {places[0]}' if places else ''}")
            elif of_image.get(image) is not None:
                problems.append(f"{file}: {of_image[image]} has the objects of {image}, too")
            else:
                of_image[image] = file
        return sorted(of_image.items())


def parts_with(root: Path, suffix: str) -> list[str]:
    """The folders in `root` that hold files with this extension; the part "all" if only `root` itself does."""
    parts = [name for name in folders_in(root) if holds(root / name, suffix)]
    return parts or ([WHOLE] if holds(root, suffix) else [])


def holds(folder: Path, suffix: str) -> bool:
    """Whether there are files with this extension in a folder itself."""
    return any(not is_hidden(file.name) for file in folder.glob(f"*{suffix}"))
