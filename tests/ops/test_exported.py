"""The forms of the primitives in exported files equal the reference; tests/exporting runs them in their runtimes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgmn.ops import exported, packaged, reference
from dgmn.ops.tracing import recorded_as

FORMS = {"grid_sample": exported, "gathers": exported, "standard": packaged}


def make_inputs(batch, height, width, heads, dim, kernel_size, shared, dtype=torch.float32):
    nodes = kernel_size**2
    maps = torch.randn(batch, height, width, 3, heads, dim).to(dtype).unbind(3)
    offset = 3 * torch.randn(batch, height, width, 1 if shared else heads, nodes, 2)
    return [*maps, offset, torch.randn(batch, height, width, heads, nodes)]


def check(got, want, tolerance=1e-5):
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert (got - want).double().norm() <= tolerance * want.double().norm()


@settings(max_examples=25)
@given(
    sizes=st.tuples(*[st.integers(1, most) for most in (2, 7, 6, 3, 5)]),
    kernel_size=st.integers(1, 3),
    dilation=st.integers(1, 4),
    shared=st.booleans(),
    biased=st.booleans(),
    form=st.sampled_from(list(FORMS)),
)
def test_sampling(sizes, kernel_size, dilation, shared, biased, form):
    with recorded_as(form):
        check_sampling(FORMS[form], sizes, kernel_size, dilation, shared, biased)


def check_sampling(form, sizes, kernel_size, dilation, shared, biased):
    query, key, value, offset, bias = make_inputs(*sizes, kernel_size, shared)
    numbers = (kernel_size, dilation)
    check(
        form.sampled_aggregate(value, offset, bias, *numbers),
        reference.sampled_aggregate(value, offset, bias, *numbers),
    )
    maps = (query, key, value, offset, bias if biased else None)
    check(
        form.sampled_attention(*maps, 0.3, *numbers),
        reference.sampled_attention(*maps, 0.3, *numbers, 0.0),
    )


@settings(max_examples=25)
@given(
    sizes=st.tuples(*[st.integers(1, most) for most in (2, 6, 6, 3, 5)]),
    nodes=st.integers(1, 9),
    mirrored=st.booleans(),
    tables=st.sampled_from(["both", "rows", "columns", "none"]),
)
def test_position_scores(sizes, nodes, mirrored, tables):
    batch, height, width, heads, dim = sizes
    width = height if mirrored else width
    query = torch.randn(batch, height, width, heads, dim)
    rows = torch.randn(height + nodes - 1, dim) if tables in ("both", "rows") else None
    columns = torch.randn(width + nodes - 1, dim) if tables in ("both", "columns") else None
    arguments = (query, rows, columns, mirrored, nodes)
    check(exported.position_scores(*arguments), reference.position_scores(*arguments))


@pytest.mark.parametrize("form", [exported, packaged])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, form):
    inputs = make_inputs(1, 4, 5, 2, 6, 3, False, dtype)
    got = form.sampled_attention(*inputs, 0.3, 3, 1)
    check(got, reference.sampled_attention(*inputs, 0.3, 3, 1, 0.0), torch.finfo(dtype).eps)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("walk", [1e4, -1e30, float("inf"), -float("inf")])
def test_far_walks_read_nothing(walk, form):
    query, key, value, offset, bias = make_inputs(1, 3, 4, 1, 2, 2, False)
    offset[..., 0, 0] = walk
    with recorded_as(form):
        got = FORMS[form].sampled_attention(query, key, value, offset, bias, 0.3, 2, 1)
    check(got, reference.sampled_attention(query, key, value, offset, bias, 0.3, 2, 1, 0.0))
