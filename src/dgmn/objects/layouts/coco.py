"""COCO as unpacked: folders of images, and one file of annotations for each folder."""

import glob
import os
from pathlib import Path

from typing_extensions import override

from dgmn.errors import InputError
from dgmn.objects.coco import read_coco
from dgmn.objects.coco_set import CocoSet
from dgmn.objects.layouts.layout import WHOLE, Layout
from dgmn_base.files import is_hidden

_PEEK = 2**16  # bytes; a file begins with its images, or with what is said about them all


class CocoFiles(Layout):
    """COCO's files: `train2017/*.jpg`, `annotations/instances_train2017.json` and so on.

    Label Studio, FiftyOne and others write one file, in the dataset's folder, for all images: it is the part "all".

    Args:
        root: folder of the dataset.
        images: folder with a part's images, below `root`; `{split}` stands for the part's name. If there is no folder
            `{split}`, the images may be in `images/{split}`, `images`, `data` or, with one file for all, in `root`.
        annotations: file with a part's annotations, below `root`; `{split}` stands for the part's name. Without
            `{split}`, it is for all images.
    """

    name = "coco"
    title = "COCO"
    files_told = "annotations/instances_train.json"

    def __init__(
        self, root: Path, images: str = "{split}", annotations: str = "annotations/instances_{split}.json"
    ) -> None:
        super().__init__(root)
        self.images = images
        self.annotations = annotations

    @staticmethod
    @override
    def fits(root: Path) -> bool:
        inside = (root / "annotations").glob("*.json")
        return any(not is_hidden(file.name) for file in inside) or bool(_for_all(root))

    @override
    def splits(self) -> list[str]:
        before, here, after = self.annotations.partition("{split}")
        if not here:
            return [WHOLE] if (self.root / self.annotations).is_file() else []
        start, end = (os.path.join(glob.escape(str(self.root)), glob.escape(before)), glob.escape(after))
        files = (file for file in glob.glob(f"{start}*{end}") if not is_hidden(os.path.basename(file)))
        found = [file.removeprefix(os.path.join(self.root, before)).removesuffix(after) for file in files]
        return sorted(found) or ([WHOLE] if _for_all(self.root) else [])

    @override
    def truth(self, split: str) -> Path:
        file = self.source(split)
        if not file.is_file():
            raise self.no_part(split, str(file))
        return file

    @override
    def source(self, split: str) -> Path:
        file = self.root / self.annotations.replace("{split}", split)
        if split != WHOLE or file.is_file() or not (files := _for_all(self.root)):
            return file
        if len(files) > 1:
            names = " or ".join(f"--data.annotations {each.name}" for each in files)
            raise InputError(f"data.root {self.root}: several files of annotations; choose with {names}")
        return files[0]

    @override
    def samples(self, split: str, masks: bool, problems: list[str] | None = None) -> CocoSet:
        return read_coco(self.truth(split), self._folder(split), problems, masks)

    def _folder(self, split: str) -> Path:
        wanted = self.root / self.images.replace("{split}", split)
        if self.images != "{split}":
            return wanted
        for_all = (self.root / "data", self.root) if self.splits() == [WHOLE] else ()
        places = (wanted, self.root / "images" / split, self.root / "images", *for_all)
        return next((place for place in places if place.is_dir()), wanted)


def _for_all(root: Path) -> list[Path]:
    """The files in `root` that seem to be in COCO's format."""
    files = (file for file in sorted(root.glob("*.json")) if file.is_file() and not is_hidden(file.name))
    return [file for file in files if _seems_coco(file)]


def _seems_coco(file: Path) -> bool:
    with file.open("rb") as source:
        start = source.read(_PEEK)
    return b'"images"' in start and b'"shapes"' not in start
