"""The same images in every form of a dataset, splits that are kept, and mistakes that are named."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import lightning as L
import pytest
import torch
from timm.data import ImageDataset

from dgmn.classification import ClassificationData, ClassificationTask
from dgmn.errors import InputError
from dgmn_cli import run

RECIPE = "recipes/classification/digits.yaml"


@pytest.fixture
def plain(few_digits: Path, tmp_path: Path) -> Path:
    """Folders of classes without parts."""
    for part in ("train", "val"):
        for image in (few_digits / part).rglob("*.png"):
            target = tmp_path / "plain" / image.parent.name / f"{part}_{image.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image, target)
    return tmp_path / "plain"


def rows_of(root: Path) -> list[tuple[str, str, str]]:
    """File, label and part of the images of a dataset with parts."""
    found = [(p.relative_to(root).as_posix(), p.parent.name, p.parts[-3]) for p in sorted(root.rglob("*.png"))]
    return [row for row in found if row[2] in ("train", "val")]


def write_table(path: Path, rows: list, titles=("file", "label", "split")) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([titles, *rows])


def samples_of(data: ClassificationData, part: str) -> list[tuple[str, int]]:
    return sorted((str(path), label) for path, label in data.dataset(part).images.samples)


def fit(root: Path, folder: Path, *more: str) -> int:
    arguments = ["--data.root", str(root), "--trainer.default_root_dir", str(folder), "--data.batch_size", "4"]
    arguments += ["--model.num_classes", "3", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"]
    return run(["fit", "-c", RECIPE, *arguments, "--trainer.accelerator", "cpu", "--data.num_workers", "0", *more])


def test_a_table_is_the_folder(few_digits: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(few_digits, tmp_path / "data"))
    truth, rows = ClassificationData(root), rows_of(root)
    names = {"train": "Training", "val": " valid ", "test": "test"}
    write_table(root / "a.csv", [(b, names[c], a, "x") for a, b, c in rows], ("Class", "Set", " Filename ", "note"))
    data = ClassificationData(root / "a.csv")
    for part in ("train", "val"):
        assert samples_of(data, part) == samples_of(truth, part)
    assert data.dataset("train").images.classes == ["0", "1", "2"]
    torch.manual_seed(0)
    one = data.dataset("val")[0]
    assert torch.equal(one[0], truth.dataset("val")[0][0])
    assert ClassificationData(root / "a.csv").listed.split is None


@pytest.mark.parametrize("said", ["", "sep=;\n", "sep=;\r\n"])
@pytest.mark.parametrize(("separator", "name"), [(";", "a.csv"), ("\t", "a.csv"), ("\t", "a.tsv")])
def test_tables_with_other_separators(separator: str, name: str, said: str, few_digits: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(few_digits, tmp_path / "data/images")).parent
    with (root / name).open("w", newline="") as file:
        file.write(said.replace(";", separator))  # as Excel has it
        writer = csv.writer(file, delimiter=separator)
        writer.writerows([("file", "label, in words", "class"), *((f, "a, b", c) for f, c, _ in rows_of(root))])
    for data in (ClassificationData(root), ClassificationData(root / name)):
        total = sum(len(data.dataset(part)) for part in ("train", "val"))  # type: ignore[arg-type]
        assert total == 141
        assert data.dataset("val").images.classes == ["0", "1", "2"]


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_other_names_of_the_validation_folder(name: str, few_digits: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(few_digits, tmp_path / "data"))
    (root / "val").rename(root / name)
    data = ClassificationData(root)
    data.setup("fit")
    assert (data.validation_images, len(data.dataset("test"))) == (41, 21)  # type: ignore[arg-type]
    shutil.rmtree(root / "test")
    assert len(data.dataset("test")) == 41  # type: ignore[arg-type]


def test_a_table_with_other_columns_is_named(few_digits: Path, tmp_path: Path) -> None:
    shutil.copytree(few_digits / "val/0", tmp_path / "images")
    (tmp_path / "labels.csv").write_text("id;breed\na.png;cat\n")
    with pytest.raises(
        InputError, match=r"labels.csv: its .* file \(or filename, .* label \(or class, .*, got id, breed$"
    ):
        ClassificationData(tmp_path).setup("fit")


def test_a_folder_without_parts_is_split_once(plain: Path, tmp_path: Path, capsys) -> None:
    assert fit(plain, tmp_path / "run") == 0
    total = len(list(plain.rglob("*.png")))
    out = capsys.readouterr().out
    assert f"data: {total} images of 3 classes split into " in out
    assert f"written to {plain / 'split.csv'}" in out
    kept = (plain / "split.csv").read_text()
    with (plain / "split.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["file"] for row in rows}) == total
    for name in "012":
        mine = [row["split"] for row in rows if row["label"] == name]
        assert mine.count("val") == round(0.2 * len(mine))
    # Elsewhere the split is the same, and a file that is there is taken as it is.
    other = tmp_path / "other"
    shutil.copytree(plain, other, ignore=shutil.ignore_patterns("split.csv"))
    relative = [
        [(os.path.relpath(p, r), n) for p, n in samples_of(ClassificationData(r), "val")] for r in (plain, other)
    ]
    assert relative[0] == relative[1]
    swapped = kept.replace(",val", ",x").replace(",train", ",val").replace(",x", ",train")
    (plain / "split.csv").write_text(swapped)
    assert len(samples_of(ClassificationData(plain), "train")) == len(relative[0])
    assert fit(plain, tmp_path / "run2") == 0
    counts = f"{len(relative[0])} for training, {total - len(relative[0])} for validation"
    assert f"data: split as {plain / 'split.csv'} says, {counts}\n" in capsys.readouterr().out
    assert (plain / "split.csv").read_text() == swapped
    shutil.copyfile(next((plain / "1").iterdir()), plain / "1/new.png")
    assert "; in no part, for want of a row in this file: 1 image, such as " in ClassificationData(plain).listed.told
    (plain / "1/new.png").unlink()
    next((plain / "1").iterdir()).unlink()
    with pytest.raises(InputError, match=r"split.csv:\d+: no image"):
        ClassificationData(plain).setup("fit")


def test_validate_data_writes_no_split(plain: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["validate-data", "-c", RECIPE, "--data.root", str(plain)]) == 0
    assert "images of 3 classes split into" in capsys.readouterr().out
    assert not (plain / "split.csv").exists()


def test_a_class_without_validation_images_is_no_mistake(few_digits: Path, tmp_path: Path, capsys) -> None:
    root = Path(shutil.copytree(few_digits, tmp_path / "data"))
    rows = rows_of(root)
    for part, code, told in (("val", 0, "1 note:\n"), ("train", 1, "1 problem:\n")):
        write_table(root / f"{part}.csv", [row for row in rows if row[1:] != ("2", part)])
        assert run(["validate-data", "-c", RECIPE, "--data.root", str(root / f"{part}.csv")]) == code
        assert f"{told}  {part}: no image of the class 2\n" in capsys.readouterr().out
    data = ClassificationData(root / "val.csv")
    data.setup("fit")
    assert data.names == ["0", "1", "2"], "it can be trained"
    shutil.rmtree(root / "val/2")  # in folders it cannot
    assert run(["validate-data", "-c", RECIPE, "--data.root", str(root)]) == 1


TABLES = {
    "several labels in two rows": (
        "file,label\na.png,cat\na.png,dog\n",
        r"a.png is 'dog' here and 'cat' in line 2: one",
    ),
    "several labels in a cell": (
        "file,label\na.png,cat|dog\nb.png,dog\nc.png,cat\n",
        r"the label 'cat\|dog' seems to be several: one label per image",
    ),
    "a column for each class": ("filename,cat,dog\na.png,1,1\n", r"a column for each class, .* one label per image"),
    "no titles": ("a.png,cat\nb.png,dog\n", r"must name the columns file \(or .*\) and label .*, got a\.png, cat"),
    "a row too short": ("file,label\na.png\n", r":2: 1 column, the first line has 2"),
    "no label": ("file,label\na.png,\n", r":2: a row needs a file and a label"),
    "another part": ("file,label,split\na.png,cat,dev\n", r":2: split must be train, val or test, got 'dev'"),
    "twice": ("file,label\na.png,cat\na.png,cat\n", r":3: a.png is there twice, first in line 2"),
    "no image": ("file,label\nz.png,cat\n", r":2: no image .*z.png"),
    "a zero byte": ("file,label\nz\0.png,cat\n", r":2: (no image|not CSV)"),
    "empty": ("", r"its first line must name the columns"),
    "titles only": ("file,label\n", r"no images in it"),
    "one image of a class": ("file,label\na.png,cat\nb.png,cat\nc.png,dog\n", r"the class dog has one image; to split"),
    "no validation": ("file,label,split\na.png,cat,train\n", r"no val images in it"),
}


@pytest.mark.parametrize(("text", "told"), TABLES.values(), ids=TABLES.keys())
def test_mistakes_in_tables(text: str, told: str, few_digits: Path, tmp_path: Path) -> None:
    for name in "abc":
        shutil.copyfile(next((few_digits / "train/0").iterdir()), tmp_path / f"{name}.png")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=told):
        ClassificationData(tmp_path / "list.csv").setup("fit")


def test_names_with_commas_are_one_label(few_digits: Path, tmp_path: Path) -> None:
    for name in "abcd":
        shutil.copyfile(next((few_digits / "train/0").iterdir()), tmp_path / f"{name}.png")
    rows = [("a.png", "tench, Tinca tinca"), ("b.png", "tench, Tinca tinca"), ("c.png", "eel"), ("d.png", "eel")]
    write_table(tmp_path / "list.csv", rows, ("file", "label"))
    data = ClassificationData(tmp_path)
    assert len(data.dataset("train")) == len(data.dataset("val")) == 2
    assert data.dataset("train").images.classes == ["eel", "tench, Tinca tinca"]
    write_table(tmp_path / "other.csv", rows, ("file", "label"))
    with pytest.raises(InputError, match=r"several lists of images; choose with --data.root .*list.csv or .*other.csv"):
        ClassificationData(tmp_path).setup("fit")


def test_parts_without_a_training_set_are_no_classes(few_digits: Path, tmp_path: Path) -> None:
    shutil.copytree(few_digits / "val", tmp_path / "data/val")
    with pytest.raises(InputError, match=r"expected train/<class>/\*\.jpg in it, or .* a CSV .*found val"):
        ClassificationData(tmp_path / "data").setup("fit")


# ------------------------------------------------------------------------------------------------ timm's readers


def test_classes_are_counted_without_decoding(few_digits: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(few_digits / "train", tmp_path / "train")
    train, val = ImageDataset(str(tmp_path / "train")), ImageDataset(str(few_digits / "val"))
    for image in (tmp_path / "train").rglob("*.png"):
        image.write_bytes(b"no image")
    data = ClassificationData(train=train, val=val)
    data.setup("fit")
    assert data.class_counts() == [34, 33, 33]
    assert "data: 100 training and 41 validation images of 3 classes\n" in capsys.readouterr().out


def write_shards(few_digits: Path, folder: Path, shards: int) -> None:
    """WebDataset's shards, as its own writer makes them."""
    folder.mkdir()
    for part, name in (("train", "train"), ("val", "validation")):
        images = sorted((few_digits / part).rglob("*.png"))
        for i in range(shards):
            with tarfile.open(folder / f"{name}-{i:04d}.tar", "w") as shard:
                for image in images[i::shards]:
                    label = str(int(image.parent.name)).encode()
                    key = f"{image.parent.name}_{image.stem}"
                    for suffix, content in (("cls", label), ("png", image.read_bytes())):
                        member = tarfile.TarInfo(f"{key}.{suffix}")
                        member.size = len(content)
                        shard.addfile(member, io.BytesIO(content))
    (folder / "classes.txt").write_text("zero\none\ntwo\n")


@pytest.mark.slow
def test_training_from_shards(few_digits: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("webdataset")
    write_shards(few_digits, tmp_path / "shards", 2)
    assert (
        fit(tmp_path / "shards", tmp_path / "run", "--data.reader", "wds/", "--trainer.limit_train_batches", "1.0") == 0
    )
    data = ClassificationData(tmp_path / "shards", reader="wds/", num_workers=0, batch_size=4)
    val = data.dataset("val")
    found = sorted(label for _, label in val)
    assert found == sorted(int(image.parent.name) for image in (few_digits / "val").rglob("*.png"))
    data._sets["val"] = val
    assert data.names == ["zero", "one", "two"]
    (tmp_path / "shards/train-0000.tar").write_bytes(b"x" * 600)
    assert fit(tmp_path / "shards", tmp_path / "run3", "--data.reader", "wds/") == 2
    assert "train-0000.tar: damaged shard" in capsys.readouterr().err


def test_readers_that_cannot_run(few_digits: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.reader must be wds/, hfds/NAME or tfds/NAME, .* got 'webdataset'"):
        ClassificationData(tmp_path, reader="webdataset")
    with pytest.raises(InputError, match=r"data.reader tfds/mnist: this needs .*: pip install tensorflow-datasets"):
        ClassificationData(tmp_path, reader="tfds/mnist")
    with pytest.raises(InputError, match=r"no shards train\*\.tar; it is empty"):
        ClassificationData(tmp_path, reader="wds/").setup("fit")
    with pytest.raises(InputError, match=r"data.val_share must be above 0 and below 1, got 1"):
        ClassificationData(tmp_path, val_share=1)
    write_shards(few_digits, tmp_path / "shards", 1)
    with pytest.raises(InputError, match=r"1 shard for .* 2 workers each: .*give --data.num_workers 1"):
        ClassificationData(tmp_path / "shards", reader="wds/", num_workers=3).setup("fit")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_of_shards_has_every_image_once(few_digits: Path, tmp_path: Path, workers: int) -> None:
    """41 images in one shard, which two workers cannot share; and in three, of which one worker gets two."""
    pytest.importorskip("webdataset")
    for shards in (1, 3):
        folder = tmp_path / str(shards)
        write_shards(few_digits, folder, shards)
        data = ClassificationData(folder, reader="wds/", image_size=32, batch_size=4, num_workers=workers)
        labels: list[int] = []

        class Seen(ClassificationTask):
            def validation_step(self, batch, batch_idx):
                labels.extend(batch[1].tolist())  # noqa: B023 - called within this round
                return super().validation_step(batch, batch_idx)

        trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
        trainer.validate(Seen("resnet10t", num_classes=3), data, verbose=False)
        assert Counter(labels) == {0: 14, 1: 14, 2: 13}
        assert data.validation_images == 41


@pytest.mark.slow
def test_shards_in_two_processes(few_digits: Path, tmp_path: Path) -> None:
    """Each process reads shards of its own, and as many images as the other."""
    pytest.importorskip("webdataset")
    write_shards(few_digits, tmp_path / "shards", 4)
    script = tmp_path / "two.py"
    script.write_text(
        "import json, sys, torch, lightning as L\n"
        "from dgmn.classification import ClassificationData, ClassificationTask\n"
        "from dgmn.classification.transforms import eval_transform\n"
        "class Seen(ClassificationTask):\n"
        "    def on_train_start(self): self.seen = []\n"
        "    def training_step(self, batch, i):\n"
        "        self.seen += [float(x) for x in batch[0].double().sum((1, 2, 3))]\n"
        "        return super().training_step(batch, i)\n"
        "    def on_train_end(self):\n"
        "        json.dump(self.seen, open(f'{sys.argv[2]}/{self.global_rank}.json', 'w'))\n"
        "data = ClassificationData(sys.argv[1], reader='wds/', image_size=32, batch_size=2, num_workers=2)\n"
        "data.augmentation.transform = eval_transform\n"
        "task = Seen('dgmn2_nano', num_classes=3, mixup=0.0, cutmix=0.0)\n"
        "L.Trainer(max_epochs=1, accelerator='cpu', devices=2, strategy='ddp', logger=False,\n"
        "          enable_checkpointing=False, enable_progress_bar=False).fit(task, data)\n"
    )
    command = [sys.executable, str(script), str(tmp_path / "shards"), str(tmp_path)]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=600)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert len(first) == len(second)
    assert not {round(x, 3) for x in first} & {round(x, 3) for x in second}


def test_lines_of_a_table_count_from_the_top_of_the_file(few_digits: Path, tmp_path: Path) -> None:
    shutil.copytree(few_digits / "val/0", tmp_path / "images")
    (tmp_path / "labels.csv").write_text("sep=,\nfile,label\nnone.png,a\n")
    with pytest.raises(InputError, match=r"labels\.csv:3: no image"):
        ClassificationData(tmp_path / "labels.csv").setup("fit")


@pytest.mark.parametrize("name", [" b", "c\rd", "\udce9", "cat, dog", 'say "b"', "b "])
def test_a_split_of_odd_names_is_read_again(name: str, plain: Path) -> None:
    """Spaces, ends of lines and bytes that are no text are parts of names; `cat, dog` may be beside `cat` and `dog`."""
    if name == "cat, dog":
        for i, other in enumerate(("cat", "dog", name)):
            (plain / str(i)).rename(plain / other)
    else:
        (plain / "1").rename(plain / name)
        first = sorted((plain / name).iterdir())[0]
        first.rename(first.with_name(f"{name}.png"))
    parts = []
    for _ in range(2):
        data = ClassificationData(plain, num_workers=0)
        data.prepare_data()
        data.setup("fit")
        parts.append([samples_of(data, part) for part in ("train", "val")])
    assert (plain / "split.csv").is_file()
    assert parts[0] == parts[1]
