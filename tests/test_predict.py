"""`dgmn predict`: what it reads, how outputs are named, and labels that our readers take again."""

import io
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from dgmn_cli import run


@pytest.fixture
def tree(tmp_path):
    """Images of the same names in several folders."""
    for i, name in enumerate(("a.png", "sub/a.png", "other/a.png", "other/a.bmp", "other/deep/b.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (40 * i, 0, 0)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def predict(small_run):
    def call(*arguments, kind="classifier"):
        model = str(small_run(kind) / "checkpoints/last.ckpt")
        return run(["predict", *map(str, arguments), "--ckpt_path", model, "--device", "cpu"])

    return call


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_tree_is_mirrored(tree, predict, tmp_path):
    out = tmp_path / "out"
    assert predict(tree, "--pictures", out, "--json", tmp_path / "found.json", "--root", tree) == 0
    # Two images of a folder that differ in their extension keep it.
    assert files(out) == ["a.jpg", "other/a.bmp.jpg", "other/a.png.jpg", "other/deep/b.jpg", "sub/a.jpg"]
    with Image.open(out / "other/a.bmp.jpg") as picture:
        assert picture.convert("RGB").getpixel((100, 60))[0] == pytest.approx(120, abs=6), "the picture is the image's"
    names = [entry["image"] for entry in json.loads((tmp_path / "found.json").read_text())]
    assert names == ["a.png", "other/a.bmp", "other/a.png", "other/deep/b.png", "sub/a.png"]


def test_names_start_from_what_all_sources_share(tree, predict, tmp_path, monkeypatch):
    monkeypatch.chdir(tree)
    assert predict("sub", "other/deep/b.png", "--pictures", tmp_path / "out", "--json", tmp_path / "found.json") == 0
    assert files(tmp_path / "out") == ["other/deep/b.jpg", "sub/a.jpg"]
    names = [entry["image"] for entry in json.loads((tmp_path / "found.json").read_text())]
    assert names == ["sub/a.png", "other/deep/b.png"], "without --root, as they were given"


def test_no_image_is_overwritten(tree, predict, capsys):
    shutil.copy(tree / "a.png", tree / "sub/b.jpg")
    before = {name: (tree / name).read_bytes() for name in files(tree)}
    assert predict(tree, "--pictures", tree) == 2
    assert "sub/b.jpg is read, give another folder" in capsys.readouterr().err
    assert {name: (tree / name).read_bytes() for name in before} == before


def test_results_within_the_folder_are_no_images(tree, predict, capsys):
    for _ in range(2):
        assert predict(tree, "--pictures", tree / "out") == 0
        assert len(files(tree / "out")) == 5
    assert "out: 5 images there, because results are written to this folder" in capsys.readouterr().err


def test_folders_are_named_that_got_files(tree, predict, tmp_path, capsys):
    (tree / "bad.png").write_bytes(b"no image")
    assert predict(tree / "bad.png", "--pictures", tmp_path / "out") == 2
    assert "pictures:" not in capsys.readouterr().out
    assert predict(tree / "bad.png", tree / "a.png", "--pictures", tmp_path / "out") == 2
    assert f"pictures: {tmp_path / 'out'}" in capsys.readouterr().out


def test_json_on_standard_output(tree, predict, capfd):
    with pytest.raises(SystemExit):
        predict(tree, "--json", "-")
    assert "argument --json: must be the name of a file or folder, got '-'; /dev/stdout is" in capfd.readouterr().err
    assert predict(tree, "--json", "/dev/stdout") == 0
    out, err = capfd.readouterr()
    assert len(json.loads(out)) == 5
    assert "other/a.bmp" in err


def test_what_is_no_file_is_told(tree, predict, capsys):
    os.mkfifo(tree / "sub/pipe.png")
    (tree / "sub/phone.heic").write_bytes(b"ftypheic")
    (tree / "sub/link.jpg").symlink_to("nowhere")
    assert predict(tree) == 0
    told = capsys.readouterr().err.splitlines()
    assert f"left out: {tree}/sub/pipe.png: a pipe, a file is needed" in told
    assert f"left out: {tree}/sub/phone.heic: .heic is not read, save it as JPEG or PNG" in told
    assert f"left out: {tree}/sub/link.jpg: No such file or directory" in told


def test_standard_input(tree, predict, tmp_path, monkeypatch, capsys):
    content = (tree / "sub/a.png").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert predict("-", tree / "a.png", "--pictures", tmp_path / "out", "--json", tmp_path / "found.json") == 0
    assert files(tmp_path / "out") == ["a.jpg", "stdin.jpg"]
    assert [entry["image"] for entry in json.loads((tmp_path / "found.json").read_text())][1] == "stdin"
    for content, told in ((b"no image", "stdin: not an image of a known format"), (b"", "standard input is empty")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert predict("-") == 2
        assert told in capsys.readouterr().err


@pytest.fixture
def photos(few_coco_scenes, tmp_path):
    """The images of a dataset in YOLO's folders, without labels."""
    for part in ("train", "val"):
        shutil.copytree(few_coco_scenes / part, tmp_path / "photos/images" / part)
    return tmp_path / "photos"


def test_labels_for_annotation(photos, predict, tmp_path, capsys):
    """What is written as YOLO's labels and as COCO's JSON is read by our own readers, with the same boxes."""
    recipe = ["-c", "recipes/detection/finetune_coco_format.yaml", "--data.root"]
    options = ["--score", "0", "--labels", photos / "labels"]
    images = photos / "images"
    assert predict(images, *options, kind="sparse_rcnn") == 0
    assert files(photos / "labels")[0] == "classes.txt"
    assert len(files(photos / "labels")) == 1 + len(files(images))
    assert run(["validate-data", *recipe, str(photos)]) == 0
    assert "YOLO layout, 10 classes, 13 images" in capsys.readouterr().out
    assert run(["convert-data", str(photos), "--out", str(tmp_path / "converted")]) == 0
    coco = tmp_path / "coco"
    for part in ("train", "val"):
        shutil.copytree(images / part, coco / part)
        file = coco / f"annotations/instances_{part}.json"
        assert predict(coco / part, *options[:2], "--json", file, "--root", coco / part, kind="sparse_rcnn") == 0
    assert run(["validate-data", *recipe, str(coco)]) == 0
    found = {}
    for folder in (tmp_path / "converted", coco):
        content = json.loads((folder / "annotations/instances_val.json").read_text())
        names = {image["id"]: image["file_name"] for image in content["images"]}
        classes = {category["id"]: category["name"] for category in content["categories"]}
        entries = [(names[e["image_id"]], classes[e["category_id"]], *e["bbox"]) for e in content["annotations"]]
        found[folder] = sorted(
            (entry for entry in entries if min(entry[-2:]) > 0), key=lambda e: (e[:2], *map(int, e[2:]))
        )
    converted, written = found.values()
    assert len(written) > 5
    assert [entry[:2] for entry in converted] == [entry[:2] for entry in written]
    np.testing.assert_allclose([e[2:] for e in converted], [e[2:] for e in written], atol=0.02)


def test_labels_are_never_overwritten(photos, predict, capsys):
    (photos / "labels/val").mkdir(parents=True)
    by_hand = photos / "labels/val/000001.txt"
    by_hand.write_text("0 0.5 0.5 0.1 0.1\n")
    assert predict(photos / "images", "--labels", photos / "labels") == 2
    assert f"{by_hand} is there already, give a new folder" in capsys.readouterr().err
    assert files(photos / "labels") == ["val/000001.txt"]
    (photos / "others").mkdir()
    (photos / "others/classes.txt").write_text("my own\n")
    assert predict(photos / "images", "--labels", photos / "others", kind="sparse_rcnn") == 2
    assert "classes.txt is there already, with other classes: give a new folder" in capsys.readouterr().err
    assert (photos / "others/classes.txt").read_text() == "my own\n"


def test_names_of_dots_alone(predict, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "in/..png")
    assert predict(tmp_path / "in/..png", "--pictures", tmp_path / "out") == 0
    assert len(files(tmp_path / "out")) == 1


def test_a_point_outside_of_some_images(predict, tmp_path, capsys):
    """The others are predicted; where all fail alike, it ends, and says how many are left."""
    (tmp_path / "in").mkdir()
    for name, side in {"a": 40, "b": 120, "c": 120}.items():
        Image.new("RGB", (side, side)).save(tmp_path / f"in/{name}.png")
    given = (tmp_path / "in", "--json", tmp_path / "o.json", "--nodes", tmp_path / "nodes", "--at")
    assert predict(*given, "100,100") == 2
    assert "a.png: at must lie in the image" in capsys.readouterr().err
    assert files(tmp_path / "nodes") == ["b_100_100.png", "c_100_100.png"]
    assert len(json.loads((tmp_path / "o.json").read_text())) == 3
    for name in "defghi":
        Image.new("RGB", (40, 40)).save(tmp_path / f"in/{name}.png")
    (tmp_path / "in/0.png").write_bytes(b"no image")
    assert predict(*given, "500,500") == 2
    assert "10 of 10 images were left out or cut off: " in capsys.readouterr().err
