"""The perceptron by parts: equal to PyTorch's layers, with gradients, whatever the parts."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch.utils.checkpoint import checkpoint

from dgmn.ops import linear, onednn
from dgmn.ops.linear import add_linear, is_inference_on_cpu, perceptron

needs_onednn = pytest.mark.skipif(not onednn.is_available(), reason="this PyTorch has no linear layers of oneDNN")


@pytest.fixture(autouse=True, scope="module")
def onednn_everywhere():
    """oneDNN's layers run on every CPU; where they pay is another question."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onednn, "has_avx512", lambda: True)
        yield


def numbers(shape=(3, 5), dim=4, hidden=12, out=6, dtype=torch.float64):
    shapes = ((*shape, dim), (hidden, dim), (hidden,), (out, hidden), (out,))
    return [torch.randn(*size, dtype=dtype).requires_grad_() for size in shapes]


def plain(x, weight1, bias1, weight2, bias2):
    return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)


@pytest.fixture(params=["the hidden layer is kept", "it is computed again"])
def parts(request, monkeypatch):
    """Parts of a few positions, and both ways of the backward pass."""
    monkeypatch.setattr(linear, "_HIDDEN", 40)
    monkeypatch.setattr(linear, "_CHEAP", 0 if "kept" in request.param else 1000)


@pytest.mark.parametrize("shape", [(7,), (2, 3, 5), (1,), (0, 4)])
def test_gradients(shape, parts):
    inputs = [*numbers(shape), torch.randn(*shape, 6, dtype=torch.float64).requires_grad_()]
    for arguments in (inputs[:5], inputs):
        assert torch.autograd.gradcheck(perceptron, arguments)
        assert torch.autograd.gradgradcheck(perceptron, arguments)


@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    sizes=st.tuples(*[st.integers(1, 40)] * 3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    residual=st.booleans(),
    part=st.integers(1, 2000),
    enabled=st.booleans(),
)
def test_equals_plain_layers(shape, sizes, dtype, residual, part, enabled):
    inputs = numbers(shape, *sizes, dtype)
    start = torch.randn(*shape, sizes[2], dtype=dtype).requires_grad_() if residual else None
    learnt = inputs if start is None else [*inputs, start]
    # In float64: what PyTorch's GELU gives for numbers far below zero in float32 is mostly rounding.
    exact = [x.detach().double().requires_grad_() for x in learnt]
    expected = plain(*exact[:5]) + (0 if start is None else exact[5])
    with pytest.MonkeyPatch.context() as patch, torch.backends.mkldnn.flags(enabled=enabled):
        patch.setattr(linear, "_HIDDEN", part)
        patch.setattr(linear, "_HIDDEN_OF_ONEDNN", part)
        out = perceptron(*inputs, residual=start)
        with torch.inference_mode():
            inferred = perceptron(*inputs, residual=start)
        cotangent = torch.sin(1 + torch.arange(out.numel())).view(out.shape).to(dtype)
        grads = torch.autograd.grad(out, learnt, cotangent)
    wanted = torch.autograd.grad(expected, exact, cotangent.double())
    pairs = ((out, expected), (inferred, expected), *zip(grads, wanted, strict=True))
    for got, want in pairs:
        assert (got.shape, got.dtype) == (want.shape, dtype)
        largest = float(want.abs().max()) if want.numel() else 0.0
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5 * (1 + largest))


def test_only_the_gradients_that_are_needed(parts):
    """As with frozen weights, and with adapters beside them."""
    for needed in range(1, 32):
        inputs = numbers()
        wanted = [x.requires_grad_(bool(needed >> i & 1)) for i, x in enumerate(inputs)]
        perceptron(*inputs).square().sum().backward()
        reference = [x.detach().clone().requires_grad_(x.requires_grad) for x in wanted]
        plain(*reference).square().sum().backward()
        for got, want in zip(wanted, reference, strict=True):
            assert (got.grad is None) == (want.grad is None)
            if want.grad is not None:
                torch.testing.assert_close(got.grad, want.grad)


def test_saved_tensors_may_come_back_in_another_layout(parts):
    inputs = numbers((64,), dtype=torch.float32)
    expected = torch.autograd.grad(perceptron(*inputs).sum(), inputs)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.T.contiguous(), lambda x: x.T):
        out = perceptron(*inputs)
    for got, want in zip(torch.autograd.grad(out.sum(), inputs), expected, strict=True):
        torch.testing.assert_close(got, want)


@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    enabled=st.booleans(),
    turned=st.booleans(),
    biased=st.booleans(),
)
def test_a_linear_layer(shape, sizes, enabled, turned, biased):
    """Outputs, first and second derivatives, whatever the strides."""
    x, _, _, weight, bias = numbers(shape, sizes[0], sizes[0], sizes[1], torch.float32)
    if turned:
        weight = weight.detach().T.contiguous().T.requires_grad_()

    inputs = (x, weight, bias) if biased else (x, weight)

    def derivatives(function):
        out = function(*inputs)
        first = torch.autograd.grad(out.pow(3).sum(), inputs, create_graph=True)
        return out, *first, *torch.autograd.grad(sum(each.square().sum() for each in first), inputs)

    with torch.backends.mkldnn.flags(enabled=enabled):
        found = derivatives(linear.linear)
        with torch.inference_mode():
            torch.testing.assert_close(linear.linear(*inputs), found[0], rtol=1e-5, atol=1e-5)
    for got, want in zip(found, derivatives(F.linear), strict=True):
        scale = float(want.detach().abs().max()) if want.numel() else 0
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * scale)


@needs_onednn
def test_products_of_onednn_are_used():
    """On this machine, too, and not under autocast, which would be float32 otherwise."""
    inputs = numbers((50,), 64, 128, 64, torch.float32)
    with torch.profiler.profile() as profile:
        perceptron(*inputs).sum().backward()
        linear.linear(inputs[0], inputs[1], inputs[2]).sum().backward()
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["mkldnn::_linear_pointwise"] == 2 + 3 + 2
    with torch.autocast("cpu", torch.bfloat16):
        assert linear.linear(*inputs[:3]).dtype == torch.bfloat16


def test_what_training_keeps():
    """On fine maps nothing of the hidden layer's size, on coarse ones one tensor of it; PyTorch's layers keep two."""

    def kept(function, inputs):
        shapes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: shapes.append(x.shape) or x, lambda x: x):
            function(*inputs)
        return shapes.count((50, 1024))

    for dim, expected in {64: 0, 65: 1, 128: 1}.items():
        inputs = numbers((50,), dim, 1024, dim, torch.float32)
        assert (kept(perceptron, inputs), kept(plain, inputs)) == (expected, 2)


def test_autocast():
    inputs = numbers(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = perceptron(*inputs), plain(*inputs)
    assert out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected)
    grads, wanted = (torch.autograd.grad(x.float().sum(), inputs) for x in (out, expected))
    for got, want in zip(grads, wanted, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, rtol=0.05, atol=0.05 * float(want.abs().max()))


@pytest.mark.parametrize("learns", [True, False])
def test_a_residual_of_another_dtype(learns):
    inputs = numbers(dtype=torch.float32)
    residual = torch.randn(3, 5, 6, dtype=torch.float64)
    with torch.set_grad_enabled(learns):
        out = perceptron(*inputs, residual=residual)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, residual + plain(*inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 5, 6), (6,), (4, 1, 6), (3, 4, 5, 1), (2, 1, 1, 1, 6)])
def test_a_residual_of_another_shape(learns, shape):
    """It spreads over the output, as in any sum."""
    inputs = [x.detach() for x in numbers((3, 4, 5), dtype=torch.float32)]
    inputs[0].requires_grad_(learns)
    residual = torch.randn(shape)
    torch.testing.assert_close(perceptron(*inputs, residual), plain(*inputs) + residual, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("learns", [False, True])
def test_other_shapes_are_refused(learns):
    inputs = [x.detach().requires_grad_(learns) for x in numbers((3, 4, 5), dtype=torch.float32)]
    with pytest.raises(RuntimeError, match="must match the size"):  # as many numbers as the output has
        perceptron(*inputs, torch.randn(3, 5, 4, 6))
    for layer, parameters in ((perceptron, inputs[1:]), (linear.linear, inputs[1:3])):
        with pytest.raises(ValueError, match=r"x must have 4 channels in its last dimension, got shape \(2, 7\)"):
            layer(torch.randn(2, 7), *parameters)


def test_autocast_leaves_double_precision():
    inputs = numbers()
    with torch.autocast("cpu", torch.bfloat16):
        out = perceptron(*inputs)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, plain(*inputs))


def test_checkpointing_and_retained_graphs(parts):
    inputs = numbers()
    expected = torch.autograd.grad(plain(*inputs).square().sum(), inputs)
    out = checkpoint(perceptron, *inputs, use_reentrant=False).square().sum()
    for _ in range(2):
        torch.testing.assert_close(torch.autograd.grad(out, inputs, retain_graph=True), expected)


def test_forward_mode_and_vmap():
    inputs = numbers()
    directions = tuple(torch.randn_like(x) for x in inputs)
    for got, want in zip(
        torch.func.jvp(perceptron, tuple(inputs), directions),
        torch.func.jvp(plain, tuple(inputs), directions),
        strict=True,
    ):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.func.vmap(lambda x: perceptron(x, *inputs[1:]))(inputs[0]), plain(*inputs))


def test_a_sum_with_a_linear_layer():
    residual, x, weight, bias = (torch.randn(*shape) for shape in ((2, 3, 6), (2, 3, 4), (6, 4), (6,)))
    expected, before = residual + F.linear(x, weight, bias), residual.clone()
    torch.testing.assert_close(add_linear(residual, x, weight, bias), expected)
    assert torch.equal(residual, before)
    assert is_inference_on_cpu((residual, x))
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_inference_on_cpu((residual, x))
    assert not is_inference_on_cpu((residual, x.requires_grad_()))
    with torch.no_grad():
        assert is_inference_on_cpu((residual, x))


@pytest.mark.parametrize(
    "spread", [lambda bias: torch.stack([bias, bias + 9], 1)[:, 0], lambda bias: bias[:1].expand(12)]
)
def test_biases_whose_numbers_do_not_lie_side_by_side(spread):
    x, weight1, bias1, weight2, _ = (each.detach() for each in numbers(hidden=12, out=12, dtype=torch.float32))
    bias, other = spread(bias1), spread(bias1 + 1)
    for learns in (False, True):
        given = x.clone().requires_grad_(learns)
        hidden = F.linear(given, weight1, bias)
        torch.testing.assert_close(linear.linear(given, weight1, bias), hidden)
        torch.testing.assert_close(add_linear(hidden, given, weight1, bias), 2 * hidden)
        out = plain(given, weight1, bias, weight2, other)
        torch.testing.assert_close(perceptron(given, weight1, bias, weight2, other), out)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_that_depend_on_each_other(again, dtype, parts):
    """One perceptron twice, and one whose second weight is its first one's transpose; hooks run once."""
    x, weight1, bias1, weight2, bias2 = numbers(dim=4, hidden=12, out=4, dtype=dtype)
    weight1.register_hook(lambda grad: 2 * grad)
    learnt = [weight1, bias1, weight2, bias2]
    for networks in (
        [lambda f: f(f(x, *learnt), *learnt) for _ in range(2)],
        [lambda f: f(x, weight1, bias1, weight1.T, bias2) for _ in range(2)],
    ):
        grads = [
            torch.autograd.grad(network(f).sum(), learnt, create_graph=again, allow_unused=True)
            for network, f in zip(networks, (perceptron, plain), strict=True)
        ]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("function", [perceptron, lambda x, *others: linear.linear(x, *others[:2])])
def test_many_gradients_at_once(function, parts):
    inputs = numbers()[: 5 if function is perceptron else 3]
    out = function(*inputs)
    many = torch.randn(3, *out.shape, dtype=out.dtype)
    at_once = torch.autograd.grad(out, inputs, many, is_grads_batched=True, retain_graph=True)
    singly = [torch.autograd.grad(out, inputs, each, retain_graph=True) for each in many]
    torch.testing.assert_close(list(at_once), [torch.stack(grads) for grads in zip(*singly, strict=True)])


@pytest.mark.parametrize("function", [perceptron, lambda x, *others: linear.linear(x, *others[:2])])
def test_the_backward_pass_is_as_precise_as_the_forward_pass(function, parts):
    """The loss stands outside of autocast, its backward pass inside."""
    inputs = numbers((40,), dtype=torch.float32)[: 5 if function is perceptron else 3]
    expected = torch.autograd.grad(function(*inputs).sum(), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            loss = function(*inputs).sum()
        assert all(map(torch.equal, torch.autograd.grad(loss, inputs), expected))


@pytest.mark.parametrize("learns", [False, True])
def test_sparse_weights(learns):
    inputs = [x.detach() for x in numbers(dtype=torch.float32)]
    expected = plain(*inputs)
    x, weight1, bias1, weight2, bias2 = inputs
    inputs = [x.requires_grad_(learns), weight1.to_sparse_csr(), bias1, weight2.to_sparse_csr(), bias2]
    torch.testing.assert_close(perceptron(*inputs), expected)
    torch.testing.assert_close(linear.linear(*inputs[:3]), F.linear(x, weight1, bias1))
