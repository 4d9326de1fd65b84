import itertools
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import deform_conv2d

from dgmn.ops import BACKENDS, sampled_aggregate, sampled_attention

from golden_vectors import array

# ------------------------------------------------------------------ an independent implementation, in plain loops


def sample_by_hand(nodes, y, x):
    """Bilinear sampling of nodes (H, W, D) at one point."""
    height, width, dim = nodes.shape
    total = np.zeros(dim)
    if not (-1 < y < height and -1 < x < width):
        return total
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * nodes[row, column]
    return total


def samples_by_hand(nodes, offset, kernel_size, dilation):
    """nodes (B, H, W, heads, D), offset (B, H, W, heads or 1, K, 2) to (B, H, W, heads, K, D)."""
    batch, height, width, heads, dim = nodes.shape
    pad = dilation * (kernel_size - 1) // 2
    out = np.zeros((batch, height, width, heads, kernel_size**2, dim))
    for b, y, x, h in itertools.product(range(batch), range(height), range(width), range(heads)):
        for i, j in itertools.product(range(kernel_size), range(kernel_size)):
            dy, dx = offset[b, y, x, h % offset.shape[3], kernel_size * i + j]
            point = (y + i * dilation - pad + dy, x + j * dilation - pad + dx)
            out[b, y, x, h, kernel_size * i + j] = sample_by_hand(nodes[b, :, :, h], *point)
    return out


def aggregate_by_hand(value, offset, weight, kernel_size, dilation):
    samples = samples_by_hand(value.numpy(), offset.numpy(), kernel_size, dilation)
    return torch.from_numpy((samples * weight.numpy()[..., None]).sum(-2))


def attention_by_hand(query, key, value, offset, bias, scale, kernel_size, dilation):
    keys = samples_by_hand(key.numpy(), offset.numpy(), kernel_size, dilation)
    logits = scale * (keys * query.numpy()[..., None, :]).sum(-1)
    if bias is not None:
        logits = logits + bias.numpy()
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    weight = weight / weight.sum(-1, keepdims=True)
    return aggregate_by_hand(value, offset, torch.from_numpy(weight), kernel_size, dilation)


def make_offset(*shape, spread=2):
    """Walks whose points keep away from the pixel centres, where bilinear sampling has a kink."""
    whole = torch.randint(-spread, spread + 1, shape)
    return whole + 0.2 + 0.6 * torch.rand(shape, dtype=torch.float64)


def make_inputs(batch=2, height=4, width=5, heads=2, dim=3, kernel_size=3, dtype=torch.float64):
    """query, key, value, offset, bias."""
    query, key, value = torch.randn(3, batch, height, width, heads, dim, dtype=torch.float64)
    offset = make_offset(batch, height, width, heads, kernel_size**2, 2)
    bias = torch.randn(batch, height, width, heads, kernel_size**2, dtype=torch.float64)
    return [tensor.to(dtype) for tensor in (query, key, value, offset, bias)]


# ------------------------------------------------------------------------------------------------ known results


@pytest.mark.parametrize("dilation", [1, 4])
def test_sampling_equals_the_official_operation(golden, dilation):
    x = torch.from_numpy(array("unfold.x", (2, 4, 7, 9)))
    walks = torch.from_numpy(array("unfold.offset", (2, 18, 7, 9), 2.0))
    value = x.permute(0, 2, 3, 1)[..., None, :]
    offset = walks.permute(0, 2, 3, 1).reshape(2, 7, 9, 1, 9, 2)
    taps = [
        sampled_aggregate(value, offset, one_hot.expand(2, 7, 9, 1, 9), dilation=dilation) for one_hot in torch.eye(9)
    ]
    columns = torch.stack(taps, dim=-1).permute(0, 3, 4, 5, 1, 2)  # (B, 1, C, K, H, W): channel c * 9 + t
    golden("a0_units").check(f"unfold_d{dilation}", columns.reshape(2, 36, 63))


def test_map_of_one_pixel():
    value = torch.tensor([2.0, 5.0]).view(1, 1, 1, 1, 2)
    weight = torch.arange(9.0).view(1, 1, 1, 1, 9)
    offset = torch.zeros(1, 1, 1, 1, 9, 2)
    # Only the middle node, number 4, is inside.
    torch.testing.assert_close(sampled_aggregate(value, offset, weight), 4 * value)
    # All nine nodes stay in the softmax. The eight outside have logit 0 and value 0.
    zero = torch.zeros_like(value)
    torch.testing.assert_close(sampled_attention(zero, value, value, offset), value / 9)


def test_whole_walk_moves_to_a_neighbour():
    value = torch.randn(1, 4, 5, 1, 3)
    weight = torch.ones(1, 4, 5, 1, 1)
    offset = torch.tensor([1.0, -2.0]).expand(1, 4, 5, 1, 1, 2)
    out = sampled_aggregate(value, offset, weight, kernel_size=1)
    torch.testing.assert_close(out[:, :3, 2:], value[:, 1:, :3])
    torch.testing.assert_close(out[:, 3:], torch.zeros(1, 1, 5, 1, 3))
    torch.testing.assert_close(out[:, :, :2], torch.zeros(1, 4, 2, 1, 3))


@pytest.mark.parametrize(
    ("y", "x", "expected"),
    [
        (0.5, 0.0, 2.0),  # between rows: (1 + 3) / 2
        (0.0, 0.5, 1.5),  # between columns: (1 + 2) / 2
        (0.5, 0.5, 2.5),  # the mean of all
        (0.25, 0.75, 0.75 * 1.75 + 0.25 * 3.75),
        (-1.0, 0.0, 0.0),  # just outside
        (2.0, 0.0, 0.0),
        (0.0, -1.0, 0.0),
        (0.0, 2.0, 0.0),
        (-0.75, 0.0, 0.25),  # corners outside count as zero
        (1.5, 1.0, 2.0),
        (-0.5, -0.5, 0.25),
        (1.5, 1.5, 1.0),
        (-7.0, 0.0, 0.0),
        (1e6, -1e6, 0.0),
    ],
)
def test_one_point(y, x, expected):
    value = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 2, 2, 1, 1)
    offset = torch.tensor([y, x]).expand(1, 2, 2, 1, 1, 2)
    out = sampled_aggregate(value, offset, torch.ones(1, 2, 2, 1, 1), kernel_size=1)
    assert out[0, 0, 0].item() == pytest.approx(expected, abs=1e-6)


def test_node_outside_stays_in_the_softmax_with_its_bias_alone():
    query = torch.full((1, 1, 2, 1, 1), 3.0)
    key = torch.tensor([0.5, -0.25]).view(1, 1, 2, 1, 1)
    value = torch.tensor([10.0, 20.0]).view(1, 1, 2, 1, 1)
    bias = torch.linspace(-1, 1, 9).expand(1, 1, 2, 1, 9)
    out = sampled_attention(query, key, value, torch.zeros(1, 1, 2, 1, 9, 2), bias, scale=2.0)
    # Left pixel: node 4 is the pixel itself, node 5 the right one, and seven are outside.
    weight = bias[0, 0, 0, 0].exp()
    weight[4] *= math.exp(2 * 3 * 0.5)
    weight[5] *= math.exp(2 * 3 * -0.25)
    expected = (weight[4] * 10 + weight[5] * 20) / weight.sum()
    torch.testing.assert_close(out[0, 0, 0, 0, 0], expected)


def test_all_nodes_outside_give_zero():
    query, key, value, offset, bias = make_inputs()
    for out in (sampled_attention(query, key, value, offset + 100, bias), sampled_aggregate(value, offset - 100, bias)):
        torch.testing.assert_close(out, torch.zeros_like(value))


def test_default_scale_is_that_of_attention():
    query, key, value, offset, bias = make_inputs(dim=4)
    out = sampled_attention(query, key, value, offset, bias)
    torch.testing.assert_close(out, sampled_attention(query, key, value, offset, bias, scale=0.5))
    assert not torch.allclose(out, sampled_attention(query, key, value, offset, bias, scale=1.0))
    # With a scale of zero only the bias is left.
    expected = sampled_aggregate(value, offset, bias.softmax(-1))
    torch.testing.assert_close(sampled_attention(query, key, value, offset, bias, scale=0.0), expected)


def test_bias_of_zero_is_no_bias():
    query, key, value, offset, bias = make_inputs()
    out = sampled_attention(query, key, value, offset)
    torch.testing.assert_close(out, sampled_attention(query, key, value, offset, torch.zeros_like(bias)))
    assert not torch.allclose(out, sampled_attention(query, key, value, offset, bias))


def test_shared_offsets_equal_the_expanded_ones():
    query, key, value, offset, bias = make_inputs(heads=3)
    shared = offset[:, :, :, :1].clone().requires_grad_()
    expanded = shared.detach().expand_as(offset).clone().requires_grad_()
    for function in (
        lambda walks: sampled_aggregate(value, walks, bias),
        lambda walks: sampled_attention(query, key, value, walks, bias),
    ):
        shared.grad = expanded.grad = None
        one, other = function(shared), function(expanded)
        torch.testing.assert_close(one, other)
        one.square().sum().backward()
        other.square().sum().backward()
        torch.testing.assert_close(shared.grad, expanded.grad.sum(3, keepdim=True))


# ------------------------------------------------------------------------------------------- independent oracles


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_without_walks_it_is_a_convolution_with_same_padding(kernel_size, dilation):
    value = torch.randn(2, 7, 8, 3, 2, dtype=torch.float64)
    kernel = torch.randn(3, kernel_size**2, dtype=torch.float64)
    out = sampled_aggregate(
        value,
        torch.zeros(2, 7, 8, 1, kernel_size**2, 2, dtype=torch.float64),
        kernel.expand(2, 7, 8, 3, kernel_size**2),
        kernel_size=kernel_size,
        dilation=dilation,
    )
    expected = F.conv2d(
        value.flatten(3).permute(0, 3, 1, 2),
        kernel.repeat_interleave(2, 0).view(6, 1, kernel_size, kernel_size),
        padding="same",
        dilation=dilation,
        groups=6,
    )
    torch.testing.assert_close(out.flatten(3).permute(0, 3, 1, 2), expected)


@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (3, 1), (3, 4), (5, 2), (2, 2)])
def test_equals_deformable_convolution(kernel_size, dilation):
    batch, height, width, heads, dim, nodes = 2, 6, 7, 3, 4, kernel_size**2
    value = torch.randn(batch, height, width, heads, dim, dtype=torch.float64)
    offset = 3 * torch.randn(batch, height, width, heads, nodes, 2, dtype=torch.float64)
    weight = torch.randn(batch, height, width, heads, nodes, dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (value, offset, weight)]
    out = sampled_aggregate(value, offset, weight, kernel_size=kernel_size, dilation=dilation)
    expected = deform_conv2d(
        value.flatten(3).permute(0, 3, 1, 2),
        offset.flatten(3).permute(0, 3, 1, 2),
        torch.ones(heads * dim, 1, kernel_size, kernel_size, dtype=torch.float64),
        padding=dilation * (kernel_size - 1) // 2,
        dilation=dilation,
        mask=weight.flatten(3).permute(0, 3, 1, 2),
    )
    expected = expected.permute(0, 2, 3, 1).reshape(out.shape)
    torch.testing.assert_close(out, expected)
    cotangent = torch.randn_like(out)
    gradients = torch.autograd.grad(out, inputs, cotangent)
    for got, want in zip(gradients, torch.autograd.grad(expected, inputs, cotangent), strict=True):
        torch.testing.assert_close(got, want)


@settings(max_examples=40)
@given(
    sizes=st.tuples(*(st.integers(1, n) for n in (2, 4, 4, 3, 3))),
    kernel_size=st.integers(1, 4),
    dilation=st.integers(1, 3),
    shared=st.booleans(),
    with_bias=st.booleans(),
    scale=st.none() | st.floats(-2, 2),
    spread=st.sampled_from([0.0, 0.5, 2.0, 20.0]),
    seed=st.integers(0, 2**16),
)
def test_equals_the_plain_loops(sizes, kernel_size, dilation, shared, with_bias, scale, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    query, key, value = torch.randn(3, *sizes, **options)
    *position, heads, dim = sizes
    offset = spread * torch.randn(*position, 1 if shared else heads, kernel_size**2, 2, **options)
    weight = torch.randn(*position, heads, kernel_size**2, **options)
    grid = {"kernel_size": kernel_size, "dilation": dilation}

    out = sampled_aggregate(value, offset, weight, **grid)
    torch.testing.assert_close(out, aggregate_by_hand(value, offset, weight, **grid))

    bias = weight if with_bias else None
    out = sampled_attention(query, key, value, offset, bias, scale=scale, **grid)
    scale = dim**-0.5 if scale is None else scale
    torch.testing.assert_close(out, attention_by_hand(query, key, value, offset, bias, scale, **grid))


# ------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize(
    ("kernel_size", "dilation", "offset_heads"),
    [pytest.param(3, 1, 2, marks=pytest.mark.slow), (3, 2, 1), (2, 1, 2), (1, 1, 1)],
)
def test_gradcheck(kernel_size, dilation, offset_heads):
    query, key, value, offset, bias = make_inputs(1, 3, 3, 2, 2, kernel_size)
    inputs = [tensor.requires_grad_() for tensor in (query, key, value, offset[:, :, :, :offset_heads], bias)]
    options = {"kernel_size": kernel_size, "dilation": dilation}
    query, key, value, offset, bias = inputs
    assert torch.autograd.gradcheck(lambda *args: sampled_aggregate(*args, **options), (value, offset, bias))
    assert torch.autograd.gradcheck(lambda *args: sampled_attention(*args, **options), inputs)
    assert torch.autograd.gradcheck(lambda *args: sampled_attention(*args, **options), inputs[:-1])


# --------------------------------------------------------------------------------------- dtypes, strides, batches


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    inputs = [tensor.requires_grad_() for tensor in make_inputs(dtype=dtype)]
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    for function, use in ((sampled_attention, slice(0, 5)), (sampled_aggregate, slice(2, 5))):
        out, expected = function(*inputs[use]), function(*wide[use])
        assert out.dtype == dtype
        torch.testing.assert_close(out, expected.to(dtype))
        got = torch.autograd.grad(out.sum(), inputs[use])
        want = torch.autograd.grad(expected.sum(), wide[use])
        for gradient, reference, tensor in zip(got, want, inputs[use], strict=True):
            assert gradient.dtype == dtype
            assert gradient.shape == tensor.shape
            torch.testing.assert_close(gradient, reference.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_finds_the_pixel_of_a_wide_map(dtype):
    # bfloat16 has no odd numbers above 256: a coordinate kept in it would read the neighbour.
    value = (torch.arange(300) % 2).to(dtype).view(1, 1, 300, 1, 1)
    weight = torch.ones(1, 1, 300, 1, 1, dtype=dtype)
    offset = torch.zeros(1, 1, 300, 1, 1, 2, dtype=dtype)
    # The neighbour differs by 1; coordinates in float32 are good to 1e-5 pixels here.
    for out in (
        sampled_aggregate(value, offset, weight, kernel_size=1),
        sampled_attention(value, value, value, offset, kernel_size=1),
    ):
        torch.testing.assert_close(out, value, atol=1e-4, rtol=0)


def test_offsets_keep_their_precision_beside_half_precision_values():
    # 0.5 + 2 ** -9 needs one bit more than bfloat16 has. Without that bit the two values cancel.
    value = torch.tensor([-1.0, 1.0], dtype=torch.bfloat16).view(1, 1, 2, 1, 1)
    offset = torch.tensor([0.0, 0.5 + 2**-9]).expand(1, 1, 2, 1, 1, 2)
    weight = torch.ones(1, 1, 2, 1, 1, dtype=torch.bfloat16)
    for out in (
        sampled_aggregate(value, offset, weight, kernel_size=1),
        sampled_attention(value, value, value, offset, kernel_size=1),
    ):
        assert out[0, 0, 0].item() == pytest.approx(2**-8, rel=1e-2)


def test_logits_and_softmax_of_half_precision_are_float32():
    # The logits are 257 and 256; in bfloat16 both would be 256.
    query = torch.ones(1, 1, 2, 1, 2, dtype=torch.bfloat16)
    key = torch.tensor([[256.0, 1.0], [256.0, 0.0]], dtype=torch.bfloat16).view(1, 1, 2, 1, 2)
    value = torch.tensor([1.0, 0.0], dtype=torch.bfloat16).view(1, 1, 2, 1, 1).expand(1, 1, 2, 1, 2)
    offset = torch.zeros(1, 1, 2, 1, 9, 2, dtype=torch.bfloat16)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = sampled_attention(query, key, value, offset, scale=1.0)
        assert out[0, 0, 0, 0, 0].item() == pytest.approx(math.e / (1 + math.e), rel=1e-2)


def test_autocast_is_that_of_scaled_dot_product_attention():
    query, key, value, offset, bias = make_inputs(dtype=torch.float32)
    plain = (sampled_attention(query, key, value, offset, bias), sampled_aggregate(value, offset, bias))
    with torch.autocast("cpu", torch.bfloat16):
        attended = sampled_attention(query, key.bfloat16(), value, offset, bias)
        summed = sampled_aggregate(value, offset, bias)
        double = sampled_aggregate(value.double(), offset, bias)
    for got, want in zip((attended, summed), plain, strict=True):
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.float(), want, atol=3e-2, rtol=3e-2)
    assert double.dtype == torch.float64


def test_slices_of_one_projection_need_no_copy():
    qkv = torch.randn(2, 4, 5, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    _, _, _, offset, bias = make_inputs()
    out = sampled_attention(*qkv.unbind(3), offset, bias)
    expected = sampled_attention(*(t.contiguous() for t in qkv.unbind(3)), offset, bias)
    torch.testing.assert_close(out, expected)
    cotangent = torch.randn_like(out)
    (got,) = torch.autograd.grad(out, qkv, cotangent)
    (want,) = torch.autograd.grad(expected, qkv, cotangent)
    torch.testing.assert_close(got, want)


def test_permuted_and_expanded_inputs_equal_contiguous_ones():
    query, key, value, offset, bias = inputs = make_inputs()
    # The numbers are the same, but heads or channels come first in memory, as convolutions give them.
    permuted = [
        query.permute(0, 3, 1, 2, 4).contiguous().permute(0, 2, 3, 1, 4),
        key.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0),
        value.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2),
        offset.permute(0, 3, 4, 5, 1, 2).contiguous().permute(0, 4, 5, 1, 2, 3),
        bias.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2),
    ]
    assert not any(tensor.is_contiguous() for tensor in permuted)
    torch.testing.assert_close(sampled_attention(*permuted), sampled_attention(*inputs))
    torch.testing.assert_close(sampled_aggregate(*permuted[2:]), sampled_aggregate(*inputs[2:]))
    row = value[:, :1].expand_as(value)
    torch.testing.assert_close(sampled_aggregate(row, offset, bias), sampled_aggregate(row.clone(), offset, bias))


@pytest.mark.parametrize(("function", "first"), [(sampled_attention, 0), (sampled_aggregate, 2)])
def test_meta_device(function, first):
    out = function(*(tensor.to("meta") for tensor in make_inputs(dtype=torch.bfloat16)[first:]))
    assert out.is_meta
    assert out.dtype == torch.bfloat16
    assert out.shape == (2, 4, 5, 2, 3)


@pytest.mark.parametrize(("function", "first"), [(sampled_attention, 0), (sampled_aggregate, 2)])
def test_empty_batch(function, first):
    inputs = [tensor[:0].requires_grad_() for tensor in make_inputs(dtype=torch.float32)[first:]]
    out = function(*inputs)
    assert out.shape == (0, 4, 5, 2, 3)
    for gradient, tensor in zip(torch.autograd.grad(out.sum(), inputs), inputs, strict=True):
        assert gradient.shape == tensor.shape


# -------------------------------------------------------------------------------------------------------- dropout


def test_dropout():
    query, key, value, offset, bias = make_inputs(batch=4, height=24, width=24)
    value = 1 + value.abs()
    plain = sampled_attention(query, key, value, offset, bias)
    assert torch.equal(plain, sampled_attention(query, key, value, offset, bias, dropout_p=0.0))
    one, other = (sampled_attention(query, key, value, offset, bias, dropout_p=0.5) for _ in range(2))
    assert not torch.allclose(one, other)
    # Kept weights are scaled up, so the mean stays. The mean is over 4608 sums of nine weights each.
    assert one.mean().item() == pytest.approx(plain.mean().item(), rel=0.05)
    # One node of weight 1: either dropped or scaled by 1 / (1 - p).
    single = sampled_attention(value, value, value, torch.zeros(4, 24, 24, 1, 1, 2), kernel_size=1, dropout_p=0.25)
    ratio = single / value
    dropped = ratio == 0
    torch.testing.assert_close(ratio[~dropped], torch.full_like(ratio[~dropped], 4 / 3))
    assert dropped.double().mean().item() == pytest.approx(0.25, abs=0.03)


# ------------------------------------------------------------------------------------------------------- compiler


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiles_to_one_graph(dynamic):
    torch._dynamo.reset()
    attention = torch.compile(sampled_attention, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    aggregate = torch.compile(sampled_aggregate, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for height in (4, 6):
        inputs = [tensor.requires_grad_() for tensor in make_inputs(height=height)]
        for compiled, eager, use in (
            (attention, sampled_attention, slice(0, 5)),
            (aggregate, sampled_aggregate, slice(2, 5)),
        ):
            out, expected = compiled(*inputs[use]), eager(*inputs[use])
            torch.testing.assert_close(out, expected)
            got = torch.autograd.grad(out.square().sum(), inputs[use])
            want = torch.autograd.grad(expected.square().sum(), inputs[use])
            for gradient, reference in zip(got, want, strict=True):
                torch.testing.assert_close(gradient, reference)


# ----------------------------------------------------------------------------------------------------- bad inputs

# The argument, its bad value, the error, and parts of its message: the name, what came, what is accepted.
BAD_ATTENTION = [
    ("query", torch.zeros(2, 4, 5, 6), ValueError, ["query", "(2, 4, 5, 6)", "(B, H, W, heads, D)"]),
    ("query", torch.zeros(2, 0, 5, 2, 3), ValueError, ["query", "(2, 0, 5, 2, 3)", "only B may be zero"]),
    ("query", torch.zeros(2, 4, 5, 2, 3).long(), TypeError, ["query", "torch.int64", "floating point"]),
    ("query", [[1.0]], TypeError, ["query", "list", "tensor"]),
    ("query", None, TypeError, ["query", "NoneType", "tensor"]),
    ("key", torch.zeros(2, 4, 6, 2, 3), ValueError, ["key", "(2, 4, 6, 2, 3)", "(2, 4, 5, 2, 3)"]),
    ("key", torch.zeros(2, 4, 5, 2, 3).double(), ValueError, ["key", "torch.float64", "torch.float32"]),
    ("key", torch.zeros(2, 4, 5, 2, 3, device="meta"), ValueError, ["key", "meta", "cpu"]),
    ("value", torch.zeros(2, 4, 5, 2, 4), ValueError, ["value", "(2, 4, 5, 2, 4)", "(2, 4, 5, 2, 3)"]),
    ("value", torch.zeros(2, 4, 5, 2, 3).half(), ValueError, ["value", "torch.float16", "torch.float32"]),
    ("value", torch.zeros(2, 4, 5, 2, 3).int(), TypeError, ["value", "torch.int32", "floating point"]),
    ("offset", torch.zeros(2, 4, 5, 2, 18), ValueError, ["offset", "(2, 4, 5, 2, 18)", "(2, 4, 5, 2 or 1, 9, 2)"]),
    ("offset", torch.zeros(2, 4, 5, 2, 8, 2), ValueError, ["offset", "(2, 4, 5, 2, 8, 2)", "(2, 4, 5, 2, 9, 2)"]),
    ("offset", torch.zeros(2, 4, 5, 3, 9, 2), ValueError, ["offset", "(2, 4, 5, 3, 9, 2)", "(2, 4, 5, 2 or 1, 9, 2)"]),
    ("offset", torch.zeros(2, 4, 5, 2, 9, 2).bool(), TypeError, ["offset", "torch.bool", "floating point"]),
    ("offset", torch.zeros(2, 4, 5, 2, 9, 2, device="meta"), ValueError, ["offset", "meta", "cpu"]),
    ("bias", torch.zeros(2, 4, 5, 1, 9), ValueError, ["bias", "(2, 4, 5, 1, 9)", "(2, 4, 5, 2, 9)"]),
    ("bias", 0.0, TypeError, ["bias", "float", "tensor"]),
    ("scale", math.nan, ValueError, ["scale", "nan", "finite"]),
    ("scale", math.inf, ValueError, ["scale", "inf", "finite"]),
    ("kernel_size", 0, ValueError, ["kernel_size", "0", "at least 1"]),
    ("kernel_size", 2.5, ValueError, ["kernel_size", "2.5", "whole number"]),
    ("kernel_size", True, ValueError, ["kernel_size", "True", "whole number"]),
    ("kernel_size", 5, ValueError, ["offset", "(2, 4, 5, 2, 9, 2)", "(2, 4, 5, 2, 25, 2)"]),
    ("dilation", 0, ValueError, ["dilation", "0", "at least 1"]),
    ("dilation", "1", ValueError, ["dilation", "'1'", "whole number"]),
    ("dropout_p", 1.0, ValueError, ["dropout_p", "1.0", "below 1"]),
    ("dropout_p", -0.1, ValueError, ["dropout_p", "-0.1", "at least 0"]),
    ("dropout_p", math.nan, ValueError, ["dropout_p", "nan", "at least 0"]),
    ("backend", "cuda", ValueError, ["backend", "'cuda'", ", ".join(BACKENDS)]),
]
BAD_AGGREGATE = [
    ("value", torch.zeros(4, 5, 2, 3), ValueError, ["value", "(4, 5, 2, 3)", "(B, H, W, heads, D)"]),
    ("value", torch.zeros(2, 4, 5, 2, 3).long(), TypeError, ["value", "torch.int64", "floating point"]),
    ("value", "map", TypeError, ["value", "str", "tensor"]),
    ("offset", torch.zeros(2, 4, 4, 2, 9, 2), ValueError, ["offset", "(2, 4, 4, 2, 9, 2)", "(2, 4, 5, 2, 9, 2)"]),
    ("offset", torch.zeros(2, 4, 5, 2, 9, 3), ValueError, ["offset", "(2, 4, 5, 2, 9, 3)", "(2, 4, 5, 2, 9, 2)"]),
    ("weight", torch.zeros(2, 4, 5, 2, 3), ValueError, ["weight", "(2, 4, 5, 2, 3)", "(2, 4, 5, 2, 9)"]),
    ("weight", torch.zeros(2, 4, 5, 2, 9).int(), TypeError, ["weight", "torch.int32", "floating point"]),
    ("weight", torch.zeros(2, 4, 5, 2, 9, device="meta"), ValueError, ["weight", "meta", "cpu"]),
    ("kernel_size", -3, ValueError, ["kernel_size", "-3", "at least 1"]),
    ("dilation", 1.0, ValueError, ["dilation", "1.0", "whole number"]),
    ("backend", "cuda", ValueError, ["backend", "'cuda'", ", ".join(BACKENDS)]),
]


def identify(case):
    name, given_value, *_ = case
    shape = tuple(given_value.shape) if isinstance(given_value, torch.Tensor) else given_value
    return f"{name}-{shape}"


@pytest.mark.parametrize("case", BAD_ATTENTION, ids=identify)
def test_attention_says_what_is_wrong(case):
    name, given_value, error, words = case
    query, key, value, offset, bias = make_inputs(dtype=torch.float32)
    good = {"query": query, "key": key, "value": value, "offset": offset, "bias": bias}
    check_message(sampled_attention, {**good, name: given_value}, error, words)


@pytest.mark.parametrize("case", BAD_AGGREGATE, ids=identify)
def test_aggregate_says_what_is_wrong(case):
    name, given_value, error, words = case
    _, _, value, offset, weight = make_inputs(dtype=torch.float32)
    check_message(
        sampled_aggregate, {"value": value, "offset": offset, "weight": weight, name: given_value}, error, words
    )


def check_message(function, arguments, error, words):
    with pytest.raises(error, match="^" + words[0]) as caught:
        function(**arguments)
    for word in words:
        assert re.search(re.escape(word), str(caught.value)), f"{word!r} is not in {caught.value}"
