"""The dilated FCN with and without modules."""

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import dgmn
from dgmn.complexity import count
from dgmn.errors import InputError
from dgmn.layers import DGMN
from dgmn.layers.context import MODULES
from dgmn.segmentation import PixelLoss, dilated_fcn
from dgmn.training.start import start_from
from dgmn.weights import read_checkpoint

SMALL = {"channels": 16, "backbone_args": {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 2)}}
RATES = {"sampling_rates": (1, 3), "fusion": "concat"}


@given(
    module=st.sampled_from(sorted(MODULES)),
    output_stride=st.sampled_from([8, 16, 32]),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
)
def test_any_image(module, output_stride, height, width):
    model = dilated_fcn("resnet18", 5, module=module, output_stride=output_stride, **SMALL).eval()
    with torch.no_grad():
        logits = model(torch.randn(1, 3, height, width))
    assert logits.shape == (1, 5, height, width)
    assert logits.isfinite().all()


def test_order_of_the_parts():
    """The head is a convolution with batch norm and ReLU, then the module, then the classifier."""
    model = dilated_fcn("resnet18", 5, module="dgmn", module_args=RATES, **SMALL).eval()
    images = torch.randn(2, 3, 64, 96)
    last = model.backbone(images)[-1]
    assert last.shape == (2, 16, 8, 12)
    conv, norm, _ = model.head.conv
    x = model.head.module(norm(conv(last)).relu())
    expected = nn.functional.interpolate(model.head.classifier(x), (64, 96), mode="bilinear", align_corners=True)
    torch.testing.assert_close(model(images), expected)
    assert isinstance(model.head.module, DGMN)
    assert model.head.module.channels == 16


@pytest.mark.parametrize("module", ["none", "dgmn", "non_local"])
def test_learns(module):
    """The network learns a batch of two images by heart."""
    model = dilated_fcn("resnet18", 3, module=module, multi_grid=(1, 2), **SMALL)
    torch.manual_seed(1)
    images = torch.randn(2, 3, 48, 48)
    masks = torch.zeros(2, 48, 48, dtype=torch.long)
    masks[0, 24:], masks[1, :, 24:] = 1, 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss = PixelLoss()(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_weights(tmp_path, capsys):
    """A classifier's weights fill the backbone; own ones load in full; other classes leave the classifier out."""
    plain = timm.create_model("resnet18", num_classes=7, **SMALL["backbone_args"])
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    model = dilated_fcn("resnet18", 5, module="dgmn", **SMALL)
    assert not start_from(model, read_checkpoint(tmp_path / "plain.pth"))
    assert torch.equal(model.backbone.model.layer4[0].conv1.weight, plain.layer4[0].conv1.weight)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    other = dilated_fcn("resnet18", 5, module="dgmn", **SMALL)
    assert dgmn.load_checkpoint(other, tmp_path / "own.pth").loaded == len(model.state_dict())
    baseline = dilated_fcn("resnet18", 5, **SMALL)
    torch.save(baseline.state_dict(), tmp_path / "baseline.pth")
    # The module is untrained, so the network is not ready to be evaluated.
    assert not start_from(other, read_checkpoint(tmp_path / "baseline.pth"))
    assert start_from(other, read_checkpoint(tmp_path / "own.pth"))
    report = dgmn.load_checkpoint(other, tmp_path / "baseline.pth")
    assert all(name.startswith("head.module.") for name in report.fresh)
    assert torch.equal(other.head.conv[0].weight, baseline.head.conv[0].weight)
    other = dilated_fcn("resnet18", 4, module="dgmn", **SMALL)
    assert not start_from(other, read_checkpoint(tmp_path / "own.pth"))
    assert "has other classes: its classifier is left out" in capsys.readouterr().out
    assert torch.equal(other.head.module.messages[0].filters.weight, model.head.module.messages[0].filters.weight)
    assert other.head.classifier.weight.shape[0] == 4


def test_the_paper_s_baseline():
    """ResNet-101 with output stride 8 and a 3x3 convolution to 512 channels."""
    with torch.device("meta"):
        model = dilated_fcn()
        maps = model.backbone(torch.empty(1, 3, 769, 769))
        assert maps[-1].shape == (1, 2048, 97, 97)
        assert model.head.conv(maps[-1]).shape == (1, 512, 97, 97)
        head = count(model.head.conv, (97, 97), in_chans=2048)
    assert head.params == 9 * 2048 * 512 + 2 * 512


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"module": "dgnm"}, "module: no 'dgnm'; one of none, dgmn"),
        ({"module_args": {"sampling_rates": [1]}}, "module_args: none cannot be built .*sampling_rates"),
        ({"num_classes": 1}, "num_classes must be a whole number in 2..255, .* got 1"),
        ({"num_classes": 3.5}, "num_classes must be a whole number in 2..255, .* got 3.5"),
        ({"channels": 0}, "channels must be a whole number of at least 1, got 0"),
        ({"channels": "x"}, "channels must be a whole number of at least 1, got 'x'"),
        ({"backbone_args": [1]}, r"backbone_args must be a dict of arguments for resnet18, got \[1\]"),
        ({"backbone_args": {"stem": 8}}, "backbone resnet18: backbone_args: it takes no 'stem'"),
        ({"backbone": "dgmn_resnet50", "backbone_args": {"at": "c3"}}, "backbone dgmn_resnet50: at must be"),
        ({"backbone_args": {"output_stride": 16}}, "backbone_args: output_stride is an argument of the network here"),
        ({"backbone": "resnet18", "multi_grid": 4}, "multi_grid: a factor of at least 1 for each of 2 blocks, got 4"),
        ({"backbone": "dgmn2_nano", "multi_grid": (1, 2)}, "multi_grid: is for timm's ResNets, got DGMN2"),
        ({"backbone": "resnet18", "multi_grid": (1, 2, 4)}, "multi_grid: a factor of at least 1 for each of 2 blocks"),
        ({"backbone": "resnet18", "multi_grid": (1, 2), "output_stride": 32}, "multi_grid: the network is not dilated"),
        ({"backbone": "swin_tiny_patch4_window7_224"}, "backbone swin_tiny_patch4_window7_224: "),
    ],
)
def test_mistakes_are_named(options, message):
    with torch.device("meta"), pytest.raises(InputError, match=message):
        dilated_fcn(**{"backbone": "resnet18", **options})
