"""`dgmn reproduce`: the list of every result, its page, and the evaluation of a row on a small dataset."""

import ast
import csv
import importlib.util
import re
import shlex
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from dgmn import reproduce
from dgmn.detection import mask_rcnn
from dgmn.segmentation import semantic_fpn
from dgmn_base.options import checked_arguments
from dgmn_base.paper import ENTRIES
from dgmn_base.paper.commands import evaluating, training
from dgmn_base.paper.evidence import not_verified, verified
from dgmn_base.recipes import recipe_names
from dgmn_base.zoo import ZOO
from dgmn_cli import run

ROOT = Path(__file__).parent.parent
# Rows of the paper's tables, counted by hand.
ROWS = {2: 7, 3: 9, 4: 8, 5: 7, 6: 20, 7: 12, 8: 12, 9: 8, 10: 2, 11: 25, 12: 5, 13: 4, 14: 6, 15: 6, 16: 4, 17: 12}
QUIET = ["--trainer.accelerator", "cpu", "--data.num_workers", "0", "--trainer.enable_progress_bar", "false"]


# ------------------------------------------------------------------------------------------------------- the list


def test_the_list_is_complete():
    assert Counter(entry.number for entry in ENTRIES.values()) == ROWS
    assert [entry.name for entry in ENTRIES.values() if entry.row.published] == [
        model.name for model in sorted(ZOO, key=lambda model: list(ENTRIES).index(model.name))
    ]
    assert {model.name for model in ZOO} <= ENTRIES.keys()
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in ENTRIES)


def test_every_paper_recipe_has_a_row():
    used = {part for entry in ENTRIES.values() for line in training(entry) for part in shlex.split(line)}
    ours = {name for name in recipe_names() if re.search("coco_|cityscapes|imagenet", name)}
    assert ours - used == {"recipes/detection/finetune_coco_format.yaml"}


def test_the_named_tests_exist():
    for test in {test for entry in ENTRIES.values() for _, test in verified(entry)}:
        path, name = test.split("::")
        body = ast.parse((ROOT / path).read_text()).body
        assert name in {node.name for node in body if isinstance(node, ast.FunctionDef)}, test
    for entry in ENTRIES.values():
        assert not_verified(entry), entry.name  # no score was measured here
        assert bool(verified(entry)) != bool(entry.row.missing)


def test_the_commands_are_accepted(tmp_path):
    """The options of every printed command exist."""
    weights = tmp_path / "weights"
    weights.touch()
    seen = set()  # only names of options are checked; each set of them once
    for entry in ENTRIES.values():
        for line in (*training(entry), *evaluating(entry)):
            command, *arguments = shlex.split(line)[1:]
            names = (command, *(part for part in arguments if part.startswith("-") or part.endswith(".yaml")))
            if command == "predict" or names in seen:
                continue
            seen.add(names)
            arguments[arguments.index("--data.root") + 1] = str(tmp_path)
            if "--model.checkpoint" in arguments:
                arguments[arguments.index("--model.checkpoint") + 1] = str(weights)
            checked_arguments(command, arguments)


def test_the_page_is_what_the_script_makes():
    spec = importlib.util.spec_from_file_location("page", ROOT / "docs/scripts/reproduce.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run: uv run python docs/scripts/reproduce.py"


@pytest.mark.parametrize(
    ("name", "count"), [("table3_ccnet", 1), ("Table3_CCNet", 1), ("table7", 12), ("setr-pup", 4), ("dgmn2_tiny", 1)]
)
def test_rows_are_found(name, count, capsys):
    assert run(["reproduce", name]) == 0
    out = capsys.readouterr().out
    assert ("verified" in out and "dgmn fit" in out) if count == 1 else len(out.splitlines()) == count + 6


def test_csv(tmp_path, capsys):
    assert run(["reproduce", "--csv", str(tmp_path / "rows.csv")]) == 0
    rows = {row["row"]: row for row in csv.DictReader((tmp_path / "rows.csv").read_text().splitlines())}
    assert rows.keys() == ENTRIES.keys()
    assert f"rows.csv: {len(ENTRIES)} rows" in capsys.readouterr().out
    row = rows["mask_rcnn_dgmn2_tiny"]
    assert (row["box_ap"], row["mask_ap"], row["miou"], row["paper_params_m"]) == ("40.2", "37.2", "", "31.8")
    assert "test_proposals_detections_and_masks" in row["verified"]
    assert rows["table6_pvt_tiny"]["train"] == ""
    assert rows["table6_pvt_tiny"]["not_verified"].startswith("no recipe")
    assert rows["table12_dgmn2_large_mla"]["train"].count("dgmn fit") == 3


# ------------------------------------------------------------------------------------------------- the evaluation


@pytest.mark.parametrize(("right", "wrong", "code", "file"), [(37, 10, 0, "out.csv"), (30, 10, 1, "/dev/stdout")])
def test_a_classifier(right, wrong, code, file, few_digits, tmp_path, monkeypatch, capfd):
    """A network that always answers class 1: 37 of 47 images are 78.72 %, the published top-1 is 78.7 %."""
    monkeypatch.chdir(tmp_path)
    images = sorted((few_digits / "train" / "0").iterdir()) + sorted((few_digits / "train" / "1").iterdir())
    for split in ("train", "val"):
        for label, count in (("a", wrong), ("b", right)):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for image in images[:count]:
                shutil.copy(image, tmp_path / "data" / split / label)
    model = timm.create_model("dgmn2_tiny", num_classes=2)
    torch.nn.init.zeros_(model.head.weight)
    model.head.bias.data = torch.tensor([0.0, 1.0])
    torch.save(model.state_dict(), "weights.pth")
    arguments = ["dgmn2_tiny", "--data", "data", "--ckpt_path", "weights.pth", "--csv", file, *QUIET]
    more = ["--model.num_classes", "2", "--data.image_size", "32", "--data.batch_size", "50"]
    monkeypatch.setitem(reproduce.IMAGES, "ImageNet-1k val", right + wrong)
    assert run(["reproduce", *arguments, *more]) == code
    measured = 100 * right / (right + wrong)
    out, err = capfd.readouterr()
    in_file = file == "out.csv"
    line = next(line for line in (out if in_file else err).splitlines() if line.startswith("top-1")).split()
    assert line == ["top-1", f"{measured:.2f}", "78.7", f"{measured - 78.7:+.2f}", "0.1"]
    (row,) = csv.DictReader((Path(file).read_text() if in_file else out).splitlines())
    assert (row["row"], row["measured"], row["tolerance"]) == ("dgmn2_tiny", f"top-1 {measured:.2f}", "0.1")
    assert row["images"] == str(right + wrong)
    assert f"{'within' if code == 0 else 'outside'} the tolerance, in points, for the published weights" in out + err

    # Of some of the images, a score says nothing, however near it is.
    cut = ["--data.batch_size", "10", "--trainer.limit_val_batches", "2"]
    assert run(["reproduce", *arguments[: -len(QUIET)], *more, *cut, *QUIET]) == 1
    said = "".join(capfd.readouterr())
    assert f"no verdict: this score is of 20 images, the published score of the {right + wrong} of ImageNet" in said
    assert "tolerance, in points" not in said


def test_a_detector(few_coco_scenes, tmp_path, monkeypatch, capsys):
    """Untrained weights find nothing; both scores of Mask R-CNN are compared."""
    monkeypatch.chdir(tmp_path)
    torch.save(mask_rcnn("dgmn2_nano", 10, channels=16, representation_size=32).state_dict(), "weights.pth")
    arguments = ["mask_rcnn_dgmn2_tiny", "--data", str(few_coco_scenes), "--ckpt_path", "weights.pth", *QUIET]
    small = ["--model.model_args", "{min_size: 64, max_size: 96, channels: 16, representation_size: 32}"]
    small += ["--model.num_classes", "10", "--model.backbone", "dgmn2_nano", "--data.val", "val"]
    assert run(["reproduce", *arguments, *small]) == 1
    lines = capsys.readouterr().out.splitlines()
    found = {line[:7].strip(): line.split()[2:] for line in lines if line.startswith(("box AP ", "mask AP "))}
    assert found["box AP"][1] == "40.2"
    assert found["mask AP"][1] == "37.2"
    assert all(0 <= float(measured) < 1 for measured, *_ in found.values())


@pytest.mark.parametrize(
    ("row", "more", "message"),
    [
        ("table11_setr_t_base_21k_naive", ["--multi_scale"], "table11_setr_t_base_21k_naive has no score at several"),
        ("retinanet_dgmn2_tiny", ["--multi_scale"], "--multi_scale: retinanet_dgmn2_tiny has no score at several"),
        ("dgmn2_tiny", ["--csv", "data"], "--csv data: this is a folder, give a file"),
        ("dgmn2_tiny", ["--csv", "weights.pth/a.csv"], "--csv weights.pth/a.csv: weights.pth is a file, give a folder"),
        ("dgmn2_tiny", ["--ckpt_path", "data"], "--ckpt_path data: not a run's folder"),
        (
            "table1",
            [],
            "tables 2 to 17 have rows; Table 1 is the architecture: dgmn complexity --table 1",
        ),
        ("table99", [], "no row 'table99': tables 2 to 17 have rows"),
    ],
)
def test_mistakes_are_found_before_the_evaluation(row, more, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    torch.save({}, "weights.pth")
    assert run(["reproduce", row, "--data", "data", "--ckpt_path", "weights.pth", *more]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["table2_aspp", "table2_non_local"],
            "table2_non_local: give one row, the beginning of rows' names,",
        ),
        (["--table", "7"], "--table: write it as one word, for instance dgmn reproduce table7"),
    ],
)
def test_mistakes_in_what_is_listed(more, message, capsys):
    assert run(["reproduce", *more]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("multi_scale", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_segmenter(multi_scale, few_scenes, tmp_path, monkeypatch, capsys):
    """A network that finds class 0 everywhere; the mIoU is counted here in the masks."""
    monkeypatch.chdir(tmp_path)
    model = semantic_fpn("dgmn2_nano", 11)
    torch.nn.init.zeros_(model.head.classifier.weight)
    model.head.classifier.bias.data = torch.eye(11)[0]
    torch.save(model.state_dict(), "weights.pth")
    arguments = ["semantic_fpn_dgmn2_tiny", "--data", str(few_scenes), "--ckpt_path", "weights.pth", *QUIET]
    arguments += ["--multi_scale"] * multi_scale
    small = ["--model.backbone", "dgmn2_nano", "--model.num_classes", "11", "--model.inference.mode", "whole"]
    assert run(["reproduce", *arguments, *small, "--model.inference.fit", "[64, 96]"]) == 1
    out = capsys.readouterr().out
    masks = [np.asarray(Image.open(path)) for path in sorted((few_scenes / "gtFine/val").rglob("*labelTrainIds.png"))]
    labels = np.concatenate([mask[mask != 255] for mask in masks])
    expected = 100 * np.mean(labels == 0) / len(np.unique(labels))
    assert "no verdict: this score is of" in out
    name, published = ("mIoU ms+flip", "79.40") if multi_scale else ("mIoU", "78.09")
    assert re.search(rf"^{re.escape(name)} +{expected:.2f} +{published} ", out, re.MULTILINE), out


@pytest.mark.slow
def test_a_training_of_ones_own_may_differ_by_more(small_run, few_scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = small_run("semantic_fpn")  # as other commands, it takes the folder, too
    images = len(list((few_scenes / "leftImg8bit/val").rglob("*.png")))
    monkeypatch.setitem(reproduce.IMAGES, "Cityscapes val", images)
    arguments = ["semantic_fpn_dgmn2_tiny", "--data", str(few_scenes), "--ckpt_path", str(folder), *QUIET]
    small = ["--model.backbone", "dgmn2_nano", "--model.model_args", "{pyramid_channels: 16, channels: 16}"]
    small += ["--model.num_classes", "11", "--model.inference.mode", "whole", "--model.inference.fit", "[64, 96]"]
    assert run(["reproduce", *arguments, *small]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^mIoU +\d+\.\d\d +78.09 +-\d+\.\d\d +0.5$", out, re.MULTILINE)
    assert "for a training of your own" in out
