import argparse
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18

import dgmn
from dgmn.weights import read_checkpoint

from golden_vectors import load_keys

GOLDEN = Path(__file__).parent.parent / "golden"


def create(size="tiny", **options):
    return timm.create_model(f"dgmn2_{size}", **options)


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal_weights(model, other):
    """Every tensor of `model` equals the one of the same name in a state dict."""
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other[name]), name


@pytest.fixture
def save(tmp_path):
    """`save(content)` writes a checkpoint and returns its path."""

    def write(content, name="checkpoint.pth", **options):
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return write


@pytest.fixture(scope="module")
def own():
    """The weights of a nano classifier under our names. None has its usual initial value."""
    torch.manual_seed(7)
    model = create("nano", num_classes=10)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return model.state_dict()


def nano(**options):
    return create("nano", **{"num_classes": 10, **options})


# ------------------------------------------------------------------------------------------------ official names


@pytest.mark.parametrize(
    ("case", "size", "features_only"),
    [
        ("a_cls_tiny", "tiny", False),
        ("a_cls_small", "small", False),
        ("b_det_backbone_tiny", "tiny", True),
        ("b_det_backbone_small", "small", True),
        ("b_det_backbone_medium", "medium", True),
        ("b_det_backbone_large", "large", True),
        ("c_seg_backbone_tiny", "tiny", True),
    ],
)
def test_every_official_tensor_is_loaded(save, case, size, features_only):
    shapes = load_keys(GOLDEN / f"{case}.keys.json")["keys"]
    # Tensor i holds only the number i.
    path = save({name: torch.tensor(float(i)).expand(shape) for i, (name, shape) in enumerate(shapes.items())})
    model = create(size, features_only=features_only)
    report = dgmn.load_checkpoint(model, path)
    assert report.ignored == ()
    assert report.loaded == len(shapes)
    assert report.path == path
    assert str(report) == f"loaded {len(shapes)} tensors from {path} (official network)"
    # Every tensor of the file is in exactly one place.
    for tensor in model.state_dict().values():
        assert (tensor == tensor.flatten()[0]).all()
    assert sorted(int(tensor.flatten()[0]) for tensor in model.state_dict().values()) == list(range(len(shapes)))


def test_official_names_get_to_their_places(official_weights, save):
    weights = official_weights("a_cls_tiny")
    model = create()
    dgmn.load_checkpoint(model, save(weights))
    block = model.stages[2].blocks[1]
    for official, ours in {
        "patch_embed1.conv3.weight": model.stem[2].conv.weight,
        "patch_embed1.norm2.running_var": model.stem[1].bn.running_var,
        "patch_embed3.conv.weight": model.stages[2].downsample.conv.weight,
        "patch_embed3.norm.bias": model.stages[2].downsample.bn.bias,
        "block3.1.norm1.weight": block.norm1.weight,
        "block3.1.attn.qkv.weight": block.attn.qkv.weight,
        "block3.1.attn.conv_offset.bias": block.attn.offset.bias,
        "block3.1.attn.pos_emb.rel_height": block.attn.rel_pos.rel_height,
        "block3.1.attn.pos_emb.rel_width": block.attn.rel_pos.rel_width,
        "block3.1.attn.proj.weight": block.attn.proj.weight,
        "block3.1.norm2.bias": block.norm2.bias,
        "block3.1.mlp.fc1.weight": block.mlp.fc1.weight,
        "block3.1.mlp.fc2.bias": block.mlp.fc2.bias,
        "head.bias": model.head.bias,
    }.items():
        assert torch.equal(ours, weights[official]), official


# ------------------------------------------------------------------------------------------------------- layouts

EXTRA = {"neck.conv.weight": torch.zeros(2), "bbox_head.fc.bias": torch.zeros(3), "class_embed.0.bias": torch.zeros(4)}


def prefixed(prefix, weights):
    return {prefix + name: tensor for name, tensor in weights.items()}


LAYOUTS = {
    "plain": lambda weights: weights,
    "model": lambda weights: {
        "model": weights,
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        "epoch": 299,
        "args": argparse.Namespace(lr=1e-3, data_path="/imagenet"),
    },
    "state_dict": lambda weights: {"meta": {"epoch": 12}, "state_dict": weights, "optimizer": {}},
    "module": lambda weights: {"model": prefixed("module.", weights)},
    "compiled": lambda weights: prefixed("_orig_mod.", weights),
    "module of a compiled model": lambda weights: prefixed("module._orig_mod.", weights),
}
PREFIXES = ["", "backbone.0.", "backbone.bottom_up."]


@pytest.mark.parametrize(
    ("layout", "prefix"),
    [*((layout, "backbone.") for layout in LAYOUTS), *(("state_dict", prefix) for prefix in PREFIXES), ("model", "")],
)
def test_official_layouts(official_weights, save, layout, prefix):
    weights = official_weights("b_det_backbone_tiny")
    plain = create(features_only=True)
    assert dgmn.load_checkpoint(plain, save(weights)).ignored == ()

    extra = EXTRA if prefix else {}
    model = create(features_only=True)
    report = dgmn.load_checkpoint(model, save(LAYOUTS[layout]({**extra, **prefixed(prefix, weights)})))
    assert_equal_weights(model, plain.state_dict())
    assert sorted(report.ignored) == sorted(extra)
    assert report.loaded == len(weights)
    if prefix:
        assert f"official network under {prefix!r}" in report.origin
        assert "left out 3 that this model has no place for (bbox_head, class_embed, neck)" in str(report)
    if layout in ("model", "state_dict"):
        assert report.origin.endswith(f"in {layout!r}")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix", ["", "model.", "model.model."])
def test_own_layouts(own, save, layout, prefix):
    extra = {"criterion.weight": torch.zeros(1)} if prefix else {}
    model = nano()
    report = dgmn.load_checkpoint(model, save(LAYOUTS[layout]({**prefixed(prefix, own), **extra})))
    assert_equal_weights(model, own)
    assert report.ignored == tuple(extra)


def test_safetensors(own, official_weights, tmp_path):
    for name, weights, model in (
        ("own", own, nano()),
        ("official", prefixed("backbone.", official_weights("b_det_backbone_tiny")), create(features_only=True)),
    ):
        path = tmp_path / f"{name}.safetensors"
        save_file(weights, path)
        report = dgmn.load_checkpoint(model, path)
        assert report.loaded == len(weights)
        assert report.ignored == ()
    # A string is a path too.
    model = nano()
    dgmn.load_checkpoint(model, str(tmp_path / "own.safetensors"))
    assert_equal_weights(model, own)


def test_old_file_format(own, save):
    model = nano()
    dgmn.load_checkpoint(model, save(own, _use_new_zipfile_serialization=False))
    assert_equal_weights(model, own)


# -------------------------------------------------------------------------------------------- parts of a network


def test_classifier_into_backbone(own, save):
    model = create("nano", features_only=True)
    report = dgmn.load_checkpoint(model, save(own))
    assert_equal_weights(model.model, own)
    assert set(report.ignored) == {"head.weight", "head.bias"}


def test_official_classifier_into_backbone(official_weights, save):
    weights = official_weights("a_cls_tiny")
    model = create(features_only=True)
    report = dgmn.load_checkpoint(model, save({"model": weights}))
    assert set(report.ignored) == {"head.weight", "head.bias"}
    assert report.loaded == len(weights) - 2


def test_backbone_into_backbone(own, save):
    source = create("nano", features_only=True)
    source.model.load_state_dict(own, strict=False)
    model = create("nano", features_only=True)
    report = dgmn.load_checkpoint(model, save(source.state_dict()))
    assert_equal_weights(model, source.state_dict())
    assert report.ignored == ()


def test_pruned_stages_are_left_out(own, official_weights, save):
    for weights, size in ((own, "nano"), (official_weights("b_det_backbone_tiny"), "tiny")):
        whole = create(size, features_only=True)
        model = create(size, features_only=True, out_indices=(0, 2))
        path = save(weights)
        dgmn.load_checkpoint(whole, path)
        report = dgmn.load_checkpoint(model, path)
        assert_equal_weights(model, whole.state_dict())
        # The report has our names.
        pruned = {name.removeprefix("model.") for name in whole.state_dict().keys() - model.state_dict().keys()}
        assert pruned
        assert set(report.ignored) - {"head.weight", "head.bias"} == pruned
        assert "stages" in str(report)


def test_classifier_into_model_without_head(own, save):
    model = nano(num_classes=0)
    assert set(dgmn.load_checkpoint(model, save(own)).ignored) == {"head.weight", "head.bias"}
    assert_equal_weights(model, own)


@pytest.mark.parametrize("num_classes", [3, 10])
def test_reset_head(own, save, num_classes):
    model = nano(num_classes=num_classes)
    before = snapshot(model.head)
    report = dgmn.load_checkpoint(model, save(own), reset_head=True)
    assert_equal_weights(model.head, before)
    assert_equal_weights(model.stages, {name.removeprefix("stages."): tensor for name, tensor in own.items()})
    assert set(report.ignored) == {"head.weight", "head.bias"}
    assert report.loaded == len(own) - 2


def test_reset_head_with_a_backbone_file(official_weights, save):
    model = create(num_classes=5)
    before = snapshot(model.head)
    report = dgmn.load_checkpoint(model, save(official_weights("b_det_backbone_tiny")), reset_head=True)
    assert_equal_weights(model.head, before)
    assert report.ignored == ()


# -------------------------------------------------------------------------------------------------------- errors


def assert_refused(model, path, *words, error=ValueError, **options):
    """Loading raises an error that holds the path and the words, and changes nothing."""
    before = snapshot(model)
    with pytest.raises(error) as caught:
        dgmn.load_checkpoint(model, path, **options)
    for word in (str(path), *words):
        assert word in str(caught.value)
    assert_equal_weights(model, before)


def test_missing_file(tmp_path):
    for path in (tmp_path / "nothing.pth", tmp_path / "nothing.safetensors", tmp_path):
        assert_refused(nano(), path, "no such file", error=FileNotFoundError)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_truncated_file(own, save, tmp_path, kind, share):
    if kind == "safetensors":
        path = tmp_path / "checkpoint.safetensors"
        save_file(own, path)
    else:
        path = save(own, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert_refused(nano(), path, "damaged")


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_damage_anywhere_is_told(save, tmp_path, kind):
    weights = {"stem.0.weight": torch.ones(3), "stem.1.weight": torch.zeros(2, 2)}
    if kind == "safetensors":
        path = tmp_path / "checkpoint.safetensors"
        save_file(weights, path)
    else:
        path = save({"model": weights, "epoch": 3}, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    damaged = [content[:length] for length in range(0, len(content), 5)]
    damaged += [content[:i] + bytes([byte]) + content[i + 1 :] for i in range(0, len(content), 7) for byte in (0, 132)]
    for changed in damaged:
        path.write_bytes(changed)
        # Damage that only changes a number cannot be noticed.
        assert str(path) in (error_of_reading(path) or str(path))


def error_of_reading(path):
    """The message of the error that reading a checkpoint raises; None if it can be read."""
    try:
        read_checkpoint(path)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", ["checkpoint.pth", "checkpoint.safetensors"])
@pytest.mark.parametrize(
    "content", [b"These are no weights.\n", b"<!DOCTYPE html><html>Quota exceeded</html>", b"\x80\x02"]
)
def test_file_of_something_else(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert_refused(nano(), tmp_path / name, "damaged or not a")


class Intruder:
    """Unpickling it would create a file."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
def test_code_in_a_checkpoint_is_not_executed(own, tmp_path, kind, suffix):
    path, trace = tmp_path / f"checkpoint.{suffix}", tmp_path / "trace"
    content = {"model": own, "args": argparse.Namespace(hook=Intruder(trace))}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    words = ["would execute code", "open"] if (kind, suffix) == ("zip", "pth") else []
    assert_refused(nano(), path, *words)
    assert not trace.exists()
    # A careless reader would have executed it.
    if kind == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path.rename(tmp_path / "careless.pth"), weights_only=False)
    assert trace.exists()


def test_unknown_name(own, official_weights, save):
    assert_refused(nano(), save({**own, "stages.0.blocks.0.attn.extra": torch.zeros(1)}), "unknown", "attn.extra")
    weights = official_weights("b_det_backbone_tiny")
    assert_refused(
        create(features_only=True), save({**weights, "block1.0.attn.extra.weight": torch.zeros(1)}), "attn.extra.weight"
    )
    assert_refused(
        create(features_only=True),
        save(prefixed("backbone.", {**weights, "block5.0.norm1.weight": torch.zeros(1)})),
        "block5.0.norm1.weight",
    )
    # A block that the model lacks is an error: it is not a part left out on purpose.
    block = {n.replace("blocks.1.", "blocks.2."): t for n, t in own.items() if n.startswith("stages.1.blocks.1.")}
    assert_refused(nano(), save({**own, **block}), "unknown", "stages.1.blocks.2.norm1.weight")


@pytest.mark.parametrize("name", ["stem.0.conv.weight", "stages.2.blocks.1.attn.rel_pos.rel_width", "head.bias"])
def test_missing_name(own, save, name):
    assert_refused(nano(), save({key: tensor for key, tensor in own.items() if key != name}), "names missing", name)


def test_missing_official_name(official_weights, save):
    weights = official_weights("a_cls_tiny")
    del weights["block2.0.attn.conv_offset.weight"]
    assert_refused(create(), save(weights), "names missing", "stages.1.blocks.0.attn.offset.weight")


def test_backbone_file_into_classifier(official_weights, save):
    assert_refused(create(), save(official_weights("b_det_backbone_tiny")), "names missing", "head.weight, head.bias")


def test_checkpoint_of_another_size(own, official_weights, save):
    tiny, small = official_weights("a_cls_tiny"), official_weights("a_cls_small")
    assert_refused(create(), save(small), "unknown", "stages.0.blocks.2.norm1.weight")
    assert_refused(create("small"), save(tiny), "missing", "stages.0.blocks.2.norm1.weight")
    assert_refused(create(num_classes=10), save(own), "stages.3.blocks.1.norm1.weight")
    # With equal names and other widths, the error tells the shapes.
    narrow = create("nano", num_classes=10, embed_dims=(16, 32, 64, 96), num_heads=(1, 1, 2, 3))
    path = save(own)
    assert_refused(narrow, path, "shapes differ", "stem.0.conv.weight is (16, 3, 3, 3), wanted (8, 3, 3, 3)")
    assert_refused(narrow, path, "shapes differ", reset_head=True)


def test_checkpoint_of_another_network(save):
    weights = resnet18().state_dict()
    assert_refused(nano(), save(weights), "missing", "stem.0.conv.weight", "unknown", "conv1.weight")
    assert_refused(create("nano", features_only=True), save(prefixed("backbone.", weights)), "missing")
    assert_refused(nano(), save(prefixed("module.", weights)), "missing", reset_head=True)


def test_wrong_number_of_classes(own, official_weights, save):
    assert_refused(nano(num_classes=3), save(own), "head.weight is (10, 192), wanted (3, 192)", "reset_head=True")
    weights = {"model": official_weights("a_cls_tiny")}
    assert_refused(create(num_classes=10), save(weights), "head.weight is (1000, 512)", "reset_head=True")


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"epoch": 3, "args": argparse.Namespace(lr=1)},
        {"state_dict": {}, "meta": {}},
        {"model": {"epoch": 1}},
        torch.zeros(3),
        [torch.zeros(3)],
        "weights",
    ],
    ids=["empty", "only numbers", "empty entry", "entry of numbers", "tensor", "list", "text"],
)
def test_file_without_weights(save, content):
    assert_refused(nano(), save(content), "no weights in it")


# ------------------------------------------------------------------------------------------------- through timm


def from_file(path, size="tiny", **options):
    return create(size, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **options)


@pytest.fixture
def classifier_file(official_weights, save):
    content = {"model": official_weights("a_cls_tiny"), "epoch": 299, "args": argparse.Namespace(lr=1e-3)}
    return save(content, "classifier.pth")


@pytest.fixture
def classifier(classifier_file):
    model = create()
    dgmn.load_checkpoint(model, classifier_file)
    return model.state_dict()


def test_timm_classifier(classifier_file, classifier):
    assert_equal_weights(from_file(classifier_file), classifier)


def test_timm_other_number_of_classes(classifier_file, classifier):
    model = from_file(classifier_file, num_classes=10)
    assert model.head.weight.shape == (10, 512)
    assert_equal_weights(model.stages, {name.removeprefix("stages."): t for name, t in classifier.items()})
    assert_equal_weights(from_file(classifier_file, num_classes=0), classifier)


def test_timm_grey_images(classifier_file, classifier):
    model = from_file(classifier_file, in_chans=1)
    # A grey image gives the same as three equal channels.
    torch.testing.assert_close(model.stem[0].conv.weight, classifier["stem.0.conv.weight"].sum(1, keepdim=True))
    assert_equal_weights(model.stages, {name.removeprefix("stages."): t for name, t in classifier.items()})


def test_timm_features_only(classifier_file, classifier, official_weights, save):
    assert_equal_weights(from_file(classifier_file, features_only=True).model, classifier)
    assert_equal_weights(from_file(classifier_file, features_only=True, out_indices=(1, 2)).model, classifier)
    weights = official_weights("b_det_backbone_tiny")
    path = save({"meta": {}, "state_dict": {**EXTRA, **prefixed("backbone.", weights)}}, "detector.pth")
    expected = create(features_only=True)
    dgmn.load_checkpoint(expected, path)
    assert_equal_weights(from_file(path, features_only=True), expected.state_dict())


def test_timm_own_file(own, save, tmp_path):
    path = save({"state_dict": prefixed("model.", own)})
    overlay = {"file": str(path), "num_classes": 10}
    model = timm.create_model("dgmn2_nano", pretrained=True, pretrained_cfg_overlay=overlay)
    assert_equal_weights(model, own)


def test_timm_is_strict(own, classifier_file, official_weights, save):
    with pytest.raises(ValueError, match=r"names missing"):
        from_file(classifier_file, "small", num_classes=10)
    with pytest.raises(ValueError, match=r"names missing"):
        from_file(save(resnet18().state_dict()), features_only=True)
    with pytest.raises((ValueError, RuntimeError), match=r"head\.weight"):
        from_file(save(official_weights("b_det_backbone_tiny")))
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth"):
        from_file("nothing.pth")


@pytest.mark.parametrize("options", [{}, {"num_classes": 10}, {"features_only": True}])
def test_timm_model_does_not_keep_the_checkpoint(classifier_file, options):
    model = from_file(classifier_file, **options)
    for module in model.modules():
        cfg = getattr(module, "pretrained_cfg", {})
        assert not cfg.get("state_dict")
        assert len(pickle.dumps(cfg)) < 10_000
