"""Sparse R-CNN computes what the original does, from the maps to the losses of every stage."""

import re

import pytest
import torch
from torchvision.models.detection.image_list import ImageList

import dgmn
from dgmn.detection.regions import AlignedRoIs
from dgmn.detection.set_prediction import Objects, Predictions
from dgmn.detection.sparse_rcnn import ProposalRoIs, sparse_rcnn
from dgmn.errors import InputError

from conftest import GOLDEN, make_official_weights
from golden_vectors import Vectors, image, match_detections

IMAGE = (256, 320)
LOSSES = {"classification": ("ce", 2), "l1": ("bbox", 5), "giou": ("giou", 2)}  # the original's names; the weights


@pytest.fixture(scope="module")
def vectors():
    return Vectors(GOLDEN / "g_sparse_rcnn_small_256x320.npz")


def official(folder, stages):
    """The original's network with its first stages."""
    weights = make_official_weights("g_sparse_rcnn_small")
    later = re.compile(r"head\.head_series\.(\d+)\.")
    kept = {name: x for name, x in weights.items() if not (found := later.search(name)) or int(found[1]) < stages}
    torch.save({"model": kept, "iteration": 269_999}, folder / "official.pth")
    number = len(kept)
    del weights, kept  # as large as the network
    model = sparse_rcnn("dgmn2_small", num_stages=stages).eval()
    report = dgmn.load_checkpoint(model, folder / "official.pth")
    assert (report.loaded, report.ignored) == (number, ())
    assert report.origin == "official Sparse R-CNN in 'model'"
    return model


def maps_of(model):
    return model.backbone(torch.from_numpy(image("det", (1, 3, *IMAGE))))


def proposals_of(model, maps):
    proposals, losses = model.rpn(ImageList(torch.empty(1, 3, *IMAGE), [IMAGE]), maps)
    assert losses == {}
    return proposals


@torch.no_grad()
def test_maps_regions_and_first_stage(vectors, tmp_path):
    model = official(tmp_path, 1)
    maps = maps_of(model)
    proposals = proposals_of(model, maps)
    for i, x in enumerate(maps.values()):
        vectors.check(f"fpn.p{i + 2}", x)
    heads = model.roi_heads
    regions = heads.roi_pool(maps, proposals, [IMAGE])
    vectors.check("roi0", regions)
    features, logits, boxes = heads.stages[0](heads.features[None], regions, proposals[0][None])
    vectors.check("obj0", features)
    vectors.check("logits.0", logits)
    vectors.check("boxes.0", boxes)


# The whole network and its file are nearly a gigabyte.


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return official(tmp_path_factory.mktemp("sparse_rcnn"), 6)


@pytest.fixture(scope="module")
@torch.no_grad()
def outputs(model):
    """The outputs of all stages in single precision."""
    maps = maps_of(model)
    return model.roi_heads.refine(maps, proposals_of(model, maps), [IMAGE])


@pytest.mark.slow
@torch.no_grad()
def test_stages_and_detections(model, vectors, outputs):
    assert len(outputs) == 6
    for i, (logits, boxes) in enumerate(outputs):
        # Rounding errors grow from stage to stage: those of the original reach 9e-5 of the last logits.
        vectors.check(f"logits.{i}", logits, 3e-4 if i == 5 else 1e-4)
        vectors.check(f"boxes.{i}", boxes)
    found = model.roi_heads.postprocess_detections(*outputs[-1], [IMAGE])
    (found,) = model.transform.postprocess(found, [IMAGE], [(512, 640)])
    want = tuple(vectors.raw[f"det.{part}"] for part in ("boxes", "scores", "labels"))
    assert len(found["boxes"]) == len(want[0]) == 287
    assert match_detections(want, (found["boxes"], found["scores"], found["labels"])) == 0
    assert found["scores"].diff().max() <= 0


@pytest.mark.slow
@torch.no_grad()
def test_matching_and_losses(model, vectors, outputs):
    target = {name: torch.from_numpy(vectors.raw[f"in.gt_{name}"]) for name in ("boxes", "labels")}
    logits, boxes = outputs[-1]
    extent = torch.tensor([320.0, 256, 320, 256])
    objects = Objects(target["labels"], target["boxes"], target["boxes"] / extent)
    ((rows, columns),) = model.roi_heads.criterion.match(Predictions(logits, boxes, boxes / extent), [objects])
    assert rows.tolist() == vectors.raw["match.pred"].tolist()
    assert columns.tolist() == vectors.raw["match.gt"].tolist()

    of_stages = model.roi_heads.stage_losses(outputs, [IMAGE], [target])
    for i, losses in enumerate(of_stages):
        for name, (official, weight) in LOSSES.items():
            stored = vectors.raw[f"loss.loss_{official}" + ("" if i == 5 else f"_{i}")]
            assert float(losses[name]) == pytest.approx(weight * float(stored[0]), rel=1e-4), (name, i)
    losses = model.roi_heads.compute_loss(outputs, [IMAGE], [target])
    assert losses.keys() == {*LOSSES, "auxiliary"}
    assert float(sum(losses.values())) == pytest.approx(float(vectors.raw["loss.total"][0]), rel=1e-4)


@torch.no_grad()
def test_every_stage_reads_the_regions_of_the_boxes_before_it():
    model = small(num_stages=4).eval()
    heads = model.roi_heads
    maps = maps_of(model)
    proposals = proposals_of(model, maps)
    outputs = heads.refine(maps, proposals, [IMAGE])
    features, boxes = heads.features[None], proposals[0][None]
    for stage, (logits, refined) in zip(heads.stages, outputs, strict=True):
        regions = heads.roi_pool(maps, list(boxes), [IMAGE])
        features, expected, boxes = stage(features, regions, boxes)
        assert torch.equal(logits, expected)
        assert torch.equal(refined, boxes)


def test_levels():
    """Boxes of 224 pixels are on level 4; twice the side is one level more. Boxes without area use the finest."""
    sides = torch.tensor([1.0, 111, 112, 223, 224, 447, 448, 5000])
    boxes = torch.cat([torch.zeros(8, 2), sides[:, None].expand(-1, 2)], 1)
    assert ProposalRoIs.levels(boxes).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    inside_out = torch.tensor([[5.0, 5, 5, 9], [9, 0, 0, 900], [0, 0, 0, 0]])
    assert ProposalRoIs.levels(inside_out).tolist() == [0, 0, 0]


def test_regions_under_autocast():
    """Boxes stay in single precision: in bfloat16 they would move by whole pixels."""
    maps = {str(i): torch.rand(1, 8, 256 >> i, 256 >> i) for i in range(4)}
    boxes = [torch.tensor([[701.3, 803.7, 757.9, 871.1]])]
    for pool in (ProposalRoIs(), AlignedRoIs(7)):
        exact = pool(maps, boxes, [])
        halves = pool({name: x.bfloat16() for name, x in maps.items()}, boxes, [])
        assert halves.dtype == torch.bfloat16
        assert (halves - exact).abs().max() < 0.01


# ------------------------------------------------------------------------------------------------ small and by hand


def small(num_proposals=8, num_stages=2, backbone="dgmn2_nano", **options):
    options = {"min_size": 64, "max_size": 96, "channels": 32, **options}
    return sparse_rcnn(backbone, 3, num_proposals=num_proposals, num_stages=num_stages, **options)


def objects(*boxes):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.arange(len(boxes)) % 3}


def test_the_start():
    model = small()
    assert torch.equal(model.rpn.boxes, torch.tensor([0.5, 0.5, 1, 1]).expand(8, 4))
    images = ImageList(torch.empty(2, 3, 64, 96), [(64, 96), (50, 70)])
    first, second = model.rpn(images, {})[0]
    assert torch.equal(first, torch.tensor([0.0, 0, 96, 64]).expand(8, 4))
    assert torch.equal(second, torch.tensor([0.0, 0, 70, 50]).expand(8, 4))
    for stage in model.roi_heads.stages:
        assert stage.cls_logits.bias.sigmoid().tolist() == pytest.approx([0.01] * 3)


@pytest.mark.parametrize("backbone", ["dgmn2_nano", "resnet18"])
def test_training_with_and_without_objects(backbone):
    model = small(backbone=backbone).train()
    images = [torch.rand(3, 64, 96), torch.rand(3, 50, 40)]
    some, none = objects([4, 4, 40, 50], [30, 10, 60, 60]), objects()
    for targets in ([some, none], [none, none]):
        model.zero_grad()
        losses = model(images, targets)
        assert losses.keys() == {*LOSSES, "auxiliary"}
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert float(losses["l1"].detach()) == float(losses["giou"].detach()) == 0
    assert float(losses["classification"].detach()) > 0
    assert some["boxes"].tolist() == [[4, 4, 40, 50], [30, 10, 60, 60]]  # the caller's targets stay as they are


def test_more_objects_than_proposals():
    """Only as many objects count as there are proposals. The divisor counts all objects."""
    model = small(num_proposals=3).train()
    many = objects(*([x, 4, x + 20, 40] for x in range(0, 70, 10)))
    losses = model([torch.rand(3, 64, 96)], [many])
    assert all(loss.isfinite() for loss in losses.values())
    assert 0 < float(losses["giou"].detach()) <= 2 * 2 * 3 / 7
    sum(losses.values()).backward()
    assert model.rpn.boxes.grad.abs().sum() > 0


def test_learned_boxes_learn_from_the_first_stage_only():
    model = small(num_stages=3).train()
    torch.nn.init.uniform_(model.rpn.boxes, 0.3, 0.6)
    images, _ = model.transform([torch.rand(3, 64, 96)])
    for i in range(3):
        model.zero_grad(set_to_none=True)
        proposals, _ = model.rpn(images, {})
        outputs = model.roi_heads.refine(model.backbone(images.tensors), proposals, [(64, 96)])
        losses = model.roi_heads.stage_losses(outputs, [(64, 96)], [objects([4, 4, 40, 50])])[i]
        (losses["l1"] + losses["giou"]).backward()
        gradient = model.rpn.boxes.grad
        assert (gradient is not None and gradient.abs().sum() > 0) == (i == 0)
        assert model.roi_heads.features.grad.abs().sum() > 0  # the features learn from all stages


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["dgmn2_nano", "resnet18"])
def test_padding_leaves_the_largest_image_alone(backbone):
    """An image that a batch does not pad gives the same results as alone.

    A padded image does not, as in the original: the backbone sees the padding, and the tables of its position bias are
    stretched over it. Its boxes are still relative to its own size, and never leave it.
    """
    model = small(backbone=backbone, detections_per_img=20).eval()
    torch.nn.init.uniform_(model.rpn.boxes, 0.2, 0.7)
    large, wide = torch.rand(3, 64, 96), torch.rand(3, 40, 80)
    (alone,) = model([large])
    for batch in ([large, wide], [wide, large], [large, wide, torch.rand(3, 30, 50)]):
        results = model(batch)
        (found,) = (result for result, x in zip(results, batch, strict=True) if x is large)
        for name in ("boxes", "scores"):
            torch.testing.assert_close(found[name], alone[name], rtol=1e-4, atol=1e-4)
        assert found["labels"].tolist() == alone["labels"].tolist()
        for result, x in zip(results, batch, strict=True):
            height, width = x.shape[1:]
            assert (result["boxes"] <= torch.tensor([width, height, width, height]) + 1e-3).all()


@torch.no_grad()
def test_detections():
    """The best pairs of proposal and class. Boxes are clipped, in pixels of the given image; empty ones are dropped."""
    model = small(num_proposals=3).eval()
    logits = torch.tensor([[[3.0, -9, 2], [-9, 1, -9], [5, -9, -9]]])
    boxes = torch.tensor([[[-10.0, -5, 30, 80], [20, 10, 50, 40], [100, 10, 120, 40]]])
    (found,) = model.roi_heads.postprocess_detections(logits, boxes, [(64, 96)])
    # The third box is outside the image. It takes the place of the pair with logit 1 all the same.
    assert found["labels"].tolist() == [0, 2]
    assert found["boxes"].tolist() == [[0, 0, 30, 64]] * 2
    assert found["scores"].tolist() == pytest.approx(torch.tensor([3.0, 2.0]).sigmoid().tolist())
    model.roi_heads.detections_per_img = 100
    (found,) = model.roi_heads.postprocess_detections(logits, boxes, [(64, 96)])
    assert len(found["scores"]) == 6
    results = model([torch.rand(3, 50, 120), torch.rand(3, 33, 20)])
    for result, (height, width) in zip(results, ((50, 120), (33, 20)), strict=True):
        assert 0 < len(result["boxes"]) <= 9
        assert result["boxes"].min() >= 0
        assert (result["boxes"] <= torch.tensor([width, height, width, height]) + 1e-3).all()
        assert set(result["labels"].tolist()) <= {0, 1, 2}


def test_several_sizes():
    """Training takes any of the sizes, evaluation the last."""
    model = small(min_size=[32, 48, 64])
    images = [torch.rand(3, 100, 120)]
    seen = {tuple(model.train().transform(images)[0].image_sizes[0]) for _ in range(50)}
    assert seen == {(32, 38), (48, 58), (64, 77)}  # sides are rounded to nearest
    assert model.eval().transform(images)[0].image_sizes == [(64, 77)]
    one_stage = small(num_stages=1).train()
    assert one_stage(images, [objects([4, 4, 40, 50])]).keys() == set(LOSSES)


def test_other_classes(tmp_path):
    """A checkpoint with other classes fills all but the classifiers of all stages."""
    torch.save(small().state_dict(), tmp_path / "three.pth")
    other = sparse_rcnn("dgmn2_nano", 5, num_proposals=8, num_stages=2, channels=32)
    with pytest.raises(InputError, match="reset_head=True"):
        dgmn.load_checkpoint(other, tmp_path / "three.pth")
    report = dgmn.load_checkpoint(other, tmp_path / "three.pth", reset_head=True)
    assert report.loaded == len(other.state_dict()) - 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, r"num_classes must be a whole number of at least 1, got 0"),
        ({"num_proposals": 0}, r"num_proposals must be a whole number of at least 1, got 0"),
        ({"num_stages": 0}, r"num_stages must be a whole number of at least 1, got 0"),
        ({"detections_per_img": 0}, r"detections_per_img must be a whole number of at least 1, got 0"),
        ({"channels": 100}, r"channels must be a multiple of 8, the heads of the attention, got 100"),
        ({"backbone": "dgmn9"}, r"backbone: timm knows no 'dgmn9'"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InputError, match=message):
        sparse_rcnn(**{"backbone": "dgmn2_nano", **options})
