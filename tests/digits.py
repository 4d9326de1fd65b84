"""Small real datasets in ImageFolder layout, made of scikit-learn's handwritten digits."""

import shutil
from pathlib import Path

import pytest

from dgmn.quickstart.classification import write as write_digits

RECIPE = "recipes/classification/digits.yaml"


@pytest.fixture(scope="session")
def all_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "all"
    write_digits(folder)
    return folder


@pytest.fixture(scope="session")
def few_digits(all_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 training, 41 validation and 21 test images of three classes. Two processes cannot share 41 or 21 evenly."""
    folder = tmp_path_factory.mktemp("digits") / "few"
    for split, counts in {"train": (34, 33, 33), "val": (14, 14, 13), "test": (7, 7, 7)}.items():
        for digit, count in enumerate(counts):
            target = folder / split / str(digit)
            target.mkdir(parents=True)
            for image in sorted((all_digits / split / str(digit)).iterdir())[:count]:
                shutil.copy(image, target)
    return folder
