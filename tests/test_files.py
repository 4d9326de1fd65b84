"""Files that users name, and files that are written: whole, or not at all."""

import argparse
import errno
import json
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dgmn.bench.measure import Timing
from dgmn.bench.report import Report
from dgmn.classification.layouts import ClassFolders
from dgmn.detection.metrics import write_results
from dgmn.errors import InputError
from dgmn.images import load_image, save_image
from dgmn.objects.coco import load_annotations
from dgmn.objects.layouts import CocoFiles
from dgmn.quickstart.classification import write as write_digits
from dgmn.segmentation.labels import named, read_classes, read_mask
from dgmn.segmentation.layouts import Cityscapes, MaskFolders
from dgmn.training.checkpoint import AtomicCheckpointIO
from dgmn.writers import ListWriter
from dgmn_base.files import check_output, find_images, writing, writing_folder

STRANGE = os.fsdecode(b"na\xefve \xff")  # Latin-1: not UTF-8
NOISE = Image.effect_noise((200, 200), 60)


class Row:
    def to_dict(self) -> dict[str, str]:
        return {"image": "x" * 1000}


def _json(path: Path) -> None:
    with ListWriter(path) as writer:
        for _ in range(100):
            writer.add(Row())  # type: ignore[arg-type]


def _bench(path: Path) -> None:
    report = Report("ops", argparse.Namespace(device="cpu", dtype="float32", threads=None, out=path.parent))
    report.csv = path
    report.add("c" * 50_000, "forward", 1, 1, 1, {"a": (Timing(1.0, 1.0, 1.0), None)}, {"a": "a"})


WRITERS: dict[str, Callable[[Path], None]] = {
    "picture.jpg": lambda path: save_image(NOISE.convert("RGB"), path, quality=95),
    "labels.png": lambda path: save_image(NOISE, path),
    "results.json": lambda path: write_results([{"score": 0.5}] * 2000, path),
    "found.json": _json,
    "last.ckpt": lambda path: AtomicCheckpointIO().save_checkpoint({"weights": torch.rand(10_000)}, path),
    "ops.csv": _bench,
}


@contextmanager
def small_disk(limit: int) -> Iterator[None]:
    """No file can grow beyond `limit` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_whole_or_as_it_was(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / name
    for old in (None, b"old"):
        if old is not None:
            path.write_bytes(old)
        for limit in (0, 10, 5000, 9000):
            with (
                small_disk(limit),
                pytest.raises(InputError, match=rf"{name}: cannot be written: {os.strerror(errno.EFBIG)}") as told,
            ):
                WRITERS[name](path)
            assert "\n" not in str(told.value)
            assert [(p.name, p.read_bytes()) for p in path.parent.iterdir()] == ([(name, old)] if old else [])
    WRITERS[name](path)
    assert path.stat().st_size > 9000
    assert [p.name for p in path.parent.iterdir()] == [name]


def test_results_before_an_error_are_kept(tmp_path: Path) -> None:
    def interrupted() -> None:
        with ListWriter(tmp_path / "a.json") as writer:
            writer.add(Row())  # type: ignore[arg-type]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert json.loads((tmp_path / "a.json").read_text()) == [Row().to_dict()]


def test_another_error_than_the_disk_s_is_not_renamed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "a"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_what_a_file_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "there" / "real.json")
    for _ in range(2):
        _json(tmp_path / "link.json")
        assert (tmp_path / "link.json").is_symlink()
        assert json.loads((tmp_path / "there" / "real.json").read_text())
        (tmp_path / "there" / "real.json").write_text("old")
    for path, reason in {
        tmp_path: errno.EISDIR,
        tmp_path / "there" / "real.json" / "x.json": errno.ENOTDIR,
        tmp_path / ("x" * 300): errno.ENAMETOOLONG,
        Path("/dev/full"): errno.ENOSPC,
    }.items():
        with pytest.raises(InputError, match=f"{path}: cannot be written: ({os.strerror(reason)}|File exists)"):
            _json(path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    _json(pipe)
    reader.join(timeout=10)
    assert len(json.loads(read[0])) == 100
    assert pipe.is_fifo()


def test_a_dataset_is_whole_or_absent(tmp_path: Path) -> None:
    with small_disk(100), pytest.raises(InputError, match="digits: cannot be written"):
        write_digits(tmp_path / "digits")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------ what is read


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8)).save(path, "PNG")
    return path


def clutter(folder: Path) -> None:
    """What lies beside images: hidden files and folders, links in a circle, and what is no file."""
    picture(folder / ".hidden" / "a_leftImg8bit.png")
    picture(folder / "._a_leftImg8bit.png")
    (folder / "again").symlink_to(folder)
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "nothing.png").symlink_to("nowhere")
    (folder / "folder_leftImg8bit.png").mkdir()
    os.mkfifo(folder / "pipe_leftImg8bit.png")
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket must be short
    try:
        socket.socket(socket.AF_UNIX).bind("socket_leftImg8bit.png")
    finally:
        os.chdir(here)


def _masks(root: Path) -> list[Path]:
    (root / "classes.txt").write_text("a\nb\n")
    return [sample.image for sample in MaskFolders(root).samples("train")]


LISTED: dict[str, tuple[str, Callable[[Path], list[Any]]]] = {
    "predict": ("images", lambda root: find_images([root / "images"])),
    "classes": ("train/cat", lambda root: [Path(path) for path, _ in ClassFolders(root / "train").samples]),
    "folders": ("images/train", _masks),
    "cityscapes": ("leftImg8bit/train/city", lambda root: [s.image for s in Cityscapes(root).samples("train")]),
}


@pytest.mark.parametrize("layout", LISTED)
def test_only_images_are_listed(layout: str, tmp_path: Path) -> None:
    folder, listed = LISTED[layout]
    images = [picture(tmp_path / folder / f"{name}_leftImg8bit.png") for name in ("a", f"b{STRANGE}")]
    clutter(tmp_path / folder)
    assert listed(tmp_path) == images


@pytest.mark.parametrize("layout", LISTED)
def test_images_of_other_formats_are_told(layout: str, tmp_path: Path) -> None:
    folder, listed = LISTED[layout]
    image = picture(tmp_path / folder / "a_leftImg8bit.png")
    for name in ("b.HEIC", "c.heic", ".d.heic", "e.txt"):
        (tmp_path / folder / name).write_bytes(b"ftypheic")
    with pytest.warns(UserWarning, match=r"2 images are left out, for \.heic is not read"):
        assert listed(tmp_path) == [image]


@contextmanager
def nobody() -> Iterator[None]:
    """Without the rights of root, who may read everything."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.mark.parametrize("layout", LISTED)
def test_a_closed_folder_is_not_called_empty(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, listed = LISTED[layout]
    picture(tmp_path / folder / "a_leftImg8bit.png")
    (tmp_path / folder).chmod(0)
    tmp_path.chmod(0o777)
    monkeypatch.chdir(tmp_path)  # the folders above may be closed, too
    with nobody(), pytest.raises(PermissionError, match=folder):
        listed(Path())
    (tmp_path / folder).chmod(0o755)
    picture(tmp_path / folder / "a_leftImg8bit.png").chmod(0)
    with nobody(), pytest.raises(InputError, match=r"a_leftImg8bit\.png: cannot be read: Permission denied"):
        load_image(Path(folder) / "a_leftImg8bit.png")


def test_folders_that_are_hidden_are_no_splits(tmp_path: Path) -> None:
    for folder in (
        "images/train",
        "images/.ipynb_checkpoints",
        "leftImg8bit/val/x",
        "leftImg8bit/.cache",
        "annotations",
    ):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    for name in ("instances_a.json", "._instances_a.json", ".b.json"):
        (tmp_path / "annotations" / name).touch()
    assert MaskFolders(tmp_path).splits() == ["train"]
    assert Cityscapes(tmp_path).splits() == ["val"]
    assert CocoFiles(tmp_path).splits() == ["a"]
    assert CocoFiles(tmp_path, annotations="annotations/{split}.json").splits() == ["instances_a"]


READERS: dict[str, Callable[[Path], Any]] = {
    "find_images": lambda path: find_images([path]),
    "load_image": load_image,
    "read_mask": lambda path: read_mask(path, named(["a", "b"])),
    "read_classes": read_classes,
    "load_annotations": load_annotations,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_or_device_is_never_opened(reader: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in {tmp_path / "pipe": "a pipe", Path("/dev/zero"): "a device"}.items():
        with pytest.raises(InputError, match=f"{path}: ({kind}, a file is needed|no such file)"):
            READERS[reader](path)


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    assert np.asarray(load_image(picture(tmp_path / f"{STRANGE}.png"))).shape == (8, 8, 3)
    (tmp_path / f"{STRANGE}.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="not an image"):
        load_image(tmp_path / f"{STRANGE}.png")


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    """What ends last stays, whole, in whatever order they begin and end."""
    for ends in ((0, 1), (1, 0)):
        writers = [writing(tmp_path / "a") for _ in range(2)]
        files = [writer.__enter__() for writer in writers]
        for i, file in enumerate(files):
            file.write(b"%d" % i * 10_000)
        for i in ends:
            writers[i].__exit__(None, None, None)
            assert (tmp_path / "a").read_bytes() == b"%d" % i * 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_dead_process_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".a.partial"
    left.write_bytes(b"half")
    with writing(tmp_path / "a") as file:
        file.write(b"whole")
    assert left.read_bytes() == b"half"  # it may be being written
    os.utime(left, (0, 0))
    with writing(tmp_path / "a") as file:
        file.write(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_new_folder_leaves_others_alone(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/mine").touch()
    with writing_folder(tmp_path / "out") as folder:
        (folder / "x").touch()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("?*")) == [
        *("out", "out.partial", "out.partial/mine", "out/x")
    ]


def test_a_pipe_may_lie_in_a_closed_folder(tmp_path: Path) -> None:
    """As /dev/stdout does. (Nothing is closed for root.)"""
    folder = tmp_path / "closed"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    folder.chmod(0o555)
    check_output(folder / "pipe", "--json")
    with pytest.raises(InputError, match="--json: this is a folder, give a file"):
        check_output(folder, "--json")
    if os.geteuid() != 0:
        with pytest.raises(InputError, match="--json: nothing can be written in "):
            check_output(folder / "new.json", "--json")
