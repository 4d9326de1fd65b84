"""A small real detection dataset in COCO's layout: handwritten digits on photographs, from scikit-learn."""

import shutil
from pathlib import Path

import pytest

from dgmn.quickstart.detection import write

MODELS = ("mask_rcnn", "retinanet")


@pytest.fixture(scope="session")
def few_coco_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coco_scenes") / "few"
    write(folder, {"train": 8, "val": 5, "test": 3})
    return folder


@pytest.fixture
def coco_scenes(few_coco_scenes: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, for a test that changes it."""
    return Path(shutil.copytree(few_coco_scenes, tmp_path / "coco_scenes"))
