"""Exported networks compute the same."""

import warnings

import numpy as np
import onnxruntime
import pytest
import timm
import torch


@pytest.mark.slow
def test_torch_export_and_onnx(tmp_path):
    model = timm.create_model("dgmn2_nano", num_classes=10).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # walks start at zero: give them somewhere to go
            parameter.add_(0.02 * torch.randn_like(parameter))
    image = torch.randn(2, 3, 64, 96)
    expected = model(image).detach()
    assert torch.equal(torch.export.export(model, (image,)).module()(image), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (image,), tmp_path / "model.onnx", dynamo=True, external_data=False, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-4, atol=1e-5)
