import re

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import dgmn
from dgmn.layers import DGMN2Attention, DGMN2Block, RelativePosition
from dgmn.layers.attention import DGMN2Mlp

from golden_vectors import array

# Golden outputs are stored in float32, from a float64 run.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}


def load_official(module, weights, prefix):
    """Fills a module with the golden weights under a prefix, strictly."""
    names = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    ours = {name.replace("conv_offset.", "offset.").replace("pos_emb.", "rel_pos."): t for name, t in names.items()}
    module.load_state_dict(ours)
    return module.eval()


def golden_map(name, height, width, channels):
    return torch.from_numpy(array(name, (2, height * width, channels))).view(2, height, width, channels)


def resize_rows(table, rows):
    """Resizes linearly, with half-pixel centres and clamped edges; np.interp clamps."""
    at = (np.arange(rows) + 0.5) * len(table) / rows - 0.5
    return np.stack([np.interp(at, np.arange(len(table)), column) for column in np.asarray(table).T], axis=1)


def aligned_by_hand(query, table_height, table_width):
    """bias(y, x, s) = query(y, x) . T_w[W - 1 - x + s] + query(y, x) . T_h[H - 1 - y + s]."""
    query = query.numpy()
    batch, height, width, heads, _ = query.shape
    table_height, table_width = resize_rows(table_height, height + 8), resize_rows(table_width, width + 8)
    bias = np.zeros((batch, height, width, heads, 9))
    for b, y, x, h, s in np.ndindex(*bias.shape):
        rows = table_width[width - 1 - x + s] + table_height[height - 1 - y + s]
        bias[b, y, x, h, s] = query[b, y, x, h] @ rows
    return torch.from_numpy(bias)


def relative_position(map_size, dim=3, rel_pos="official", dtype=torch.float64):
    module = RelativePosition(dim, map_size, rel_pos=rel_pos, dtype=dtype)
    torch.nn.init.normal_(module.rel_height)
    torch.nn.init.normal_(module.rel_width)
    return module


# ---------------------------------------------------------------------------------------------- official numbers


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("height", "width"), [(7, 7), (5, 9), (9, 5), (14, 14)])
def test_relative_position_equals_the_official_code(golden, official_weights, height, width, dtype):
    module = load_official(RelativePosition(8, (7, 7)), official_weights("a0_units"), "unit.pos_emb.").to(dtype)
    name = f"relpos.q{height}x{width}"
    query = torch.from_numpy(array(name, (2, 1, height, width, 8))).permute(0, 2, 3, 1, 4).to(dtype)
    bias = module(query)
    assert bias.dtype == dtype
    golden("a0_units").check(f"relpos_{height}x{width}", bias.squeeze(3).detach(), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("height", "width"), [(7, 7), (5, 9)])
@pytest.mark.parametrize(("unit", "layer"), [("attn", DGMN2Attention), ("block", DGMN2Block)])
def test_layers_equal_the_official_code(golden, official_weights, unit, layer, height, width, dtype):
    module = load_official(layer(32, 4, (7, 7)), official_weights("a0_units"), f"unit.{unit}.").to(dtype)
    out = module(golden_map(f"attn.x{height}x{width}", height, width, 32).to(dtype))
    assert out.dtype == dtype
    golden("a0_units").check(f"{unit}_{height}x{width}", out.flatten(1, 2).detach(), TOLERANCE[dtype])


# ------------------------------------------------------------------------------------------------ aligned mode


@pytest.mark.parametrize("map_size", [(3, 4), (7, 7), (2, 2)])
def test_aligned_relative_position_equals_its_formula(map_size):
    # The map is 3 x 4. The tables are for a map of this size, a larger and a smaller one.
    module = relative_position(map_size, rel_pos="aligned")
    query = torch.randn(2, 3, 4, 2, 3, dtype=torch.float64)
    expected = aligned_by_hand(query, module.rel_height.detach(), module.rel_width.detach())
    torch.testing.assert_close(module(query).detach(), expected)


def test_official_height_term_is_the_aligned_one_of_the_mirrored_position():
    official = relative_position((6, 6))
    aligned = relative_position((6, 6), rel_pos="aligned")
    aligned.load_state_dict(official.state_dict())
    query = torch.randn(2, 6, 6, 2, 3, dtype=torch.float64)
    assert not torch.allclose(official(query), aligned(query))
    for module in (official, aligned):
        torch.nn.init.zeros_(module.rel_width)
    torch.testing.assert_close(official(query), aligned(query).transpose(1, 2))
    for module in (official, aligned):
        torch.nn.init.normal_(module.rel_width)
        torch.nn.init.zeros_(module.rel_height)
    aligned.load_state_dict(official.state_dict())
    torch.testing.assert_close(official(query), aligned(query))


def test_both_modes_agree_where_mirroring_changes_nothing():
    # The query is symmetric, and all vertical distances have the same row in their table.
    official = relative_position((6, 6))
    with torch.no_grad():
        official.rel_height.copy_(official.rel_height[:1].expand_as(official.rel_height))
    aligned = relative_position((6, 6), rel_pos="aligned")
    aligned.load_state_dict(official.state_dict())
    query = torch.randn(2, 6, 6, 2, 3, dtype=torch.float64)
    query = query + query.transpose(1, 2)
    torch.testing.assert_close(official(query), aligned(query))


# -------------------------------------------------------------------------------------------------------- costs


@pytest.mark.parametrize("mode", ["aligned", "official"])
def test_relative_position_is_linear_in_pixels(mode):
    module = RelativePosition(8, (56, 56), rel_pos=mode)
    flops = []
    for side in (16, 64):
        with FlopCounterMode(display=False) as counter:
            module(torch.randn(1, side, side, 2, 8))
        flops.append(counter.get_total_flops() / side**2)
    # Two terms, 9 nodes, 2 heads, 8 multiplications and additions.
    assert flops == [2 * 9 * 2 * 8 * 2] * 2


@pytest.mark.parametrize("mode", ["aligned", "official"])
def test_relative_position_is_float32_for_half_precision(mode):
    module = relative_position((5, 6), rel_pos=mode, dtype=torch.bfloat16)
    query = torch.randn(2, 5, 6, 2, 3).bfloat16()
    expected = module.double()(query.double())
    module.bfloat16()
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            bias = module(query)
        assert bias.dtype == torch.float32
        torch.testing.assert_close(bias, expected.float())


# ------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("rel_pos", ["official", "aligned"])
def test_gradients_reach_every_parameter(rel_pos):
    block = DGMN2Block(12, 3, (5, 6), rel_pos=rel_pos)
    x = torch.randn(2, 5, 6, 12, requires_grad=True)
    block(x).square().sum().backward()
    for name, tensor in [("input", x), *block.named_parameters()]:
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.abs().sum() > 0, name


def test_walks_start_small_and_move_the_output():
    layer = DGMN2Attention(128, 2, (5, 5))
    assert layer.offset.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert not layer.offset.bias.any()
    x = torch.randn(1, 5, 5, 128)
    assert 0 < layer.predict_walks(x).abs().max() < 1
    before = layer(x)
    torch.nn.init.normal_(layer.offset.weight)
    assert not torch.allclose(layer(x), before)


@pytest.mark.parametrize("kernel_size", [1, 2, 5])
def test_other_kernel_sizes(kernel_size):
    layer = DGMN2Attention(8, 2, (5, 6), kernel_size=kernel_size)
    torch.nn.init.normal_(layer.offset.bias)
    x = torch.randn(2, 5, 6, 8)
    out = layer(x)
    assert out.shape == x.shape
    out.sum().backward()
    assert layer.offset.bias.grad.abs().sum() > 0
    assert layer.offset.out_features == 2 * kernel_size**2


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("order", [(0, 3, 1, 2), (3, 2, 1, 0), (1, 2, 3, 0)])
def test_maps_in_any_order_of_memory(order, learns):
    """A map of channels first, seen from behind, and its like: for a branch, for the sum with another, for both."""
    plain = torch.randn(2, 4, 5, 6)
    view = plain.permute(order).contiguous().permute([order.index(i) for i in range(4)])
    for layer in (DGMN2Attention(6, 2, (4, 5)), DGMN2Mlp(6, 12)):
        layer.eval()
        with torch.set_grad_enabled(learns):
            expected = layer(plain, plain)
            for x, residual in ((view, plain), (plain, view), (view, view)):
                torch.testing.assert_close(layer(x, residual), expected)


@pytest.mark.parametrize("batch", [0, 1])
def test_maps_of_any_size(batch):
    block = DGMN2Block(8, 2, (7, 7))
    for height, width in ((1, 1), (1, 9), (13, 2)):
        assert block(torch.randn(batch, height, width, 8)).shape == (batch, height, width, 8)


@pytest.mark.parametrize(
    ("layer", "option"),
    [
        (DGMN2Attention, "attn_drop"),
        (DGMN2Attention, "proj_drop"),
        (DGMN2Block, "attn_drop"),
        (DGMN2Block, "proj_drop"),
        (DGMN2Block, "drop_path"),
    ],
)
def test_dropout_is_active_in_training_only(layer, option):
    module = layer(8, 2, (5, 5), **{option: 0.5})
    plain = layer(8, 2, (5, 5))
    plain.load_state_dict(module.state_dict())
    x = torch.randn(8, 5, 5, 8)
    assert not torch.allclose(module(x), module(x))
    assert torch.equal(plain(x), plain(x))
    torch.testing.assert_close(module.eval()(x), plain(x))


def test_perceptron_has_dropout_too():
    block = DGMN2Block(8, 2, (5, 5), proj_drop=0.5)
    torch.nn.init.zeros_(block.attn.proj.weight)  # silences the attention
    x = torch.randn(8, 5, 5, 8)
    assert not torch.allclose(block(x), block(x))


def test_drop_path_leaves_whole_images_out():
    block = DGMN2Block(8, 2, (5, 5), drop_path=0.5)
    x = torch.randn(64, 5, 5, 8)
    unchanged = (block(x) == x).flatten(1).all(1)
    assert 5 <= unchanged.sum() <= 30  # both branches are dropped in a quarter of 64: 16, deviation 3.5


def test_walks_are_precise_under_autocast():
    # The walk 100.25 would be 100 or 100.5 in bfloat16.
    layer = DGMN2Attention(4, 1, (3, 128)).eval()
    with torch.no_grad():
        layer.offset.bias.copy_(torch.tensor([0.0, 100.25]).repeat(9))
    x = torch.randn(1, 3, 128, 4)
    with torch.no_grad():
        expected = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
    torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    ("num_heads", "wanted"),
    [(3, "divide dim = 8"), (0, "be a whole number of at least 1"), (-2, "be a whole number of at least 1")],
)
def test_heads_must_divide_the_channels(num_heads, wanted):
    with pytest.raises(ValueError, match=f"num_heads must {wanted}, got {num_heads}"):
        DGMN2Attention(8, num_heads, (7, 7))


@pytest.mark.parametrize(
    "make",
    [
        lambda: RelativePosition(8, (7, 7), rel_pos="foo"),
        lambda: DGMN2Attention(8, 2, (7, 7), rel_pos="foo"),
        lambda: DGMN2Block(8, 2, (7, 7), rel_pos="foo"),
    ],
)
def test_unknown_relative_position(make):
    with pytest.raises(ValueError, match=r"rel_pos.*official.*aligned.*foo"):
        make()


@pytest.mark.parametrize("shape", [(1, 4, 6, 8), (8,), (2, 4, 6, 1), (2, 4, 6, 8)])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_a_residual_of_another_shape_or_dtype(shape, learns, fused):
    """It spreads over the output, as in any sum."""
    for layer in (DGMN2Attention(8, 2, (4, 6)), DGMN2Mlp(8, 16)):
        branch = dgmn.fuse(layer) if fused else layer.eval()
        x = torch.randn(2, 4, 6, 8, requires_grad=learns)
        for dtype in (torch.float32, torch.float64):
            residual = torch.randn(shape, dtype=dtype)
            with torch.set_grad_enabled(learns):
                out, wanted = branch(x, residual), residual + branch(x)
            assert out.dtype == dtype
            torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("shape", [(4, 4, 8), (1, 4, 4, 6), (8,)])
def test_other_inputs_are_refused(shape, fused):
    layer = DGMN2Attention(8, 2, (4, 4))
    layer = dgmn.fuse(layer) if fused else layer
    wanted = re.escape(f"x must have the shape (B, H, W, 8), got {shape}")
    with pytest.raises(ValueError, match=wanted), torch.no_grad():
        layer(torch.randn(shape))


def test_hooks_see_what_a_branch_alone_computes():
    """In inference, a branch adds its own residual, unless somebody looks at the branch."""
    block = DGMN2Block(8, 2, (7, 7)).eval()
    x = torch.randn(2, 9, 11, 8)
    with torch.inference_mode():
        expected = block(x)
        seen = []
        for module in (block.attn, block.mlp, block.drop_path2, block.mlp.fc1, block.mlp.act, block.attn.proj):
            handle = module.register_forward_hook(lambda _, inputs, out: seen.append(out))
            torch.testing.assert_close(block(x), expected)
            handle.remove()
        attention = block.attn(block.norm1(x))
        torch.testing.assert_close(seen[0], attention)
        torch.testing.assert_close(seen[1], block.mlp(block.norm2(x + attention)))
        torch.testing.assert_close(seen[2], seen[1])
        torch.testing.assert_close(seen[3], block.mlp.fc1(block.norm2(x + attention)))
        torch.testing.assert_close(seen[4], torch.nn.functional.gelu(seen[3]))
        assert len(seen) == 6
        assert block(x[:0]).shape == (0, 9, 11, 8)


def test_other_modules_in_place_of_a_branch():
    block = DGMN2Block(8, 2, (7, 7)).eval()
    block.attn, block.mlp = torch.nn.Linear(8, 8), torch.nn.Identity()
    x = torch.randn(1, 3, 4, 8)
    middle = x + block.attn(block.norm1(x))
    torch.testing.assert_close(block(x), middle + block.norm2(middle))


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("name", ["proj_drop", "drop1", "drop2", "drop_path1", "drop_path2"])
def test_dropout_that_is_switched_on_alone(name, learns):
    """Monte Carlo dropout draws many predictions in evaluation mode."""
    block = DGMN2Block(8, 2, (5, 5), proj_drop=0.5, drop_path=0.5).eval()
    x = torch.randn(4, 5, 5, 8)
    with torch.set_grad_enabled(learns):
        assert torch.equal(block(x), block(x))
        (layer,) = (layer for part, layer in block.named_modules() if part.endswith(name))
        layer.train()
        assert not torch.equal(block(x), block(x))


def test_layers_in_place_of_those_of_a_perceptron():
    """Another norm, hooks on dropout, and a forward that a library puts into a layer, as accelerate does."""
    mlp = DGMN2Mlp(8, 16).eval()
    x = torch.randn(2, 3, 3, 8)
    before = mlp(x)
    mlp.norm = torch.nn.LayerNorm(16)
    assert not torch.allclose(mlp(x), before)
    torch.testing.assert_close(mlp(x), mlp.fc2(mlp.norm(torch.nn.functional.gelu(mlp.fc1(x)))))
    mlp.norm = torch.nn.Identity()
    seen = []
    handle = mlp.drop1.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(mlp(x), before)
    assert seen
    handle.remove()
    mlp.fc2.forward = lambda hidden: torch.zeros(2, 3, 3, 8)
    assert mlp(x).eq(0).all()


@pytest.mark.parametrize("learns", [False, True])
def test_layers_without_biases(learns):
    block = DGMN2Block(8, 2, (5, 5)).eval()
    x = torch.randn(2, 5, 5, 8)
    for name in ("attn.proj", "attn.qkv", "mlp.fc1", "mlp.fc2"):
        layer = block.get_submodule(name)
        torch.nn.init.zeros_(layer.bias)
        with torch.set_grad_enabled(learns):
            expected = block(x)
            layer.bias = None
            torch.testing.assert_close(block(x), expected)


def test_a_jacobian_at_once():
    block = DGMN2Block(4, 2, (3, 3)).eval()
    x = torch.randn(1, 3, 3, 4)
    jacobian = torch.autograd.functional.jacobian
    torch.testing.assert_close(jacobian(block, x, vectorize=True), jacobian(block, x))
