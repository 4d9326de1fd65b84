"""The baseline computes what we compute."""

import functools

import pytest
import timm
import torch

from dgmn.bench.original import original_attention, use_original
from dgmn.layers import DGMN2Attention
from dgmn.ops import sampled_attention


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(
    ("shape", "shared_walks", "with_bias", "options"),
    [
        ((2, 7, 7, 3, 8), False, True, {}),
        ((1, 5, 9, 2, 4), True, True, {"dilation": 2}),
        ((1, 6, 4, 1, 4), False, False, {"scale": 0.3, "kernel_size": 2}),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_equal_to_sampled_attention(backend, shape, shared_walks, with_bias, options):
    batch, height, width, heads, dim = shape
    nodes = options.get("kernel_size", 3) ** 2
    qkv = torch.randn(batch, height, width, 3, heads, dim)
    offset = 2 * torch.randn(batch, height, width, 1 if shared_walks else heads, nodes, 2)
    bias = torch.randn(batch, height, width, heads, nodes) if with_bias else None
    weight = torch.randn(shape)
    results = []
    for attend in (original_attention, functools.partial(sampled_attention, backend=backend)):
        inputs = [x.clone().requires_grad_() for x in (qkv, offset, bias) if x is not None]
        out = attend(*inputs[0].unbind(3), *inputs[1:], **options)
        results.append([out, *torch.autograd.grad((out * weight).sum(), inputs)])
    for original, ours in zip(*results, strict=True):
        assert original.shape == ours.shape
        assert relative_error(original, ours) < 1e-5


def test_half_precision_keeps_its_dtype_and_places():
    qkv = torch.randn(1, 4, 300, 3, 1, 8)
    offset = torch.rand(1, 4, 300, 1, 9, 2)
    out = original_attention(*qkv.bfloat16().unbind(3), offset)
    assert out.dtype == torch.bfloat16
    assert relative_error(out.float(), sampled_attention(*qkv.unbind(3), offset)) < 0.03


@pytest.mark.parametrize("rel_pos", ["official", "aligned"])
@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_whole_model(rel_pos, size):
    model = timm.create_model("dgmn2_nano", rel_pos=rel_pos, num_classes=10).eval()
    for name, parameter in model.named_parameters():  # at the start all walks are 0 and the tables hardly matter
        if ".offset." in name or ".rel_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    before = [m for m in model.modules() if isinstance(m, DGMN2Attention)]
    original = use_original(model)
    assert not any(isinstance(m, DGMN2Attention) for m in original.modules())
    assert [m for m in model.modules() if isinstance(m, DGMN2Attention)] == before
    assert original.state_dict().keys() == model.state_dict().keys()
    image = torch.randn(2, 3, *size)
    results = []
    for network in (original, model):
        out = network(image)
        parameters = dict(network.named_parameters())
        names = sorted(parameters)
        grads = torch.autograd.grad(out.square().mean(), [parameters[name] for name in names])
        results.append([out, *grads])
    for actual, expected in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-4


def test_features_only():
    model = timm.create_model("dgmn2_nano", features_only=True).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for actual, expected in zip(use_original(model)(image), model(image), strict=True):
            assert relative_error(actual, expected) < 1e-5
