"""RetinaNet computes what the original does, from the maps to the losses."""

import pytest
import torch
from torchvision.models.detection.image_list import ImageList

import dgmn
from dgmn.detection.retinanet import retinanet
from dgmn.errors import InputError

from golden_vectors import image, match_detections


@pytest.fixture
def model(official_weights, tmp_path):
    path = tmp_path / "retinanet.pth"
    torch.save({"meta": {}, "state_dict": official_weights("e_retinanet_tiny")}, path)
    model = retinanet("dgmn2_tiny").eval()
    report = dgmn.load_checkpoint(model, path)
    assert report.ignored == ()
    assert report.loaded == len(official_weights("e_retinanet_tiny"))
    return model


def test_equals_the_original(model, golden):
    vectors = golden("e_retinanet_tiny_256x320")
    images = torch.from_numpy(image("det", (1, 3, 256, 320)))
    with torch.no_grad():
        maps = list(model.backbone(images).values())
        outputs = model.head(maps)
        (anchors,) = model.anchor_generator(ImageList(images, [(256, 320)]), maps)
    sizes = [9 * x.shape[-2] * x.shape[-1] for x in maps]
    levels = {name: list(x.split(sizes, 1)) for name, x in outputs.items()}
    for i, x in enumerate(maps):
        height, width = x.shape[-2:]
        vectors.check(f"fpn.{i}", x)
        vectors.check(f"cls.{i}", levels["cls_logits"][i].reshape(1, height, width, -1).permute(0, 3, 1, 2))
        vectors.check(f"reg.{i}", levels["bbox_regression"][i].reshape(1, height, width, -1).permute(0, 3, 1, 2))
        vectors.check(f"anchors.{i}", anchors.split(sizes)[i])

    for case, shape, scale in (("det_a", (256, 320), 1), ("det_b", (250, 310), 2)):
        (found,) = model.postprocess_detections(levels, [list(anchors.split(sizes))], [shape])
        want = tuple(vectors.raw[f"{case}.{part}"] for part in ("boxes", "scores", "labels"))
        assert len(found["boxes"]) == len(want[0]) == 100
        assert match_detections(want, (found["boxes"] * scale, found["scores"], found["labels"])) == 0

    target = {name: torch.from_numpy(vectors.raw[f"in.gt_{name}"]) for name in ("boxes", "labels")}
    matched = model.match(target["boxes"], anchors)
    assigned = matched + 1  # -1: neither, 0: background
    assert torch.equal(assigned, torch.from_numpy(vectors.raw["assigned"]).long())
    losses = model.compute_loss([target], outputs, [anchors])
    assert float(losses["classification"]) == pytest.approx(vectors.raw["loss_cls"].sum(), rel=1e-4)
    assert float(losses["bbox_regression"]) == pytest.approx(vectors.raw["loss_bbox"].sum(), rel=1e-4)


def test_the_losses_are_divided_by_the_positives_of_the_batch():
    model = retinanet("dgmn2_nano", 3, min_size=64, max_size=96).train()
    images = [torch.rand(3, 64, 96), torch.rand(3, 64, 64)]
    full = {"boxes": torch.tensor([[4.0, 4, 40, 50], [30, 10, 60, 60]]), "labels": torch.tensor([0, 2])}
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    losses = model(images, [full, empty])
    assert losses.keys() == {"classification", "bbox_regression"}
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert float(model(images, [empty, empty])["bbox_regression"].detach()) == 0


def test_anchors_beyond_the_padding_of_an_image_do_not_count():
    """The loss of a padded image is that of the anchors in its own part, to which its objects are matched anew."""
    model = retinanet("dgmn2_nano", 3, min_size=32, max_size=96).train()
    kept = []
    model.head.register_forward_hook(lambda module, args, outputs: kept.append(outputs))
    target = {"boxes": torch.tensor([[8.0, 8, 31, 31]]), "labels": torch.tensor([1])}
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    images = [torch.rand(3, 32, 96), torch.rand(3, 32, 32)]
    losses = model(images, [none, target])
    batch = ImageList(torch.empty(2, 3, 32, 96), [(32, 96), (32, 32)])
    maps = [torch.empty(1, 1, -(-32 // stride), -(-96 // stride)) for stride in (8, 16, 32, 64, 128)]
    anchors, _ = model.anchor_generator(batch, maps)
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    own = (centers < 31.5).all(1)
    assert 0 < own.sum() < len(own)
    parts = [model.compute_loss([none], {k: v[:1] for k, v in kept[0].items()}, [anchors])]
    parts.append(model.compute_loss([target], {k: v[1:, own] for k, v in kept[0].items()}, [anchors[own]]))
    positives = int((model.match(target["boxes"], anchors[own]) >= 0).sum())
    expected = float(parts[0]["classification"] + parts[1]["classification"] * positives) / positives
    assert float(losses["classification"]) == pytest.approx(expected, rel=1e-5)
    assert float(losses["bbox_regression"]) == pytest.approx(float(parts[1]["bbox_regression"]), rel=1e-5)


def test_detections_of_images_of_any_size():
    model = retinanet("dgmn2_nano", 3, min_size=64, max_size=96).eval()
    torch.nn.init.constant_(model.head.classification_head.cls_logits.bias, 1.0)  # everything is found
    with torch.no_grad():
        results = model([torch.rand(3, 50, 120), torch.rand(3, 33, 20)])
    for result, (height, width) in zip(results, ((50, 120), (33, 20)), strict=True):
        boxes = result["boxes"]
        assert 0 < len(boxes) <= 100
        assert boxes.min() >= 0
        assert boxes[:, 2].max() <= width + 1e-3
        assert boxes[:, 3].max() <= height + 1e-3
        assert set(result["labels"].tolist()) <= {0, 1, 2}


def test_autocast_keeps_boxes_and_scores_apart():
    """In bfloat16 neighbouring numbers above 128 lie a pixel apart, and scores near 0.01 are few."""
    model = retinanet("dgmn2_nano", 3, min_size=256, max_size=320, detections_per_img=300).eval()
    model.score_thresh = 0.0
    head = model.head
    torch.nn.init.zeros_(head.regression_head.bbox_reg.weight)  # boxes are the anchors
    images = [torch.rand(3, 256, 320)]
    kept = []
    head.register_forward_hook(lambda *inputs: kept.append(inputs[2]))
    with torch.no_grad():
        maps = list(model.backbone(images[0][None]).values())
        anchors = model.anchor_generator(ImageList(images[0][None], [(256, 320)]), maps)[0]
        with torch.autocast("cpu", torch.bfloat16):
            (found,) = model(images)
    assert kept[0]["bbox_regression"].dtype == torch.bfloat16
    clipped = torch.stack([anchors[:, 0::2].clamp(0, 320), anchors[:, 1::2].clamp(0, 256)], -1).flatten(1)
    nearest = torch.cdist(found["boxes"], clipped, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    assert nearest.max() < 1e-3
    assert found["scores"].dtype == torch.float32


def test_the_loss_of_confident_background_has_gradients_under_autocast():
    model = retinanet("dgmn2_nano", 3)
    logits = torch.full((1, 9, 3), -6.6, dtype=torch.bfloat16).requires_grad_()
    outputs = {"cls_logits": logits, "bbox_regression": torch.zeros(1, 9, 4, dtype=torch.bfloat16)}
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    model.compute_loss([none], outputs, [torch.rand(9, 4)])["classification"].backward()
    assert (logits.grad > 0).all()


def test_mistakes_are_named():
    with pytest.raises(InputError, match=r"num_classes must be a whole number of at least 1, got 0"):
        retinanet("dgmn2_nano", 0)
    with pytest.raises(InputError, match=r"backbone: timm knows no 'dgmn9'"):
        retinanet("dgmn9")
