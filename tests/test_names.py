"""Names of files in lists, as other tools write them."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from dgmn.classification.data import ClassificationData
from dgmn.classification.layouts import listed
from dgmn_base.files import find_images
from dgmn_base.names import find_listed, find_named


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a", "a"),
        ("a.jpg", "a"),
        ("JPEGImages/a.jpg", "a"),
        ("C:\\data\\a.jpg", "a"),
        ("sub\\b c.jpg", "sub/b c"),
        ('"sub/b c"', "sub/b c"),  # CVAT, where a name has a space
        ("v1.2", "v1.2"),
        ("v1.2.png", "v1.2"),
        ("de\u0301", "d\u00e9"),
        ("", None),
        (".", None),
        ("/", None),
        ("b", None),
    ],
)
def test_lines_of_lists(text: str, name: str | None) -> None:
    assert find_listed(text, {"a": 1, "sub/b c": 2, "v1.2": 3, "d\u00e9": 4}) == name


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    for name in ("", "/", "..", "a\0b", "x" * 300, "x/" * 5000, "../" * 300, "%00", "\ud800"):
        assert find_named(name, (tmp_path,)) is None


def test_tables_of_windows(few_digits: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(few_digits, tmp_path / "data"))
    names = sorted(path.relative_to(root) for path in (root / "train").rglob("*.png"))
    rows = [f"C:\\work\\{str(name).replace('/', chr(92))},{name.parent.name},train" for name in names]
    (root / "list.csv").write_text("\r\n".join(["file,label,split", *rows]))
    table = listed(root / "list.csv", 0.2)
    assert table is not None
    assert [name for name, _, _ in table.rows] == [name.as_posix() for name in names]


@pytest.mark.parametrize("extension", ["JFIF", "jpe", "GIF", "mpo", "TIF"])
def test_images_under_rare_extensions_are_found(extension: str, tmp_path: Path) -> None:
    """What a folder of a class holds would be left out without a word."""
    for part in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            form = {"GIF": "GIF", "TIF": "TIFF"}.get(extension, "JPEG")
            with (tmp_path / part / label / f"x.{extension}").open("wb") as file:
                Image.effect_noise((8, 8), 50).convert("RGB").save(file, form)
    assert len(find_images([tmp_path])) == 4
    data = ClassificationData(tmp_path)
    assert len(data.dataset("train")) == 2
