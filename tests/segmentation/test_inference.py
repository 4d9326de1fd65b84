"""Inference against mmseg's definitions, written out here in their simplest form."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dgmn.errors import InputError
from dgmn.segmentation import Inference, predict_labels, predict_probabilities
from dgmn.segmentation.inference import count_windows

CLASSES = 4


class Network:
    """Depends on a pixel's surroundings and place in the window, so overlapping windows differ."""

    def __init__(self):
        self.conv = torch.nn.Conv2d(3, CLASSES, 5, padding=2).double().requires_grad_(False)
        self.batches = []

    def __call__(self, images):
        self.batches.append(len(images))
        return self.conv(images) + torch.linspace(0, 1, images.shape[-1], dtype=images.dtype)


def slide(network, image, crop, stride):
    height, width = image.shape[-2:]
    total, count = torch.zeros(1, CLASSES, height, width).double(), torch.zeros(1, 1, height, width).double()
    for i in range(max(height - crop + stride - 1, 0) // stride + 1):
        for j in range(max(width - crop + stride - 1, 0) // stride + 1):
            bottom, right = min(i * stride + crop, height), min(j * stride + crop, width)
            here = (..., slice_(bottom, crop), slice_(right, crop))
            total[here] += network(image[here])
            count[here] += 1
    return total / count


def slice_(end, crop):
    return slice(max(end - crop, 0), end)


def expected(network, image, inference):
    height, width = image.shape[-2:]
    total = 0
    for scale in inference.scales:
        factor = min(max(int(n * scale), 1) / n for n in (height, width))  # mmseg truncates, then keeps the shape
        size = (max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5)))
        scaled = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)
        for mirrored in (False, True) if inference.flip else (False,):
            x = scaled.flip(-1) if mirrored else scaled
            logits = slide(network, x, inference.crop, inference.stride) if inference.mode == "slide" else network(x)
            logits = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=True)
            probabilities = logits.softmax(1)
            total = total + (probabilities.flip(-1) if mirrored else probabilities)
    return total[0] / (len(inference.scales) * (1 + inference.flip))


@settings(max_examples=25)
@given(
    height=st.integers(1, 50),
    width=st.integers(1, 90),
    crop=st.integers(1, 40),
    stride=st.integers(1, 40),
    tile=st.integers(5, 100),
    batch=st.integers(1, 5),
    mode=st.sampled_from(["whole", "slide"]),
    scales=st.sampled_from([(1.0,), (0.5, 1.0, 1.75), (0.75,)]),
    flip=st.booleans(),
)
def test_equals_the_definition(height, width, crop, stride, tile, batch, mode, scales, flip):
    crop, stride = max(crop, 8), max(min(stride, max(crop, 8)), 4)
    inference = Inference(mode, crop, stride, scales, flip, batch_size=batch, tile=tile)
    torch.manual_seed(0)
    network, image = Network(), torch.randn(3, height, width).double()
    got = predict_probabilities(network, image, inference)
    assert sum(network.batches) == count_windows(height, width, inference)
    if mode == "slide":
        assert max(network.batches) <= batch
    want = expected(network, image, inference)
    assert (got - want).abs().max() <= 1e-5
    labels = predict_labels(network, image, inference)
    assert labels.dtype == torch.uint8
    best = want.gather(0, labels.long()[None])[0]
    assert (best >= want.max(0).values - 1e-5).all()


def test_the_original_size_of_cityscapes():
    """The original resizes 1024 x 2048 to 1025 x 2049, and rounds at every scale as mmcv does."""
    shapes = []

    def network(images):
        shapes.append(tuple(images.shape[-2:]))
        return images.mean(1, keepdim=True).expand(-1, 2, -1, -1)

    predict_labels(network, torch.zeros(3, 1024, 2048), Inference(fit=(1025, 2049), scales=(0.5, 1.0, 1.75)))
    assert shapes == [(512, 1024), (1025, 2049), (1793, 3585)]


def test_memory_does_not_grow_with_the_image():
    """The network never gets more than two windows of 256 x 256 at a time."""
    largest = 0

    def network(images):
        nonlocal largest
        largest = max(largest, images.shape[-2] * images.shape[-1] * len(images))
        return images[:, :2]

    labels = predict_labels(network, torch.rand(3, 3000, 2000), Inference("slide", crop=256, stride=200, tile=512))
    assert labels.shape == (3000, 2000)
    assert largest <= 2 * 256 * 256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "sliding"}, r'inference.mode must be "whole" or "slide", got \'sliding\''),
        ({"crop": 100, "stride": 101}, r"inference.stride must be in 1..crop \(100\), got 101"),
        ({"scales": ()}, r"inference.scales must be one or more numbers above 0, got \[\]"),
        ({"scales": (1.0, -1.0)}, r"inference.scales must be one or more numbers above 0"),
        ({"scales": (float("nan"),)}, r"inference.scales must be one or more numbers above 0"),
        ({"batch_size": 0}, r"batch_size and tile must be at least 1, got 0 and 2048"),
        ({"fit": (0, 5)}, r"inference.fit must be a height and a width of at least 1, got \[0, 5\]"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InputError, match=message):
        Inference(**options)


def test_large_images_are_never_whole():
    sizes = set()

    def network(images):
        sizes.add(tuple(images.shape[-2:]))
        return images[:, :2]

    for height in (2048, 2049):
        predict_labels(network, torch.zeros(3, height, 2048), Inference("whole"))
    assert sizes == {(2048, 2048), (769, 769)}


def test_more_classes_than_labels_can_hold():
    with pytest.raises(InputError, match=r"at most 255 classes are accepted, got 256"):
        predict_labels(lambda x: x[:, :1].expand(-1, 256, -1, -1), torch.zeros(3, 8, 8))


def test_a_batch_is_refused():
    with pytest.raises(InputError, match=r"image: expected \(3, H, W\), got \(1, 3, 8, 8\)"):
        predict_labels(Network(), torch.zeros(1, 3, 8, 8))
