"""Mask R-CNN computes what the original does, from the maps to masks and losses."""

import hypothesis
import numpy as np
import pytest
import timm
import torch
from hypothesis import strategies as st
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import clip_boxes_to_image, nms

import dgmn
from dgmn.detection.mask_rcnn import mask_rcnn
from dgmn.detection.regions import AlignedRoIs, mask_targets, paste_masks
from dgmn.errors import InputError

from conftest import GOLDEN, make_official_weights
from golden_vectors import Vectors, image, match_detections

IMAGE = (256, 320)


@pytest.fixture(scope="module")
def vectors():
    return Vectors(GOLDEN / "e_mask_rcnn_tiny_256x320.npz")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    weights = make_official_weights("e_mask_rcnn_tiny")
    path = tmp_path_factory.mktemp("mask_rcnn") / "official.pth"
    torch.save({"meta": {}, "state_dict": weights}, path)
    number = len(weights)
    del weights  # as large as the network
    model = mask_rcnn("dgmn2_tiny").eval()
    report = dgmn.load_checkpoint(model, path)
    assert (report.loaded, report.ignored) == (number, ())
    return model


@pytest.fixture(scope="module")
def features(model):
    with torch.no_grad():
        return model.backbone(torch.from_numpy(image("det", (1, 3, *IMAGE))))


@pytest.fixture(scope="module")
def anchors(model, features):
    images = ImageList(torch.empty(1, 3, *IMAGE), [IMAGE])
    return model.rpn.anchor_generator(images, list(features.values()))


@pytest.fixture
def given(vectors):
    return lambda name: torch.from_numpy(vectors.raw[f"in.{name}"])


@pytest.fixture
def truth(given):
    """The ground truth. Masks are the ellipses inscribed in the boxes; labels start at 1, as inside the model."""
    boxes = given("gt_boxes")
    y, x = torch.meshgrid(torch.arange(IMAGE[0]) + 0.5, torch.arange(IMAGE[1]) + 0.5, indexing="ij")
    center, radius = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    distance = ((x - center[:, 0, None, None]) / radius[:, 0, None, None]) ** 2
    distance = distance + ((y - center[:, 1, None, None]) / radius[:, 1, None, None]) ** 2
    return {"boxes": boxes, "labels": given("gt_labels") + 1, "masks": (distance <= 1).to(torch.uint8)}


class TakeAll:
    """Replaces sampling: everything that is not ignored counts."""

    def __call__(self, labels):
        return [x >= 1 for x in labels], [x == 0 for x in labels]


@torch.no_grad()
def test_maps_and_proposal_network(model, vectors, features, anchors):
    maps = list(features.values())
    scores, deltas = model.rpn.head(maps)
    sizes = [3 * x.shape[-2] * x.shape[-1] for x in maps]
    for i, level in enumerate(anchors[0].split(sizes)):
        vectors.check(f"fpn.{i}", maps[i])
        vectors.check(f"rpn_cls.{i}", scores[i])
        vectors.check(f"rpn_reg.{i}", deltas[i])
        vectors.check(f"anchors.{i}", level)


@torch.no_grad()
@pytest.mark.parametrize(("case", "shape", "scale"), [("a", IMAGE, 1), ("b", (250, 310), 2)])
def test_proposals_detections_and_masks(model, vectors, features, case, shape, scale):
    proposals, _ = model.rpn(ImageList(torch.empty(1, 3, *IMAGE), [shape]), features)
    want = vectors.raw[f"proposals_{case}"]
    assert len(proposals[0]) == len(want) == 1000
    same = np.zeros(1000)
    assert match_detections((want[:, :4], same, same), (proposals[0], same, same)) == 0

    results, _ = model.roi_heads(features, proposals, [shape])
    original = (shape[0] * scale, shape[1] * scale)
    (found,) = model.transform.postprocess(results, [shape], [original])
    want = tuple(vectors.raw[f"det_{case}.{part}"] for part in ("boxes", "scores", "labels"))
    assert len(found["boxes"]) == len(want[0]) == 100
    assert match_detections(want, (found["boxes"], found["scores"], found["labels"] - 1)) == 0

    # Detections of almost equal scores may be in another order: each mask is compared by its box.
    assert found["masks"].shape == (100, 1, *original)
    distance = torch.cdist(torch.from_numpy(want[0]), found["boxes"].float(), p=torch.inf)
    distance[torch.from_numpy(want[2])[:, None] != found["labels"][None] - 1] = torch.inf
    masks = found["masks"][distance.argmin(1), 0]
    area = torch.from_numpy(vectors.raw[f"mask_{case}.area"])
    # A few pixels at the threshold fall on the other side in float32.
    assert (masks.flatten(1).sum(1) - area).abs().sum() < 1e-3 * area.sum()
    bits = np.unpackbits(vectors.raw[f"mask_{case}.bits"])[: 20 * original[0] * original[1]].reshape(20, *original)
    stored = torch.from_numpy(bits.astype(bool))
    both, either = (masks[:20] & stored).sum(), (masks[:20] | stored).sum()
    assert both / either > 0.999


@torch.no_grad()
def test_proposals_in_training(model, features, anchors, truth):
    """In training, 2000 anchors of every level enter the suppression; 1000 of all levels stay."""
    scores, deltas = model.rpn.head(list(features.values()))
    scores = [x.permute(0, 2, 3, 1).flatten().sigmoid() for x in scores]
    deltas = torch.cat([x.reshape(3, 4, -1).permute(2, 0, 1).reshape(-1, 4) for x in deltas])
    boxes = clip_boxes_to_image(model.rpn.box_coder.decode_single(deltas, anchors[0]), IMAGE)
    kept = []
    for score, here in zip(scores, boxes.split([len(x) for x in scores]), strict=True):
        best = score.topk(min(2000, len(score))).indices
        kept += [(score[i], *here[i]) for i in best[nms(here[best], score[best], 0.7)]]
    expected = torch.tensor(sorted(kept, key=lambda row: -row[0])[:1000])[:, 1:]
    model.rpn.train()
    try:
        (found,), _ = model.rpn(ImageList(torch.empty(1, 3, *IMAGE), [IMAGE]), features, [truth])
    finally:
        model.rpn.eval()
    assert len(found) == 1000
    same = np.zeros(1000)
    assert match_detections((expected, same, same), (found, same, same)) == 0


@torch.no_grad()
def test_heads(model, vectors, features, given):
    boxes = given("proposals")
    assert torch.equal(AlignedRoIs.levels(boxes), torch.from_numpy(vectors.raw["box.level"]))
    regions = model.roi_heads.box_roi_pool(features, [boxes], [IMAGE])
    vectors.check("box.roi_feat", regions)
    scores, deltas = model.roi_heads.box_predictor(model.roi_heads.box_head(regions))
    vectors.check("box.cls", scores.roll(-1, -1))  # in the vectors the background is the last class
    vectors.check("box.reg", deltas[:, 4:])
    logits = model.roi_heads.mask_logits(features, [boxes[:8]], [IMAGE])
    vectors.check("mask.logits", logits)
    vectors.check("mask.logits_of_label", logits[torch.arange(8), given("mask_labels")])


@torch.no_grad()
def test_losses(model, vectors, features, anchors, given, truth, monkeypatch):
    monkeypatch.setattr(model.rpn, "fg_bg_sampler", TakeAll())
    monkeypatch.setattr(model.roi_heads, "fg_bg_sampler", TakeAll())
    matched = model.rpn.proposal_matcher(model.rpn.box_similarity(truth["boxes"], anchors[0]))
    assert torch.equal(matched + 1, torch.from_numpy(vectors.raw["rpn_assigned"]).long())
    labels, boxes = model.rpn.assign_targets_to_anchors(anchors, [truth])
    outputs = concat_box_prediction_layers(*model.rpn.head(list(features.values())))
    scores, deltas = model.rpn.compute_loss(*outputs, labels, model.rpn.box_coder.encode(boxes, anchors))
    assert float(scores) == pytest.approx(vectors.raw["loss_rpn_cls"].sum(), rel=1e-4)
    assert float(deltas) == pytest.approx(vectors.raw["loss_rpn_bbox"].sum(), rel=1e-4)

    samples = model.roi_heads.select_training_samples([given("proposals")], [truth])
    proposals, matched, labels, targets = samples
    assigned = torch.where(labels[0] > 0, matched[0] + 1, 0)[:60]
    assert torch.equal(assigned, torch.from_numpy(vectors.raw["roi.assigned"]))
    losses = model.roi_heads.compute_loss(features, proposals, [IMAGE], [truth], matched, labels, targets)
    for name, golden in (("loss_classifier", "loss_cls"), ("loss_box_reg", "loss_bbox"), ("loss_mask", "loss_mask")):
        assert float(losses[name]) == pytest.approx(float(vectors.raw[f"roi.{golden}"][0]), rel=1e-4), name


# ------------------------------------------------------------------------------------------------ small and by hand


def small():
    return mask_rcnn("dgmn2_nano", 3, min_size=64, max_size=96)


def test_training_with_and_without_objects():
    model = small().train()
    masks = torch.zeros(2, 64, 96, dtype=torch.uint8)
    masks[0, 4:50, 4:40], masks[1, 10:60, 30:60] = 1, 1
    full = {
        "boxes": torch.tensor([[4.0, 4, 40, 50], [30, 10, 60, 60]]),
        "labels": torch.tensor([0, 2]),
        "masks": masks,
    }
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.long),
        "masks": torch.zeros(0, 64, 96, dtype=torch.uint8),
    }
    images = [torch.rand(3, 64, 96), torch.rand(3, 64, 96)]
    for targets in ([full, empty], [empty, empty]):
        model.zero_grad()
        losses = model(images, targets)
        assert losses.keys() == {
            *("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")
        }
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert float(losses["loss_mask"].detach()) == float(losses["loss_box_reg"].detach()) == 0
    assert full["labels"].tolist() == [0, 2]  # the caller's targets stay as they are


def test_autocast_keeps_the_targets_of_boxes():
    """In bfloat16, 1001.3 is 1000."""
    model = mask_rcnn("dgmn2_nano", 3, min_size=64, max_size=1056).train()
    box = torch.tensor([[1001.3, 10.2, 1030.7, 41.9]])
    masks = torch.zeros(1, 64, 1056, dtype=torch.uint8)
    masks[0, 10:42, 1001:1031] = 1
    seen = []
    choose = model.roi_heads.select_training_samples
    model.roi_heads.select_training_samples = lambda proposals, targets: (
        seen.append(choose(proposals, targets)) or seen[0]
    )
    target = {"boxes": box, "labels": torch.tensor([1]), "masks": masks}
    with torch.autocast("cpu", torch.bfloat16):
        model([torch.rand(3, 64, 1056)], [target])
    (proposals,), _, (labels,), (box_targets,) = seen[0]
    assert proposals.dtype == box_targets.dtype == torch.float32
    # The ground truth is one of the proposals, and needs no change.
    (own,) = torch.where((proposals == box).all(1))
    assert labels[own[0]] == 2
    assert box_targets[own[0]].abs().max() < 1e-6


def test_results_have_labels_from_0_and_masks_of_the_images_size():
    model = small().eval()
    torch.nn.init.constant_(model.roi_heads.box_predictor.cls_score.bias[:3], 3.0)  # everything is an object
    with torch.no_grad():
        results = model([torch.rand(3, 50, 120), torch.rand(3, 33, 20)])
    for result, size in zip(results, ((50, 120), (33, 20)), strict=True):
        assert 0 < len(result["boxes"]) <= 100
        assert set(result["labels"].tolist()) <= {0, 1, 2}
        assert result["masks"].shape == (len(result["boxes"]), 1, *size)
        assert result["masks"].dtype == torch.bool


def test_anchors_beyond_the_padding_of_an_image_do_not_count():
    """The small image of a batch is padded to the large one. Its proposals learn nothing from what lies there."""
    model = small().train()
    model.rpn.fg_bg_sampler = TakeAll()
    seen = []
    model.rpn.head.register_forward_hook(lambda module, args, outputs: seen.extend(x for x in outputs[0]))
    # The object is nearest to an anchor outside of the small image, which must not get it.
    target = {"boxes": torch.tensor([[8.0, 8, 31, 31]]), "labels": torch.tensor([1])}
    target["masks"] = torch.ones(1, 32, 32, dtype=torch.uint8)
    large = {**target, "masks": torch.ones(1, 64, 96, dtype=torch.uint8)}
    model.transform.min_size, model.transform.max_size = (32,), 96
    losses = model([torch.rand(3, 32, 96), torch.rand(3, 32, 32)], [large, target])
    gradients = torch.autograd.grad(losses["loss_objectness"], seen)
    for stride, gradient in zip((4, 8, 16, 32, 64), gradients, strict=True):
        inside = -(-32 // stride)
        assert gradient[0].abs().amax(0)[:, inside:].any() or stride == 64
        assert gradient[1].abs().amax(0)[:, :inside].any()
        assert not gradient[1].abs().amax(0)[:, inside:].any()


def test_losses_and_pixels_of_the_first_papers_code():
    """Smooth L1 with its own turning points; images with blue first and Caffe's mean."""
    model = mask_rcnn(
        "dgmn2_nano", 3, rpn_beta=1 / 9, box_beta=1.0, sampling_ratio=2, training_proposals=2000, image_format="BGR"
    )
    assert (model.rpn.training, model.rpn.post_nms_top_n(), model.rpn.pre_nms_top_n()) == (True, 2000, 2000)
    assert (model.eval().rpn.post_nms_top_n(), model.rpn.pre_nms_top_n()) == (1000, 1000)
    model.rpn.fg_bg_sampler = TakeAll()
    deltas, targets = torch.tensor([[0.05, 0.5, -1.0, 0]]), torch.zeros(1, 4)
    _, loss = model.rpn.compute_loss(torch.zeros(1, 1), deltas, [torch.ones(1)], [targets])
    assert float(loss) == pytest.approx(0.5 * 9 * 0.05**2 + (0.5 - 1 / 18) + (1 - 1 / 18))
    image = torch.tensor([1.0, 0.5, 0])[:, None, None].expand(3, 8, 8)  # red, green, blue
    blue_first = model.transform([image])[0].tensors[0, :, 0, 0]
    assert blue_first.tolist() == pytest.approx([-102.9801, 127.5 - 115.9465, 255 - 122.7717], abs=1e-3)
    assert model.roi_heads.box_roi_pool.sampling_ratio == model.roi_heads.mask_roi_pool.sampling_ratio == 2


def test_the_stride_of_caffes_bottlenecks():
    plain, caffe = (timm.create_model("dgmn_resnet50", stride_in_1x1=flag, frozen_norms=True) for flag in (False, True))
    caffe.load_state_dict(plain.state_dict())
    strides = [(block.conv1.stride, block.conv2.stride) for block in (caffe.layer2[0], caffe.layer2[1])]
    assert strides == [((2, 2), (1, 1)), ((1, 1), (1, 1))]
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        one, other = (network.eval().forward_features(image) for network in (plain, caffe))
    assert one.shape == other.shape
    assert not torch.allclose(one, other)


def test_nothing_found():
    model = small().eval()
    torch.nn.init.constant_(model.roi_heads.box_predictor.cls_score.bias[3:], 30.0)  # everything is background
    with torch.no_grad():
        (result,) = model([torch.rand(3, 40, 60)])
    assert result["boxes"].shape == (0, 4)
    assert result["masks"].shape == (0, 1, 40, 60)


def test_a_mask_that_is_all_one_fills_its_box():
    pasted = paste_masks(
        torch.ones(3, 1, 28, 28), torch.tensor([[2.0, 3, 7, 9], [0, 0, 10, 10], [4, 4, 4, 4]]), (12, 10)
    )
    expected = torch.zeros(12, 10, dtype=torch.bool)
    expected[3:9, 2:7] = True
    assert torch.equal(pasted[0, 0], expected)
    assert pasted[1, 0].sum() == 100


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    box=st.tuples(*[st.floats(-30, 60, width=32)] * 2, *[st.floats(0.5, 70, width=32)] * 2), seed=st.integers(0, 99)
)
def test_masks_are_looked_up_at_the_centres_of_all_pixels(box, seed):
    """The masks equal the definition over the whole image, also for boxes that reach out of it."""
    mask = torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(seed))
    x, y, width, height = box
    corners = torch.tensor([[x, y, x + width, y + height]])
    across, down = ((torch.arange(n) + 0.5 - at) / side * 2 - 1 for n, at, side in ((40, x, width), (50, y, height)))
    grid = torch.stack([across.expand(50, 40), down[:, None].expand(50, 40)], -1)[None]
    values = torch.nn.functional.grid_sample(mask, grid, align_corners=False)
    clear = (values - 0.5).abs() > 1e-4
    pasted = paste_masks(mask, corners, (50, 40))
    assert torch.equal(pasted[clear], (values >= 0.5)[clear])


def test_targets_of_masks():
    masks = torch.zeros(1, 20, 20, dtype=torch.uint8)
    masks[0, :, :10] = 1  # the left half
    targets = mask_targets(masks, torch.tensor([0, 0]), torch.tensor([[0.0, 0, 20, 20], [10, 0, 20, 20]]))
    assert targets[0, :, :14].all()
    assert not targets[0, :, 14:].any()
    assert targets[1, :, 1:].sum() == 0
    assert mask_targets(masks, torch.zeros(0, dtype=torch.long), torch.zeros(0, 4)).shape == (0, 28, 28)


def test_mistakes_are_named():
    with pytest.raises(InputError, match=r"num_classes must be a whole number of at least 1, got 0"):
        mask_rcnn("dgmn2_nano", 0)
    with pytest.raises(InputError, match=r"box_beta must be at least 0, got nan"):
        mask_rcnn("dgmn2_nano", box_beta=float("nan"))
    with pytest.raises(InputError, match=r'image_format must be "RGB" or "BGR", got \'bgr\''):
        mask_rcnn("dgmn2_nano", image_format="bgr")


def test_hundreds_of_objects_in_an_image():
    boxes = torch.tensor([[x * 12.0, y * 12.0, x * 12.0 + 10, y * 12.0 + 10] for x in range(20) for y in range(19)])
    masks = torch.zeros(len(boxes), 228, 240, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    image = masks.amax(0).float().expand(3, -1, -1)
    options = {"channels": 32, "representation_size": 64, "detections_per_img": 500}
    model = mask_rcnn("dgmn2_nano", 1, min_size=228, max_size=240, **options)
    target = {"boxes": boxes, "labels": torch.zeros(len(boxes), dtype=torch.long), "masks": masks}
    losses = model([image], [target])
    torch.stack(list(losses.values())).sum().backward()
    assert all(loss.isfinite() for loss in losses.values())
    model.roi_heads.score_thresh = 0.0
    (found,) = model.eval()([image])
    assert 100 < len(found["boxes"]) <= 500
    assert found["masks"].shape == (len(found["boxes"]), 1, 228, 240)
