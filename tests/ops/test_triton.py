"""The Triton kernels against the reference: on a GPU, or on the CPU in Triton's interpreter (TRITON_INTERPRET=1)."""

import copy
import os

import pytest
import torch

from dgmn.layers import DGMN
from dgmn.ops import (
    functional,
    position_scores,
    reference,
    sampled_aggregate,
    sampled_attention,
    triton_kernels,
    triton_position,
)

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1 as .ci/run sets it for this file", allow_module_level=True)


@pytest.fixture
def kernels():
    return triton_kernels


@pytest.fixture(autouse=True)
def exact_convolutions():
    """Convolutions on a GPU round to TF32 unless they are told not to."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


def make_offset(*shape, spread=1):
    """Walks whose points keep away from the pixel centres, where bilinear sampling has a kink."""
    return torch.randint(-spread, spread + 1, shape) + 0.2 + 0.6 * torch.rand(shape)


def make_inputs(batch=2, height=3, width=4, heads=2, dim=16, kernel_size=2, shared=False, dtype=torch.float32):
    """query, key, value, offset, bias; the maps are slices of one projection. Few nodes: the interpreter is slow."""
    nodes = kernel_size**2
    maps = torch.randn(batch, height, width, 3, heads, dim).to(DEVICE, dtype).unbind(3)
    offset = make_offset(batch, height, width, 1 if shared else heads, nodes, 2).to(DEVICE)
    bias = torch.randn(batch, height, width, heads, nodes).to(DEVICE)
    return [*maps, offset, bias]


def expected(function, inputs, *numbers, cotangent=None):
    """Returns the reference's result in float64 for the same numbers, and the gradients of the inputs."""
    inputs = [None if x is None else x.detach().double().requires_grad_() for x in inputs]
    out = function(*inputs, *numbers)
    if cotangent is None:
        return out.detach(), None
    given = [x for x in inputs if x is not None]
    gradients = iter(torch.autograd.grad(out, given, cotangent.double()))
    return out.detach(), [None if x is None else next(gradients) for x in inputs]


def check(got, want, dtype=torch.float32, tolerance=1e-5):
    assert got.dtype == dtype
    assert got.shape == want.shape
    if not want.any():  # one node has a weight of one, whatever its logit; a GPU rounds
        assert got.abs().max() <= 1e-6
        return
    error = (got.double() - want).norm() / want.norm()
    assert error <= max(tolerance, torch.finfo(dtype).eps), f"relative error {error:.2e}"


def check_attention(kernels, inputs, kernel_size=2, dilation=1, scale=0.3):
    value = inputs[2]
    numbers = (scale, kernel_size, dilation)
    out, lse = kernels.attention_forward(*inputs, *numbers)
    cotangent = torch.randn(out.shape, device=DEVICE).to(out.dtype)
    want, gradients = expected(reference.sampled_attention, inputs, *numbers, 0.0, cotangent=cotangent)
    assert out.is_contiguous()
    check(out, want, value.dtype)
    assert lse.dtype == torch.float32
    assert lse.shape == value.shape[:4]
    got = kernels.attention_backward(cotangent, *inputs, lse, *numbers)
    for gradient, wanted, x in zip(got, gradients, inputs, strict=True):
        if x is None:
            assert gradient is None
        else:
            check(gradient, wanted, x.dtype)


def check_aggregate(kernels, value, offset, weight, kernel_size=2, dilation=1):
    inputs, numbers = (value, offset, weight), (kernel_size, dilation)
    out = kernels.aggregate_forward(*inputs, *numbers)
    cotangent = torch.randn(out.shape, device=DEVICE).to(out.dtype)
    want, gradients = expected(reference.sampled_aggregate, inputs, *numbers, cotangent=cotangent)
    assert out.is_contiguous()
    check(out, want, value.dtype)
    got = kernels.aggregate_backward(cotangent, *inputs, *numbers)
    for gradient, wanted, x in zip(got, gradients, inputs, strict=True):
        check(gradient, wanted, x.dtype)


CASES = {
    "nine nodes": {"kernel_size": 3},
    "nine nodes, shared walks": {"kernel_size": 3, "shared": True, "dim": 20},
    "shared walks": {"shared": True},
    "small heads": {"dim": 3},
    "one head": {"heads": 1, "dim": 20},
    "many blocks": {"batch": 1, "height": 8, "width": 9, "heads": 1, "dim": 64},
    "two blocks, two heads": {"batch": 1, "height": 5, "width": 7, "dim": 64},
    "large heads": {"batch": 1, "dim": 200},
    "one pixel": {"height": 1, "width": 1},
    "one row": {"height": 1, "width": 6},
    "one node": {"kernel_size": 1},
}


LONG = ("nine nodes", "nine nodes, shared walks", "two blocks, two heads", "one row", "large heads")


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in LONG)) for case in CASES])
def test_equals_the_reference(kernels, case):
    inputs = make_inputs(**CASES[case])
    size = CASES[case].get("kernel_size", 2)
    check_attention(kernels, inputs, size)
    check_aggregate(kernels, *inputs[2:], size)


@pytest.mark.parametrize("kernel_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_dilation(kernels, kernel_size):
    inputs = make_inputs(height=5, kernel_size=kernel_size)
    check_attention(kernels, inputs, kernel_size, dilation=2)
    check_aggregate(kernels, *inputs[2:], kernel_size, dilation=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_half_precision(kernels, dtype, shared):
    inputs = make_inputs(dtype=dtype, shared=shared)
    check_attention(kernels, inputs)
    check_aggregate(kernels, *inputs[2:])
    # Offset and bias may come in half precision, too.
    inputs[3:] = [x.to(dtype) for x in inputs[3:]]
    check_attention(kernels, inputs)
    check_aggregate(kernels, *inputs[2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("mirrored", "tables", "heads", "dim"),
    [
        (False, "both", 2, 16),
        (True, "both", 2, 20),
        (True, "rows", 1, 5),
        (False, "rows", 3, 33),
        (False, "columns", 1, 5),
    ],
)
def test_position_scores(dtype, mirrored, tables, heads, dim):
    """Queries are a slice of a projection, and gradients need not be contiguous."""
    height, width, nodes = 4, 4 if mirrored else 6, 9
    query = torch.randn(2, height, width, 3, heads, dim).to(DEVICE, dtype)[:, :, :, 1]
    lengths = {"rows": height + nodes - 1, "columns": width + nodes - 1}
    tables = [torch.randn(n, dim).to(DEVICE) if tables in (name, "both") else None for name, n in lengths.items()]
    cotangent = torch.randn(2, nodes, heads, width, height, device=DEVICE).permute(0, 4, 3, 2, 1)
    want, gradients = expected(reference.position_scores, (query, *tables), mirrored, nodes, cotangent=cotangent)
    got = triton_position.position_forward(query, *tables, mirrored, nodes)
    check(got, want)
    got = triton_position.position_backward(cotangent, query, *tables, mirrored)
    for gradient, wanted, x in zip(got, gradients, (query, *tables), strict=True):
        if x is None:
            assert gradient is None
        else:
            check(gradient, wanted, x.dtype)


def test_walks_in_double_precision(kernels):
    inputs = make_inputs()
    inputs[3:] = [x.double() for x in inputs[3:]]
    check_attention(kernels, inputs)
    check_aggregate(kernels, *inputs[2:])


def test_without_bias(kernels):
    check_attention(kernels, [*make_inputs()[:4], None])


def test_log_of_the_sum(kernels):
    query, key, value, offset, bias = make_inputs()
    _, lse = kernels.attention_forward(query, key, value, offset + 100, bias, 0.3, 2, 1)
    torch.testing.assert_close(lse, bias.logsumexp(-1))


@pytest.mark.parametrize("shift", [0.0, 1.0, -2.0, 3.5, -1e6, 1e30, float("inf"), float("nan")])
def test_walks_to_pixels_and_out_of_the_map(kernels, shift):
    query, key, value, offset, bias = make_inputs()
    offset = offset.round() + shift
    # The reference gets finite offsets instead. A point 50 pixels away is outside of the map, too.
    inputs = [query, key, value, offset.nan_to_num(50.0, 50.0).clamp(-50, 50), bias]
    out, _ = kernels.attention_forward(query, key, value, offset, bias, 0.3, 2, 1)
    check(out, expected(reference.sampled_attention, inputs, 0.3, 2, 1, 0.0)[0])
    out = kernels.aggregate_forward(value, offset, bias, 2, 1)
    check(out, expected(reference.sampled_aggregate, inputs[2:], 2, 1)[0])


def test_whole_walks_have_the_gradients_of_the_reference(kernels):
    # The gradient of the walks is not compared: bilinear sampling has a kink at whole pixels.
    inputs = make_inputs()
    inputs[3] = inputs[3].round()
    _, lse = kernels.attention_forward(*inputs, 0.3, 2, 1)
    cotangent = torch.randn(inputs[2].shape, device=DEVICE)
    got = kernels.attention_backward(cotangent, *inputs, lse, 0.3, 2, 1)
    _, want = expected(reference.sampled_attention, inputs, 0.3, 2, 1, 0.0, cotangent=cotangent)
    for index in (0, 1, 2, 4):
        check(got[index], want[index])


def test_walks_of_zero_have_the_gradient_of_the_reference(kernels):
    """Trainings may start from them. Nodes exactly on the bounds have no gradient. (Nothing is rounded here.)"""
    value, weight = torch.ones(1, 2, 4, 1, 2, device=DEVICE), torch.ones(1, 2, 4, 1, 9, device=DEVICE)
    walks = torch.zeros(1, 2, 4, 1, 9, 2, device=DEVICE)
    got = kernels.aggregate_backward(torch.ones_like(value), value, walks, weight, 3, 1)[1]
    _, want = expected(reference.sampled_aggregate, (value, walks, weight), 3, 1, cotangent=torch.ones_like(value))
    check(got, want[1])
    assert not got[0, 0, :, 0, :3].any()  # above the first row
    assert got[0, 1, 0, 0, 4].tolist() == [-2, 0]  # on the last row


def test_far_nodes_get_no_gradient(kernels):
    inputs = make_inputs()
    inputs[3] += 100
    _, lse = kernels.attention_forward(*inputs, 0.3, 2, 1)
    gradients = kernels.attention_backward(torch.ones_like(inputs[2]), *inputs, lse, 0.3, 2, 1)
    assert all(not gradient.any() for gradient in gradients)


def test_pixels_outside_are_not_read(kernels):
    _, _, value, offset, weight = make_inputs(height=3, width=4, kernel_size=1)
    value = value.clone()
    value[:, 1, 0] = float("nan")
    # All walks go half a pixel up and right, so (y, x) reads the rows y - 1 and y and the columns x and x + 1.
    # (1, 0) follows (0, 3) in memory. It is also the nearest pixel of the map to some pixels outside.
    offset[:] = torch.tensor([-0.5, 0.5])
    finite = kernels.aggregate_forward(value, offset, weight, 1, 1).isfinite().all(-1).all(-1)[0]
    assert finite.tolist() == [[True] * 4, [False, True, True, True], [False, True, True, True]]


def test_bias_of_minus_infinity_leaves_a_node_out(kernels):
    inputs = make_inputs()
    inputs[4][..., 0] = -torch.inf
    inputs[4][..., 2] = -torch.inf
    check_attention(kernels, inputs)


def test_a_bias_may_be_the_least_number(kernels):
    inputs = make_inputs()
    inputs[4][:, 0] = torch.finfo(torch.float32).min
    out, _ = kernels.attention_forward(*inputs, 0.3, 2, 1)
    check(out, expected(reference.sampled_attention, inputs, 0.3, 2, 1, 0.0)[0])


def test_permuted_and_expanded_inputs(kernels):
    query, key, value, offset, bias = make_inputs()
    inputs = [
        query.permute(0, 3, 1, 2, 4).contiguous().permute(0, 2, 3, 1, 4),
        key.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0),
        value[:, :1].expand_as(value),
        offset.permute(0, 3, 4, 5, 1, 2).contiguous().permute(0, 4, 5, 1, 2, 3),
        bias.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2),
    ]
    assert not any(tensor.is_contiguous() for tensor in inputs)
    check_attention(kernels, inputs)
    check_aggregate(kernels, *inputs[2:])


def test_expanded_gradient(kernels):
    inputs = make_inputs()
    _, lse = kernels.attention_forward(*inputs, 0.3, 2, 1)
    cotangent = torch.ones((), device=DEVICE).expand_as(inputs[2])  # what out.sum() gives
    got = kernels.attention_backward(cotangent, *inputs, lse, 0.3, 2, 1)
    _, want = expected(reference.sampled_attention, inputs, 0.3, 2, 1, 0.0, cotangent=cotangent)
    for gradient, wanted in zip(got, want, strict=True):
        check(gradient, wanted)


def test_large_tensors_take_wide_indices(kernels, monkeypatch):
    monkeypatch.setattr(kernels, "LARGE", 0)
    inputs = make_inputs()
    check_attention(kernels, inputs)
    check_aggregate(kernels, *inputs[2:])


def test_positions_in_a_map_that_spans_two_billion_numbers():
    """Its lines lie 2**29 numbers apart. On a CPU, memory that is not touched takes no space."""
    height, width, dim, apart = 5, 2, 4, 2**29
    memory = torch.empty(apart * (height - 1) + width * dim, dtype=torch.bfloat16, device=DEVICE)
    query = memory.as_strided((1, height, width, 1, dim), (len(memory), apart, dim, dim, 1))
    query.copy_(torch.randn(query.shape))
    rows, columns = (torch.randn(n + 8, dim, device=DEVICE) for n in (height, width))
    cotangent = torch.randn(1, height, width, 1, 9, device=DEVICE)
    results = []
    for x in (query, query.contiguous()):
        scores = triton_position.position_forward(x, rows, columns, False, 9)
        results.append([scores, *triton_position.position_backward(cotangent, x, rows, columns, False)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_empty_batch(kernels):
    inputs = make_inputs(batch=0)
    out, lse = kernels.attention_forward(*inputs, 0.3, 2, 1)
    assert out.shape == (0, 3, 4, 2, 16)
    gradients = kernels.attention_backward(out, *inputs, lse, 0.3, 2, 1)
    assert [x.shape for x in gradients] == [x.shape for x in inputs]
    assert kernels.aggregate_forward(*inputs[2:], 2, 1).shape == out.shape
    gradients = kernels.aggregate_backward(out, *inputs[2:], 2, 1)
    assert [x.shape for x in gradients] == [x.shape for x in inputs[2:]]


def test_says_what_it_cannot_take(kernels):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert kernels.unsupported(torch.zeros(1, 1, 1, 1, 256, dtype=dtype, device=DEVICE)) is None
    for value, words in (
        (torch.zeros(1, 1, 1, 1, 2, device="meta"), ["meta", "CUDA"]),
        (torch.zeros(1, 1, 1, 1, 2, dtype=torch.float64, device=DEVICE), ["torch.float64", "torch.float32"]),
        (torch.zeros(1, 1, 1, 1, 257, device=DEVICE), ["257", "256"]),
    ):
        reason = kernels.unsupported(value)
        for word in words:
            assert word in reason


def test_deterministic_algorithms_are_refused(kernels):
    inputs = make_inputs(batch=1, height=1, width=1)
    try:
        torch.use_deterministic_algorithms(True)
        out, lse = kernels.attention_forward(*inputs, 0.3, 2, 1)  # the forward pass has no atomics
        with pytest.raises(RuntimeError, match=r"sampled_attention.*not have a deterministic implementation.*the CPU"):
            kernels.attention_backward(out, *inputs, lse, 0.3, 2, 1)
        with pytest.raises(RuntimeError, match=r"sampled_aggregate.*not have a deterministic implementation.*the CPU"):
            kernels.aggregate_backward(out, *inputs[2:], 2, 1)
        torch.use_deterministic_algorithms(True, warn_only=True)
        with pytest.warns(UserWarning, match="deterministic"):
            kernels.aggregate_backward(out, *inputs[2:], 2, 1)
    finally:
        torch.use_deterministic_algorithms(False)


def test_position_scores_of_many_nodes():
    query, rows = torch.randn(1, 2, 3, 1, 4, device=DEVICE), torch.randn(2 + 99, 4, device=DEVICE)
    with pytest.raises(RuntimeError, match="'triton' cannot run: it takes up to 64 nodes, got 100"):
        position_scores(query, rows, nodes=100, backend="triton")
    assert position_scores(query, rows, nodes=100).shape == (1, 2, 3, 1, 100)


def test_through_the_public_functions():
    for function, inputs in ((sampled_attention, make_inputs()), (sampled_aggregate, make_inputs()[2:])):
        results = []
        for backend in ("triton", "reference"):
            leaves = [x.detach().requires_grad_() for x in inputs]
            out = function(*leaves, kernel_size=2, backend=backend)
            results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
        for got, want in zip(*results, strict=True):
            assert (got - want).norm() <= 1e-5 * want.norm()


def test_operators_keep_the_contract_of_pytorch():
    query, key, value, offset, bias = (x.requires_grad_() for x in make_inputs(batch=1, height=2, width=2, dim=4))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")  # no compiler under the interpreter
    for operator, arguments in (
        (torch.ops.dgmn.sampled_attention, (query, key, value, offset, bias, 0.5, 2, 1, "triton")),
        (torch.ops.dgmn.sampled_attention, (query, key, value, offset, None, 0.5, 2, 1, "triton")),
        (torch.ops.dgmn.sampled_aggregate, (value, offset, bias, 2, 1, "triton")),
    ):
        outcome = torch.library.opcheck(operator.default, arguments, test_utils=checks)
        assert set(outcome.values()) == {"SUCCESS"}


def test_a_backend_that_cannot_run_says_why():
    inputs = make_inputs()
    with pytest.raises(RuntimeError, match=r"'triton' cannot run: the tensors have dtype torch.float64"):
        sampled_attention(*(x.double() for x in inputs), kernel_size=2, backend="triton")
    chosen = functional._chosen("auto", inputs[2])
    assert chosen == ("triton" if DEVICE == "cuda" else "native" if functional.native.LIBRARY else "reference")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="all", marks=pytest.mark.slow),
        pytest.param({"groups": 0}, id="affinities", marks=pytest.mark.slow),
        pytest.param({"groups": 0, "dynamic_affinity": False}, id="fixed"),
        pytest.param({"dynamic_sampling": False}, id="grid"),
    ],
)
def test_the_dgmn_module(options):
    """Forward and backward on the kernels equal the same module on the reference in float64."""
    module = DGMN(8, (1, 2), **{"groups": 2, **options}).to(DEVICE)
    for message in module.messages:
        message.backend = "triton"
        if message.walks is not None:
            torch.nn.init.normal_(message.walks.weight, std=0.2)
    wide = copy.deepcopy(module).double()
    for message in wide.messages:
        message.backend = "reference"
    x = torch.randn(1, 8, 4, 5, device=DEVICE, requires_grad=True)
    twin = x.detach().double().requires_grad_()
    out, want = module(x), wide(twin)
    check(out, want)
    got = torch.autograd.grad(out.square().mean(), [x, *module.parameters()])
    wanted = torch.autograd.grad(want.square().mean(), [twin, *wide.parameters()])
    for gradient, other in zip(got, wanted, strict=True):
        check(gradient, other, tolerance=1e-4)  # the predictors sum 72 products in float32
