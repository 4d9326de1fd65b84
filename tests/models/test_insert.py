"""Modules in any network: where they stand, weights of plain networks, the start as the identity, checkpoints."""

import copy
import pickle

import pytest
import timm
import torch
import torchvision
from torch import nn

import dgmn
from dgmn.about import about
from dgmn.classification.builders import classifier
from dgmn.detection.builders import BUILDERS as DETECTORS
from dgmn.errors import InputError
from dgmn.layers import DGMN, DGMN2Attention
from dgmn.nodes import node_maps
from dgmn.segmentation.builders import BUILDERS as SEGMENTERS
from dgmn_cli import run

from small_runs import train

TINY = {"num_classes": 5}
SWIN = {**TINY, "img_size": 64, "embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 4}

# A small network of every family: its arguments, layers for the modules, their channels and layout.
FAMILIES = {
    "resnet10t": ({}, "layer4.*.act1", 512, "NCHW"),
    "resnext50_32x4d": ({"layers": (1, 1, 1, 2)}, "layer4.*.act2", 1024, "NCHW"),
    "regnety_002": ({}, "s4.b1.conv2", 368, "NCHW"),
    "efficientnet_lite0": ({}, "blocks.6.*.bn2.act", 1152, "NCHW"),
    "mobilenetv4_conv_small_050": ({}, "blocks.3.0", 64, "NCHW"),
    "convnext_atto": ({}, "stages.3.blocks.*.conv_dw", 320, "NCHW"),
    "convnext_tiny": ({"depths": (1, 1, 1, 2), "dims": (16, 32, 32, 64)}, "stages.3.blocks.*.mlp", 64, "NHWC"),
    "densenet121": ({"block_config": (1, 1, 1, 2)}, "features.denseblock4.*.conv1", 128, "NCHW"),
    "hrnet_w18_small": ({}, "stage4.*.branches.3.1.conv2", 128, "NCHW"),
    "swin_tiny_patch4_window7_224": (SWIN, "layers.3.blocks.*", 128, "NHWC"),
    "pvt_v2_b0": ({}, "stages.3", 256, "NCHW"),
    "vit_tiny_patch16_224": ({"img_size": 64}, "patch_embed.proj", 192, "NCHW"),
    "fastvit_t8": ({}, "stages.3.blocks.*", 384, "NCHW"),
    "edgenext_xx_small": ({}, "stages.3.blocks.*", 168, "NCHW"),
    "mambaout_femto": ({}, "stages.3.blocks.*", 288, "NHWC"),
    "dgmn2_nano": ({}, "stages.3.blocks.*.mlp", 192, "NHWC"),
}
LARGER = ("hrnet_w18_small", "resnext50_32x4d", "fastvit_t8", "efficientnet_lite0", "dgmn2_nano")
GETTER = {"features_only": True, "feature_cls": "getter", "out_indices": (-2, -1)}


def fewer(names, *few):
    """A parameter for each name; all but a few are slow."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in few)) for name in names]


def create(name, **options):
    """A network whose branches all count, as in a pretrained one: timm starts some with norms or scales of 0."""
    torch.manual_seed(0)
    network = timm.create_model(name, **{**TINY, **FAMILIES[name][0], **options}).eval()
    for parameter in network.parameters():
        if parameter.abs().max() < 1e-3:
            nn.init.uniform_(parameter, 0.2, 0.5)
    return network


def inserted(name, module="dgmn", **options):
    """A network with modules in it, and the plain one with the same weights."""
    plain = create(name)
    return dgmn.insert(copy.deepcopy(plain), FAMILIES[name][1], module, **options), plain


def check_same(name, one, other):
    if name.startswith("dgmn2"):  # without hooks its blocks add the residual in the last product
        torch.testing.assert_close(one, other)
    else:
        assert torch.equal(one, other)


IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", fewer(FAMILIES, *(name for name in FAMILIES if name not in LARGER)))
def test_every_family(name, tmp_path):
    """Unchanged at the start, all weights learn in three steps, and the plain network's weights load."""
    model, plain = inserted(name, gate=0.0, sampling_rates=(1, 2))
    _, pattern, channels, layout = FAMILIES[name]
    added = {n: m for n, m in model.named_modules() if isinstance(m, DGMN)}
    assert added
    assert {m.channels for m in added.values()} == {channels}
    names, ours = list(plain.state_dict()), about(model).added
    assert [n for n in model.state_dict() if not n.startswith(ours)] == names
    with torch.no_grad():
        start = plain(IMAGE)
        check_same(name, model(IMAGE), start)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(IMAGE), torch.tensor([0, 1])).backward()
        assert all(m.inserted_gate.grad.abs() > 0 for m in added.values())
        optimizer.step()
    still = {n for n, p in model.named_parameters() if torch.equal(p, before[n])}
    assert not {n for n in still if n.startswith(ours)}
    with torch.no_grad():
        assert not torch.equal(model(IMAGE), start)

    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    report = dgmn.load_checkpoint(model, tmp_path / "plain.pth")
    assert report.loaded == len(names)
    assert len(report.fresh) == len(model.state_dict()) - len(names)
    places = {place.name: place for place in dgmn.places(plain)}
    if pattern in places:
        assert (places[pattern].channels, places[pattern].layout) == (channels, layout)


@pytest.mark.parametrize("name", fewer(FAMILIES, "resnet10t", "convnext_tiny", "pvt_v2_b0", "vit_tiny_patch16_224"))
def test_features_of_every_family(name):
    """Maps pass through modules, and stay those of the plain network at the start."""
    plain = create(name, **GETTER)
    model = dgmn.insert(copy.deepcopy(plain), FAMILIES[name][1], gate=0.0, sampling_rates=(1, 2))
    with torch.no_grad():
        for one, other in zip(model(IMAGE), plain(IMAGE), strict=True):
            check_same(name, one, other)
        for module in model.modules():
            if isinstance(module, DGMN):
                module.inserted_gate.fill_(1.0)
        assert not torch.equal(model(IMAGE)[-1], plain(IMAGE)[-1])


def test_what_follows_finds_the_map_as_it_lay_in_memory():
    """Otherwise other kernels would round otherwise: TinyViT's blocks give maps with channels last that lie first."""
    sizes = {"depths": (1, 1, 1, 2), "embed_dims": (16, 32, 32, 64), "num_heads": (1, 1, 2, 2)}
    plain = timm.create_model("tiny_vit_5m_224", **TINY, **sizes).eval()
    model = dgmn.insert(copy.deepcopy(plain), "stages.3.blocks.*", gate=0.0)
    assert {p.layout for p in dgmn.places(plain) if p.name.startswith("stages.3.blocks.0")} == {"NHWC", "NCHW"}
    strides = []
    for network in (plain, model):
        network.stages[3].blocks[0].register_forward_hook(lambda _, __, out: strides.append(out.stride()))
    with torch.no_grad():
        assert torch.equal(model(IMAGE), plain(IMAGE))
    assert strides[0] == strides[1]


# ---------------------------------------------------------------------------------------------------------- places


def test_places_are_listed():
    found = dgmn.places(timm.create_model("resnet10t"))
    by_name = {place.name: place for place in found}
    assert (by_name["layer3.0.act1"].channels, by_name["layer3.0.act1"].stride) == (256, 16)
    assert by_name["layer4"].kind == "Sequential"
    assert "fc" not in by_name
    assert "global_pool" not in by_name
    lines = str(found).splitlines()
    assert lines[0].split() == ["place", "class", "channels", "stride", "layout"]
    assert lines[2].split() == ["conv1", "Sequential", "64", "2", "NCHW"]

    model = timm.create_model("resnet10t")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    dgmn.places(model.train())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    # What was inserted is no place, and the layers in front of it still are.
    assert len(dgmn.places(dgmn.insert(model, "layer4.0.act1"))) == len(found)


def test_layouts_are_told_apart():
    """A map of 8 x 8 positions and 8 channels says nothing by itself."""
    channels_last = nn.Sequential(nn.Conv2d(3, 8, 28, 28), _Permuted(), nn.LayerNorm(8))
    found = {place.name: place.layout for place in dgmn.places(channels_last)}
    assert found == {"0": "NCHW", "1": "NHWC", "2": "NHWC"}


class _Permuted(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


def test_torchvision():
    plain = torchvision.models.resnet18(num_classes=5).eval()
    model = dgmn.insert(copy.deepcopy(plain), ["layer3.*.conv2", "layer4"], "non_local")
    torch.testing.assert_close(model(IMAGE), plain(IMAGE))  # a map in another memory layout is rounded differently
    assert sum(name.endswith(".module") for name, _ in model.named_modules()) == 3
    with pytest.raises(InputError, match=r"'layer4\.0\.relu' names layer4\.0\.relu, .*: it runs 2 times"):
        dgmn.insert(plain, "layer4.0.relu")
    # torchvision's Swin has channels last, and places as any other.
    swin = torchvision.models.swin_t(num_classes=5)
    assert {(p.channels, p.stride, p.layout) for p in dgmn.places(swin) if p.name == "features.7.1"} == {
        (768, 32, "NHWC")
    }


def test_a_sequence_ends_with_its_last_layer():
    """Networks step through some sequences themselves, so the module stands behind the layer, not in the sequence."""
    model, plain = create("resnet10t"), create("resnet10t", **GETTER)
    dgmn.insert(model, ["layer4", "layer4.0"])
    assert [name for name, m in model.named_modules() if isinstance(m, DGMN)] == ["layer4.0.module"]
    assert len(model.layer4) == 1
    assert len(dgmn.insert(plain, "layer4")(IMAGE)) == 2


def test_collectors_of_features_see_the_module():
    """Hooks that were there before get what the module gives."""
    model = create("resnet10t")
    seen = {}
    model.layer4[0].act1.register_forward_hook(lambda module, args, output: seen.update(output=output))
    dgmn.insert(model, "layer4.*.act1", gate=1.0)
    given = {}
    model.layer4[0].act1.module.register_forward_hook(lambda module, args, output: given.update(output=output))
    model(IMAGE)
    assert torch.equal(seen["output"], given["output"])


def test_activations_in_place_behind_a_module():
    """DGMN ends with a ReLU, whose backward pass needs the output that the next ReLU would overwrite."""
    model = dgmn.insert(torchvision.models.squeezenet1_1(num_classes=5), "features.12.expand3x3")
    model(IMAGE).sum().backward()
    assert model.features[12].expand3x3.module.beta[0].grad is not None


NO_MAP = r"where no such module can stand: it gives \(1, 65, 16\), no map of 4 dimensions"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"places": "layer4.*.act9"}, r"places: 'layer4.\*.act9' names no layer of this ResNet, did you mean layer4"),
        ({"places": "layer4.0.bn1"}, "it is a BatchNorm2d, which synchronised or frozen norms replace: name a layer"),
        ({"places": "encoder"}, r"'encoder' names no layer of this ResNet; for instance .*, layer4\.0\.downsample\.1"),
        ({"places": "global_pool"}, r"global_pool, where .*: it gives \(1, 512\), no map of 4 dimensions"),
        ({"places": ["layer4.0.act1", 3]}, r"places must be the name .*got \['layer4.0.act1', 3\]"),
        ({"places": []}, r"places must be the name of a layer, or a glob, or a list of these, got \[\]"),
        ({"places": "layer4.*.act1", "module": "dgnm"}, "module: no 'dgnm'; one of none, dgmn"),
        ({"places": "layer4.*.act1", "groups": 5}, r"dgmn cannot be built for 512 .*5.*\(behind layer4\.0\.act1\)"),
        ({"places": "layer4.*.act1", "wings": 5}, "wings"),
        ({"places": "layer4.*.act1", "gate": "zero"}, "gate must be a finite number, or None for no gate, got 'zero'"),
        ({"places": "layer4.*.act1", "gate": float("nan")}, "gate must be a finite number"),
        ({"places": "layer4", "module": "non_local", "gate": 0}, "gate: non_local starts as the identity by itself"),
        ({"places": "layer4", "gate": 0, "initial_beta": 0.0}, "gate: dgmn starts as the identity by itself"),
        ({"places": "layer4.*.act1", "size": 64}, "size must be the height and width of an image, got 64"),
        ({"places": "layer4.*.act1", "size": (0, 64)}, "size must be a whole number of at least 1, got 0"),
        ({"places": "layer4.*.act1", "module": "dgmn2_attention"}, "timm's Swin .* or PVTv2, and this ResNet has none"),
    ],
)
def test_mistakes_are_named(given, message):
    model = create("resnet10t")
    names = list(model.state_dict())
    with pytest.raises(InputError, match=message):
        dgmn.insert(model, **given)
    assert list(model.state_dict()) == names, "it is unchanged"


def test_more_mistakes():
    model = create("resnet10t")
    dgmn.insert(model, "layer4.*.act1")
    with pytest.raises(InputError, match=r"places: layer4\.0\.act1 has a module behind it already"):
        dgmn.insert(model, "layer4.*.act1")
    swin = timm.create_model("swinv2_tiny_window8_256", **SWIN)
    with pytest.raises(
        InputError, match=r'this SwinTransformerV2 has none.*compares by cosines.* such as "dgmn", can st'
    ):
        dgmn.insert(swin, "layers.2.blocks.*.attn", "dgmn2_attention")
    vit = timm.create_model("vit_tiny_patch16_224", img_size=128, embed_dim=16, num_heads=2, depth=2)
    with pytest.raises(InputError, match=r"'blocks.\*' names blocks\.0, " + NO_MAP):
        dgmn.insert(vit, "blocks.*")
    with pytest.raises(InputError, match=r"does not run on 100 x 100 pixels .*; give the height and width"):
        dgmn.insert(vit, "patch_embed.proj", size=(100, 100))
    dense = create("densenet121")
    with pytest.raises(InputError, match="it is a DenseBlock, which only holds layers: name one of these"):
        dgmn.insert(dense, "features.denseblock4")
    with pytest.raises(InputError, match=r"network must be a torch\.nn\.Module, got str"):
        dgmn.insert("resnet18", "layer4")
    detector = DETECTORS["retinanet"]("resnet10t", 3)
    with pytest.raises(InputError, match="network: a RetinaNet gets modules from its builder"):
        dgmn.insert(detector, "backbone.body.layer4")


# ------------------------------------------------------------------------------------------- in an attention's place

REPLACED = {
    "swin_tiny_patch4_window7_224": ("layers.2.blocks.*.attn", 2, (4, 4), 64),
    "pvt_v2_b0": ("stages.*.blocks.0.attn", 4, (56, 56), 32),
}


@pytest.mark.parametrize("name", REPLACED)
def test_replaced_attention(name, tmp_path):
    pattern, count, size, dim = REPLACED[name]
    plain = create(name)
    model = dgmn.insert(copy.deepcopy(plain), pattern, "dgmn2_attention")
    attentions = [module for module in model.modules() if isinstance(module, DGMN2Attention)]
    assert len(attentions) == count
    table = attentions[0].rel_pos.rel_height
    assert table.shape == (size[0] + 8, dim // attentions[0].num_heads)
    (place, *_) = dgmn.places(plain, "dgmn2_attention")
    assert (place.channels, place.stride, place.layout) == (plain.feature_info[0]["num_chs"], 4, "NHWC")

    # It attends to sampled nodes of the whole map, as a block of DGMN2 does.
    block = model.get_submodule(pattern.replace("*", "0").removesuffix(".attn"))
    seen = {}
    block.norm1.register_forward_hook(lambda module, args, output: seen.update(x=output))
    block.attn.register_forward_hook(lambda module, args, output: seen.update(got=args[0], out=output))
    block.drop_path1.register_forward_hook(lambda module, args, output: seen.update(branch=output))
    out = model(IMAGE)
    assert seen["got"].ndim == 4
    assert torch.equal(seen["got"].flatten(1, 2), seen["x"].flatten(1, -2))
    assert torch.equal(seen["out"].flatten(1, 2), seen["branch"].flatten(1, -2))
    assert node_maps(model, IMAGE[:1])[0].layer.endswith(".attn")

    # All weights learn; those of the plain network load, and the rest starts anew.
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    report = dgmn.load_checkpoint(model, tmp_path / "plain.pth")
    assert {n.rpartition("attn.")[2].partition(".")[0] for n in report.fresh} == {"offset", "rel_pos"}
    left = {n.rpartition("attn.")[2].partition(".")[0] for n in report.ignored}
    assert left <= {"relative_position_bias_table", "sr", "norm"}
    with pytest.raises(InputError, match=r"is replaced already|replaces the attention of"):
        dgmn.insert(model, pattern, "dgmn2_attention")
    with pytest.raises(InputError, match="gate: dgmn2_attention takes the place of another attention and has none"):
        dgmn.insert(plain, pattern, "dgmn2_attention", gate=0.0)
    with pytest.raises(InputError, match=r"dgmn2_attention cannot be built with .*wings"):
        dgmn.insert(plain, pattern, "dgmn2_attention", wings=2)


# ------------------------------------------------------------------------------------------------ copies and compilers


@pytest.mark.parametrize("name", ["resnet10t", "convnext_tiny"])
def test_copies(name):
    model, _ = inserted(name, sampling_rates=(1, 2))
    expected = model(IMAGE)
    assert torch.equal(copy.deepcopy(model)(IMAGE), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(IMAGE), expected)
    torch.testing.assert_close(dgmn.fuse(model)(IMAGE), expected, rtol=1e-4, atol=1e-5)
    double = copy.deepcopy(model).double()
    torch.testing.assert_close(double(IMAGE.double()).float(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", fewer(["resnet10t", "convnext_tiny", "dgmn2_nano"], "resnet10t", "convnext_tiny"))
def test_torch_fx(name):
    """A layer or module may be a single node, which runs its hooks itself, or several."""
    model, _ = inserted(name, gate=0.5, sampling_rates=(1, 2))
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(IMAGE), model(IMAGE), rtol=1e-5, atol=1e-5)
    other = dgmn.insert(
        create(name), FAMILIES[name][1], "aspp", gate=0.5, sampling_rates=(1, 2), inner_channels=8
    ).eval()
    torch.testing.assert_close(torch.fx.symbolic_trace(other)(IMAGE), other(IMAGE), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet10t", "densenet121", "convnext_tiny", "swin_tiny_patch4_window7_224"])
def test_compiles(name):
    model, _ = inserted(name, gate=0.5, sampling_rates=(1, 2))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(IMAGE), model(IMAGE), rtol=1e-4, atol=1e-5)
    compiled(IMAGE).sum().backward()
    assert all(m.inserted_gate.grad is not None for m in model.modules() if isinstance(m, DGMN))


@pytest.mark.slow
@pytest.mark.parametrize("name", REPLACED)
def test_replaced_attention_compiles(name):
    model = dgmn.insert(create(name), REPLACED[name][0], "dgmn2_attention")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(IMAGE), model(IMAGE), rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------------------------- in whole networks

INSERT = {"places": "layer4.*.act1", "module": "dgmn", "gate": 0.5, "sampling_rates": [1, 2]}
SIZES = {"min_size": 64, "max_size": 96}
DETR = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
SMALL = {
    "semantic_fpn": {"pyramid_channels": 16, "channels": 16},
    "setr_naive": {"image_size": 64},
    "setr_pup": {"channels": 16},
    "setr_mla": {"channels": 16, "image_size": 64},
    "dilated_fcn": {"channels": 16},
    "retinanet": {"channels": 16, **SIZES},
    "mask_rcnn": {"channels": 16, "representation_size": 32, **SIZES},
    "deformable_detr": {"transformer_args": {**DETR, "num_queries": 10}, **SIZES},
    "sparse_rcnn": {"channels": 16, "num_proposals": 10, "num_stages": 2, **SIZES},
}


def whole(kind, insert=INSERT):
    torch.manual_seed(0)
    if kind == "classifier":
        return classifier("resnet10t", 3, {"insert": insert, "drop_rate": 0.1})
    builder = {**SEGMENTERS, **DETECTORS}[kind]
    return builder("resnet10t", 3, backbone_args={"insert": insert}, **SMALL[kind])


def outputs(network, image):
    network.eval()
    with torch.inference_mode():
        found = network([image]) if about(network).images == "list" else network(image[None])
    return found[0] if isinstance(found, list) else {"logits": found}


@pytest.mark.parametrize("kind", fewer(["classifier", *SMALL], "classifier", "mask_rcnn", "setr_naive", "dilated_fcn"))
def test_checkpoints_say_what_was_inserted(kind, tmp_path):
    network = whole(kind)
    assert sum(isinstance(module, DGMN) for module in network.modules()) == 1
    folder = dgmn.save(network, tmp_path / "shared", classes=["a", "b", "c"])
    again = dgmn.load(folder, device="cpu")
    image = torch.rand(3, 64, 96)
    expected, found = outputs(network, image), outputs(again.network, image)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_what_was_inserted_by_hand_is_saved_too(tmp_path):
    network = timm.create_model("pvt_v2_b0", num_classes=2)
    dgmn.insert(network, "stages.3.blocks.*.attn", "dgmn2_attention", rel_pos="aligned")
    dgmn.insert(network, "stages.3", "global_context", gate=0.5)
    folder = dgmn.save(network, tmp_path / "shared", image_size=64)
    again = dgmn.load(folder, device="cpu").network
    assert again.stages[3].blocks[0].attn.rel_pos.rel_pos == "aligned"
    assert torch.equal(again(IMAGE), network.eval()(IMAGE))
    assert "local-dir" not in (folder / "README.md").read_text(), "timm alone cannot build it"


@pytest.mark.parametrize(
    ("insert", "message"),
    [
        ({"module": "dgmn"}, "insert: got {'module': 'dgmn'}; accepted a dict such as"),
        ("layer4", "insert: got 'layer4'; accepted a dict such as"),
        ({"places": "layer9"}, "places: 'layer9' names no layer of this ResNet"),
        ({"places": "layer4", "network": 3}, "network"),
        ([INSERT, INSERT], "has a module behind it already"),
    ],
)
def test_mistakes_in_recipes(insert, message):
    for kind in ("classifier", "retinanet", "semantic_fpn"):
        with pytest.raises(InputError) as error:
            whole(kind, insert)
        assert message in str(error.value)


@pytest.mark.slow
def test_a_run_with_modules(few_digits, tmp_path, capsys):
    """A recipe's network is trained from the plain network's weights, says what was inserted, and predicts."""
    torch.save(timm.create_model("resnet10t", num_classes=3).state_dict(), tmp_path / "plain.pth")
    args = "{insert: {places: layer4.*.act1, module: dgmn, gate: 0, sampling_rates: [1, 2]}}"
    options = ["--model.model", "resnet10t", "--model.num_classes", "3", "--model.model_args", args]
    options += ["--model.checkpoint", str(tmp_path / "plain.pth"), "--trainer.limit_train_batches", "3"]
    folder = train("classifier", few_digits, tmp_path / "run", *options)
    assert "start anew (layer4.0.act1)" in capsys.readouterr().out
    model = dgmn.load(folder, device="cpu")
    module = model.network.layer4[0].act1.module
    assert module.inserted_gate.abs() > 0
    assert str(model.predict(next((few_digits / "val").rglob("*.png"))))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classifier", "semantic_fpn", "mask_rcnn"])
def test_export(kind, tmp_path):
    """The file is compared with PyTorch before it is kept."""
    folder = dgmn.save(whole(kind), tmp_path / "shared", classes=["a", "b", "c"])
    assert dgmn.export(
        dgmn.load(folder, device="cpu"), tmp_path / "model.onnx", size=(64, 96) if kind != "classifier" else (64, 64)
    )
    assert dgmn.load(tmp_path / "model.onnx").names == ("a", "b", "c")


def test_complexity_counts_what_was_added(capsys):
    assert run(["complexity", "resnet10t", "--size", "64", "--insert", "{places: layer4.*.act1, groups: 8}"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "inserted" in line).split()
    added = sum(p.numel() for p in DGMN(512, groups=8).parameters())
    assert row[1] == f"+{added:,}"
    # The products of a message: its predictors' convolutions (18 walks, 72 weights, 9 affinities), on a map of 2 x 2.
    assert float(row[3]) == pytest.approx(4 * 4 * (18 + 72 + 9) * 9 * 512 / 1e9, abs=0.01)
    assert run(["complexity", "resnet10t", "--insert", "layer9"]) == 2
    assert "names no layer of this ResNet" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("model", ["retinanet_dgmn2_tiny", "semantic_fpn_dgmn2_tiny"])
def test_complexity_counts_what_was_added_to_a_backbone(model, capsys):
    assert run(["complexity", model, "--size", "64", "--insert", "stages.3.blocks.*.mlp"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "inserted" in line).split()
    assert row[1] == f"+{2 * sum(p.numel() for p in DGMN(512).parameters()):,}"
