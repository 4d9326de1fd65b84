"""The nodes that networks sample for a point of an image, and the pictures of them."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from dgmn.about import Preprocessing
from dgmn.classification.predictor import ClassificationPredictor
from dgmn.detection import mask_rcnn, retinanet
from dgmn.detection.predictor import DetectionPredictor
from dgmn.errors import InputError
from dgmn.layers import DGMN, DGMN2Attention
from dgmn.nodes import node_maps, sampled_nodes
from dgmn.ops import sampled_aggregate
from dgmn.pictures import heat_sheet, node_picture, node_sheet
from dgmn.segmentation import Inference, semantic_fpn
from dgmn.segmentation.predictor import SegmentationPredictor
from dgmn_cli import run

from untrained import checkpoint

GRID = torch.tensor([(x, y) for y in (-1, 0, 1) for x in (-1, 0, 1)], dtype=torch.float32)
ROW, COLUMN = 3, 5  # the receiving position in the tests of single modules


def on_the_grid(network):
    """The network with walks of zero."""
    for module in network.modules():
        if isinstance(module, DGMN2Attention):
            nn.init.zeros_(module.offset.weight)
    return network


class Rows(nn.Module):
    """Runs the attention of DGMN2 on maps with the channels first."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_without_walks_the_nodes_are_the_grid():
    network = nn.Sequential(nn.Conv2d(3, 8, 4, 4), DGMN(8, (1, 3), groups=0)).train()
    image = torch.randn(1, 3, 28, 36)
    found = sampled_nodes(network, image, (5 * 4 + 0.1, 3 * 4 + 3.9))
    assert [(each.layer, each.sampling_rate, each.head) for each in found] == [("1", 1, None), ("1", 3, None)]
    maps = network[0](image)
    for each, message in zip(found, network[1].messages, strict=True):
        assert each.receiver == (22, 14)
        assert torch.equal(each.positions, torch.tensor((22.0, 14.0)) + 4 * each.sampling_rate * GRID)
        expected = message.predict_weights(maps, message.predict_walks(maps))[0, 3, 5, 0]
        torch.testing.assert_close(each.affinities, expected)
        assert each.affinities.sum() == pytest.approx(1)
        assert each.weights is None
        assert each.inside.all()
    assert network[1].messages[0].training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())


def test_walks_move_the_nodes_by_pixels_of_the_map():
    network = nn.Sequential(nn.Conv2d(3, 8, 4, 4), DGMN(8, (2,)))
    walks = network[1].messages[0].walks
    with torch.no_grad():  # node k walks by (dy, dx) = (0.5, -k)
        walks.bias.copy_(torch.tensor([(0.5, -k) for k in range(9)]).flatten())
    (each,) = sampled_nodes(network, torch.randn(1, 3, 28, 36), (1.5, 13))
    moved = torch.tensor([(2.0, 14.0)]) + 4 * (2 * GRID + torch.tensor([(-k, 0.5) for k in range(9)]))
    assert torch.equal(each.positions, moved)
    # A node less than a pixel outside of the map's 9 x 7 pixels counts as inside.
    x, y = (moved / 4 - 0.5).T
    assert torch.equal(each.inside, (x > -1) & (x < 9) & (y > -1) & (y < 7))
    assert 0 < each.inside.sum() < 9
    assert each.affinities.sum() == pytest.approx(1)
    assert each.weights.shape == (9,)
    assert (each.weights >= 0).all()


@pytest.mark.parametrize(
    ("options", "affinities", "weights"),
    [
        ({}, True, True),
        ({"groups": 0}, True, False),
        ({"dynamic_affinity": False}, False, True),
        ({"groups": 0, "dynamic_affinity": False}, False, False),
        ({"dynamic_sampling": False}, True, True),
        ({"form": "released"}, True, True),
    ],
)
def test_what_a_module_predicts(options, affinities, weights):
    module = DGMN(8, (1, 2, 3, 4), **options)
    x = torch.randn(1, 8, 6, 7)
    found = sampled_nodes(module, x, (3, 3))
    assert [each.sampling_rate for each in found] == [1, 2, 3, 4]
    for each, message in zip(found, module.messages, strict=True):
        assert (each.affinities is not None, each.weights is not None) == (affinities, weights)
        if affinities or weights:
            product = message.predict_weights(x, message.predict_walks(x))[0, 3, 3]
            expected = (each.affinities if affinities else 1) * (each.weights if weights else 1)
            torch.testing.assert_close(product.abs().mean(0), expected)


def test_the_last_step_counts():
    once, twice = DGMN(8, (1, 2)), DGMN(8, (1, 2), steps=2)
    for message in once.messages:
        nn.init.normal_(message.walks.weight, std=0.3)
    twice.load_state_dict(once.state_dict())
    x = torch.randn(1, 8, 6, 7).to(memory_format=torch.channels_last)
    state = once(x).detach()
    for a, b in zip(sampled_nodes(once, state, (3, 3)), sampled_nodes(twice, x, (3, 3)), strict=True):
        for name in ("positions", "affinities", "weights"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name))


def test_every_layer_of_a_backbone():
    network = on_the_grid(timm.create_model("dgmn2_nano", features_only=True))
    found = sampled_nodes(network, torch.randn(1, 3, 64, 96), (50, 40))
    layers = [each.layer for each in found]
    depths, heads = (2, 2, 2, 1), (1, 2, 4, 6)
    assert len(found) == sum(n * k for n, k in zip(depths, heads, strict=True))
    assert layers == sorted(layers)
    for each in found:
        assert isinstance(network.get_submodule(each.layer), DGMN2Attention)
        stage = int(each.layer.split("stages.")[1][0])
        stride = 4 * 2**stage
        assert each.head < heads[stage]
        center = ((50 // stride + 0.5) * stride, (40 // stride + 0.5) * stride)
        assert each.receiver == center
        assert torch.equal(each.positions, torch.tensor(center) + stride * GRID)
        assert each.affinities.sum() == pytest.approx(1)
        assert each.affinities.std() > 0
        assert each.weights is None


def test_the_attention_sums_its_values_with_these_weights():
    """The sum by hand over the same nodes and weights equals the layer's output."""
    attention = DGMN2Attention(8, 2, (7, 7))
    with torch.no_grad():
        attention.offset.weight.normal_()
        attention.offset.bias.normal_()
    x = torch.randn(1, 8, 7, 7)
    found = sampled_nodes(Rows(attention), x, (5.5, 3.5))
    with torch.no_grad():
        maps = attention.qkv(x.permute(0, 2, 3, 1))[0, ..., 16:].reshape(7, 7, 2, 4)
        out = torch.zeros(2, 4)
        for each in found:
            for (column, row), weight in zip((each.positions - 0.5).tolist(), each.affinities, strict=True):
                for i, j in itertools.product(*(range(math.floor(p), math.floor(p) + 2) for p in (row, column))):
                    if 0 <= i < 7 and 0 <= j < 7:
                        out[each.head] += weight * (1 - abs(row - i)) * (1 - abs(column - j)) * maps[i, j, each.head]
        expected = attention(x.permute(0, 2, 3, 1))[0, 3, 5]
        torch.testing.assert_close(attention.proj(out.flatten()), expected)


def dgmn_module():
    module = DGMN(8, (2,), groups=2)
    message = module.messages[0]
    return module, message.walks.bias


def attention_module():
    # With rel_pos="official" the logits depend on the mirrored position, too.
    attention = DGMN2Attention(8, 1, (9, 11), rel_pos="aligned")
    return Rows(attention), attention.offset.bias


@pytest.mark.parametrize("build", [dgmn_module, attention_module])
def test_only_the_nodes_have_influence(build):
    module, walks = build()
    with torch.no_grad():
        walks.uniform_(-1.4, 1.4)  # the same everywhere: no walk depends on the input
    x = torch.randn(1, 8, 9, 11)
    (each,) = sampled_nodes(module, x, (COLUMN + 0.5, ROW + 0.5))
    read = {(ROW, COLUMN)}
    for column, row in (each.positions - 0.5).tolist():
        pixels = itertools.product(*((math.floor(p), math.floor(p) + 1) for p in (row, column)))
        read |= {(i, j) for i, j in pixels if 0 <= i < 9 and 0 <= j < 11}
    assert 10 < len(read) < 60

    @torch.no_grad()
    def received(x):
        return module(x)[0, :, ROW, COLUMN]

    others = torch.ones(9, 11, dtype=torch.bool)
    others[tuple(zip(*read, strict=True))] = False
    changed = torch.where(others, torch.randn_like(x), x)
    torch.testing.assert_close(received(changed), received(x), rtol=0, atol=1e-6)
    for i, j in read:
        changed = x.clone()
        changed[..., i, j] += 3 * torch.randn(8)
        assert (received(changed) - received(x)).abs().max() > 1e-4, (i, j)


@pytest.mark.parametrize(("build", "options"), [(retinanet, {}), (mask_rcnn, {"detections_per_img": 1})])
def test_detectors_resize_and_pad(build, options):
    network = on_the_grid(build("dgmn2_nano", 3, min_size=128, max_size=256, **options))
    image = torch.rand(3, 60, 100)  # becomes 128 x 213, padded to 128 x 224
    found = sampled_nodes(network, [image], (80, 31))
    last = [each for each in found if each.layer.endswith("stages.3.blocks.0.attn")]
    assert len(last) == 6
    along_x, along_y = 32 * 100 / 213, 32 * 60 / 128
    for each in last:
        center = (5.5 * along_x, 2.5 * along_y)
        assert each.receiver == pytest.approx(center)
        torch.testing.assert_close(each.positions, torch.tensor(center) + torch.tensor((along_x, along_y)) * GRID)
    assert found[0].receiver == pytest.approx(((0.5 + 42) * along_x / 8, (0.5 + 16) * along_y / 8))


def test_classifiers_crop():
    network = on_the_grid(timm.create_model("dgmn2_nano", num_classes=2))
    classifier = ClassificationPredictor(network, "ab", 64, Preprocessing(crop_pct=0.8))
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[40:43, 60:63] = 255
    image = Image.fromarray(pixels)  # becomes 133 x 80, of which the network sees 64 x 64
    found = classifier.nodes(image, (61.5, 41.5))
    first = found[0]
    # The receiving position is where the network sees the spot.
    seen = classifier.transform(image).mean(0)
    row, column = divmod(int(seen.argmax()), 64)
    corner = (round((133 - 64) / 2) / 133 * 100, 8 / 80 * 60)
    expected = (corner[0] + (column // 4 + 0.5) * 4 * 100 / 133, corner[1] + (row // 4 + 0.5) * 4 * 60 / 80)
    assert first.receiver == pytest.approx(expected)
    assert abs(first.receiver[0] - 61.5) <= 2
    assert abs(first.receiver[1] - 41.5) <= 2
    step = first.positions[5] - first.positions[4]
    assert step.tolist() == pytest.approx((4 * 100 / 133, 0), abs=1e-4)
    with pytest.raises(InputError, match=r"at must lie in the centre.*x 26 to 74 and y 6 to 54, got x = 20, y = 30"):
        classifier.nodes(image, (20, 30))


def test_segmenters_see_windows():
    network = on_the_grid(semantic_fpn("dgmn2_nano", 2))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 200, 3), dtype=np.uint8))
    whole, slide, fitted = (
        SegmentationPredictor(network, ("a", "b"), ((0, 0, 0), (255, 0, 0)), inference).nodes(image, (130, 30))
        for inference in (Inference(), Inference("slide", crop=64, stride=32), Inference(fit=(120, 400)))
    )
    assert whole[0].receiver == pytest.approx((130, 30), abs=2)
    # Windows begin at 0, 32, 64, 96, 128 and 136. The one at 96 has 130 nearest to its middle.
    assert slide[0].receiver == pytest.approx((96 + (8 + 0.5) * 4, 30))
    assert fitted[0].receiver == pytest.approx((131, 31))
    assert (fitted[0].positions[5] - fitted[0].positions[4]).tolist() == pytest.approx((2, 0))


@pytest.mark.parametrize(
    ("images", "at", "message"),
    [
        (torch.zeros(1, 8, 5, 6), (6, 0), r"at must lie in the image, 0 <= x < 6 and 0 <= y < 5, got x = 6, y = 0"),
        (torch.zeros(1, 8, 5, 6), (0, -0.5), r"at must lie in the image"),
        (torch.zeros(1, 8, 5, 6), (float("nan"), 1), r"at must lie in the image"),
        (torch.zeros(1, 8, 5, 6), (1, 2, 3), r"at must be two numbers, x and y, got \(1, 2, 3\)"),
        (torch.zeros(2, 8, 5, 6), (1, 2), r"images must be one image, .* got \(2, 8, 5, 6\)"),
        (torch.zeros(8, 5, 6), (1, 2), r"images must be one image"),
        ([torch.zeros(3, 5, 6)] * 2, (1, 2), r"images must be one image"),
    ],
)
def test_mistakes(images, at, message):
    with pytest.raises(InputError, match=message):
        sampled_nodes(DGMN(8), images, at)


@pytest.mark.parametrize(
    "network",
    [nn.Conv2d(8, 8, 1), DGMN(8, groups=0, dynamic_affinity=False, dynamic_sampling=False)],
)
def test_networks_that_sample_nothing(network):
    with pytest.raises(InputError, match=r"model: .* has no layer that samples nodes"):
        sampled_nodes(network, torch.zeros(1, 8, 5, 6), (0, 0))


def near(picture, color, tolerance=60):
    return (np.abs(np.asarray(picture).astype(int) - color).sum(-1) < tolerance).nonzero()


@pytest.mark.parametrize(("options", "panels"), [({}, 2), ({"groups": 0}, 1), ({"dynamic_affinity": False}, 1)])
def test_picture(options, panels):
    network = nn.Sequential(nn.Conv2d(3, 8, 4, 4), DGMN(8, (1, 4), **options))
    image = Image.new("RGB", (80, 60), (100, 100, 100))
    found = sampled_nodes(network, torch.randn(1, 3, 60, 80), (50, 30))
    picture = node_picture(image, found)
    assert picture.width == 640 * panels + 10 * (panels - 1)
    for panel in range(panels):
        rows, columns = near(picture.crop((650 * panel, 0, 650 * panel + 640, 480)), (230, 20, 20))
        assert (columns.mean(), rows.mean()) == pytest.approx((8 * 50, 8 * 30), abs=1.5)
    below = np.asarray(picture)[480:]
    assert (below.min(-1) < 100).any(), "there is a legend"
    affinities = len(near(picture.crop((0, 0, 640, 480)), (255, 226, 80))[0]) > 100
    weights = len(near(picture.crop((picture.width - 640, 0, picture.width, 480)), (165, 215, 255))[0]) > 100
    assert (affinities, weights) == ("dynamic_affinity" not in options, "groups" not in options)


def test_picture_of_a_layer():
    network = timm.create_model("dgmn2_nano", num_classes=0)
    found = sampled_nodes(network, torch.randn(1, 3, 64, 64), (60, 60))
    image = Image.new("RGB", (64, 64))
    assert node_picture(image, found).tobytes() != node_picture(image, found, "stages.0.blocks.1.attn").tobytes()
    # All positions are outside of the image or not a number.
    lost = [replace(each, positions=each.positions * float("nan")) for each in found[-1:]]
    assert node_picture(image, lost).width == 640
    with pytest.raises(
        InputError, match=r"layer must be one that samples nodes, stages.0.blocks.0.attn, .* got 'head'"
    ):
        node_picture(image, found, "head")
    with pytest.raises(InputError, match="there is none"):
        node_picture(image, [])


def walking(rates=(1, 3)):
    """A network whose nodes all walk by one position to the right, which are four pixels, and by half of one down."""
    network = nn.Sequential(nn.Conv2d(3, 8, 4, 4), DGMN(8, rates))
    for message in network[1].messages:
        with torch.no_grad():
            message.walks.bias.copy_(torch.tensor([(0.5, 1.0)] * 9).flatten())
    return network


def test_density_is_what_the_op_reads():
    """The gradient of a sum over all positions is how often, and with which share, each position is read."""
    module = DGMN(8, (1, 2))
    for message in module.messages:
        nn.init.normal_(message.walks.weight, std=0.5)
    x = torch.randn(1, 8, 9, 11)
    for found, message in zip(node_maps(module, x), module.messages, strict=True):
        value = torch.ones(1, 9, 11, 1, 1, requires_grad=True)
        walks = message.predict_walks(x).detach().unsqueeze(3)
        sampled_aggregate(value, walks, torch.ones(1, 9, 11, 1, 9), dilation=message.sampling_rate).sum().backward()
        torch.testing.assert_close(found.density(), value.grad[0, :, :, 0, 0])


def test_how_far_nodes_walk():
    for found in node_maps(walking(), torch.randn(1, 3, 28, 36)):
        torch.testing.assert_close(found.walk_lengths(), torch.full((7, 9), math.hypot(2, 4)))
        nodes = found.at((30, 20))
        assert torch.equal(nodes.positions - nodes.grid, torch.tensor((4.0, 2.0)).expand(9, 2))
        assert torch.equal(found.positions()[5, 7], nodes.positions)
        assert found.placed((2, 3), (10, 0)).covers == (10, 0, 10 + 2 * 36, 3 * 28)
        with pytest.raises(InputError, match=r"at must lie in the image, 0 <= x < 36 and 0 <= y < 28, got x = 36"):
            found.at((36, 3))


def test_stages():
    found = node_maps(semantic_fpn("dgmn2_nano", 2), torch.randn(1, 3, 32, 32))
    assert list(dict.fromkeys(each.stage for each in found)) == [f"backbone.model.stages.{i}" for i in range(4)]


def test_arrows_and_a_second_point():
    image = Image.new("RGB", (80, 60), (100, 100, 100))
    layers = node_maps(walking((1,)), torch.randn(1, 3, 60, 80))
    nodes, other = ([layer.at(point) for layer in layers] for point in ((30, 30), (60, 30)))
    plain, arrows, both = (
        node_sheet(image, nodes, arrows=False, side=640),
        node_sheet(image, nodes, side=640),
        node_sheet(image, nodes, other, side=640),
    )
    assert plain.size == arrows.size == both.size
    # Halfway of the walk of the upper left node; the first panel is under a title of 28 pixels.
    start, end = nodes[0].grid[0] * 8, nodes[0].positions[0] * 8
    x, y = (0.6 * start + 0.4 * end).tolist()
    spot = (round(x) - 2, round(y) + 26, round(x) + 3, round(y) + 31)
    grey = Image.blend(image, Image.new("RGB", image.size, "white"), 0.3).getpixel((0, 0))
    assert plain.crop(spot).getcolors() == [(25, grey)]
    assert grey not in [color for _, color in arrows.crop(spot).getcolors()]
    right = (400, 28, 640, 480)  # of the second point
    assert len(near(arrows.crop(right), (0, 140, 60))[0]) == 0
    rows, columns = near(both.crop(right), (0, 140, 60))
    assert (400 + columns.mean(), rows.mean()) == pytest.approx((8 * 62, 8 * 30), abs=2)
    with pytest.raises(InputError, match="at least one layer"):
        node_sheet(image, [])
    with pytest.raises(InputError, match="side must be"):
        node_sheet(image, nodes, side=0)


def test_heat_is_where_the_nodes_are():
    """All nodes walk to the right, so the left border is read less, and the heat there is darker."""
    network = walking((1,))
    with torch.no_grad():
        network[1].messages[0].walks.bias.copy_(torch.tensor([(0.0, 9.0)] * 9).flatten())
    maps = node_maps(network, torch.randn(1, 3, 60, 80))
    picture = np.asarray(heat_sheet(Image.new("RGB", (80, 60), "white"), maps, side=320), int)
    density, lengths = picture[28:268, :320], picture[28:268, 408:720]
    assert density[100:140, :20].mean() + 20 < density[100:140, 150:170].mean()
    assert np.ptp(lengths.mean((0, 2))) < 5, "all walk as far"
    with pytest.raises(InputError, match="at least one layer"):
        heat_sheet(Image.new("RGB", (80, 60)), [])


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize("task", ["classification", pytest.param("segmentation", marks=pytest.mark.slow), "detection"])
def test_command(task, photo, tmp_path, capsys):
    arguments = ["predict", str(photo), "--ckpt_path", checkpoint(task, tmp_path), "--device", "cpu"]
    assert run([*arguments, "--nodes", str(tmp_path / "out")]) == 0
    assert f"nodes: {tmp_path / 'out'}" in capsys.readouterr().out
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["photo_48_32.png"]
    prefix = {"classification": "", "segmentation": "backbone.model.", "detection": "backbone.body.model."}[task]
    layer = f"{prefix}stages.0.blocks.1.attn"
    points = ["--at", "40,30.5", "--at", "60,20", "--layer", layer]
    assert run([*arguments, "--nodes", str(tmp_path / "more"), *points]) == 0
    names = {file.name for file in (tmp_path / "more").iterdir()}
    assert names == {"photo_40_30.5.png", "photo_60_20.png"}
    with Image.open(tmp_path / "more/photo_60_20.png") as picture:
        rows, columns = near(picture.crop((0, 0, 640, 420)), (230, 20, 20))
        assert (columns.mean() * 96 / 640, rows.mean() * 96 / 640) == pytest.approx((60, 20), abs=2.5)
    assert run([*arguments, "--nodes", str(tmp_path / "sheet"), "--layers", "all", "--density"]) == 0
    assert run([*arguments, "--nodes", str(tmp_path / "stages"), "--layers", "stages", "--arrows"]) == 0
    assert {file.name for file in (tmp_path / "sheet").iterdir()} == {
        "photo_48_32.png",
        "photo_48_32_density.png",
    }
    with (
        Image.open(tmp_path / "sheet/photo_48_32.png") as sheet,
        Image.open(tmp_path / "stages/photo_48_32.png") as stages,
    ):
        assert sheet.width == stages.width == 6 * 326 + 82, "the last stage has six heads"
        assert sheet.height * 4 == stages.height * 7, "seven layers in four stages"
    capsys.readouterr()
    assert run([*arguments, "--nodes", str(tmp_path / "out"), "--at", "96,10"]) == 2
    error = capsys.readouterr().err
    assert f"{photo}: at must lie in the image, 0 <= x < 96 and 0 <= y < 64, got x = 96, y = 10" in error
    assert run([*arguments, "--nodes", str(tmp_path / "out"), "--layer", "stem"]) == 2
    assert layer in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--at", "3,4"], "--at is for --nodes FOLDER"),
        (["--layer", "3"], "--layer is for --nodes FOLDER"),
        (["--layers", "all"], "--layers is for --nodes FOLDER"),
        (["--arrows"], "--arrows is for --nodes FOLDER"),
        (["--density"], "--density is for --nodes FOLDER"),
        (["--nodes", "out", "--layers", "some"], "invalid choice: 'some'"),
        (["--nodes", "out", "--layers", "all", "--layer", "x"], "not allowed with argument --layers"),
        (["--nodes", "out", "--at", "3"], "must be two numbers separated by a comma, X,Y, got '3'"),
        (["--nodes", "out", "--at", "3,b"], "must be two numbers separated by a comma, X,Y, got '3,b'"),
    ],
)
def test_mistakes_of_the_command(options, message, photo, capsys):
    with pytest.raises(SystemExit):
        run(["predict", str(photo), "--ckpt_path", "run.ckpt", *options])
    assert message in capsys.readouterr().err


def test_detection_predictor_takes_any_image(photo):
    predictor = DetectionPredictor(retinanet("dgmn2_nano", 2, min_size=64, max_size=96), ("a", "b"), (1, 2))
    with Image.open(photo) as image:
        assert predictor.nodes(image.convert("L"), (3, 3))[0].receiver == pytest.approx((2, 2))
