"""`dgmn.fuse` changes the cost of a network, not its outputs."""

import copy
import io
import re
from collections import Counter

import pytest
import timm
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.flop_counter import FlopCounterMode

import dgmn
from dgmn.errors import InputError
from dgmn.layers import PackedConv2d, PackedLinear
from dgmn.layers.attention import DGMN2Mlp
from dgmn.ops import onednn
from dgmn.weights import load_checkpoint


def with_statistics(model):
    """Gives batch norms statistics and weights as after training: fresh norms do nothing."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.3, 3.0)
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, std=0.3)
    return model


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("options", [{}, {"features_only": True}, {"output_stride": 8}])
def test_equal_outputs_without_norms(options):
    model = with_statistics(timm.create_model("dgmn2_nano", **options)).train()
    fused = dgmn.fuse(model)
    assert (norms(model), norms(fused)) == (6, 0)
    assert model.training
    assert not fused.training
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected, got = model.eval()(image), fused(image)
    pairs = zip(got, expected, strict=True) if options.get("features_only") else [(got, expected)]
    for a, b in pairs:
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_it_is_a_copy():
    model = with_statistics(timm.create_model("dgmn2_nano")).eval()
    image = torch.randn(1, 3, 32, 32)
    before = model(image)
    fused = dgmn.fuse(model)
    nn.init.zeros_(fused.stem[0].conv.weight)
    assert torch.equal(model(image), before)


def test_only_what_can_be_folded():
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.ReLU(),
        nn.BatchNorm2d(4),  # after the activation
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4, track_running_stats=False),  # uses the statistics of the batch
        nn.Conv2d(4, 4, 1, bias=False),
        nn.BatchNorm2d(4),
    )
    with_statistics(nn.ModuleList([layers[2], layers[6]]))
    fused = dgmn.fuse(layers)
    kinds = [nn.Conv2d, nn.ReLU, nn.BatchNorm2d, nn.Conv2d, nn.BatchNorm2d, nn.Conv2d, nn.Identity]
    assert [type(layer) for layer in fused] == [PackedConv2d if kind is nn.Conv2d else kind for kind in kinds]
    image = torch.randn(5, 3, 7, 7)
    torch.testing.assert_close(fused(image), layers.eval()(image))


def test_says_what_it_takes():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
        dgmn.fuse("dgmn2_nano")


class AddsOne(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


class Residual(nn.Sequential):
    def forward(self, x):
        return self[1](self[0](x)) + self[0](x)


def hooked():
    norm = nn.BatchNorm2d(4)
    norm.register_forward_hook(lambda module, args, out: 2 * out)
    return nn.Sequential(nn.Conv2d(3, 4, 1), norm)


@pytest.mark.parametrize(
    "layers",
    [
        nn.Sequential(AddsOne(3, 4, 1), nn.BatchNorm2d(4)),
        Residual(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)),
        hooked(),
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4)),
    ],
    ids=["convolution", "sequential", "hook", "parametrised"],
)
def test_what_computes_something_else_stays(layers):
    with_statistics(layers)
    image = torch.randn(5, 3, 7, 7)
    torch.testing.assert_close(dgmn.fuse(layers)(image), layers.eval()(image))


def few(model):
    """An image so small that most maps are smaller than the weights."""
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        return image, model(image)


@pytest.fixture
def fused():
    model = dgmn.fuse(with_statistics(timm.create_model("dgmn2_nano")))
    layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert len(layers) == 7 * 4 + 1  # every linear layer but those of the walks, which are computed precisely
    convolutions = [module for module in model.modules() if isinstance(module, PackedConv2d)]
    assert len(convolutions) == 6
    few(model)
    assert not onednn.is_available() or (any(x._packed for x in layers) and all(x._packed for x in convolutions))
    return model


def test_packed_weights_follow_the_parameters(fused):
    other = with_statistics(timm.create_model("dgmn2_nano"))
    image, _ = few(fused)
    wanted = dgmn.fuse(other)
    assert fused.load_state_dict(wanted.state_dict()).missing_keys == []
    with torch.inference_mode():
        torch.testing.assert_close(fused(image), wanted(image))
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.mul_(0.5)
        for parameter in wanted.parameters():
            parameter.mul_(0.5)
        torch.testing.assert_close(fused(image), wanted(image))
        for model in (fused, wanted):
            for parameter in model.parameters():
                parameter.data.mul_(1.5)  # PyTorch counts no change
        torch.testing.assert_close(fused(image), copy.deepcopy(wanted)(image))
    with torch.no_grad():
        torch.testing.assert_close(fused.double()(image.double()).float(), wanted(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("height", [1, 97])
@pytest.mark.parametrize("permuted", [False, True])
def test_a_fused_perceptron(height, permuted):
    """Also one whose hidden layer is so large that it is computed in parts."""
    mlp = DGMN2Mlp(64, 512).eval()
    fused = dgmn.fuse(nn.Sequential(copy.deepcopy(mlp)))[0]
    assert isinstance(fused.fc1, PackedLinear)
    x = torch.randn(2, height, 60, 64)
    residual = torch.randn(2, 64, height, 60).permute(0, 2, 3, 1) if permuted else torch.randn_like(x)
    with torch.inference_mode():
        for added in (None, residual):
            torch.testing.assert_close(fused(x, added), mlp(x, added), rtol=1e-4, atol=1e-5)
        assert fused(x[:0]).shape == (0, height, 60, 64)
    kept = residual.clone()
    with torch.inference_mode():
        fused(x, residual)
    assert torch.equal(residual, kept)


@pytest.mark.parametrize("turned", [False, True], ids=["weights as usual", "weights with channels last"])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (1, 4), "stride": (2, 1), "padding": (0, 3), "dilation": (1, 2), "bias": False},
        {"kernel_size": 3, "groups": 2},
        {"kernel_size": 5, "groups": 4, "padding": 2},
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    ],
    ids=str,
)
def test_a_fused_convolution(options, turned):
    layer = nn.Conv2d(4, 8, **options).eval()
    layer = layer.to(memory_format=torch.channels_last) if turned else layer
    fused = dgmn.fuse(layer)
    assert isinstance(fused, PackedConv2d)
    last = torch.channels_last
    for size in ((2, 4, 9, 12), (1, 4, 31, 7), (0, 4, 9, 9)):  # packed for the first size, right for all
        x = torch.randn(size)
        for image in (
            x,
            x.contiguous(memory_format=last),
            x.permute(0, 1, 3, 2)[..., :9, :].contiguous(memory_format=last),
        ):
            with torch.inference_mode():
                torch.testing.assert_close(fused(image), layer(image), rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(fused(x.new_ones(4, 9, 9)), layer(x.new_ones(4, 9, 9)), rtol=1e-4, atol=1e-5)
        with pytest.raises(RuntimeError, match="to have 4 channels, but got 5"):
            fused(torch.randn(1, 5, 9, 9).contiguous(memory_format=last))


def test_fused_layers_are_nodes_of_graphs():
    fused = dgmn.fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2)))
    graph = torch.fx.symbolic_trace(fused)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["0", "1", "2"]
    image = torch.randn(2, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(graph(image), fused(image))


def test_products_of_fused_layers_are_counted():
    layers = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, groups=2), nn.Conv2d(8, 6, (1, 5)), nn.Flatten(), nn.Linear(132, 3)
    )
    image = torch.randn(2, 4, 5, 31).contiguous(memory_format=torch.channels_last)
    counts = []
    for network in (layers.eval(), dgmn.fuse(layers)):
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            network(image)
        counts.append(counter.get_total_flops())
    assert counts == [counts[0]] * 2
    assert counts[0] > 0


def test_layers_in_two_places_stay_one():
    layer = nn.Linear(3, 3)
    fused = dgmn.fuse(nn.Sequential(layer, nn.Sequential(layer)))
    assert fused[0] is fused[1][0]
    assert type(fused[0]) is PackedLinear
    assert type(layer) is nn.Linear


def test_the_check_of_packing_draws_no_random_numbers():
    onednn._is_available.cache_clear()
    state = torch.random.get_rng_state()
    onednn.is_available()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_packed_layers_count_their_products():
    layer = dgmn.fuse(nn.Sequential(nn.Linear(16, 24)))[0]
    x, residual = torch.randn(2, 7, 16), torch.randn(2, 7, 24)
    for compute in (lambda: layer(x), lambda: layer.added(residual, x)):
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            compute()
        assert counter.get_total_flops() == 2 * 2 * 7 * 16 * 24


def test_the_check_of_packing_is_not_seen():
    answer = onednn.is_available()
    for mode in (FakeTensorMode(), FlopCounterMode(display=False)):
        onednn._is_available.cache_clear()
        with mode:
            assert onednn.is_available() == answer
    assert mode.get_total_flops() == 0


def test_copies_files_and_graphs_of_a_fused_network(fused):
    image, expected = few(fused)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    exported = torch.export.export(fused, (image,)).module()
    for model in (copy.deepcopy(fused), loaded, exported):
        with torch.inference_mode():
            torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in loaded.state_dict().values()) == sum(p.numel() for p in fused.state_dict().values())
    assert file.getbuffer().nbytes < 1.2 * sum(4 * p.numel() for p in fused.parameters())


def test_a_fused_network_where_packed_weights_do_not_help(fused):
    image = torch.randn(1, 3, 96, 160)
    plain = {name: x.clone() for name, x in fused.state_dict().items()}
    with torch.inference_mode():
        expected = fused(image)
    with_gradients = fused(image)
    torch.testing.assert_close(with_gradients, expected, rtol=1e-4, atol=1e-5)
    with_gradients.sum().backward()
    assert all(layer.weight.grad is not None for layer in fused.modules() if isinstance(layer, PackedLinear))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert fused(image).dtype == torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(fused)(image[None])[0], expected, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(x, plain[name]) for name, x in fused.state_dict().items())


@pytest.mark.skipif(not onednn.is_available(), reason="this PyTorch has no linear layers of oneDNN")
@pytest.mark.parametrize(("packed", "dynamic"), [(False, True), (True, False)])
def test_compiled_networks(packed, dynamic, monkeypatch):
    """One graph; in inference with oneDNN's products as its operators, with gradients and under autocast without."""
    monkeypatch.setattr(onednn, "has_avx512", lambda: True)
    torch.compiler.reset()  # PyTorch keeps eight graphs of a function
    network = timm.create_model("dgmn2_nano", depths=(1, 1, 1, 1)).eval()
    network = dgmn.fuse(network) if packed else network
    operators = Counter()

    def backend(graph, _):
        operators.update(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    def ours():
        names = [re.match(r"dgmn\.(linear|perceptron)", operator) for operator in operators.elements()]
        return Counter(name[1] for name in names if name)

    compiled = torch.compile(network, backend=backend, fullgraph=True, dynamic=dynamic)
    image = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(image), network(image), rtol=1e-4, atol=1e-5)
    # PyTorch 2.11 does not tell compiling from exporting, whose graphs keep PyTorch's own layers.
    tells = torch.compile(lambda x: x + torch.compiler.is_exporting(), backend="eager")(torch.zeros(1)).item() == 0
    assert ours() == ({"linear": 8, "perceptron": 4} if tells else {})
    operators.clear()
    compiled(image).sum().backward()
    assert all(x.grad is not None for x in network.parameters() if x.requires_grad)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert compiled(image).dtype == torch.bfloat16
    assert operators
    assert ours() == {}


def test_weights_of_other_classes_compile(monkeypatch):
    """Quantised weights and others are subclasses of tensors, whose layers the compiler has to see."""
    monkeypatch.setattr(onednn, "has_avx512", lambda: True)
    torch.compiler.reset()
    mlp = DGMN2Mlp(8, 16).eval()
    operators = []

    def backend(graph, _):
        operators.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    with torch.no_grad():
        mlp.fc1.weight = nn.Parameter(TwoTensor(mlp.fc1.weight.detach(), mlp.fc1.weight.detach().clone()))
        torch.compile(mlp, backend=backend, fullgraph=True)(torch.randn(1, 4, 4, 8))
    assert len(operators) == 1
    assert not any("dgmn" in operator for operator in operators[0])


def test_hooked_linear_layers_stay():
    layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    layers[0].register_forward_hook(lambda *_: None)
    fused = dgmn.fuse(layers)
    assert [type(layer) for layer in fused] == [nn.Linear, PackedLinear]
    with pytest.raises(RuntimeError, match="cannot be multiplied"), torch.inference_mode():
        fused[1](torch.randn(2, 5))


def test_weights_of_a_fused_network_are_no_checkpoint(fused, tmp_path):
    torch.save(fused.state_dict(), tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"a fused network: save them before dgmn\.fuse"):
        load_checkpoint(timm.create_model("dgmn2_nano"), tmp_path / "x.pth")


@pytest.mark.parametrize(
    "layer", [nn.Linear(8, 8, bias=False), nn.Conv2d(8, 8, 3, bias=False)], ids=lambda x: type(x).__name__
)
def test_parametrised_fused_layers_learn(layer):
    fused = nn.utils.parametrizations.weight_norm(dgmn.fuse(layer))
    x = torch.randn(2, 8, *([5, 8] if isinstance(layer, nn.Conv2d) else []))
    out = fused(x)
    torch.testing.assert_close(out, layer(x))
    out.sum().backward()
    assert fused.parametrizations.weight.original1.grad is not None


@pytest.mark.parametrize("stride", [(1, 1), (1, 2), (1, 3), (2, 1)])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_convolutions_of_one_channel(stride, width):
    """Of a map with one channel nobody knows which way it lies in memory."""
    conv = nn.Conv2d(1, 8, 3, stride, 1).eval()
    x = torch.randn(2, 1, 6, width)
    with torch.no_grad():
        torch.testing.assert_close(dgmn.fuse(conv)(x), conv(x))


def test_fused_layers_of_other_forms():
    x = torch.randn(3, 8)
    with torch.no_grad():
        assert dgmn.fuse(nn.Linear(8, 0))(x).shape == (3, 0)
        fused = dgmn.fuse(nn.Linear(8, 8))
        expected = fused(x)
        fused.weight = nn.Parameter(fused.weight.to_sparse_csr())
        torch.testing.assert_close(fused(x), expected)
        replaced = nn.Linear(8, 8)
        replaced.forward = torch.zeros_like
        assert type(dgmn.fuse(nn.Sequential(replaced))[0]) is nn.Linear
