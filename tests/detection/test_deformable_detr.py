"""Deformable DETR computes what the original does, from the maps to the losses."""

import copy
import socket
import sys

import pytest
import torch
from torch import nn

import dgmn
from dgmn.detection.builders import BUILDERS
from dgmn.detection.categories import CATEGORIES
from dgmn.detection.deformable_detr import deformable_detr, predicted
from dgmn.detection.set_prediction import Objects, number_of_objects
from dgmn.detection.task import DetectionTask
from dgmn.errors import InputError

from golden_vectors import image, match_detections

CASE = "f_deformable_detr_tiny"
SMALL = {
    "min_size": 64,
    "max_size": 96,
    "transformer_args": {
        "d_model": 64,
        "num_queries": 20,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
    },
}
FORMS = {
    "plain": {},
    "refine": {"box_refine": True},
    "two stages": {"box_refine": True, "two_stage": True},
}


def saved(weights, path):
    torch.save({"model": weights, "epoch": 49}, path)
    return path


def batch():
    """Two images, the second padded below and on the right, and masks of their valid pixels."""
    images, valid = torch.zeros(2, 3, 256, 320), torch.zeros(2, 256, 320, dtype=torch.bool)
    for i, (height, width) in enumerate(((256, 320), (224, 290))):
        images[i, :, :height, :width] = torch.from_numpy(image(f"detr{i}", (1, 3, height, width)))[0]
        valid[i, :height, :width] = True
    return images, valid


def golden_objects():
    rows = (
        ((1, 17, 62, 90), ((0.3, 0.4, 0.2, 0.3), (0.6, 0.5, 0.5, 0.6), (0.8, 0.2, 0.1, 0.15), (0.15, 0.75, 0.25, 0.4))),
        ((44, 3), ((0.5, 0.5, 0.9, 0.8), (0.25, 0.3, 0.12, 0.2))),
    )
    found = []
    for labels, boxes in rows:
        found.append(Objects(torch.tensor(labels), *predicted(torch.zeros(0), torch.tensor(boxes))[1:]))
    return found


def test_equals_the_original(official_weights, golden, tmp_path):
    weights, vectors = official_weights(CASE), golden(CASE)
    model = deformable_detr("dgmn2_tiny", 91).eval()
    report = dgmn.load_checkpoint(model, saved(weights, tmp_path / "detr.pth"))
    assert report.ignored == ()
    assert report.origin == "official Deformable DETR in 'model'"
    images, valid = batch()
    with torch.no_grad():
        for i, (x, mask) in enumerate(model.levels(images, valid)):
            vectors.check(f"backbone.{i}", x)
            assert torch.equal(~mask, torch.from_numpy(vectors.raw[f"mask.{i}"]).bool())
            embedding = model.transformer.position_embedding
            vectors.check(f"pos.{i}", embedding(shape=x.shape, device=x.device, dtype=x.dtype, mask=mask))
        outputs = model.predict(images, valid)
        assert outputs.proposals is None
        for i, (logits, boxes) in enumerate(outputs.layers):
            vectors.check(f"logits.{i}", logits)
            vectors.check(f"boxes.{i}", boxes)

        results = model.choose(*outputs.layers[-1], [(480, 600), (448, 580)])
        for i, found in enumerate(results):
            want = tuple(vectors.raw[f"post{i}.{part}"] for part in ("boxes", "scores", "labels"))
            assert len(found["boxes"]) == len(want[0]) == 100
            assert match_detections(want, tuple(found[part] for part in ("boxes", "scores", "labels"))) == 0

        objects = golden_objects()
        for i, layer in enumerate(outputs.layers):
            losses = model.criterion(predicted(*layer), objects, number_of_objects(objects))
            end = "" if i == 5 else f"_{i}"
            for name, theirs in {"classification": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}.items():
                want = float(vectors.raw[f"loss.{theirs}{end}"][0])
                assert float(losses[name]) / model.criterion.weights[name] == pytest.approx(want, rel=1e-4)
        losses = model.compute_loss(outputs, objects)
    assert losses.keys() == {"classification", "l1", "giou", "auxiliary"}
    assert float(sum(losses.values())) == pytest.approx(float(vectors.raw["loss.total"][0]), rel=1e-4)


def test_every_weight_of_the_official_two_stages_is_used(official_weights, tmp_path):
    """All 91 numbers can be the classes, or COCO's 80 categories; both find the same."""
    weights = official_weights(f"{CASE}_two_stage")
    path = saved(weights, tmp_path / "detr.pth")
    models = []
    for classes in (91, 80):
        model = deformable_detr("dgmn2_tiny", classes, box_refine=True, two_stage=True).eval()
        report = dgmn.load_checkpoint(model, path)
        assert report.ignored == ()
        models.append(model)
    copies = [key for key in weights if key.startswith(("transformer.decoder.class", "transformer.decoder.bbox"))]
    packed = [key for key in weights if "in_proj_" in key]
    assert report.loaded == len(weights) - len(copies) + 2 * len(packed)
    images, valid = batch()
    with torch.no_grad():
        whole, coco = (model.predict(images[..., :96, :96], valid[..., :96, :96]) for model in models)
    numbers = list(CATEGORIES)
    for ours, theirs in zip(coco.layers, whole.layers, strict=True):
        torch.testing.assert_close(ours[0], theirs[0][..., numbers])
        torch.testing.assert_close(ours[1], theirs[1])
    torch.testing.assert_close(coco.proposals[0][..., 0], whole.proposals[0][..., 0])


def test_names_that_are_not_the_originals(official_weights, tmp_path):
    weights = official_weights(CASE)
    model = deformable_detr("dgmn2_tiny", 91)
    odd = {**weights, "transformer.wings.weight": torch.zeros(1)}
    with pytest.raises(InputError, match=r"unknown key 'transformer.wings.weight'"):
        dgmn.load_checkpoint(model, saved(odd, tmp_path / "odd.pth"))
    odd = {**weights, "class_embed.3.bias": torch.zeros(91)}
    with pytest.raises(InputError, match=r"'class_embed.3.bias' and 'class_embed.0.bias' are one tensor"):
        dgmn.load_checkpoint(model, saved(odd, tmp_path / "odd.pth"))
    short = {key: value for key, value in weights.items() if key != "query_embed.weight"}
    with pytest.raises(InputError, match=r"names missing \(1\): transformer.query_position_embeddings.weight"):
        dgmn.load_checkpoint(model, saved(short, tmp_path / "odd.pth"))


@pytest.mark.parametrize("form", FORMS)
def test_a_step_of_training(form):
    """Every parameter has a gradient, also without objects; the backbone's batch norms learn."""
    model = deformable_detr("dgmn2_nano", 3, **FORMS[form], **SMALL).train()
    images = [torch.rand(3, 64, 96), torch.rand(3, 64, 64)]
    full = {"boxes": torch.tensor([[4.0, 4, 40, 50], [30, 10, 60, 60]]), "labels": torch.tensor([0, 2])}
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    names = {"classification", "l1", "giou", "auxiliary"} | ({"encoder"} if form == "two stages" else set())
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [m.running_mean.clone() for m in norms]
    assert norms
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for targets in ([full, empty], [empty, empty], [full, full]):
        losses = model(images, targets)
        assert losses.keys() == names
        loss = sum(losses.values())
        # With random heads the loss would start in the thousands.
        assert 0 < float(loss.detach()) < 100
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert all(m.weight.grad.abs().sum() > 0 for m in norms)
        if all(target is empty for target in targets):
            assert losses["l1"] == losses["giou"] == 0
        optimizer.step()
    assert all(not torch.equal(a, m.running_mean) for a, m in zip(before, norms, strict=True))
    assert all(p.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        assert all(found["scores"].isfinite().all() for found in model(images))


@pytest.mark.parametrize("form", FORMS)
def test_starts_as_the_original(form):
    """At the start every class is rare, and the boxes are those of the references."""
    model = deformable_detr("dgmn2_nano", 5, **FORMS[form], **SMALL).eval()
    with torch.no_grad():
        outputs = model.predict(torch.randn(1, 3, 64, 96))
    logits, boxes = outputs.layers[0]
    assert 0.002 < float(logits.sigmoid().mean()) < 0.05
    if form == "two stages":
        best = outputs.proposals[0][0, :, 0].topk(20).indices
        torch.testing.assert_close(boxes[0], outputs.proposals[1][0, best], rtol=0, atol=1e-4)
    else:
        torch.testing.assert_close(boxes[..., 2:], torch.tensor(-2.0).sigmoid().expand(1, 20, 2))
    heads = {"plain": 1, "refine": 2, "two stages": 3}[form]
    assert len(model.class_heads) == len(model.box_heads) == heads
    tensors = list(model.state_dict().values())
    assert len({tensor.data_ptr() for tensor in tensors if tensor.dim()}) == sum(bool(t.dim()) for t in tensors)


@pytest.mark.parametrize("form", FORMS)
def test_padding_does_not_change_an_image_without_any(form):
    model = deformable_detr("dgmn2_nano", 3, **FORMS[form], **SMALL).eval()
    nn.init.normal_(model.box_heads[0][-2].weight, std=0.1)
    images = [torch.rand(3, 64, 96), torch.rand(3, 64, 70), torch.rand(3, 50, 75)]
    with torch.no_grad():
        (alone,) = model(images[:1])
        together = model(images)[0]
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-4)
    assert model.transform(images)[0].tensors.shape[-2:] == (64, 96)


def test_what_is_in_the_padding_does_not_matter_to_the_transformer():
    """The backbone sees padding, as the original's does. Every layer after it is masked."""
    model = deformable_detr("resnet18", 3, **SMALL).eval()
    maps = [torch.randn(1, n, s, 2 * s) for n, s in ((128, 8), (256, 4), (512, 2))]
    valid = torch.zeros(1, 64, 128, dtype=torch.bool)
    valid[:, :32, :64] = True
    found = []
    for noise in (0.0, 1.0):
        noisy = [x.clone() for x in maps]
        for x in noisy[:-1]:  # the fourth level, a convolution of the last map, sees a border of it
            x[..., x.shape[-2] // 2 :, :] *= noise
            x[..., x.shape[-1] // 2 :] *= noise
        model.backbone.forward = lambda images, noisy=noisy: noisy
        for projection in model.transformer.input_proj:
            projection[1] = nn.Identity()  # its normalisation sees all positions
        with torch.no_grad():
            found.append(model.predict(torch.zeros(1, 3, 64, 128), valid).layers[-1])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_small_images_in_two_stages():
    """An image with fewer positions than queries gets only as many queries as positions."""
    model = deformable_detr("dgmn2_nano", 2, **FORMS["two stages"], **{**SMALL, "min_size": 16, "max_size": 16}).eval()
    with torch.no_grad():
        assert model.predict(torch.rand(1, 3, 16, 16)).layers[-1][0].shape == (1, 4 + 1 + 1 + 1, 2)
        assert model.predict(torch.rand(1, 3, 64, 64)).layers[-1][0].shape == (1, 20, 2)
        (found,) = model([torch.rand(3, 9, 12)])
    assert len(found["boxes"]) == 14


@pytest.mark.parametrize("backbone", ["dgmn2_nano", "resnet18", "convnext_atto", "hrnet_w18_small"])
def test_backbones_and_images_of_any_size(backbone):
    model = deformable_detr(backbone, 3, **SMALL, detections_per_img=30).eval()
    with torch.no_grad():
        results = model([torch.rand(3, 50, 121), torch.rand(3, 33, 20)])
    for result, (height, width) in zip(results, ((50, 121), (33, 20)), strict=True):
        assert len(result["boxes"]) == 30
        centers = (result["boxes"][:, :2] + result["boxes"][:, 2:]) / 2
        assert (centers >= 0).all()
        assert (centers <= torch.tensor([width, height])).all()
        assert (result["boxes"][:, 2:] > result["boxes"][:, :2]).all()
        assert (result["scores"].diff() <= 0).all()
        assert set(result["labels"].tolist()) <= {0, 1, 2}


def test_a_copy_and_a_file_find_the_same(tmp_path):
    model = deformable_detr("dgmn2_nano", 3, **FORMS["two stages"], **SMALL).eval()
    other = deformable_detr("dgmn2_nano", 3, **FORMS["two stages"], **SMALL).eval()
    torch.save({f"model.{key}": value for key, value in model.state_dict().items()}, tmp_path / "own.pth")
    assert dgmn.load_checkpoint(other, tmp_path / "own.pth").ignored == ()
    image_ = torch.rand(3, 64, 80)
    with torch.no_grad():
        (want,) = model([image_])
        for same in (other, copy.deepcopy(model)):
            torch.testing.assert_close(same([image_])[0], want)
        twin = copy.deepcopy(model)
        for parameter in model.parameters():  # the copy shares nothing with the original
            parameter.zero_()
        torch.testing.assert_close(twin([image_])[0], want)


def test_the_short_side_is_chosen_in_training():
    model = deformable_detr("dgmn2_nano", 3, **{**SMALL, "min_size": [32, 48, 64]})
    sides = {min(model.transform([torch.rand(3, 64, 80)])[0].image_sizes[0]) for _ in range(30)}
    assert sides == {32, 48, 64}
    assert min(model.eval().transform([torch.rand(3, 64, 80)])[0].image_sizes[0]) == 64


def test_the_published_form_by_name():
    builder = BUILDERS["deformable_detr_refine_two_stage"]
    with torch.device("meta"):
        assert len(builder("dgmn2_nano", 3).class_heads) == 7


def test_learning_rates(monkeypatch):
    """As in the recipe, the backbone, the sampling and the references learn slowly."""
    monkeypatch.setattr(DetectionTask, "total_steps", lambda self: 10)
    multipliers = {"backbone": 0.1, "sampling_offsets": 0.1, "reference_points": 0.1, "backbone.model.stem": 0.5}
    options = {"model_args": SMALL, "lr_batch": None, "lr_multipliers": multipliers}
    task = DetectionTask("deformable_detr", "dgmn2_nano", 3, **options)
    optimizer = task.configure_optimizers()["optimizer"]
    rates = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(task.model.parameters()))
    assert optimizer.param_groups[0]["initial_lr"] == pytest.approx(1e-4)
    for name, parameter in task.model.named_parameters():
        slow = any(part in name for part in ("backbone", "sampling_offsets", "reference_points"))
        factor = 0.5 if "backbone.model.stem" in name else 0.1 if slow else 1.0
        assert rates[id(parameter)] == pytest.approx(1e-4 * factor), name
    for key, value, message in (
        ("wings", 0.1, "'wings' is in no parameter's name; they begin with backbone.model"),
        ("backbone", -1, "'backbone' must be a finite number of at least 0, got -1"),
    ):
        task.lr_multipliers = {key: value}
        with pytest.raises(InputError, match=message):
            task.configure_optimizers()


def test_no_network_access(monkeypatch):
    def refuse(*args):
        raise AssertionError("network access")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with torch.device("meta"):
        deformable_detr("dgmn2_nano", 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be a whole number of at least 1, got 0"),
        ({"backbone": "dgmn9"}, "backbone: timm knows no 'dgmn9'"),
        ({"two_stage": True}, "two_stage needs box_refine"),
        ({"transformer_args": {"wings": 2}}, "transformer_args: no option wings; one of .*, d_model, .*num_queries"),
        ({"transformer_args": {"two_stage": True}}, "transformer_args: no option two_stage"),
        (
            {"transformer_args": {"d_model": "wide"}},
            r"transformer_args: {'d_model': 'wide'} cannot be used \(.*d_model",
        ),
        (
            {"transformer_args": {"d_model": 100}},
            "d_model must be a multiple of 32 and of the numbers of heads, got 100",
        ),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InputError, match=message):
        deformable_detr(**{"backbone": "dgmn2_nano", "num_classes": 3, **options})


def test_training_needs_targets():
    model = deformable_detr("dgmn2_nano", 3, **SMALL).train()
    with pytest.raises(InputError, match="the detector needs targets in training"):
        model([torch.rand(3, 64, 64)])


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"deformable_detr needs transformers: pip install 'dgmn\[detr\]'"):
        deformable_detr("dgmn2_nano", 3)


@pytest.mark.parametrize(
    ("options", "strides"),
    [
        ({"num_levels": 1}, [32]),
        ({"num_levels": 1, "dc5": True}, [16]),
        ({"dc5": True}, [8, 16, 16, 32]),
        ({"num_levels": 5}, [8, 16, 32, 64, 128]),
    ],
)
def test_levels(options, strides):
    """One level is the backbone's last map, with DC5 at half its stride. Every weight learns."""
    small = {"num_queries": 10, "encoder_layers": 1, "decoder_layers": 2, "d_model": 64}
    model = deformable_detr("dgmn2_nano", 3, min_size=64, max_size=96, transformer_args=small, **options).train()
    maps = model.levels(torch.rand(1, 3, 128, 128), torch.ones(1, 128, 128, dtype=torch.bool))
    assert [128 // features.shape[-1] for features, _ in maps] == strides[: len(maps)]
    assert len(model.transformer.input_proj) == len(strides)
    target = {"boxes": torch.tensor([[4.0, 4, 40, 50]]), "labels": torch.tensor([0])}
    losses = model([torch.rand(3, 64, 96), torch.rand(3, 40, 80)], [target, target])
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_two_levels_are_refused():
    with pytest.raises(InputError, match="num_levels must be 1, or at least 3, got 2"):
        deformable_detr("dgmn2_nano", num_levels=2)
