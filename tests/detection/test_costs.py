"""Parameters and multiply-adds beside Tables 7, 8 and 10 of the paper."""

import pytest
import torch

from dgmn.complexity import count
from dgmn.detection import mask_rcnn, retinanet, sparse_rcnn

# Millions of parameters and GMACs. For the large RetinaNet the paper prints 57.9 M, the original code has 58.02.
RETINANET = {"tiny": (21.8, 206.8), "small": (30.7, 248.2), "medium": (45.6, 312.0), "large": (58.02, 382.1)}
MASK_RCNN = {"tiny": (31.8, 223.0), "small": (40.6, 264.5), "medium": (55.5, 328.2), "large": (67.9, 398.4)}


@pytest.mark.parametrize("size", RETINANET)
@pytest.mark.parametrize(("build", "table"), [(retinanet, RETINANET), (mask_rcnn, MASK_RCNN)])
def test_costs_what_the_paper_says(build, table, size):
    params, gmacs = table[size]
    with torch.device("meta"):
        cost = count(build(f"dgmn2_{size}"), (800, 1280))
    assert cost.params / 1e6 == pytest.approx(params, abs=0.1)
    assert cost.original_macs / 1e9 == pytest.approx(gmacs, rel=0.02)


@pytest.mark.parametrize(("backbone", "gmacs"), [("dgmn2_small", 114.86), ("resnet50", 112.82)])
def test_sparse_rcnn_costs_what_the_paper_says(backbone, gmacs):
    """The paper does not tell the size of its image; that of 600 x 1000, padded, fits both of its rows."""
    with torch.device("meta"):
        cost = count(sparse_rcnn(backbone), (608, 1024))
    assert cost.original_macs / 1e9 == pytest.approx(gmacs, rel=1e-3)


def test_sparse_rcnn_costs_what_the_original_does():
    """By torch's counter, at 800 x 1280."""
    with torch.device("meta"):
        cost = count(sparse_rcnn("dgmn2_small"), (800, 1280))
    assert cost.params == 102_569_320  # the paper: 102.6 M
    assert cost.original_macs / 1e9 == pytest.approx(173.762, rel=1e-5)


def test_the_kernels_of_a_device_change_nothing():
    """In evaluation a CPU has its own for attention, which the counter does not know."""
    options = {"num_proposals": 4, "num_stages": 1, "channels": 16}
    with torch.device("meta"):
        meta = count(sparse_rcnn("dgmn2_nano", **options), (64, 96))
    assert count(sparse_rcnn("dgmn2_nano", **options).eval(), (64, 96)) == meta
