"""Networks loaded from files in the official layouts equal the official code."""

import argparse

import pytest
import timm
import torch

import dgmn
from dgmn.layers import DGMN2Attention
from dgmn.ops import native

from golden_vectors import image

TARGETS = native.targets()


@pytest.fixture(params=["reference", *TARGETS])
def backend(request, monkeypatch):
    """Every backend of this machine; the native one runs with every instruction set."""
    monkeypatch.setattr(native, "_target", TARGETS.get(request.param, 0))
    return "native" if request.param in TARGETS else request.param


def create_model(name, backend, **options):
    model = timm.create_model(name, **options).eval()
    for module in model.modules():
        if isinstance(module, DGMN2Attention):
            module.backend = backend
    return model


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_classifier(golden, official_weights, tmp_path, backend, name):
    path = tmp_path / "checkpoint.pth"
    args = argparse.Namespace(model=f"dgmn2_{name}", lr=1e-3)
    torch.save({"model": official_weights(f"a_cls_{name}"), "optimizer": {}, "epoch": 299, "args": args}, path)
    model = create_model(f"dgmn2_{name}", backend)
    dgmn.load_checkpoint(model, path)
    vectors = golden(f"a_cls_{name}")
    with torch.no_grad():
        features, stages = model.forward_intermediates(torch.from_numpy(image("cls", (2, 3, 224, 224))))
        for i, stage in enumerate(stages):
            vectors.check(f"stage{i + 1}", stage)
        vectors.check("pooled", model.forward_head(features, pre_logits=True))
        vectors.check("logits", model.forward_head(features))


@pytest.mark.parametrize(("height", "width", "case"), [(224, 224, "224"), (256, 320, "256x320")])
def test_detection_backbone(golden, official_weights, tmp_path, backend, height, width, case):
    path = tmp_path / "retinanet.pth"
    weights = {f"backbone.{key}": tensor for key, tensor in official_weights("b_det_backbone_tiny").items()}
    weights["neck.lateral_convs.0.conv.weight"] = torch.zeros(256, 128, 1, 1)
    weights["bbox_head.retina_cls.weight"] = torch.zeros(720, 256, 3, 3)
    torch.save({"meta": {"epoch": 12}, "state_dict": weights, "optimizer": {}}, path)
    model = create_model("dgmn2_tiny", backend, features_only=True)
    dgmn.load_checkpoint(model, path)
    vectors = golden(f"b_det_backbone_tiny_{case}")
    with torch.no_grad():
        for i, stage in enumerate(model(torch.from_numpy(image("det", (1, 3, height, width))))):
            vectors.check(f"stage{i + 1}", stage)


@pytest.mark.parametrize(("output_stride", "name"), [(32, "neck"), (8, "decode_head_multi")])
def test_segmentation_backbone(golden, official_weights, tmp_path, backend, output_stride, name):
    path = tmp_path / "setr.pth"
    weights = {f"backbone.{key}": tensor for key, tensor in official_weights("c_seg_backbone_tiny").items()}
    weights["decode_head.conv_seg.weight"] = torch.zeros(19, 512, 1, 1)
    torch.save({"meta": {"iter": 40000}, "state_dict": weights, "optimizer": {}}, path)
    model = create_model("dgmn2_tiny", backend, features_only=True, output_stride=output_stride)
    dgmn.load_checkpoint(model, path)
    vectors = golden("c_seg_backbone_tiny_193x193")
    with torch.no_grad():
        for i, stage in enumerate(model(torch.from_numpy(image("seg", (1, 3, 193, 193))))):
            vectors.check(f"{name}.{i}", stage)


def test_double_precision(golden, official_weights, tmp_path):
    # The golden numbers come from a float64 run. The only error is their rounding to float32.
    path = tmp_path / "backbone.pth"
    torch.save(official_weights("b_det_backbone_tiny"), path)
    model = timm.create_model("dgmn2_tiny", features_only=True).eval()
    dgmn.load_checkpoint(model, path)
    vectors = golden("b_det_backbone_tiny_224")
    with torch.no_grad():
        for i, stage in enumerate(model.double()(torch.from_numpy(image("det", (1, 3, 224, 224))).double())):
            vectors.check(f"stage{i + 1}", stage, rtol=1e-6)
