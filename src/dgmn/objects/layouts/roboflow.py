"""Roboflow's exports in COCO's format: a folder for each part, with its annotations beside the images."""

from functools import cached_property
from pathlib import Path
from typing import Any

from typing_extensions import override

from dgmn.errors import InputError
from dgmn.objects.coco import check_coco, load_annotations
from dgmn.objects.coco_set import CocoSet
from dgmn.objects.layouts.layout import Layout
from dgmn.split import VAL
from dgmn_base.files import folders_in

_FILE = "_annotations.coco.json"


class Roboflow(Layout):
    """Roboflow: `train/*.jpg`, `train/_annotations.coco.json`, and the same in `test` and `valid` (or val, validation).

    Roboflow adds a category for the whole project, the superclass of all others. It has no annotations, so it is left
    out: it would be a class that nothing is.
    """

    name = "roboflow"
    title = "Roboflow COCO"
    files_told = f"train/{_FILE}"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._contents: dict[str, dict[str, list[Any]]] = {}

    @staticmethod
    @override
    def fits(root: Path) -> bool:
        return any((root / name / _FILE).is_file() for name in folders_in(root))

    @override
    def splits(self) -> list[str]:
        return [name for name in folders_in(self.root) if (self.root / name / _FILE).is_file()]

    @override
    def source(self, split: str) -> Path:
        parts = self.splits()
        names = VAL if split == "val" else (split,)
        return self.root / next((name for name in names if name in parts), split) / _FILE

    @override
    def truth(self, split: str) -> dict[str, Any]:
        content = self._loaded(split)
        kept = [entry for entry in content["categories"] if _key(entry) != self._superclass]
        return {**content, "categories": kept} if self._superclass else content

    @override
    def samples(self, split: str, masks: bool, problems: list[str] | None = None) -> CocoSet:
        file = self.source(split)
        return check_coco(self.truth(split), file, file.parent, problems, masks)

    def _loaded(self, split: str) -> dict[str, list[Any]]:
        if split not in self._contents:
            file = self.source(split)
            if not file.is_file():
                raise self.no_part(split, str(file))
            self._contents[split] = load_annotations(file)
        return self._contents[split]

    @cached_property
    def _superclass(self) -> tuple[str, str] | None:
        """The category that all others have as their supercategory, if no part has an annotation of it."""
        contents = []
        for part in self.splits():
            try:
                contents.append(self._loaded(part))
            except InputError:
                continue  # who reads this part says what is wrong with it
        entries = contents[0]["categories"] if contents else []
        for i, entry in enumerate(entries):
            others = entries[:i] + entries[i + 1 :]
            if not others or not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                continue
            above = {repr(other.get("supercategory")) if isinstance(other, dict) else "" for other in others}
            if above == {repr(entry["name"])} and not any(_has_category(content, entry) for content in contents):
                return _key(entry)
        return None


def _key(entry: Any) -> tuple[str, str]:
    """Id and name of a category, also of a wrong one."""
    return (repr(entry.get("id")), repr(entry.get("name"))) if isinstance(entry, dict) else ("", "")


def _has_category(content: dict[str, list[Any]], category: dict[str, Any]) -> bool:
    return any(
        isinstance(entry, dict) and entry.get("category_id") == category.get("id") for entry in content["annotations"]
    )
