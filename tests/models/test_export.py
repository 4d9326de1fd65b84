"""Exported networks compute the same, at every size."""

import warnings

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch.export import Dim

SIZES = [(2, 64, 96), (1, 224, 224), (3, 96, 64), (2, 64, 64), (1, 160, 288)]
EXAMPLES = {"square": (2, 3, 224, 224), "not square": (2, 3, 64, 96)}
BOTH = [pytest.param("square"), pytest.param("not square", marks=pytest.mark.slow)]


@pytest.fixture
def model():
    model = timm.create_model("dgmn2_nano", num_classes=10, depths=(1, 1, 1, 1)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # walks start at zero: give them somewhere to go
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def exported(model, example, size=None):
    dims = {0: Dim.AUTO, 2: size or Dim.AUTO, 3: size or Dim.AUTO}
    return torch.export.export(model, (torch.randn(EXAMPLES[example]),), dynamic_shapes=(dims,))


def check(run, model, **tolerance):
    for batch, height, width in SIZES:
        image = torch.randn(batch, 3, height, width)
        with torch.no_grad():
            torch.testing.assert_close(run(image), model(image), **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("example", BOTH)
@pytest.mark.parametrize("size", [Dim.AUTO, Dim.DYNAMIC])
def test_torch_export(model, example, size):
    check(exported(model, example, size).module(), model)


@pytest.mark.parametrize("example", BOTH)
# The exporter of today, and that of TorchScript, which timm's onnx_export.py uses.
@pytest.mark.parametrize("dynamo", [pytest.param(True, marks=pytest.mark.slow), False])
def test_onnx(model, example, dynamo, tmp_path):
    path = tmp_path / "model.onnx"
    image = torch.randn(EXAMPLES[example])
    axes = {0: "batch", 2: "height", 3: "width"}
    if dynamo:
        options = {"dynamic_shapes": (dict.fromkeys(axes, Dim.AUTO),), "external_data": False}
    else:
        options = {"dynamic_axes": {"image": axes, "logits": {0: "batch"}}, "opset_version": 18}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {"input_names": ["image"], "output_names": ["logits"]}
        torch.onnx.export(model, (image,), path, dynamo=dynamo, verbose=False, **names, **options)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(image):
        (logits,) = session.run(None, {"image": image.numpy()})
        assert logits.dtype == np.float32
        return torch.from_numpy(logits)

    check(run, model, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("example", BOTH)
def test_ahead_of_time_inductor(model, example, tmp_path):
    path = torch._inductor.aoti_compile_and_package(exported(model, example), package_path=str(tmp_path / "model.pt2"))
    check(torch._inductor.aoti_load_package(path), model, rtol=1e-4, atol=1e-5)
