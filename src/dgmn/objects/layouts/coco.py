"""COCO as unpacked: folders of images, and one file of annotations for each folder."""

from pathlib import Path

from dgmn.objects.coco import read_coco
from dgmn.objects.coco_set import CocoSet
from dgmn.objects.layouts.layout import Layout
from dgmn_base.files import is_hidden


class CocoFiles(Layout):
    """COCO's files: `train2017/*.jpg`, `annotations/instances_train2017.json` and so on.

    Args:
        root: folder of the dataset.
        images: folder with a part's images, below `root`; `{split}` stands for the part's name. If there is no folder
            `{split}`, the images may be in `images/{split}` or in `images`.
        annotations: file with a part's annotations, below `root`; `{split}` stands for the part's name.
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
    def fits(root: Path) -> bool:
        return any((root / "annotations").glob("*.json"))

    def splits(self) -> list[str]:
        before, _, after = self.annotations.partition("{split}")
        files = (file for file in self.root.glob(f"{before}*{after}") if not is_hidden(file.name))
        return sorted(f.relative_to(self.root).as_posix().removeprefix(before).removesuffix(after) for f in files)

    def truth(self, split: str) -> Path:
        file = self.source(split)
        if not file.is_file():
            raise self.no_part(split, str(file))
        return file

    def source(self, split: str) -> Path:
        return self.root / self.annotations.replace("{split}", split)

    def samples(self, split: str, masks: bool, problems: list[str] | None = None) -> CocoSet:
        return read_coco(self.truth(split), self._folder(split), problems, masks)

    def _folder(self, split: str) -> Path:
        wanted = self.root / self.images.replace("{split}", split)
        places = (wanted, self.root / "images" / split, self.root / "images") if self.images == "{split}" else (wanted,)
        return next((place for place in places if place.is_dir()), wanted)
