"""The DGMN module: the numbers of the original code, the paper's equations written out, hard cases."""

import itertools

import numpy as np
import pytest
import torch
from timm.models._features_fx import create_feature_extractor
from torch import nn
from torchvision.ops import deform_conv2d

from dgmn.layers import DGMN, dgmn
from dgmn.models.official import dgmn_from_official

from golden_vectors import array

# Golden outputs are stored in float32, from a float64 run.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6}
# The official names of the variants. The paper's results are those of `deformatt`.
VARIANTS = {
    "none": {"dynamic_affinity": False, "dynamic_sampling": False},
    "deform": {"dynamic_affinity": False},
    "deformatt": {},
}
SWITCHES = [
    {"groups": groups, "dynamic_affinity": affinity, "dynamic_sampling": sampling}
    for groups, affinity, sampling in itertools.product((0, 1, 2), (False, True), (False, True))
]


def official_module(weights, variant):
    prefix = f"dgmn1.{variant}."
    names = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    mapped = dgmn_from_official(names)
    assert sorted(map(id, mapped.values())) == sorted(map(id, names.values()))  # each is mapped exactly once
    module = DGMN(64, form="released", **VARIANTS[variant])
    module.load_state_dict(mapped)
    return module.eval()


def random_module(channels=4, sampling_rates=(1, 3), groups=2, **options):
    """A module in float64. No parameter is zero, and walks reach a few pixels."""
    module = DGMN(channels, sampling_rates, groups, **options).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


def read(node_map, y, x):
    """ϱ of eq. 5: bilinear, zero outside of the map."""
    _, height, width = node_map.shape
    out = np.zeros(len(node_map))
    for row, column in itertools.product((int(np.floor(y)), int(np.floor(y)) + 1), (np.floor(x), np.floor(x) + 1)):
        if 0 <= row < height and 0 <= column < width:
            out += (1 - abs(y - row)) * (1 - abs(x - column)) * node_map[:, row, int(column)]
    return out


def message_by_hand(message, node_map):
    """The message of eq. 5 in the paper's form, position by position: (C, H, W) to (C, H, W)."""
    channels, height, width = node_map.shape

    def transform(predictor, nodes):  # W v + b of eq. 4 and 6; v is (K, C)
        weight = predictor.weight.detach().numpy().reshape(-1, channels, 9)
        bias = 0 if predictor.bias is None else predictor.bias.detach().numpy()
        return np.einsum("ock,kc->o", weight, nodes) + bias

    out = np.zeros_like(node_map)
    for y, x in itertools.product(range(height), range(width)):
        grid = [(y + i * message.sampling_rate, x + j * message.sampling_rate) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        nodes = np.stack([read(node_map, *place) for place in grid])
        if message.walks is not None:
            walks = transform(message.walks, nodes).reshape(9, 2)
            nodes = np.stack([read(node_map, *(place + walk)) for place, walk in zip(grid, walks, strict=True)])
        predicted = transform(message.filters, nodes)
        if message.fixed:
            out[:, y, x] = predicted  # eq. 1: the sum of h_j w_j
            continue
        affinity = np.ones(9)
        if message.dynamic_affinity:
            affinity = np.exp(predicted[-9:]) / np.exp(predicted[-9:]).sum()  # eq. 7
        for channel in range(channels):
            group = channel // (channels // message.groups) if message.groups else 0
            weight = predicted[9 * group : 9 * group + 9] if message.groups else 1
            out[channel, y, x] = (affinity * nodes[:, channel] * weight).sum()
    return out


def module_by_hand(module, x):
    """Eq. 2 for the fusion "sum", else the convolution of the concatenated maps."""
    outputs = []
    for image in x.detach().numpy():
        state = image
        for _ in range(module.steps):
            messages = [message_by_hand(message, state) for message in module.messages]
            if module.fusion == "sum":
                state = image + sum(beta.item() * m for beta, m in zip(module.beta, messages, strict=True))
            else:
                weight = module.fuse.weight.detach().numpy()[..., 0, 0]
                state = np.einsum("oc,chw->ohw", weight, np.concatenate([image, *messages]))
                state = state + module.fuse.bias.detach().numpy()[:, None, None]
            state = np.maximum(state, 0)
        outputs.append(state)
    return torch.from_numpy(np.stack(outputs))


# ---------------------------------------------------------------------------------------------- official numbers


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("variant", VARIANTS)
def test_released_form_equals_the_official_code(golden, official_weights, variant, dtype):
    module = official_module(official_weights("h_dgmn1"), variant).to(dtype)
    x = torch.from_numpy(array("dgmn1.x", (1, 64, 20, 24))).to(dtype)
    expected = golden(f"h_dgmn1_{variant}")
    with torch.no_grad():
        expected.check("out", module(x), TOLERANCE[dtype])
        for number, message in enumerate(module.messages, 1):
            expected.check(f"branch{number}", message(x), TOLERANCE[dtype])
            walks = message.predict_walks(x)
            if walks is not None:
                offset = walks.flatten(3).permute(0, 3, 1, 2)
                expected.check(f"offset_{'abcd'[number - 1]}", offset, TOLERANCE[dtype])


def test_forms_differ_in_the_fourth_affinity():
    released = random_module(sampling_rates=(1, 4, 8, 12), form="released")
    paper = random_module(sampling_rates=(1, 4, 8, 12))
    paper.load_state_dict(released.state_dict(), strict=False)
    for name, parameter in paper.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    x = torch.randn(1, 4, 14, 15, dtype=torch.float64)
    messages = [(ours(x), theirs(x)) for ours, theirs in zip(paper.messages, released.messages, strict=True)]
    for ours, theirs in messages[:3]:
        torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(*messages[3])
    # The fourth message ignores the logits that it should have read.
    nn.init.zeros_(released.messages[3].filters.weight[-9:])
    torch.testing.assert_close(released.messages[3](x), messages[3][1])


def test_official_names_are_checked(official_weights):
    weights = {
        name.removeprefix("dgmn1.none."): w for name, w in official_weights("h_dgmn1").items() if ".none." in name
    }
    for name in ("gamma5", "conv.weight", "cata.bias", "dgmn1.none.gamma1"):
        with pytest.raises(ValueError, match=f"unknown key '{name}'"):
            dgmn_from_official({**weights, name: torch.zeros(1)})
    with pytest.raises(ValueError, match=r"kernel_convb\.weight.*other name"):
        dgmn_from_official({**weights, "kernel_convb.weight": torch.zeros(1)})


# ------------------------------------------------------------------------------------------- the paper's equations


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_messages_equal_the_equations(switches):
    module = random_module(**switches)
    x = torch.randn(2, 4, 4, 5, dtype=torch.float64)
    for message in module.messages:
        expected = np.stack([message_by_hand(message, image) for image in x.numpy()])
        torch.testing.assert_close(message(x).detach(), torch.from_numpy(expected))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("fusion", ["sum", "concat"])
def test_updates_equal_the_equations(fusion, steps):
    module = random_module(fusion=fusion, steps=steps)
    x = torch.randn(2, 4, 3, 4, dtype=torch.float64)
    out = module(x).detach()
    assert (out == 0).any()  # zeros of the ReLU
    torch.testing.assert_close(out, module_by_hand(module, x))


@pytest.mark.parametrize("sampling_rate", [1, 4])
def test_fixed_weights_are_a_deformable_convolution(sampling_rate):
    module = random_module(6, (sampling_rate,), groups=0, dynamic_affinity=False)
    (message,) = module.messages
    x = torch.randn(2, 6, 7, 9, dtype=torch.float64)
    walks = message.predict_walks(x)
    expected = deform_conv2d(
        x, walks.flatten(3).permute(0, 3, 1, 2), message.filters.weight, padding=sampling_rate, dilation=sampling_rate
    )
    torch.testing.assert_close(message(x), expected)
    with pytest.raises(ValueError, match="neither dynamic weights nor dynamic affinity"):
        message.predict_weights(x, walks)


def test_affinities_are_a_distribution():
    module = random_module(groups=0)
    x = torch.randn(1, 4, 5, 6, dtype=torch.float64)
    for message in module.messages:
        weight = message.predict_weights(x, message.predict_walks(x))
        assert weight.shape == (1, 5, 6, 1, 9)
        torch.testing.assert_close(weight.sum(-1), torch.ones(1, 5, 6, 1, dtype=torch.float64))


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_many_channels_are_computed_in_parts(monkeypatch, switches):
    module = random_module(12, **switches)
    x = torch.randn(1, 12, 5, 6, dtype=torch.float64)
    expected = module(x)
    monkeypatch.setattr(dgmn, "_MAX_HEAD", 4)
    torch.testing.assert_close(module(x), expected)


# --------------------------------------------------------------------------------------------- start and gradients


def test_starts_on_the_grid_and_on_demand_as_the_identity():
    module = DGMN(8, initial_beta=0.0)
    x = torch.rand(2, 8, 5, 6)
    assert torch.equal(module(x), x)
    assert all(not message.predict_walks(x).any() for message in module.messages)
    module(x).square().sum().backward()
    assert all(beta.grad.abs() > 0 for beta in module.beta)
    assert [beta.item() for beta in DGMN(8, form="released").beta] == [1, 1, 1, 1]


@pytest.mark.parametrize("form", ["paper", "released"])
@pytest.mark.parametrize("fusion", ["sum", "concat"])
def test_gradients(form, fusion):
    rates = (1, 2) if form == "paper" else (1, 2, 1, 2)
    module = random_module(2, rates, 2, fusion=fusion, form=form)
    names = [name for name, _ in module.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    x = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *module.parameters()), fast_mode=True)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_gradients_of_every_switch(switches):
    module = random_module(2, (1, 2), **switches, steps=2)
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, x)
    module(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


# ------------------------------------------------------------------------------------------- hard cases, precision


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 6), (5, 1), (3, 4)])
def test_maps_smaller_than_the_sampling_rate(height, width):
    module = random_module(sampling_rates=(1, 6, 36))
    x = torch.randn(1, 4, height, width, dtype=torch.float64)
    torch.testing.assert_close(module(x).detach(), module_by_hand(module, x))


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_no_image(switches):
    module = DGMN(4, **switches)
    assert module(torch.randn(0, 4, 5, 6)).shape == (0, 4, 5, 6)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_backends_and_memory_formats_agree(switches):
    module = random_module(**switches)
    x = torch.randn(2, 4, 9, 10)
    expected = module(x.double()).float()
    module.float()
    for backend in ("auto", "reference"):  # float64 has no kernels
        for message in module.messages:
            message.backend = backend
        for layout in (torch.contiguous_format, torch.channels_last):
            out = module(x.contiguous(memory_format=layout))
            assert out.is_contiguous(memory_format=layout)
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fusion", ["sum", "concat"])
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_half_precision(switches, fusion, dtype):
    module = DGMN(8, (1, 2), fusion=fusion, **switches)
    for message in module.messages:
        if message.walks is not None:
            nn.init.normal_(message.walks.weight, std=0.1)
    x = torch.randn(2, 8, 6, 7)
    expected = module(x)
    with torch.autocast("cpu", dtype):
        out = module(x)
        assert out.dtype == (torch.float32 if fusion == "sum" else dtype)
        out.float().square().sum().backward()
        for message in module.messages:
            if not message.fixed:
                assert message.predict_weights(x, message.predict_walks(x)).dtype == torch.float32
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)
    assert all(p.dtype == torch.float32 and p.grad.isfinite().all() for p in module.parameters())
    out = module.to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)


def test_walks_are_precise_under_autocast():
    # The walk 100.25 would be 100 or 100.5 in bfloat16.
    module = DGMN(4, (1,), groups=0)
    with torch.no_grad():
        module.messages[0].walks.bias.copy_(torch.tensor([0.0, 100.25]).repeat(9))
    x = torch.randn(1, 4, 3, 128)
    with torch.no_grad():
        expected = module(x)
        with torch.autocast("cpu", torch.bfloat16):
            out = module(x)
    torch.testing.assert_close(out, expected, atol=2e-2, rtol=2e-2)


@pytest.mark.slow
def test_compiles_and_traces():
    module = DGMN(4, (1, 3), groups=2)
    x = torch.randn(1, 4, 6, 7)
    expected = module(x)
    torch.testing.assert_close(torch.compile(module, backend="aot_eager", fullgraph=True)(x), expected)
    network = nn.Sequential(module, nn.ReLU())
    traced = create_feature_extractor(network, {"0": "module"})
    torch.testing.assert_close(traced(x)["module"], expected)
