"""A small real segmentation dataset in Cityscapes' layout: handwritten digits on photographs, from scikit-learn."""

import shutil
from pathlib import Path

import pytest

from dgmn.quickstart.segmentation import write

RECIPE = "recipes/segmentation/scenes.yaml"


@pytest.fixture(scope="session")
def few_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "few"
    write(folder, {"train": 24, "val": 7, "test": 3})
    return folder


@pytest.fixture
def scenes(few_scenes: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, for a test that changes it."""
    return Path(shutil.copytree(few_scenes, tmp_path / "scenes"))
