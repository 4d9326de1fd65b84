"""The networks equal the original on its weights, and take other backbones and shapes."""

import warnings

import numpy as np
import pytest
import timm
import torch

import dgmn
from dgmn.about import about
from dgmn.complexity import count
from dgmn.detection import retinanet
from dgmn.errors import InputError
from dgmn.segmentation import BUILDERS, PixelLoss, semantic_fpn, setr_mla, setr_naive, setr_pup
from dgmn.training.start import start_from
from dgmn.weights import ZOO, find, read_checkpoint

from golden_vectors import image
from sizes import every_size

CASES = {
    "fpn": (semantic_fpn, {}),
    "setr_naive": (setr_naive, {"image_size": 193}),
    "setr_pup": (setr_pup, {}),
    "setr_mla": (setr_mla, {"image_size": 193}),
}


@pytest.fixture
def official_file(official_weights, tmp_path):
    """Writes official weights as the original training does."""

    def write(case):
        path = tmp_path / f"{case}.pth"
        torch.save({"meta": {"CLASSES": ["road"]}, "state_dict": official_weights(f"d_seg_{case}_tiny")}, path)
        return path

    return write


@pytest.mark.parametrize("case", CASES)
def test_equals_the_original(case, official_file, official_weights, golden):
    build, options = CASES[case]
    model = build("dgmn2_tiny", 19, **options).eval()
    report = dgmn.load_checkpoint(model, official_file(case))
    assert report.ignored == ()
    assert report.loaded == len(official_weights(f"d_seg_{case}_tiny"))  # every official key is consumed
    vectors = golden(f"d_seg_{case}_tiny_193x193")
    images = torch.from_numpy(image("seg", (1, 3, 193, 193)))
    with torch.no_grad():
        logits = model(images)
        vectors.check("head", model.head(model.backbone(images)))
    vectors.check("logits", logits)
    masks = np.random.default_rng(7).integers(0, 19, (1, 1, 193, 193))
    masks[:, :, :40, :60] = 255
    vectors.check("loss_seg", PixelLoss()(logits, torch.from_numpy(masks[:, 0]))[None])


@pytest.mark.parametrize("name", every_size(row.name for row in ZOO if row.task == "segmentation"))
def test_costs_what_table_11_says(name):
    row = find(name)
    with torch.device("meta"):
        cost = count(BUILDERS[row.builder](row.backbone), (768, 768))
    assert cost.params / 1e6 == pytest.approx(row.metrics["params_m"], abs=0.02)
    assert cost.original_macs / 1e9 == pytest.approx(row.metrics["gmacs"], rel=0.02)
    assert cost.macs < cost.original_macs


@pytest.mark.parametrize("case", CASES)
def test_other_classes_leave_only_the_classifier_out(case, official_file):
    build, options = CASES[case]
    model = build("dgmn2_tiny", 5, **options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = official_file(case)
    with pytest.raises(InputError, match=r"head.classifier.weight is \(19, .*reset_head=True"):
        dgmn.load_checkpoint(model, path)
    dgmn.load_checkpoint(model, path, reset_head=True)
    kept = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    assert {"head.classifier.weight", "head.classifier.bias"} <= kept
    assert not torch.equal(
        model.state_dict()["backbone.model.stem.0.conv.weight"], before["backbone.model.stem.0.conv.weight"]
    )


def test_a_checkpoint_of_another_head_is_refused_whole(official_file):
    model = semantic_fpn("dgmn2_tiny", 19)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=r"names missing .*head.pyramid"):
        dgmn.load_checkpoint(model, official_file("setr_pup"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    report = dgmn.load_checkpoint(model.backbone, official_file("setr_pup"))
    assert report.ignored
    assert all(key.startswith("decode_head.") for key in report.ignored)


@pytest.mark.parametrize("build", [setr_naive, setr_pup, setr_mla])
def test_upsampling(build):
    """The two forms agree on squares of the training size; elsewhere "official" makes a square and stretches it."""
    options = {"image_size": 64} if build is not setr_pup else {}
    official = build("dgmn2_nano", 4, **options).eval()
    undistorted = build("dgmn2_nano", 4, upsampling="undistorted").eval()
    torch.nn.init.normal_(official.head.classifier.weight)
    undistorted.load_state_dict(official.state_dict())
    square, wide = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 96)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(official(square), undistorted(square))
        undistorted(wide)
        with pytest.raises(UserWarning, match='"undistorted" keeps the shape'):
            official(wide)
        warnings.simplefilter("ignore")
        assert official(wide).shape == undistorted(wide).shape == (1, 4, 64, 96)
        assert (official(wide) - undistorted(wide)).abs().max() > 1e-3
        head = official.head(official.backbone(wide))
        assert head.shape[-2] == head.shape[-1]
        head = undistorted.head(undistorted.backbone(wide))
        assert head.shape[-1] * 64 == head.shape[-2] * 96


@pytest.mark.parametrize("backbone", ["resnet18", "pvt_v2_b0", "convnext_atto", "vit_tiny_patch16_224"])
def test_any_backbone(backbone):
    model = semantic_fpn(backbone, 7, channels=16, pyramid_channels=16)
    out = model(torch.randn(2, 3, 64, 96))
    assert out.shape == (2, 7, 64, 96)
    out.mean().backward()
    assert all(p.grad is not None for p in model.head.parameters())


def test_a_backbone_with_channels_last_maps():
    model = semantic_fpn(
        "swin_tiny_patch4_window7_224", 3, channels=8, pyramid_channels=8, backbone_args={"img_size": 64}
    )
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def test_fixed_sizes_are_told():
    name = "swin_tiny_patch4_window7_224"
    with pytest.raises(InputError, match=f"backbone {name}: takes images of its own size only; give it another"):
        semantic_fpn(name)


@pytest.mark.parametrize("build", [setr_naive, setr_pup, setr_mla])
@pytest.mark.parametrize(
    "backbone",
    [
        "vit_tiny_patch16_224",
        "deit_tiny_patch16_224",
        pytest.param("vit_small_patch16_dinov3", marks=pytest.mark.slow),
    ],
)
def test_setr_on_a_plain_transformer(build, backbone):
    """Images of any size; every weight learns. The strides are those that the heads ask for."""
    model = build(backbone, 5, upsampling="undistorted")
    assert model.backbone.feature_info.reduction() == ([4, 8, 8, 8] if build is setr_mla else [8])
    for height, width in ((65, 97), (64, 64)):
        out = model(torch.randn(2, 3, height, width))
        assert out.shape == (2, 5, height, width)
    out.mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    sixteen = build(backbone, 5, output_stride=16)
    assert sixteen.backbone.feature_info.reduction()[-1] == 16


def test_weights_of_a_plain_transformer_fill_the_backbone(tmp_path, capsys):
    name = "vit_tiny_patch16_224"
    classifier = timm.create_model(name)
    torch.save(classifier.state_dict(), tmp_path / "vit.pth")
    model = setr_mla(name, 5)
    assert start_from(model, read_checkpoint(tmp_path / "vit.pth")) is False
    assert "backbone: loaded 150 tensors" in capsys.readouterr().out
    # The map is the features of the classifier, after its last norm.
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        (plain,) = model.eval().backbone.body(image)
        torch.testing.assert_close(plain.flatten(2).mT, classifier.eval().forward_features(image)[:, 1:])


def test_a_plain_transformer_of_other_patches():
    """Segmenters resize their output anyway. Detectors need the strides that their anchors have."""
    model = semantic_fpn("eva02_tiny_patch14_224", 3, channels=8, pyramid_channels=8)
    assert model.backbone.feature_info.reduction() == [3.5, 7, 14, 28]
    assert model(torch.rand(1, 3, 60, 90)).shape == (1, 3, 60, 90)
    with pytest.raises(InputError, match="a plain network of stride 14 gives no maps of the strides"):
        retinanet("eva02_tiny_patch14_224")


def test_detectors_use_every_level_of_a_plain_transformer():
    """A weight without a gradient would stop a training on several devices."""
    target = {"boxes": torch.tensor([[4.0, 4, 40, 50]]), "labels": torch.tensor([0])}
    model = retinanet("vit_tiny_patch16_224", 3, min_size=64, max_size=96, channels=32).train()
    sum(model([torch.rand(3, 64, 96)], [target]).values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["dgmn2_nano", "resnet18", "convnext_atto", "pvt_v2_b0"])
def test_a_classifier_fills_the_backbone(name, tmp_path, capsys):
    classifier = timm.create_model(name, num_classes=10)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    model = semantic_fpn(name, 5, channels=8, pyramid_channels=8)
    assert start_from(model, read_checkpoint(tmp_path / "classifier.pth")) is False
    assert "backbone: loaded" in capsys.readouterr().out
    source = classifier.state_dict()
    filled = {key.removeprefix("model."): tensor for key, tensor in model.backbone.state_dict().items()}
    assert filled
    assert all(torch.equal(tensor, source[key]) for key, tensor in filled.items())


def test_a_classifier_of_another_size_is_told(tmp_path):
    torch.save(timm.create_model("dgmn2_nano").state_dict(), tmp_path / "nano.pth")
    with pytest.raises(InputError, match=r"shapes differ|names missing") as problem:
        start_from(semantic_fpn("dgmn2_tiny", 5), read_checkpoint(tmp_path / "nano.pth"))
    assert "Segmenter" not in str(problem.value)


def test_output_stride():
    maps = setr_naive("dgmn2_nano").backbone(torch.randn(1, 3, 64, 64))
    assert [x.shape[-1] for x in maps] == [16, 8, 8, 8]
    resnet = setr_mla("resnet18", 3).backbone(torch.randn(1, 3, 64, 64))
    assert [x.shape[-1] for x in resnet] == [16, 8, 8, 8]


def test_backbone_arguments_and_weight_decay():
    model = semantic_fpn("dgmn2_nano", 3, backbone_args={"drop_path_rate": 0.2})
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.2)
    assert about(model).undecayed == ()
    # timm exempts weights of the backbone from decay; the whole network exempts the same ones.
    swin = semantic_fpn("swin_tiny_patch4_window7_224", 3, backbone_args={"img_size": 64})
    undecayed = about(swin).undecayed
    assert len(undecayed) == 12
    assert set(undecayed) == {name for name, _ in swin.named_parameters() if name.endswith("position_bias_table")}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: semantic_fpn("dgmn3"), r"backbone: timm knows no 'dgmn3'; for instance dgmn2_"),
        (lambda: semantic_fpn("dgmn2_nano", 1), r"num_classes must be a whole number in 2..255, .* got 1"),
        (lambda: semantic_fpn("dgmn2_nano", 256), r"num_classes must be a whole number in 2..255, .* got 256"),
        (lambda: setr_pup("pvt_v2_b0"), r"backbone pvt_v2_b0: gives no four maps with .*output_stride.*"),
        (lambda: setr_mla("dgmn2_nano", upsampling="square"), r'upsampling must be "official" or "undistorted", got'),
        (lambda: semantic_fpn("dgmn2_nano", backbone_args={"wings": 2}), r"backbone dgmn2_nano: .*wings"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.slow
def test_compiles_and_exports():
    model = semantic_fpn("dgmn2_nano", 3, channels=16, pyramid_channels=16).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(images), expected)
        torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), expected)
        torch.testing.assert_close(dgmn.fuse(model)(images), expected, rtol=1e-3, atol=1e-4)
