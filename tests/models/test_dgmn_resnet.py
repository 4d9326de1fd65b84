"""ResNets with modules inside: where they stand, weights of plain networks, freezing, dilation, hard cases."""

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

import dgmn
from dgmn.detection import mask_rcnn
from dgmn.errors import InputError
from dgmn.layers import DGMN, DeformableConv2d
from dgmn.models import DGMNResNet, set_multi_grid
from dgmn.models.official import dgmn_resnet_from_official
from dgmn.training.start import start_from
from dgmn.weights import read_checkpoint

from golden_vectors import array

SMALL = {"layers": (1, 1, 3, 2), "channels": (8, 8, 16, 16), "num_classes": 5}
PLACES = {
    "c5": ["layer4.0.act2", "layer4.1.act2"],
    "c4_c5": [f"layer3.{i}.act2" for i in range(3)] + ["layer4.0.act2", "layer4.1.act2"],
    "res4": ["layer3.1.act3"],
}


def create(name="dgmn_resnet50", **options):
    return timm.create_model(name, **{**SMALL, **options})


def randomized(model):
    """Puts a model in evaluation mode, with random weights and statistics."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.0) if name.endswith("var") else nn.init.normal_(tensor, std=0.2)
    return model.eval()


@pytest.fixture
def plain_file(tmp_path):
    model = randomized(timm.create_model("resnet50", **SMALL))
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    return model, tmp_path / "plain.pth"


def modules(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, DGMN)}


# ------------------------------------------------------------------------------------------------------- places


@pytest.mark.parametrize("at", PLACES)
def test_places(at):
    model = create(at=at)
    assert list(modules(model)) == [f"{name}.module" for name in PLACES[at]]
    # A module follows a 3x3 convolution of 16 channels, or a block of 64.
    assert {module.channels for module in modules(model).values()} == {64 if at == "res4" else 16}


def test_after_the_convolution_its_norm_and_its_relu():
    """The residual branch of a block passes through the module; the shortcut does not."""
    model = randomized(create())
    block = model.layer4[1]
    x = torch.randn(2, 64, 5, 6).relu()
    branch = F.relu(block.bn1(block.conv1(x)))
    branch = F.relu(block.bn2(block.conv2(branch)))
    branch = block.act2.module(branch)
    assert not torch.allclose(branch, F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))))
    torch.testing.assert_close(block(x), F.relu(block.bn3(block.conv3(branch)) + x))


def test_before_the_last_block_of_res4():
    """The last block gets the module's output, in its shortcut too."""
    model = randomized(create(at="res4"))
    seen = {}
    model.layer3[1].act3.module.register_forward_hook(lambda module, args, output: seen.update(output=output))
    model.layer3[2].register_forward_pre_hook(lambda module, args: seen.update(input=args[0].clone()))
    model(torch.randn(2, 3, 64, 64))
    assert torch.equal(seen["input"], seen["output"])


@pytest.mark.parametrize("name", ["dgmn_resnet50", "dgmn_resnet101", "dgmn_resnext101_32x8d"])
def test_layers_of_the_named_networks(name):
    """Apart from the modules, the networks have the layers of timm's plain ones."""
    with torch.device("meta"):
        model, plain = timm.create_model(name), timm.create_model(name.removeprefix("dgmn_"))
    assert len(modules(model)) == 3
    names = [key for key in model.state_dict() if ".module." not in key]
    assert names == list(plain.state_dict())
    assert timm.get_pretrained_cfg(name).hf_hub_id == f"timm/{name.removeprefix('dgmn_')}.tv_in1k"


@pytest.mark.parametrize("module", ["none", "non_local", "global_context", "criss_cross"])
@pytest.mark.parametrize("at", PLACES)
def test_modules_that_start_as_the_identity(module, at, plain_file):
    plain, file = plain_file
    model = create(module=module, at=at).eval()
    dgmn.load_checkpoint(model, file)
    x = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(model(x), plain(x))


# ------------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("at", PLACES)
@pytest.mark.parametrize("frozen_norms", [False, True])
def test_weights_of_the_plain_network(at, frozen_norms, plain_file):
    """Plain weights load through timm and through our loader. With β = 0 the network then equals the plain one."""
    plain, file = plain_file
    options = {"at": at, "frozen_norms": frozen_norms, "module_args": {"initial_beta": 0.0}}
    overlay = {"file": str(file), "num_classes": 5}
    model = create(pretrained=True, pretrained_cfg_overlay=overlay, **options).eval()
    x = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(model(x), plain(x))

    for kind in ({}, {"feature_cls": "list"}, {"feature_cls": "getter", "out_indices": (0, 1, 2, 3, 4)}):
        maps = create(features_only=True, **kind, **options).eval()
        report = dgmn.load_checkpoint(maps, file)
        assert report.fresh
        assert all(".module." in name for name in report.fresh)
        ignored = {name for name in report.ignored if not name.endswith("num_batches_tracked")}
        assert ignored <= {"fc.weight", "fc.bias"}
        assert f"{len(report.fresh)} that the file lacks start anew" in str(report)
        assert report.loaded + len(report.fresh) == len(maps.state_dict())
        torch.testing.assert_close(maps(x)[-1], plain.forward_features(x))


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_and_trained_norms_take_each_other_s_weights(frozen, tmp_path):
    model = randomized(create(frozen_norms=frozen))
    torch.save(model.state_dict(), tmp_path / "one.pth")
    other = create(frozen_norms=not frozen).eval()
    report = dgmn.load_checkpoint(other, tmp_path / "one.pth")
    assert all(name.endswith("num_batches_tracked") for name in report.fresh)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(other(x), model(x))
    detector = mask_rcnn("dgmn_resnet50", 3, backbone_args={**SMALL, "frozen_norms": not frozen}).eval()
    assert not start_from(detector, read_checkpoint(tmp_path / "one.pth"))
    torch.testing.assert_close(detector.backbone.body(x)[-1], model.forward_features(x))
    torch.save(detector.state_dict(), tmp_path / "detector.pth")
    classifier = create(frozen_norms=frozen).eval()
    dgmn.load_checkpoint(classifier, tmp_path / "detector.pth", reset_head=True, allow_unknown=True)
    torch.testing.assert_close(classifier.forward_features(x), model.forward_features(x))


def test_a_detector_without_modules_fills_one_with(tmp_path):
    """Head, pyramid and plain backbone are filled; only the modules stay new."""
    one, other = (mask_rcnn("dgmn_resnet50", 3, backbone_args={**SMALL, "module": m}) for m in ("none", "dgmn"))
    torch.save(one.state_dict(), tmp_path / "one.pth")
    report = dgmn.load_checkpoint(other, tmp_path / "one.pth")
    assert report.loaded == len(one.state_dict())
    assert all(".module." in name for name in report.fresh)


def test_a_released_file_is_told_apart(tmp_path):
    torch.save({"model": {"backbone.body.layer4.0.dw_block.gamma1": torch.ones(1)}}, tmp_path / "released.pth")
    with pytest.raises(InputError, match=r"a released DGMN are read by .*dgmn_resnet_from_official"):
        dgmn.load_checkpoint(create(), tmp_path / "released.pth")


def test_own_weights_come_back(tmp_path):
    model = randomized(create())
    torch.save(model.state_dict(), tmp_path / "own.pth")
    other = create().eval()
    report = dgmn.load_checkpoint(other, tmp_path / "own.pth")
    assert report.fresh == ()
    assert report.loaded == len(model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(other(x), model(x))
    third = create(pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "own.pth"), "num_classes": 5})
    torch.testing.assert_close(third.eval()(x), model(x))


def test_a_file_with_some_of_the_modules_is_refused(tmp_path):
    model = create()
    state_dict = model.state_dict()
    del state_dict["layer4.1.act2.module.messages.0.walks.weight"]
    torch.save(state_dict, tmp_path / "part.pth")
    with pytest.raises(InputError, match=r"names missing \(1\): layer4\.1\.act2\.module\.messages\.0\.walks\.weight"):
        dgmn.load_checkpoint(model, tmp_path / "part.pth")


@pytest.mark.parametrize("at", ["c5", "c4_c5"])
def test_deformable_convolutions_take_the_place_of_plain_ones(at, plain_file):
    """With the pretrained weights and masks of 1 it equals the plain network."""
    plain, file = plain_file
    model = create(module="deformable", at=at).eval()
    report = dgmn.load_checkpoint(model, file)
    assert len(report.fresh) == 2 * len(PLACES[at])
    convs = [module for module in model.modules() if isinstance(module, DeformableConv2d)]
    assert len(convs) == len(PLACES[at])
    for conv in convs:
        nn.init.constant_(conv.offset_and_mask.bias[18:], 100.0)
    x = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


def test_modules_of_an_official_checkpoint(official_weights, golden):
    """Weights in the official detectors' layout make the network's modules equal the official module."""
    weights = official_weights("h_dgmn1")
    prefix = "dgmn1.deformatt."
    official = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    file = {f"module.backbone.body.layer4.{i}.dw_block.{name}": t for i in (0, 1) for name, t in official.items()}
    file["module.rpn.head.conv.weight"] = torch.zeros(1)
    model = create(channels=(8, 8, 16, 64), module_args={"form": "released"}).eval()
    mapped = dgmn_resnet_from_official(file)
    assert len(mapped) == 2 * len(official)
    assert model.load_state_dict(mapped, strict=False).unexpected_keys == []
    x = torch.from_numpy(array("dgmn1.x", (1, 64, 20, 24)))
    for block in model.layer4:
        with torch.no_grad():
            golden("h_dgmn1_deformatt").check("out", block.act2.module(x), 1e-5)
    with pytest.raises(InputError, match="no name begins like backbone"):
        dgmn_resnet_from_official({"rpn.head.conv.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="unknown key 'alpha1'"):
        dgmn_resnet_from_official({"backbone.body.layer4.0.dw_block.alpha1": torch.zeros(1)})


# ----------------------------------------------------------------------------------------- freezing and dilation


def test_what_is_frozen_stays():
    model = create(frozen_norms=True, frozen_stages=1, module="non_local", module_args={"convolution": True})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # the block's last norm starts at 0, so what precedes it changes in the second step
        model.train()(torch.randn(4, 3, 64, 64)).square().sum().backward()
        optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not [name for name in changed if name.startswith(("conv1", "bn1", "layer1"))]
    plain_norms = [n for n, m in model.named_modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(plain_norms) == 1 + 3 * 7 + 4
    assert not [name for name in changed if name.rsplit(".", 1)[0] in plain_norms]
    trained = {name for name, p in model.named_parameters() if not name.startswith(("conv1", "bn1", "layer1"))}
    # On maps of 2 x 2 the gradients of the modules' queries and keys are almost zero.
    assert not {name for name in trained - changed if ".block.t." not in name and ".block.p." not in name}
    assert "layer4.0.act2.module.block.norm.running_mean" in changed  # norms of modules are trained


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "dgmn_resnet50"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_multi_grid(name, output_stride):
    model = timm.create_model(name, **{**SMALL, "layers": (1, 1, 2, 3)}, output_stride=output_stride)
    set_multi_grid(model, (1, 2, 4))
    set_multi_grid(model, (1, 2, 4))  # a second call changes nothing
    dilation = 32 // output_stride
    for block, factor in zip(model.layer4, (1, 2, 4), strict=True):
        convs = [module for name, module in block.named_children() if getattr(module, "kernel_size", 0) == (3, 3)]
        assert convs
        assert all(conv.dilation == conv.padding == (dilation * factor,) * 2 for conv in convs)
    x = torch.randn(1, 3, 65, 97)
    assert model.eval().forward_features(x).shape[2:] == (-(-65 // output_stride), -(-97 // output_stride))


def test_multi_grid_of_deformable_convolutions():
    model = create(module="deformable", output_stride=8).eval()
    set_multi_grid(model, (1, 2))
    assert model.forward_features(torch.randn(1, 3, 64, 64)).shape[2:] == (8, 8)


# --------------------------------------------------------------------------------------------------- hard cases


@given(
    at=st.sampled_from(sorted(PLACES)),
    output_stride=st.sampled_from([8, 16, 32]),
    height=st.integers(1, 80),
    width=st.integers(1, 80),
)
def test_any_image(at, output_stride, height, width):
    """Maps may have only one pixel, and so be smaller than every dilation."""
    model = create(
        at=at, output_stride=output_stride, features_only=True, feature_cls="getter", out_indices=(-4, -3, -2, -1)
    ).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, height, width))
    assert model.feature_info.reduction() == [min(stride, output_stride) for stride in (4, 8, 16, 32)]
    for x, stride in zip(maps, model.feature_info.reduction(), strict=True):
        assert x.shape[2:] == (-(-height // stride), -(-width // stride))
        assert x.isfinite().all()


@pytest.mark.slow
def test_gradients():
    model = create(channels=(2, 2, 2, 2), layers=(1, 1, 1, 1), at="c4_c5", module_args={"groups": 2}).double().eval()
    for name, parameter in model.named_parameters():
        if "walks" in name:
            nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 3, 33, 20, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(
        lambda part: model(torch.cat([part, x[..., 3:, :]], 2)), x[..., :3, :].detach().requires_grad_()
    )
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("module", ["dgmn", "deformable_message_passing", "deformable", "non_local", "criss_cross"])
def test_autocast(module, dtype):
    model = create(module=module, channels=(8, 8, 16, 32))
    for name, parameter in model.named_parameters():
        if name.endswith(("module.norm.weight", "module.gamma")):  # otherwise the modules are identities
            nn.init.ones_(parameter)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(x)
        with torch.autocast("cpu", dtype):
            out = model(x)
    torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item())
    with torch.autocast("cpu", dtype):
        loss = model.train()(x).float().square().mean()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.slow
def test_compiles():
    model = create().eval()
    x = torch.randn(1, 3, 64, 64)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("module", ["dgmn", "deformable", "non_local"])
def test_timm_s_device_and_dtype(module):
    model = create(module=module, dtype=torch.float64).eval()
    assert model(torch.randn(1, 3, 64, 64, dtype=torch.float64)).dtype == torch.float64
    assert {p.device.type for p in create(module=module, device="meta").parameters()} == {"meta"}


def test_what_timm_offers_works():
    model = create()
    model.reset_classifier(7)
    model.set_grad_checkpointing()
    x = torch.randn(2, 3, 64, 64)
    model.train()(x).sum().backward()
    assert modules(model)["layer4.0.act2.module"].messages[0].filters.weight.grad is not None
    assert model.eval().forward_intermediates(x, indices=[3], intermediates_only=True)[0].shape[1] == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": "c3"}, 'at must be "c5", "c4_c5" or "res4", got \'c3\''),
        ({"at": "res4", "layers": (1, 1, 1, 1)}, r"at \"res4\" is between two blocks .* which \(1, 1, 1, 1\) lacks"),
        ({"module": "dgnm"}, "module: no 'dgnm'; one of none, dgmn"),
        ({"module_args": {"groups": 5}}, "module_args: dgmn cannot be built for 16 channels .*groups must divide"),
        ({"module": "deformable", "module_args": {"groups": 5}}, "module_args: deformable takes none here, got"),
        ({"frozen_stages": 5}, "frozen_stages must be a whole number in 0..4, got 5"),
        ({"frozen_stages": "1"}, "frozen_stages must be a whole number in 0..4, got '1'"),
        ({"module": ["dgmn"]}, r"module: no \['dgmn'\]; one of none, dgmn"),
        ({"block": timm.models.resnet.BasicBlock}, "block: modules stand in bottlenecks, got BasicBlock"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InputError, match=message):
        create(**options)


@pytest.mark.parametrize(
    ("network", "grid", "message"),
    [
        (lambda: timm.create_model("dgmn2_nano"), (1, 2, 4), "multi_grid: is for timm's ResNets, got DGMN2"),
        (lambda: create(output_stride=8), (1, 2, 4), r"multi_grid: a factor .* each of 2 blocks, got \(1, 2, 4\)"),
        (lambda: create(output_stride=8), (1, 0), r"multi_grid: a factor of at least 1 .*got \(1, 0\)"),
        (lambda: create(output_stride=8), 4, "multi_grid: a factor of at least 1 for each of 2 blocks, got 4"),
        (create, (1, 2), "multi_grid: the network is not dilated: it needs an output_stride of 8 or 16"),
    ],
)
def test_mistakes_of_the_grid(network, grid, message):
    with pytest.raises(InputError, match=message):
        set_multi_grid(network(), grid)


def test_is_a_class_of_its_own():
    model = DGMNResNet(timm.models.resnet.Bottleneck, **SMALL)
    assert len(modules(model)) == 2
