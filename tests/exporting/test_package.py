"""`dgmn export --out x.pt2`: machine code that PyTorch runs without dgmn, and that dgmn does not run by itself."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

import dgmn
from dgmn.classification.builders import classifier
from dgmn.classification.predictor import ClassificationPredictor
from dgmn.errors import InputError
from dgmn.exporting import export
from dgmn.segmentation import semantic_fpn
from dgmn.segmentation.predictor import SegmentationPredictor
from dgmn_cli import run

COLORS = ((1, 2, 3), (4, 5, 6), (7, 8, 9))
ELSEWHERE = """
import json, sys
sys.modules["dgmn"] = None
import numpy as np, torch
network = torch._inductor.aoti_load_package(sys.argv[1])
for i in range(2):
    np.save(f"{sys.argv[2]}/{i}.npy", network(torch.from_numpy(np.load(f"{sys.argv[2]}/images{i}.npy"))).numpy())
print(network.get_metadata()["dgmn"])
"""


def moved(network):
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "offset." in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def small_classifier(size=64):
    network = moved(classifier("dgmn2_nano", 3, {"depths": (1, 1, 1, 1)}))
    return ClassificationPredictor(network, ("a", "b", "c"), image_size=size)


def check_elsewhere(model, path, folder, *shapes):
    """Runs the package in a process that cannot import dgmn."""
    for i, shape in enumerate(shapes):
        np.save(folder / f"images{i}.npy", np.random.default_rng(i).standard_normal(shape, np.float32))
    command = [sys.executable, "-c", ELSEWHERE, str(path), str(folder)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for i in range(len(shapes)):
        with torch.no_grad():
            want = model.network(torch.from_numpy(np.load(folder / f"images{i}.npy"))).numpy()
        np.testing.assert_allclose(np.load(folder / f"{i}.npy"), want, atol=1e-4 * np.abs(want).max())
    return json.loads(told)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [True, False])
def test_classifier(dynamic, tmp_path):
    model = small_classifier()
    done = export(model, tmp_path / "model.pt2", dynamic=dynamic, licence="MIT")
    assert done.fixed == (None if dynamic else "as asked")
    assert done.error < 1e-4
    other = (3, 3, 96, 160) if dynamic else (3, 3, 64, 64)
    facts = check_elsewhere(model, done.path, tmp_path, (1, 3, 64, 64), other)
    assert facts["classes"] == ["a", "b", "c"]
    assert set(facts["preprocessing"]) >= {"mean", "std", "interpolation"}
    with zipfile.ZipFile(done.path) as archive:  # what is said can be read without running the code
        (name,) = (n for n in archive.namelist() if n.endswith("wrapper_metadata.json"))
        said = json.loads(archive.read(name))
    assert (said["license"], said["dgmn_version"]) == ("MIT", dgmn.__version__)
    assert json.loads(said["dgmn"]) == facts


@pytest.mark.slow
def test_segmenter(tmp_path):
    args = {"depths": (1, 1, 1, 1)}
    network = moved(semantic_fpn("dgmn2_nano", 3, pyramid_channels=16, channels=16, backbone_args=args))
    model = SegmentationPredictor(network, ("a", "b", "c"), COLORS)
    done = export(model, tmp_path / "model.pt2", size=(96, 128))
    assert done.fixed is None
    facts = check_elsewhere(model, done.path, tmp_path, (1, 3, 96, 128), (2, 3, 131, 90))
    assert facts["colors"] == [list(color) for color in COLORS]


def test_dgmn_runs_no_package(tmp_path, capsys):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"model.pt2: holds machine code, which dgmn does not run; if you trust"):
        dgmn.load(path)
    assert run(["predict", "docs/images", "--ckpt_path", str(path)]) == 2
    assert "torch._inductor.aoti_load_package" in capsys.readouterr().err


def test_what_is_refused(small_run, tmp_path):
    path = tmp_path / "model.pt2"
    with pytest.raises(InputError, match=r"a detector is written as .onnx only: how many objects it finds"):
        export(dgmn.load(small_run("retinanet")), path)
    for options in ({"int8": True, "calibrate": tmp_path}, {"grid_sample": False}):
        with pytest.raises(InputError, match=r"(int8|grid_sample): is for .onnx, got .*model.pt2"):
            export(small_classifier(), path, **options)
    assert list(tmp_path.iterdir()) == []
