"""Images get the sizes that mmdet and detectron2 give them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from dgmn.detection import deformable_detr, mask_rcnn, retinanet, sparse_rcnn
from dgmn.detection.resizing import Resize, averaged, resized_sides
from dgmn.errors import InputError

DETECTORS = [retinanet, mask_rcnn, sparse_rcnn, deformable_detr]


@pytest.mark.parametrize("build", DETECTORS)
@pytest.mark.parametrize(
    ("before", "after"),
    [((480, 640), (800, 1067)), ((640, 480), (1067, 800)), ((360, 640), (750, 1333)), ((427, 640), (800, 1199))],
)
def test_sides_are_rounded_to_nearest(build, before, after):
    with torch.device("meta"):
        transform = build("dgmn2_nano").transform
    for training in (False, True):
        target = {"boxes": torch.tensor([[10.0, 20, 40, 80]]), "labels": torch.tensor([0])}
        images, (resized,) = transform.train(training)([torch.rand(3, *before)], [target])
        assert images.image_sizes == [after]
        scale = torch.tensor([after[1] / before[1], after[0] / before[0]]).repeat(2)
        torch.testing.assert_close(resized["boxes"], target["boxes"] * scale)
        step = transform.size_divisible
        assert resized["padded_size"].tolist() == [math.ceil(side / step) * step for side in after]


@settings(max_examples=300)
@given(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), st.integers(1, 900), st.integers(1, 1500))
def test_any_image_fits(size, short, longest):
    sides = resized_sides(size, short, longest)
    assert min(sides) >= 1
    assert max(sides) <= longest
    assert min(sides) <= short
    # No side is off by more than a rounding, and one of the two limits is reached.
    scale = min(short / min(size), longest / max(size))
    assert all(abs(side - max(1, scale * given)) <= 0.5 + 1e-6 for side, given in zip(sides, size, strict=True))
    assert min(sides) == short or max(sides) == longest


@pytest.mark.parametrize("build", DETECTORS)
def test_thin_images_are_found_in(build):
    """A side of less than a pixel becomes one pixel."""
    model = build("dgmn2_nano", 3, min_size=64, max_size=96).eval()
    with torch.no_grad():
        (found,) = model([torch.rand(3, 1, 3000)])
    assert found["boxes"].isfinite().all()


def test_the_sets_of_boxes_are_found_in_averaged_pixels():
    """Deformable DETR and Sparse R-CNN resize as Pillow does, the others as OpenCV does."""
    pixels = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8)
    pillow = TF.pil_to_tensor(TF.to_pil_image(pixels).resize((133, 100), Image.Resampling.BILINEAR)).float()
    plain = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    averaged, sampled = (Resize(100, 200, **plain, antialias=flag).eval().resize(pixels / 255)[0] for flag in (1, 0))
    assert (averaged * 255 - pillow).abs().max() < 1.1
    assert (sampled * 255 - pillow).abs().max() > 20
    with torch.device("meta"):
        assert [build("dgmn2_nano").transform.antialias for build in DETECTORS] == [False, False, True, True]


@pytest.mark.parametrize(
    "build",
    [pytest.param(build, marks=[pytest.mark.slow] * (build in (deformable_detr, mask_rcnn))) for build in DETECTORS],
)
def test_training_under_autocast(build):
    target = {"boxes": torch.tensor([[8.0, 8, 40, 50]]), "labels": torch.tensor([1])}
    target["masks"] = torch.ones(1, 64, 96, dtype=torch.uint8)
    small = {} if build is deformable_detr else {"channels": 32}
    model = build("dgmn2_nano", 3, min_size=64, max_size=96, **small).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model([torch.rand(3, 64, 96)] * 2, [target] * 2)
    sum(losses.values()).backward()
    assert all(bool(loss.isfinite()) for loss in losses.values())


@torch.no_grad()
@pytest.mark.parametrize("build", [retinanet, mask_rcnn])
def test_scores_that_are_nan_are_refused(build):
    """Thresholds would drop them, and the image would look empty."""
    model = build("dgmn2_nano", 3, min_size=64, max_size=96).eval()
    model([torch.rand(3, 64, 96)])
    next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)).running_var[0] = torch.nan
    with pytest.raises(InputError, match="scores that are not finite"):
        model([torch.rand(3, 64, 96)])


@pytest.mark.parametrize(
    ("before", "after"), [((96, 144), (64, 96)), ((5, 7), (9, 7)), ((33, 1), (10, 3)), ((8, 8), (8, 8))]
)
def test_the_exported_form_of_resizing(before, after):
    image = torch.rand(3, *before)
    want = torch.nn.functional.interpolate(image[None], after, mode="bilinear", align_corners=False, antialias=True)[0]
    torch.testing.assert_close(averaged(image, after), want, rtol=1e-5, atol=1e-6)
