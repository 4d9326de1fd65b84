import argparse
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open

import dgmn
from dgmn.detection import retinanet
from dgmn.errors import InputError
from dgmn.weights import ZOO, cached_file, download, fetch, find, read_checkpoint
from dgmn.weights.shared import to_safetensors
from dgmn.weights.zoo import cache_folder
from dgmn_cli import run

PUBLISHED = json.loads((Path(__file__).parent / "published_models.json").read_text())


def files_in(folder):
    """The files in a folder, without those that keep two processes from one download."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


@pytest.fixture
def classifier_file(official_weights, tmp_path):
    path = tmp_path / "dgmn2_tiny.pth"
    torch.save({"model": official_weights("a_cls_tiny"), "epoch": 299, "args": argparse.Namespace(lr=1e-3)}, path)
    return path


@pytest.fixture
def detector_file(official_weights, tmp_path):
    weights = {f"backbone.{name}": tensor for name, tensor in official_weights("b_det_backbone_tiny").items()}
    # Official Deformable DETR and others keep one tensor under several names.
    weights["bbox_head.0.bias"] = weights["bbox_head.1.bias"] = torch.ones(3)
    path = tmp_path / "retinanet.pth"
    torch.save({"meta": {"epoch": 12}, "state_dict": weights, "optimizer": {}}, path)
    return path


# ---------------------------------------------------------------------------------------------------- the table


def test_rows_are_unique():
    assert len(ZOO) == 33
    assert len({model.name for model in ZOO}) == 33
    assert len({model.file_id for model in ZOO}) == 33
    assert all(re.fullmatch(r"[a-z0-9_]+", model.name) for model in ZOO)


def test_rows_equal_the_published_ones():
    def ours(model):
        schedule = None if model.task == "classification" else model.schedule.lower()
        row = (model.task, model.dataset.lower(), model.method, model.backbone, schedule, model.file_id)
        # Only the paper has the costs of segmenters and detectors; tests of the networks check them.
        costs = ("params_m", "gmacs") if model.task != "classification" else ()
        return row, {name: value for name, value in model.metrics.items() if name not in costs}

    def published(row):
        row = dict(row)
        names = (row.pop("task"), row.pop("dataset").lower(), row.pop("method"))
        backbone = row.pop("backbone").lower().replace("-", "_")
        schedule = row.pop("schedule", "").lower() or None
        return (*names, backbone, schedule, row.pop("google_drive_id")), row

    assert [ours(model) for model in ZOO] == [published(row) for row in PUBLISHED]


@pytest.mark.parametrize("model", ZOO, ids=lambda model: model.name)
def test_find(model):
    assert find(model.name) is model
    assert timm.is_model(model.backbone)
    assert model.file_id in model.url


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("dgmn2_tinny", "did you mean dgmn2_tiny"),
        ("retinanet_dgmn2_smal", "did you mean retinanet_dgmn2_small"),
        ("zzz", "`dgmn zoo` lists them"),
        ("", "`dgmn zoo` lists them"),
    ],
)
def test_find_suggests_near_names(name, suggestion):
    with pytest.raises(ValueError, match=re.escape(f"no published model {name!r}")) as caught:
        find(name)
    assert suggestion in str(caught.value)


# ----------------------------------------------------------------------------------------------------- download


def test_convert_a_classifier(classifier_file, cache_dir):
    assert cached_file("dgmn2_tiny") is None
    path = download("dgmn2_tiny", classifier_file)
    assert path == cached_file("dgmn2_tiny")
    assert path.parent == cache_dir
    assert path.name == "dgmn2_tiny.safetensors"
    assert files_in(cache_dir) == [path.name]

    model, expected = timm.create_model("dgmn2_tiny"), timm.create_model("dgmn2_tiny")
    dgmn.load_checkpoint(expected, classifier_file)
    assert dgmn.load_checkpoint(model, path).ignored == ()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name

    # timm finds the file. A second download replaces it.
    pretrained = timm.create_model("dgmn2_tiny", pretrained=True)
    backbone = timm.create_model("dgmn2_tiny", pretrained=True, features_only=True).model
    for network in (pretrained, backbone):
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, expected.state_dict()[name]), name
    assert download("dgmn2_tiny", str(classifier_file)) == path


def test_convert_a_detector(detector_file, official_weights, cache_dir):
    path = download("retinanet_dgmn2_tiny", file=detector_file)
    model = timm.create_model("dgmn2_tiny", features_only=True)
    report = dgmn.load_checkpoint(model, path)
    assert set(report.ignored) == {"bbox_head.0.bias", "bbox_head.1.bias"}
    expected = official_weights("b_det_backbone_tiny")["patch_embed1.conv1.weight"]
    assert torch.equal(model.model.stem[0].conv.weight, expected)
    # A detector's file is not mistaken for the classifier's.
    assert cached_file("dgmn2_tiny") is None
    with safe_open(path, "pt") as file:
        assert file.metadata()["model"] == "retinanet_dgmn2_tiny"
        assert file.metadata()["source"] == find("retinanet_dgmn2_tiny").url
        assert re.fullmatch(r"[0-9a-f]{64}", file.metadata()["sha256"])


def test_wrong_file_leaves_nothing(classifier_file, detector_file, tmp_path, cache_dir):
    text, cut = tmp_path / "text.pth", tmp_path / "cut.pth"
    text.write_text("<html>Quota exceeded</html>")
    cut.write_bytes(classifier_file.read_bytes()[:-1000])
    for name, path, message in (
        ("dgmn2_small", classifier_file, "is not the published dgmn2_small"),
        ("dgmn2_tiny", detector_file, "is not the published dgmn2_tiny"),
        ("semantic_fpn_dgmn2_large", detector_file, "is not the published semantic_fpn_dgmn2_large"),
        ("dgmn2_tiny", text, "damaged"),
        ("dgmn2_tiny", cut, "damaged"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            download(name, path)
        assert str(path) in str(caught.value)
        assert files_in(cache_dir) == []
        assert cached_file(name) is None
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth"):
        download("dgmn2_tiny", tmp_path / "nothing.pth")
    weights = dict(read_checkpoint(classifier_file).state_dict)
    next(iter(weights.values())).flatten()[0] = torch.nan
    torch.save(weights, tmp_path / "nan.pth")
    with pytest.raises(ValueError, match=r"nan\.pth: 1 of \d+ tensors hold NaN"):
        download("dgmn2_tiny", tmp_path / "nan.pth")
    with pytest.raises(ValueError, match="no published model 'dgmn2_huge'"):
        download("dgmn2_huge", classifier_file)
    assert files_in(cache_dir) == []


def test_wrong_file_leaves_the_right_one(classifier_file, detector_file, cache_dir):
    path = download("dgmn2_tiny", classifier_file)
    content = path.read_bytes()
    with pytest.raises(ValueError, match="is not the published"):
        download("dgmn2_tiny", detector_file)
    assert path.read_bytes() == content
    assert files_in(cache_dir) == [path.name]


# ------------------------------------------------------------------------------------------- from Google Drive


TINY = find("dgmn2_tiny")
BY_HAND = f"get it by hand from {TINY.url}, then: dgmn zoo download dgmn2_tiny --file FILE"


@pytest.fixture
def tiny(google_drive, classifier_file):
    """Google Drive with the published dgmn2_tiny."""
    google_drive.files[TINY.file_id] = classifier_file.read_bytes()
    return google_drive


def refusal(kind, name="dgmn2_tiny"):
    """The line that says why a model cannot be fetched."""
    with pytest.raises(kind) as caught:
        fetch(name)
    assert cached_file(name) is None
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    return line


@pytest.mark.parametrize("large", [False, True])
def test_fetched_once_where_it_is_missing(large, tiny, classifier_file, cache_dir):
    tiny.large = large
    model, expected = timm.create_model("dgmn2_tiny", pretrained=True), timm.create_model("dgmn2_tiny")
    dgmn.load_checkpoint(expected, classifier_file)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name
    assert files_in(cache_dir) == ["dgmn2_tiny.safetensors"]
    assert timm.create_model("dgmn2_tiny", pretrained=True, num_classes=3).num_classes == 3
    backbone = retinanet("dgmn2_tiny", 2, channels=16, pretrained=True).backbone.body
    assert torch.equal(backbone.model.stem[0].conv.weight, expected.stem[0].conv.weight)
    assert dgmn.load("dgmn2_tiny", device="cpu").names[0] == "tench"
    assert tiny.sent == [0]


def test_whole_networks_are_fetched(google_drive, official_weights, detector_file, tmp_path, cache_dir):
    """`dgmn.load` accepts only a file of the whole network, not one of another network with the same backbone."""
    model = find("semantic_fpn_dgmn2_tiny")
    google_drive.files[model.file_id] = detector_file.read_bytes()
    with pytest.raises(InputError, match=r"is not the published semantic_fpn_dgmn2_tiny: .*bbox_head"):
        dgmn.load(model.name, device="cpu")
    assert files_in(cache_dir) == []
    torch.save({"state_dict": official_weights("d_seg_fpn_tiny")}, tmp_path / "fpn.pth")
    google_drive.files[model.file_id] = (tmp_path / "fpn.pth").read_bytes()
    assert dgmn.load(model.name, device="cpu").names[0] == "road"
    assert files_in(cache_dir) == [f"{model.name}.safetensors"]


def test_a_cut_download_goes_on(tiny, cache_dir):
    size = len(tiny.files[TINY.file_id])
    tiny.cuts = [size // 2, size * 3 // 4]
    assert fetch("dgmn2_tiny").is_file()
    assert 0 < min(filter(None, tiny.sent)) <= size // 2
    assert files_in(cache_dir) == ["dgmn2_tiny.safetensors"]


def test_a_cut_download_goes_on_in_the_next_call(tiny, cache_dir):
    size = len(tiny.files[TINY.file_id])
    tiny.cuts = [size // 10 * i for i in range(1, 10) for _ in range(2)]  # gdown asks twice: for the length, then on
    line = refusal(ConnectionError)
    assert line.startswith("dgmn2_tiny could not be downloaded (")
    assert BY_HAND in line
    tiny.cuts, before = [], len(tiny.sent)
    fetch("dgmn2_tiny")
    assert max(tiny.sent[before:]) > size // 5
    assert files_in(cache_dir) == ["dgmn2_tiny.safetensors"]


def test_a_cut_download_starts_again_where_the_server_gives_whole_files_only(tiny, cache_dir):
    tiny.cuts, tiny.ranges = [len(tiny.files[TINY.file_id]) // 2], False
    assert fetch("dgmn2_tiny").is_file()
    assert set(tiny.sent) == {0}
    assert files_in(cache_dir) == ["dgmn2_tiny.safetensors"]


def test_over_the_quota(tiny, cache_dir):
    tiny.over_quota = True
    line = refusal(ConnectionError)
    assert "Too many users have viewed or downloaded this file recently" in line
    assert line.endswith(BY_HAND)
    assert files_in(cache_dir) == []


def test_gone(google_drive, cache_dir):
    assert refusal(ConnectionError).endswith(BY_HAND)
    assert files_in(cache_dir) == []


def test_other_files_than_the_published_one(tiny, detector_file, cache_dir):
    for content, message in (
        (detector_file.read_bytes(), "is not the published dgmn2_tiny"),
        (b"<html>Sign in to continue</html>", "damaged"),
        (b"", "damaged"),
    ):
        tiny.files[TINY.file_id] = content
        assert message in refusal(InputError)
        assert files_in(cache_dir) == []


def test_a_file_that_is_too_large(tiny, cache_dir):
    tiny.announced = 2**40
    assert "larger than a published file, which has at most 4,294,967,296 bytes" in refusal(InputError)
    assert files_in(cache_dir) == []


def test_two_at_once_download_once(tiny, cache_dir):
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(fetch, ["dgmn2_tiny"] * 2))
    assert paths == [cache_dir / "dgmn2_tiny.safetensors"] * 2
    assert tiny.sent == [0]


@pytest.mark.slow
def test_two_processes_at_once_download_once(tiny, cache_dir):
    code = f"import google_drive; google_drive.reroute({tiny.port}); from dgmn.weights import fetch\n"
    code += "from dgmn.weights import read_checkpoint\nprint(len(read_checkpoint(fetch('dgmn2_tiny')).state_dict))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0].splitlines()[-1] for process in processes]
    assert outputs[0] == outputs[1]
    assert tiny.sent == [0]


def test_offline(cache_dir, few_digits, capsys):
    line = refusal(ConnectionError)
    assert line.startswith("dgmn2_tiny could not be downloaded (")
    assert line.endswith(BY_HAND)
    for attempt in (
        lambda: timm.create_model("dgmn2_tiny", pretrained=True),
        lambda: dgmn.load("dgmn2_tiny"),
        lambda: retinanet("dgmn2_tiny", pretrained=True),
    ):
        with pytest.raises((OSError, InputError), match=re.escape(BY_HAND)):
            attempt()
    image = str(next(few_digits.rglob("*.png")))
    for command in (["predict", image, "--model", "dgmn2_tiny"], ["zoo", "download", "dgmn2_tiny"]):
        assert run(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(BY_HAND)
    assert files_in(cache_dir) == []


def test_without_gdown(cache_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    assert refusal(InputError) == f"dgmn2_tiny: fetching it needs gdown (pip install gdown); or {BY_HAND}"


# ------------------------------------------------------------------------------------------------------ the cache


def test_the_place_of_the_cache(cache_dir, monkeypatch, tmp_path):
    assert cache_folder() == cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == cache_dir
    monkeypatch.delenv("DGMN_HOME")
    assert cache_folder() == tmp_path / "xdg/dgmn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home/.cache/dgmn"


def test_files_in_torch_hub_s_folder_are_found(cache_dir, classifier_file):
    old = Path(torch.hub.get_dir()) / "dgmn/dgmn2_tiny.safetensors"
    old.parent.mkdir(parents=True)
    download("dgmn2_tiny", classifier_file).rename(old)
    assert cached_file("dgmn2_tiny") == fetch("dgmn2_tiny") == old
    assert download("dgmn2_tiny", classifier_file) == cached_file("dgmn2_tiny")
    assert cached_file("dgmn2_tiny").parent == cache_dir


def test_verify(cache_dir, classifier_file, official_weights, tmp_path, capsys):
    assert run(["zoo", "verify"]) == 0
    assert "no published model in" in capsys.readouterr().out
    torch.save({"state_dict": official_weights("d_seg_fpn_tiny")}, tmp_path / "fpn.pth")
    assert run(["zoo", "download", "semantic_fpn_dgmn2_tiny", "--file", str(tmp_path / "fpn.pth")]) == 0
    tiny = download("dgmn2_tiny", classifier_file)
    capsys.readouterr()
    assert run(["zoo", "verify"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["ok", "dgmn2_tiny"],
        ["ok", "semantic_fpn_dgmn2_tiny"],
    ]

    content = tiny.read_bytes()
    broken = {
        "its numbers are not those that were written": content[:-1] + bytes([content[-1] ^ 1]),
        "damaged": content[:-1000],
    }
    for message, wrong in broken.items():
        tiny.write_bytes(wrong)
        assert run(["zoo", "verify"]) == 1
        bad, good = capsys.readouterr().out.splitlines()
        assert bad.startswith("BAD  dgmn2_tiny: ")
        assert message in bad
        assert good.startswith("ok   semantic_fpn_dgmn2_tiny")
    assert run(["zoo", "verify", "semantic_fpn_dgmn2_tiny"]) == 0
    assert run(["zoo", "verify", "dgmn2_small"]) == 1
    assert "fetch it with dgmn zoo download dgmn2_small" in capsys.readouterr().out
    assert run(["zoo", "verify", "dgmn2_smal"]) == 2
    assert "did you mean dgmn2_small" in capsys.readouterr().err

    # A renamed file, one of another network, and one that is none of ours.
    tiny.write_bytes(content)
    tiny.rename(cache_dir / "dgmn2_small.safetensors")
    (cache_dir / "other.safetensors").write_bytes(content)
    weights = {**official_weights("d_seg_fpn_tiny"), "more": torch.ones(1)}
    facts = {"model": "semantic_fpn_dgmn2_tiny"}
    (cache_dir / "semantic_fpn_dgmn2_tiny.safetensors").write_bytes(to_safetensors(weights, facts))
    assert run(["zoo", "verify"]) == 1
    small, other, fpn = capsys.readouterr().out.splitlines()
    assert "it was written for dgmn2_tiny, not for dgmn2_small" in small
    assert "no published model 'other'" in other
    assert "'more'" in fpn
