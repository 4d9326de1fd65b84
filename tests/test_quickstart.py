"""`dgmn quickstart`, as a new user runs it."""

from pathlib import Path

import pytest
from PIL import Image

from dgmn_cli import run


@pytest.mark.slow
def test_quickstart_of_segmentation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quickstart", "--task", "segmentation", "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    table = {line.split("  ")[0]: line.split()[-1] for line in out.splitlines() if "  " in line}
    assert float(table["mIoU"].rstrip("%")) >= 50
    assert len(list((tmp_path / "out/scenes/leftImg8bit").rglob("*.png"))) == 880
    with Image.open(table["pictures of predictions"]) as picture:
        assert picture.width > 500


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "least"), [("mask_rcnn", 40), ("retinanet", 40), ("deformable_detr", 20), ("sparse_rcnn", 25)]
)
def test_quickstart_of_detection(model: str, least: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["quickstart", "--task", "detection", "--model", model, "--output", str(tmp_path / "out")]
    assert run(arguments) == 0
    out = capsys.readouterr().out
    table = {line.split("  ")[0]: line.split()[-1] for line in out.splitlines() if "  " in line}
    assert float(table["box AP"].rstrip("%")) >= least
    assert ("mask AP" in table) == (model == "mask_rcnn")
    with Image.open(table["pictures of predictions"]) as picture:
        assert picture.width > 500


@pytest.mark.slow
def test_quickstart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quickstart", "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    table = {line.split("  ")[0]: line.split()[-1] for line in out.splitlines() if "  " in line}
    assert float(table["top-1"].rstrip("%")) >= 95
    assert len(list((tmp_path / "out/digits").rglob("*.png"))) == 1797
    for name in ("checkpoint", "metrics", "pictures of predictions"):
        assert Path(table[name]).is_file()
    with Image.open(table["pictures of predictions"]) as picture:
        assert picture.width > 500
    assert "dgmn predict" in out

    assert run(["quickstart", "--output", str(tmp_path / "out")]) == 2
    assert "finished quickstart" in capsys.readouterr().err
