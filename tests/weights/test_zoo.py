import argparse
import json
import re
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open

import dgmn
from dgmn.weights import ZOO, cached_file, download, find

PUBLISHED = json.loads((Path(__file__).parent / "published_models.json").read_text())


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


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


def test_convert_a_classifier(classifier_file, hub_dir):
    assert cached_file("dgmn2_tiny") is None
    path = download("dgmn2_tiny", classifier_file)
    assert path == cached_file("dgmn2_tiny")
    assert path.is_relative_to(hub_dir)
    assert path.name == "dgmn2_tiny.safetensors"
    assert files_in(hub_dir) == [path.name]

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
    with pytest.raises(RuntimeError, match="no weights of dgmn2_small"):
        timm.create_model("dgmn2_small", pretrained=True)


def test_convert_a_detector(detector_file, official_weights, hub_dir):
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


def test_wrong_file_leaves_nothing(classifier_file, detector_file, tmp_path, hub_dir):
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
        assert files_in(hub_dir) == []
        assert cached_file(name) is None
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth"):
        download("dgmn2_tiny", tmp_path / "nothing.pth")
    with pytest.raises(ValueError, match="no published model 'dgmn2_huge'"):
        download("dgmn2_huge", classifier_file)
    assert files_in(hub_dir) == []


def test_wrong_file_leaves_the_right_one(classifier_file, detector_file, hub_dir):
    path = download("dgmn2_tiny", classifier_file)
    content = path.read_bytes()
    with pytest.raises(ValueError, match="is not the published"):
        download("dgmn2_tiny", detector_file)
    assert path.read_bytes() == content
    assert files_in(hub_dir) == [path.name]


def online():
    try:
        socket.create_connection(("drive.google.com", 443), timeout=5).close()
    except OSError:
        return False
    return True


def test_no_network(hub_dir):
    if find_spec("gdown") is None:
        pytest.skip("gdown is not installed")
    if online():
        pytest.skip("there is a network")
    with pytest.raises(ConnectionError) as caught:
        download("dgmn2_tiny")
    message = str(caught.value)
    assert message.startswith("dgmn2_tiny could not be downloaded from https://drive.google.com/file/d/")
    assert "dgmn zoo download dgmn2_tiny --file FILE" in message
    assert files_in(hub_dir) == []
