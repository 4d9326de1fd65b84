"""Multi-scale attention on sampled nodes equals that of transformers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from dgmn.detection.multi_scale import FusedMultiScaleAttention, multi_scale_aggregate

SIDES = st.integers(1, 7)


def arguments(shapes, points, queries=None, batch=2, heads=2, dim=3, dtype=torch.double):
    """Value, locations (some outside of the maps) and weights."""
    pixels = sum(height * width for height, width in shapes)
    queries = pixels if queries is None else queries
    value = torch.randn(batch, pixels, heads, dim, dtype=dtype)
    locations = torch.rand(batch, queries, heads, len(shapes), points, 2, dtype=dtype) * 2 - 0.5
    weights = torch.rand(batch, queries, heads, len(shapes), points, dtype=dtype)
    return tuple(x.requires_grad_() for x in (value, locations, weights))


def original(value, shapes, locations, weights):
    return MultiScaleDeformableAttention()(value, None, shapes, None, locations, weights, 64)


@settings(max_examples=40)
@given(
    shapes=st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=4), points=st.integers(1, 4), seed=st.integers(0, 99)
)
def test_equals_transformers(shapes, points, seed):
    torch.manual_seed(seed)
    inputs = arguments(shapes, points)
    value, locations, weights = inputs
    ours, theirs = (f(value, shapes, locations, weights) for f in (multi_scale_aggregate, original))
    assert_close(ours, theirs)
    gradient = torch.randn_like(ours)
    for mine, wanted in zip(*(torch.autograd.grad(x, inputs, gradient) for x in (ours, theirs)), strict=True):
        assert_close(mine, wanted)


def test_points_far_out_read_nothing():
    """Far points read nothing, even where another map lies beside theirs on the sheet."""
    shapes = [(6, 5), (3, 3), (2, 2)]
    value, locations, weights = arguments(shapes, 4)
    for far in (-1e6, -0.7, 1.7, 1e6):
        out = multi_scale_aggregate(value, shapes, torch.full_like(locations, far), weights)
        assert out.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_locations_of_half_precision(dtype):
    shapes = [(20, 30), (10, 15)]
    value, locations, weights = (x.detach() for x in arguments(shapes, 4, dtype=torch.float32))
    out = multi_scale_aggregate(value, shapes, locations.to(dtype), weights)
    assert_close(out, multi_scale_aggregate(value, shapes, locations.to(dtype).float(), weights))


@pytest.mark.parametrize("queries", [5, None])
def test_module_takes_any_queries(queries):
    shapes = [(4, 5), (2, 3)]
    value, locations, weights = arguments(shapes, 4, queries)
    module = FusedMultiScaleAttention(MultiScaleDeformableAttention())
    assert_close(module(value, None, shapes, None, locations, weights, 64), original(value, shapes, locations, weights))
