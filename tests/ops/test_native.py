"""The native CPU kernels compute what the reference specifies, on every instruction set that the processor has."""

import math
import re
import shutil
import sys
import threading
from collections import Counter
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from dgmn.ops import native, position_scores, reference, sampled_aggregate, sampled_attention

needs_library = pytest.mark.skipif(native.LIBRARY is None, reason=str(native.unsupported(torch.zeros(1))))
TARGETS = sorted(native.targets().items(), key=lambda item: item[1])


@pytest.mark.skipif(sys.platform == "win32" or shutil.which("c++") is None, reason="no C++ compiler")
def test_the_library_was_built():
    assert native.LIBRARY is not None
    assert "portable" in native.targets()


@pytest.fixture(params=[number for _, number in TARGETS], ids=[name for name, _ in TARGETS])
def target(request, monkeypatch):
    """Makes the native kernels use one instruction set."""
    monkeypatch.setattr(native, "_target", request.param)


def make_inputs(batch=2, height=5, width=7, heads=2, dim=16, nodes=9, shared=False, spread=2.0, dtype=torch.float32):
    """query, key, value (slices of one projection), offset, bias."""
    maps = torch.randn(batch, height, width, 3, heads, dim).to(dtype).unbind(3)
    offset = spread * torch.randn(batch, height, width, 1 if shared else heads, nodes, 2)
    # At whole pixels the gradient has a kink, on whose sides the rounding of float32 and float64 may differ.
    offset = torch.where((offset - offset.round()).abs() < 1e-3, offset + 0.01, offset)
    # Exact coordinates in float32: at the map's edge, a node's weight can be smaller than the rounding of its walk.
    offset = (offset * 2**14).round() / 2**14
    return [*maps, offset, torch.randn(batch, height, width, heads, nodes)]


def compare(function, inputs, tolerance=1e-5, **options):
    """Compares outputs and all gradients of the native kernels with the reference in float64."""
    results = []
    for backend, dtype in (("native", None), ("reference", torch.float64)):
        leaves = [None if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
        out = function(*leaves, backend=backend, **options)
        cotangent = torch.sin(torch.arange(out.numel())).view(out.shape)
        given = [x for x in leaves if x is not None]
        gradients = torch.autograd.grad(out, given, cotangent.to(out.dtype))
        for gradient, leaf in zip(gradients, given, strict=True):
            assert (gradient.shape, gradient.dtype) == (leaf.shape, leaf.dtype)
        results.append([out, *gradients])
    for i, (got, want) in enumerate(zip(*results, strict=True)):
        error = (got.double() - want).norm().item()
        # A gradient that cancels to zero (as in the softmax of one node) has no relative error.
        norm = max(want.norm().item(), 1e-2)
        assert error <= tolerance * norm, f"number {i}: {error} of {norm}"


# --------------------------------------------------------------------------------------------------- the same numbers


@needs_library
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    target=st.sampled_from([number for _, number in TARGETS] or [0]),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 35), st.integers(1, 3)),
    dim=st.one_of(st.integers(1, 40), st.sampled_from([48, 64, 96, 128])),
    kernel_size=st.integers(1, 4),
    dilation=st.integers(1, 3),
    shared=st.booleans(),
    with_bias=st.booleans(),
    factor=st.sampled_from([None, 0.5, -1.0]),
    spread=st.sampled_from([0.3, 2.0, 30.0]),
    seed=st.integers(0, 2**16),
)
def test_equals_the_reference(
    monkeypatch, target, sizes, dim, kernel_size, dilation, shared, with_bias, factor, spread, seed
):
    monkeypatch.setattr(native, "_target", target)
    torch.manual_seed(seed)
    *maps, offset, bias = make_inputs(*sizes, dim, kernel_size**2, shared, spread)
    options = {"kernel_size": kernel_size, "dilation": dilation}
    # Logits of about one: float32 rounds those of several tens, as scale = 1 gives at dim = 64, by more than 1e-5.
    scale = None if factor is None else factor * dim**-0.5
    compare(sampled_attention, [*maps, offset, bias if with_bias else None], scale=scale, **options)
    compare(sampled_aggregate, [maps[2], offset, bias], **options)


@pytest.mark.parametrize("dim", [1, 4, 8, 15, 16, 17, 32, 48, 64, 80, 128, 192, 256])
def test_every_head_size(target, dim):
    compare(sampled_attention, make_inputs(height=3, width=18, dim=dim))
    compare(sampled_aggregate, make_inputs(height=3, width=18, dim=dim)[2:])


@pytest.mark.parametrize("dim", [5, 16, 21, 64])
def test_bfloat16_is_stored_only(target, dim):
    # The kernels compute in float32. The only error is the rounding of the results to 8 bits.
    compare(sampled_attention, make_inputs(dim=dim, dtype=torch.bfloat16), tolerance=2**-8)
    compare(sampled_aggregate, make_inputs(dim=dim, dtype=torch.bfloat16)[2:], tolerance=2**-8)
    query, key, value, offset, bias = make_inputs(dim=dim, dtype=torch.bfloat16)
    out = sampled_attention(query, key, value, offset, bias, backend="native")
    exact = sampled_attention(*(x.float() for x in (query, key, value)), offset, bias, backend="reference")
    # Results are rounded to the nearest, not down, so the error is centred.
    assert (out.float() - exact).mean().abs() < 0.1 * (out.float() - exact).abs().mean()


def test_bfloat16_keeps_what_is_not_finite(target):
    value = torch.tensor([math.inf, -math.inf, math.nan, 3.4e38] * 4).to(torch.bfloat16).view(1, 1, 1, 1, 16)
    offset, weight = torch.zeros(1, 1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 1)
    out = sampled_aggregate(value, offset, weight, kernel_size=1, backend="native")
    assert torch.equal(out.float().nan_to_num(nan=7.0), value.float().nan_to_num(nan=7.0))


@pytest.mark.parametrize("kernel_size", [1, 5, 7])
def test_other_numbers_of_nodes(target, kernel_size):
    inputs = make_inputs(nodes=kernel_size**2)
    compare(sampled_attention, inputs, kernel_size=kernel_size)


def test_any_strides(target):
    query, key, value, offset, bias = make_inputs(height=6, width=5)
    variants = [
        query.transpose(1, 2).contiguous().transpose(1, 2),  # rows of the map lie apart
        key.transpose(3, 4).contiguous().transpose(3, 4),  # channels lie apart
        value.permute(3, 0, 4, 1, 2).contiguous().permute(1, 3, 4, 0, 2),
        offset.flip(-1).flip(-1),
        bias[..., :1].expand(bias.shape),
    ]
    compare(sampled_attention, variants)
    tall, wide = (torch.randn(1, *size, 3, 1, 16).unbind(3) for size in ((5, 1), (1, 5)))
    compare(sampled_attention, [*tall, *make_inputs(1, 5, 1, 1)[3:]])
    compare(sampled_attention, [*wide, *make_inputs(1, 1, 5, 1)[3:]])
    compare(sampled_aggregate, [value[:1, :, :, :1].expand(value.shape), offset, bias])


def test_a_node_that_is_left_out(target):
    query, key, value, offset, bias = make_inputs()
    bias[..., 3:] = -math.inf
    compare(sampled_attention, [query, key, value, offset, bias])
    bias[..., 0] = 300.0  # far above the rest: the softmax must not overflow
    compare(sampled_attention, [query, key, value, offset, bias])


@pytest.mark.parametrize("walk", [math.nan, math.inf, -math.inf, 1e9, -1e30])
def test_walks_to_nowhere_read_nothing(target, walk):
    query, key, value, offset, bias = make_inputs()
    offset[:] = walk
    for backend in ("native", "reference"):
        out = sampled_attention(query, key, value, offset, bias, backend=backend)
        assert torch.equal(out, torch.zeros_like(out)), backend


def test_what_is_not_finite_stays_where_it_is_read(target):
    _, _, value, offset, weight = make_inputs(height=9, width=9, spread=0.0)
    value = value.clone()
    value[0, 0, 0] = math.nan
    got, want = (sampled_aggregate(value, offset + 0.5, weight, backend=x) for x in ("native", "reference"))
    assert torch.equal(got.isnan(), want.isnan())
    assert got.isnan().any()


@pytest.mark.parametrize("walk", [math.nan, 100.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_not_lost_outside_of_the_map(target, walk, bad):
    """Nodes read 0 there, and 0 times it is NaN: a network that has diverged must not look healthy."""
    query, key, value, offset, weight = (x.clone() for x in make_inputs())
    offset[0] = walk
    query[0, 0, 0, 0, 0] = weight[0, 0, 0, 0, 0] = bad
    results = {}
    for backend in ("native", "reference"):
        inputs = [x.clone().requires_grad_() for x in (query, key, value, offset, weight)]
        outs = [
            sampled_attention(*inputs[:4], torch.zeros_like(weight), backend=backend),
            sampled_aggregate(*inputs[2:], backend=backend),
        ]
        grads = torch.autograd.grad(outs, inputs[2:3], [torch.ones_like(out) for out in outs])
        results[backend] = [x.detach().isnan() for x in (*outs, *grads)]
    for got, want in zip(*results.values(), strict=True):
        assert torch.equal(got, want)
    assert all(x.any() for x in results["native"][:2])


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gradients_and_inputs_without_memory(target, backend):
    """Some derivatives of PyTorch are zeros that have no memory, for instance that of `torch.sgn`."""
    query, key, value, offset, weight = (x.detach().requires_grad_() for x in make_inputs())
    rows = torch.randn(5 + 8, 16)
    for out, inputs in (
        (sampled_attention(query, key, value, offset, weight, backend=backend), (query, key, value, offset, weight)),
        (sampled_aggregate(value, offset, weight, backend=backend), (value, offset, weight)),
        (position_scores(query, rows, backend=backend), (query,)),
    ):
        for grad in torch.autograd.grad(torch.sgn(out).sum(), inputs):
            assert torch.equal(grad, torch.zeros_like(grad))
    nothing = torch._efficientzerotensor(value.shape)
    assert not sampled_aggregate(nothing, offset, weight, backend=backend).any()


def test_empty_batch(target):
    assert sampled_attention(*make_inputs(batch=0), backend="native").shape == (0, 5, 7, 2, 16)
    inputs = [x.requires_grad_() for x in make_inputs(batch=0)[2:]]
    sampled_aggregate(*inputs, backend="native").sum().backward()
    assert inputs[1].grad.shape == inputs[1].shape


# ------------------------------------------------------------------------------------------------ relative position


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("tables", ["both", "rows", "columns"])
@pytest.mark.parametrize(("size", "dim"), [((11, 11), 3), ((4, 19), 16), ((21, 6), 64), ((1, 5), 16), ((4, 1), 3)])
def test_position_scores(target, mirrored, tables, size, dim):
    height, width = size
    query = torch.randn(2, height, width, 3, 2, dim).unbind(3)[1]
    rows = torch.randn(height + 8, dim) if tables != "columns" else None
    columns = torch.randn(width + 8, dim) if tables != "rows" else None
    compare(position_scores, [query, rows, columns], mirrored=mirrored)


def test_position_scores_by_hand():
    query, rows, columns = torch.randn(1, 3, 3, 1, 2), torch.randn(3 + 3, 2), torch.randn(3 + 3, 2)
    plain = position_scores(query, rows, columns, nodes=4)
    mirrored = position_scores(query, rows, columns, nodes=4, mirrored=True)
    for y in range(3):
        for x in range(3):
            for s in range(4):
                along_width = query[0, y, x, 0] @ columns[2 - x + s]
                upright = along_width + query[0, y, x, 0] @ rows[2 - y + s]
                torch.testing.assert_close(plain[0, y, x, 0, s], upright)
                crossed = along_width + query[0, x, y, 0] @ rows[2 - x + s]
                torch.testing.assert_close(mirrored[0, y, x, 0, s], crossed)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"rows": torch.zeros(12, 4)}, ValueError, "rows must have the shape (13, 4), got (12, 4)"),
        ({"columns": torch.zeros(13, 3)}, ValueError, "columns must have the shape (14, 4), got (13, 3)"),
        ({"rows": torch.zeros(13, 4).long()}, TypeError, "rows must be of floating point, got torch.int64"),
        ({"nodes": 0}, ValueError, "nodes must be a whole number of at least 1, got 0"),
        ({"mirrored": "false"}, ValueError, "mirrored must be True or False, got 'false'"),
        ({"backend": "triton"}, RuntimeError, "the Triton kernels run on CUDA devices"),
        ({"backend": "cuda"}, ValueError, "backend must be one of auto, reference, native, triton, got 'cuda'"),
    ],
)
def test_position_scores_says_what_is_wrong(arguments, error, words):
    with pytest.raises(error) as caught:
        position_scores(torch.zeros(1, 5, 6, 1, 4), **arguments)
    assert words in str(caught.value)


# ------------------------------------------------------------------------------------------------------- threads


def everything(batch, height, width, heads, dim):
    query, key, value, offset, bias = (
        x.requires_grad_() for x in make_inputs(batch, height, width, heads, dim, shared=heads > 1)
    )
    rows, columns = (torch.randn(size + 8, dim, requires_grad=True) for size in (height, width))
    leaves = [query, key, value, offset, bias, rows, columns]
    out = sampled_attention(query, key, value, offset, bias + position_scores(query, rows, columns))
    out = out + sampled_aggregate(value, offset, bias)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]


@needs_library
@pytest.mark.parametrize("sizes", [(1, 24, 40, 1, 64), (1, 17, 30, 3, 24), (2, 12, 50, 2, 128)])
def test_any_number_of_threads_gives_the_same_bits(sizes):
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 8, 33, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(1)
            results.append(everything(*sizes))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("sizes", [(1, 1), (7, 5), (64, 16), (1000, 33)])
def test_backward_pass_of_gelu(target, sizes):
    """In relative terms, too: below -5, rounding leaves nothing of PyTorch's own in float32."""
    before, grad, total = 3 * torch.randn(*sizes), torch.randn(*sizes), torch.randn(sizes[1])
    before[0, 0] = -9.0
    exact = before.double()
    active, slope, sums = torch.empty(sizes), grad.clone(), total.clone()
    native.gelu_backward(before, slope, active, sums)
    share = torch.erfc(-exact / math.sqrt(2)) / 2
    wanted = grad * (share + exact * torch.exp(-exact.square() / 2) / math.sqrt(2 * math.pi))
    torch.testing.assert_close(active.double(), exact * share, rtol=1e-5, atol=1e-30)
    torch.testing.assert_close(slope.double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sums.double(), total + wanted.sum(0), rtol=1e-5, atol=2e-5)


def test_gelu_of_what_is_not_finite(target):
    before = torch.tensor([[math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0, 1e-40]])
    active, slope, total = torch.empty_like(before), torch.ones_like(before), torch.zeros(7)
    native.gelu_backward(before, slope, active, total)
    torch.testing.assert_close(active, torch.nn.functional.gelu(before.double()).float(), equal_nan=True)
    wanted = torch.ops.aten.gelu_backward(torch.ones_like(before), before)
    torch.testing.assert_close(slope, wanted, equal_nan=True)
    torch.testing.assert_close(total, wanted[0], equal_nan=True)


@needs_library
def test_gelu_gives_the_same_bits_with_any_number_of_threads(monkeypatch):
    before, grad = torch.randn(333, 100), torch.randn(333, 100)
    results = []
    for threads in (1, 2, 3, 33):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        active, slope, total = torch.empty_like(before), grad.clone(), torch.zeros(100)
        native.gelu_backward(before, slope, active, total)
        results.append(torch.cat([active.flatten(), slope.flatten(), total]))
    assert all(torch.equal(other, results[0]) for other in results)


@needs_library
def test_calls_from_many_python_threads():
    inputs = make_inputs(1, 20, 30, 2, 32)
    expected = sampled_attention(*inputs, backend="native")
    wrong = []

    def call():
        for _ in range(5):
            if not torch.equal(sampled_attention(*inputs, backend="native"), expected):
                wrong.append(1)

    workers = [threading.Thread(target=call) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


# ------------------------------------------------------------------------------------------------ PyTorch operators


def operators(dtype=torch.float32):
    query, key, value, offset, bias = (x.requires_grad_() for x in make_inputs(1, 3, 4, 2, 5, dtype=dtype))
    attention = (0.5, 3, 1, "native")
    log_sum = torch.zeros(value.shape[:4])
    grad_out, scores = torch.randn_like(value), torch.randn(bias.shape)
    rows = torch.randn(3 + 8, 5, requires_grad=True)
    maps = [x.detach() for x in (query, key, value, offset)]
    ops = torch.ops.dgmn
    return [
        (ops.sampled_attention, (query, key, value, offset, bias, *attention)),
        (ops.sampled_attention, (query, key, value, offset[..., :1, :, :].detach(), None, *attention)),
        (ops.sampled_attention_backward, (grad_out, *maps, bias.detach(), log_sum, *attention)),
        (ops.sampled_attention_backward, (grad_out, *maps, None, log_sum, *attention)),
        (ops.sampled_aggregate, (value, offset, bias, 3, 1, "native")),
        (ops.sampled_aggregate_backward, (grad_out, value.detach(), offset.detach(), scores, 3, 1, "native")),
        (ops.position_scores, (query, rows, None, False, 9, "native")),
        (ops.position_scores_backward, (scores, query.detach(), None, torch.randn(4 + 8, 5), False, "native")),
    ]


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    for operator, arguments in operators(dtype):
        outcome = torch.library.opcheck(operator.default, arguments, raise_exception=True)
        assert set(outcome.values()) == {"SUCCESS"}


@needs_library
def test_saved_for_backward_are_the_inputs_and_one_number_a_node():
    inputs = [x.requires_grad_() for x in make_inputs(1, 8, 8, 2, 16)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        sampled_attention(*inputs, backend="native")
    assert sorted(saved) == sorted([*(x.numel() for x in inputs), 8 * 8 * 2])


@needs_library
@pytest.mark.parametrize("dynamic", [pytest.param(False, marks=pytest.mark.slow), True])
def test_compiles_to_one_graph_with_gradients(dynamic):
    torch._dynamo.reset()
    attention = torch.compile(sampled_attention, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for height in (4, 6, 7):
        inputs = [x.requires_grad_() for x in make_inputs(height=height)]
        out, expected = attention(*inputs), sampled_attention(*inputs, backend="native")
        assert torch.equal(out, expected)
        got, want = (torch.autograd.grad(x.square().sum(), inputs) for x in (out, expected))
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@needs_library
def test_exports_with_any_size():
    class Layer(torch.nn.Module):
        def forward(self, query, key, value, offset, bias):
            return sampled_attention(query, key, value, offset, bias)

    batch, height, width = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "height", "width"))
    sizes = tuple({0: batch, 1: height, 2: width} for _ in range(5))
    program = torch.export.export(Layer(), tuple(make_inputs()), dynamic_shapes=sizes)
    called = Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")
    assert called["dgmn.sampled_attention.default"] == 1
    inputs = make_inputs(3, 8, 6)
    assert torch.equal(program.module()(*inputs), sampled_attention(*inputs))


@needs_library
def test_costs_are_those_of_the_reference():
    def count(backend, function, *inputs):
        with FlopCounterMode(display=False) as counter:
            out = function(*inputs, backend=backend)
            forward = counter.get_total_flops()
            out.sum().backward()
        return forward, counter.get_total_flops()

    inputs = [x.requires_grad_() for x in make_inputs(1, 6, 6)]
    tables = [torch.randn(14, 16, requires_grad=True) for _ in range(2)]
    for function, arguments in (
        (sampled_attention, inputs),
        (sampled_aggregate, inputs[2:]),
        (position_scores, [inputs[0], *tables]),
        (position_scores, [inputs[0], tables[0]]),
    ):
        assert count("native", function, *arguments) == count("reference", function, *arguments)
    for nodes, dim in ((1, 4), (9, 1)):  # sums of one term are no matrix products
        inputs = [x.requires_grad_() for x in make_inputs(1, 6, 6, dim=dim, nodes=nodes)]
        for function, arguments in ((sampled_attention, inputs), (sampled_aggregate, inputs[2:])):
            one = partial(function, kernel_size=math.isqrt(nodes))
            assert count("native", one, *arguments) == count("reference", one, *arguments)


# ---------------------------------------------------------------------------------------------- choice of the backend


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"were not built\. Install a C\+\+ compiler, then dgmn again"),
        (b"not a library", r"cannot be loaded \(.*_native\.so: .*\)\. Install dgmn again"),  # with the loader's words
    ],
)
def test_without_the_library_plain_pytorch_runs_and_says_why(content, said, monkeypatch, tmp_path):
    path = tmp_path / "_native.so"
    if content is not None:
        path.write_bytes(content)
    library, problem = native.load(path)
    monkeypatch.setattr(native, "LIBRARY", library)
    monkeypatch.setattr(native, "PROBLEM", problem)
    inputs = make_inputs()
    with pytest.warns(UserWarning, match=rf"its CPU kernels {said}"):
        out = sampled_attention(*inputs)
    assert torch.equal(out, sampled_attention(*inputs, backend="reference"))
    with pytest.raises(RuntimeError, match=rf"backend 'native' cannot run: the CPU kernels {said}"):
        sampled_attention(*inputs, backend="native")
    assert native.targets() == {}


@needs_library
def test_a_backend_that_cannot_run_says_why():
    double = [x.double() for x in make_inputs()]
    with pytest.raises(RuntimeError, match=r"'native' cannot run: it takes float32 and bfloat16, got torch.float64"):
        sampled_attention(*double, backend="native")
    with pytest.raises(RuntimeError, match=r"'native' cannot run: it has no dropout, got dropout_p = 0.1"):
        sampled_attention(*make_inputs(), dropout_p=0.1, backend="native")
    meta = [x.to("meta") for x in make_inputs()]
    with pytest.raises(RuntimeError, match=r"'native' cannot run: it runs on the CPU, and the tensors are on meta"):
        sampled_attention(*meta, backend="native")
    with pytest.raises(RuntimeError, match=r"'triton' cannot run: "):
        sampled_aggregate(*double[2:], backend="triton")


@needs_library
def test_auto_takes_the_kernel_where_it_can(monkeypatch):
    called = []
    forward = native.attention_forward
    monkeypatch.setattr(native, "attention_forward", lambda *x: called.append(x[2].dtype) or forward(*x))
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        sampled_attention(*make_inputs(dtype=dtype))
    sampled_attention(*make_inputs(), dropout_p=0.1)
    assert called == [torch.float32, torch.bfloat16]


class TestTransforms:
    """The operators with kernels do not support torch.func and forward mode: they would silently drop tangents."""

    def test_forward_mode(self):
        query, key, value, offset, bias = make_inputs()
        tangent = torch.randn_like(query)
        results = []
        for backend in ("auto", "reference"):
            attend = partial(sampled_attention, key=key, value=value, offset=offset, bias=bias, backend=backend)
            results.append(torch.func.jvp(attend, (query,), (tangent,)))
        assert results[0][1].abs().max() > 0
        torch.testing.assert_close(*results)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(query, tangent)
            out = sampled_attention(dual, key, value, offset, bias)
            torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(out).tangent, results[1][1])

    def test_grad_and_vmap(self):
        query, rows = torch.randn(3, 5, 7, 2, 8), torch.randn(13, 8)
        gradient = torch.func.grad(lambda q: position_scores(q, rows).square().sum())
        got = torch.func.vmap(gradient)(query[:, None])
        leaf = query.clone().requires_grad_()
        position_scores(leaf, rows).square().sum().backward()
        torch.testing.assert_close(got[:, 0], leaf.grad, rtol=1e-4, atol=1e-4)

    def test_a_named_backend_says_so(self):
        _, _, value, offset, weight = make_inputs()
        with pytest.raises(RuntimeError, match=r"torch.func and forward-mode differentiation need the backend ref"):
            torch.func.vmap(lambda v, o, w: sampled_aggregate(v[None], o[None], w[None], backend="native"))(
                value, offset, weight
            )

    def test_second_derivatives_are_refused(self):
        _, _, value, offset, weight = make_inputs()
        value.requires_grad_()
        (gradient,) = torch.autograd.grad(
            sampled_aggregate(value, offset, weight, backend="native").square().sum(), value, create_graph=True
        )
        with pytest.raises(RuntimeError, match=r"no second derivatives; give backend='reference'"):
            gradient.sum().backward()


class TestOperators:
    """An exported program lacks the checks of the public functions, so the operators check their inputs."""

    def test_another_dtype(self):
        class Aggregate(torch.nn.Module):
            def forward(self, value, offset, weight):
                return sampled_aggregate(value, offset, weight)

        _, _, value, offset, weight = make_inputs()
        program = torch.export.export(Aggregate(), (value, offset, weight)).module()
        assert torch.equal(program(value, offset, weight), sampled_aggregate(value, offset, weight))
        for dtype in (torch.float16, torch.float64):
            with pytest.raises(RuntimeError, match=f"it takes float32 and bfloat16, got {dtype}"):
                program(value.to(dtype), offset, weight)

    @pytest.mark.parametrize(
        ("name", "change", "words"),
        [
            ("query", lambda x: x[..., 0], "(1, 3, 4, 2)"),
            ("key", lambda x: x.bfloat16(), "must be torch.float32 of the shape (1, 3, 4, 2, 5) on cpu, got torch.bfl"),
            ("key", lambda x: x[:, 1:], "got torch.float32 of the shape (1, 2, 4, 2, 5) on cpu"),
            ("value", lambda x: x[0], "must have the shape (B, H, W, heads, D), only B may be zero, got (3, 4, 2, 5)"),
            ("value", lambda x: x[..., :0], "must have the shape (B, H, W, heads, D), only B may be zero, got (1, 3"),
            ("value", lambda x: x.half(), "it takes float32 and bfloat16, got torch.float16"),
            (
                "grad_out",
                lambda x: x.bfloat16(),
                "must be torch.float32 of the shape (1, 3, 4, 2, 5) on cpu, got torch.",
            ),
            ("grad_out", lambda x: x[..., 1:], "got torch.float32 of the shape (1, 3, 4, 2, 4)"),
            ("offset", lambda x: x[..., 0], "must be floating point of the shape (1, 3, 4, 2, 9, 2)"),
            ("offset", lambda x: x[..., :1], "must be floating point of the shape (1, 3, 4, "),
            ("offset", lambda x: x.long(), "got torch.int64 of the shape (1, 3, 4, "),
            ("bias", lambda x: x[..., :4], "got torch.float32 of the shape (1, 3, 4, 2, 4)"),
            ("log_sum", lambda x: x[:, :, :2], "must be floating point of the shape (1, 3, 4, 2)"),
            ("kernel_size", lambda x: -x, "must be from 1 to 1024, got -3"),
            ("kernel_size", lambda x: 2**40, "must be from 1 to 1024, got 1099511627776"),
            ("dilation", lambda x: 0, "must be from 1 to 1048576, got 0"),
            ("dilation", lambda x: 2**62, "must be from 1 to 1048576, got 4611686018427387904"),
            ("backend", lambda x: "nonsense", "no kernels for the backend 'nonsense'"),
            (
                "weight",
                lambda x: x.int(),
                "must be floating point of the shape (1, 3, 4, 2, 9) on cpu, got torch.int32",
            ),
            ("rows", lambda x: x[1:], "must be floating point of the shape (11, 5) on cpu, got torch.float32"),
            ("columns", lambda x: x.T, "must be floating point of the shape (12, 5)"),
            ("nodes", lambda x: 0, "must be from 1 to 1048576, got 0"),
            ("grad_scores", lambda x: x[0], "must be floating point of the shape (1, 3, 4, 2, 9)"),
            ("grad_scores", lambda x: x[..., :0], "must be from 1 to 1048576, got 0"),
        ],
    )
    def test_what_is_wrong_is_named(self, name, change, words):
        tried = 0
        for operator, arguments in operators():
            call = dict(zip(names(operator), arguments, strict=True))
            if call.get(name) is None:
                continue
            with pytest.raises(RuntimeError, match=rf"^dgmn: .*{re.escape(words)}.*$") as caught:
                operator(**{**call, name: change(call[name])})
            assert name in str(caught.value)
            tried += 1
        assert tried

    def test_maps_whose_positions_have_no_number(self):
        value = torch.zeros(1).expand(1, 2**15, 2**15, 1, 1)
        offset, weight = (torch.zeros(1).expand(1, 2**15, 2**15, 1, *size) for size in ((1, 2), (1,)))
        with pytest.raises(
            ValueError, match=r"take maps of fewer than 2\*\*30 positions, got \(1, 32768, 32768, 1, 1\)"
        ):
            sampled_aggregate(value, offset, weight, kernel_size=1, backend="native")

    @pytest.mark.parametrize("number", range(8))
    def test_any_other_argument_is_refused_or_computed_rightly(self, target, number):
        """Every argument of a good call changes in every way. What the kernels take, they compute as the reference."""
        operator, good = operators()[number]
        good = [x.detach() if isinstance(x, torch.Tensor) else x for x in good]
        computed = 0
        for place, (name, old) in enumerate(zip(names(operator), good, strict=True)):
            for how, change in CHANGES[type(old)].items():
                try:
                    new = change(old)
                except (IndexError, RuntimeError):
                    continue  # the argument lacks what the change is about
                arguments = [*good[:place], new, *good[place + 1 :]]
                try:
                    got = operator(*arguments)
                except (RuntimeError, ValueError, TypeError):
                    continue
                if how in UNBOUNDED:
                    continue  # infinities have no one result
                got = [x for x in (got if isinstance(got, tuple) else (got,)) if x.numel()]
                want = reference_of(operator, [x.float() if isinstance(x, torch.Tensor) else x for x in arguments])
                for x, y in zip(got, (x for x in want if x.numel()), strict=True):
                    tolerance = TOLERANCES[x.dtype]
                    message = f"{operator}: {name} {how}: {{}}".format
                    torch.testing.assert_close(x.float(), y, rtol=tolerance, atol=tolerance, msg=message)
                computed += 1
        assert computed > 5


def names(operator):
    return [argument.name for argument in operator.default._schema.arguments]


def reference_of(operator, arguments):
    """What an operator returns, from the reference; of the attention also the log of the softmax's sum."""
    name = operator.default._schema.name.removeprefix("dgmn::")
    call = dict(zip(names(operator), arguments, strict=True))
    for other in ("backend", "log_sum"):
        call.pop(other, None)
    gradient = call.pop("grad_out", call.pop("grad_scores", None))
    if name == "position_scores_backward":
        call["nodes"] = gradient.shape[-1]
    function = getattr(reference, name.removesuffix("_backward"))
    if function is reference.sampled_attention:
        call["dropout_p"] = 0.0
    leaves = [x.requires_grad_(gradient is not None) for x in call.values() if isinstance(x, torch.Tensor)]
    out = function(**call)
    if gradient is not None:
        return torch.autograd.grad(out, leaves, gradient, allow_unused=True, materialize_grads=True)
    if name != "sampled_attention":
        return [out]
    y, x = reference.sampling_points(call["offset"], call["kernel_size"], call["dilation"])
    sampled = reference.sample_nodes(call["key"], y, x).unflatten(3, y.shape[1:3])
    logits = call["scale"] * torch.einsum("byxhd,bhdyxk->byxhk", call["query"], sampled)
    return [out, (logits if call["bias"] is None else logits + call["bias"]).logsumexp(-1)]


TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}

# Ways to change one argument, by its type.
INTEGERS = (-(2**63), -(2**31), -3, -1, 0, 1, 2, 3, 4, 9, 2**20, 2**31, 2**40, 2**62, 2**63 - 1, 2**70)
UNBOUNDED = ("nan", "inf", "-inf", "1e+300")
CHANGES = {
    torch.Tensor: {
        **{
            str(dtype): lambda x, dtype=dtype: x.to(dtype)
            for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64)
        },
        **{f"half of axis {i}": lambda x, i=i: x.narrow(i, 0, x.shape[i] // 2) for i in range(6)},
        **{f"twice along axis {i}": lambda x, i=i: torch.cat([x, x], i) for i in range(6)},
        "unchanged": lambda x: x,
        "first": lambda x: x[0],
        "with one more axis": lambda x: x[None],
        "with one axis": lambda x: x.flatten(),
        "without axes": lambda x: x.sum(),
        "with the last two swapped": lambda x: x.transpose(-1, -2),
        "on meta": lambda x: x.to("meta"),
        "sparse": lambda x: x.to_sparse(),
        "negated when read": lambda x: torch._neg_view(x),
        "of one number": lambda x: x.flatten()[0].expand(x.shape),
        "with other strides": lambda x: x.mT.contiguous().mT,
    },
    type(None): {str(shape): lambda _, shape=shape: torch.ones(shape) for shape in ((3,), (11, 5), (12, 5))},
    int: {str(number): lambda _, number=number: number for number in INTEGERS},
    float: {str(number): lambda _, number=number: number for number in (0.0, -1.0, *map(float, UNBOUNDED))},
    bool: {"the other": lambda x: not x},
    str: {"unknown": lambda x: "nonsense"},
}


@needs_library
def test_the_default_device_is_of_no_concern():
    query, key, value, offset, bias = (x.requires_grad_() for x in make_inputs())
    rows = torch.randn(8 + 5, 16)
    functions = (
        lambda: sampled_attention(query, key, value, offset, bias),
        lambda: sampled_aggregate(value, offset, bias),
        lambda: position_scores(query, rows),
    )
    for function in functions:
        expected = function()
        with torch.device("meta"):
            out = function()
            out.sum().backward()
        assert torch.equal(out, expected)


@needs_library
def test_negated_views():
    """The imaginary part of a conjugate is a view whose numbers in memory have the other sign."""
    query, _, value, offset, bias = make_inputs(dim=1)
    turned = [torch.complex(torch.zeros_like(x), -x).conj().imag for x in (value, offset, bias, query)]
    assert all(x.is_neg() for x in turned)
    torch.testing.assert_close(sampled_aggregate(*turned[:3]), sampled_aggregate(value, offset, bias))
    rows = torch.randn(8 + 5, 1)
    torch.testing.assert_close(position_scores(turned[3], rows), position_scores(query, rows))


@needs_library
@pytest.mark.parametrize("function", [sampled_attention, sampled_aggregate])
def test_many_gradients_at_once(function):
    query, key, value, offset, bias = (x.detach().requires_grad_() for x in make_inputs())
    inputs = (query, key, value, offset, bias) if function is sampled_attention else (value, offset, bias)
    out = function(*inputs)
    many = torch.randn(3, *out.shape)
    at_once = torch.autograd.grad(out, inputs, many, is_grads_batched=True, retain_graph=True)
    singly = [torch.autograd.grad(out, inputs, each, retain_graph=True) for each in many]
    torch.testing.assert_close(list(at_once), [torch.stack(grads) for grads in zip(*singly, strict=True)])
