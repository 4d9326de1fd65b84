"""The page about a training: what it says is true, and what it advises works."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dgmn.pictures import distinct_colors, side_by_side
from dgmn.segmentation import SegmentationData
from dgmn_cli import run

from digits import RECIPE
from small_runs import train


@pytest.fixture(scope="module")
def trained(few_digits: Path, small_run, tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[no-untyped-def]
    """Two epochs of a run from given weights that is then continued for a third; one class has an odd name."""
    folder = tmp_path_factory.mktemp("summary")
    data = folder / "data"
    for split in ("train", "val", "test"):
        for digit, name in (("0", "a|b *c*"), ("1", "1"), ("2", "2")):
            shutil.copytree(few_digits / split / digit, data / split / name)
    options = ["-c", RECIPE, "--data.root", str(data), "--trainer.default_root_dir", str(folder / "run")]
    options += ["--model.num_classes", "3", "--data.batch_size", "20", "--trainer.enable_progress_bar", "false"]
    options += ["--model.checkpoint", str(small_run("classifier")), "--model.freeze", "stem"]
    assert run(["fit", *options, "--trainer.max_epochs", "2"]) == 0
    assert run(["fit", *options, "--trainer.max_epochs", "3", "--ckpt_path", "last"]) == 0
    return folder / "run"


@pytest.mark.slow
def test_the_page_tells_the_whole_run(trained: Path, small_run) -> None:  # type: ignore[no-untyped-def]
    page = (trained / "summary.md").read_text()
    assert f"dgmn fit -c {RECIPE} --data.root" in page
    assert "100 training and 41 validation images of 3 classes" in page
    told = f"3 of 3 epochs, 15 steps; continued after epoch 2 from {trained / 'checkpoints/last.ckpt'}, this part took "
    assert told in page.replace("\\_", "_")
    start = Path(small_run("classifier").name, "checkpoints/best.ckpt")
    assert f"* **Weights at the start:** {start}\n* **Not trained:** stem\n" in page.replace("\\_", "_")
    top1 = re.search(r"\| val/top1 \| (\d\.\d{4}) \| \d\.\d{4} \|", page)
    assert top1 is not None
    lines = re.findall(r"^\| (?:a\\\|b \\\*c\\\*|1|2) \| (\d+) \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    matrix = [[int(cell) for cell in line] for line in lines]
    assert sorted(sum(row) for row in matrix) == [13, 14, 14]
    assert sum(matrix[i][i] for i in range(3)) / 41 == pytest.approx(float(top1[1]), abs=1e-3)
    assert f"](pictures/epoch_000{int(re.search(r'best: epoch (.)', page)[1]) - 1}.jpg)" in page  # type: ignore[index]
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert (trained / link).exists(), link
    assert len(list(trained.glob("pictures/*.jpg"))) == 3


def test_a_continued_run_has_all_its_epochs(trained: Path) -> None:
    rows = [row for file in trained.glob("logs/*/metrics.csv") for row in csv.DictReader(file.open())]
    scores = {int(row["epoch"]): row["val/top1"] for row in rows if row["val/top1"]}
    losses = {int(row["epoch"]): row["train/loss_epoch"] for row in rows if row["train/loss_epoch"]}
    assert set(scores) == set(losses) == {0, 1, 2}
    best = max(scores, key=lambda epoch: float(scores[epoch]))
    page = (trained / "summary.md").read_text()
    assert f"| best: epoch {best + 1} | last: epoch 3 |" in page
    for name, values in {"val/top1": scores, "train/loss\\_epoch": losses}.items():
        assert f"| {name} | {float(values[best]):.4f} | {float(values[2]):.4f} |" in page


def test_the_chart_has_a_loss_where_epochs_have_few_steps(trained: Path) -> None:
    with Image.open(trained / "chart.png") as chart:
        assert chart.width > 1000
        left = np.asarray(chart.crop((0, 0, chart.width // 2, chart.height)))
    assert (left == (0x15, 0x65, 0xC0)).all(axis=-1).sum() > 300


def test_tensorboard_shows_pictures(trained: Path) -> None:
    events = EventAccumulator(str(trained / "tensorboard"), {"images": 0}).Reload()
    assert len(events.Images("predictions")) == 3


@pytest.mark.slow
def test_what_the_page_advises_works(
    trained: Path, few_digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (trained / "summary.md").read_text().partition("## Where to go next")[2]
    commands = {line.split()[1]: shlex.split(line)[1:] for line in page.splitlines() if line.startswith("dgmn ")}
    assert set(commands) == {"predict", "test", "app", "export"}
    image = next((few_digits / "test" / "0").iterdir())
    assert run([str(image) if part == "IMAGES" else part for part in commands["predict"]]) == 0
    assert run(commands["test"]) == 0
    assert "test/top1" in capsys.readouterr().out
    assert run([*commands["export"][:-1], str(trained / "model.onnx")]) == 0
    assert commands["app"] == ["app", str(trained / "checkpoints/best.ckpt")]


def test_no_chart_makes_no_run_fail(few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run/chart.png").mkdir(parents=True)
    more = ("--model.num_classes", "3", "--trainer.limit_train_batches", "1")
    train("classifier", few_digits, tmp_path / "run", *more)
    assert "no chart of the training: " in capsys.readouterr().out
    assert "chart.png" not in (tmp_path / "run/summary.md").read_text()


@pytest.mark.parametrize("kind", ["semantic_fpn", "retinanet"])
def test_pages_of_other_tasks(kind: str, small_run) -> None:  # type: ignore[no-untyped-def]
    page = (small_run(kind) / "summary.md").read_text()
    assert re.search(r"!\[Predictions\]\(pictures/epoch_0000\.jpg\)", page)
    assert "| val/" in page


def pixels(run_folder: Path) -> NDArray[np.int64]:
    """The picture of a run's first validation; JPEG changes its colours a little."""
    with Image.open(run_folder / "pictures/epoch_0000.jpg") as picture:
        return np.asarray(picture).astype(int)


def has(picture: NDArray[np.int64], color: tuple[int, int, int]) -> bool:
    return bool((np.abs(picture - color).max(2) < 12).sum() > 20)


def test_pictures_of_a_detector_show_the_truth_and_that_nothing_is_found(  # type: ignore[no-untyped-def]
    few_coco_scenes: Path, small_run
) -> None:
    picture = pixels(small_run("retinanet"))
    content = json.loads((few_coco_scenes / "annotations/instances_val.json").read_text())
    assert picture.shape == (4 * (20 + 427 + 4) + 28, 640 + 4 + 640, 3)
    assert picture[:, 641:643].min() > 235, "there is a gap"
    grey = Image.new("RGB", (96, 64))
    titles = np.asarray(side_by_side({"labels": grey, "prediction: nothing found above 0.3": grey}, 640))[:18]
    drawn = set()
    for i, image in enumerate(content["images"][:4]):
        row = picture[451 * i : 451 * (i + 1)]
        assert np.abs(row[:18] - titles).mean() < 5
        labels = {a["category_id"] - 1 for a in content["annotations"] if a["image_id"] == image["id"]}
        for label in labels:
            assert has(row[20:, :640], distinct_colors(10)[label]), "the true box is there"
            assert not has(row[20:, 644:], distinct_colors(10)[label])
        drawn |= labels
    key = picture[4 * 451 :]
    assert [has(key, color) for color in distinct_colors(10)] == [label in drawn for label in range(10)]


def test_pictures_of_a_segmenter_have_a_key(few_scenes: Path, small_run) -> None:  # type: ignore[no-untyped-def]
    picture, data = pixels(small_run("semantic_fpn")), SegmentationData(few_scenes)
    data.setup("validate")
    true = set().union(*(data.dataset("val")[i][1].unique().tolist() for i in range(4)))
    key = picture[4 * (20 + 320 + 4) :]
    assert all(has(key, data.layout.classes.colors[label]) for label in true)
