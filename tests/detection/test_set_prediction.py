"""Matching and losses of set prediction, compared with values computed by hand."""

import math
import sys

import pytest
import torch
from torchvision.ops import generalized_box_iou

from dgmn.detection.set_prediction import Objects, Predictions, SetCriterion, number_of_objects, pairwise_giou

LN2 = math.log(2)


def predictions(logits, boxes):
    """The predictions for one image. The L1 distance compares the corners themselves."""
    boxes = torch.tensor(boxes, dtype=torch.float32)[None]
    return Predictions(torch.tensor(logits, dtype=torch.float32)[None], boxes, boxes)


def objects(labels, boxes):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Objects(torch.tensor(labels, dtype=torch.long), boxes, boxes)


def test_a_perfect_box_with_an_undecided_class():
    """At probability 1/2 the focal loss is alpha / 4 * ln 2 for the class, (1 - alpha) / 4 * ln 2 for the other."""
    found = predictions([[0.0, 0.0]], [[0.1, 0.2, 0.5, 0.6]])
    losses = SetCriterion()(found, [objects([1], [[0.1, 0.2, 0.5, 0.6]])], 1)
    assert {name: value.dtype for name, value in losses.items()} == dict.fromkeys(
        ("classification", "l1", "giou"), torch.float32
    )
    assert float(losses["classification"]) == pytest.approx(2 * (0.25 + 0.75) / 4 * LN2)
    assert float(losses["l1"]) == 0
    assert float(losses["giou"]) == pytest.approx(0, abs=1e-6)


def test_boxes_apart():
    """Two unit squares, one apart, have union 2 and hull 3: GIoU -1/3, loss 4/3. Every x differs by 2."""
    found = predictions([[0.0]], [[0, 0, 1, 1]])
    here = objects([0], [[2, 0, 3, 1]])
    losses = SetCriterion(classification=1, l1=10, giou=3)(found, [here], 2)
    assert float(losses["l1"]) == pytest.approx(10 * 4 / 2)
    assert float(losses["giou"]) == pytest.approx(3 * 4 / 3 / 2)
    assert float(losses["classification"]) == pytest.approx(0.25 / 4 * LN2 / 2)
    # The cost is the focal loss as the class minus that as background, plus the distance, minus the GIoU.
    cost = SetCriterion().cost(found, 0, here)
    assert float(cost) == pytest.approx(2 * (0.25 - 0.75) / 4 * LN2 + 5 * 4 + 2 / 3)


def test_the_pairs_have_the_least_total_cost():
    """The first prediction is nearest to the first object, but the other pairing costs less in total."""
    criterion = SetCriterion(classification=0, l1=1, giou=0)
    found = predictions([[0.0], [0.0], [0.0]], [[0, 0, 4, 4], [0.5, 0, 4, 4], [90, 90, 99, 99]])
    ((rows, columns),) = criterion.match(found, [objects([0, 0], [[0.4, 0, 4, 4], [0, 1, 4, 4]])])
    # 0-0 and 1-1: 0.4 + 1.5; 0-1 and 1-0: 1 + 0.1.
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])


def test_the_class_decides_between_equal_boxes():
    found = predictions([[5.0, -5.0], [-5.0, 5.0]], [[0, 0, 1, 1]] * 2)
    ((rows, columns),) = SetCriterion().match(found, [objects([1, 0], [[0, 0, 1, 1]] * 2)])
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])


def test_no_objects():
    """All predictions are background. The gradients are finite, and 0 for the boxes."""
    logits = torch.zeros(2, 3, 2, requires_grad=True)
    boxes = torch.rand(2, 3, 4, requires_grad=True)
    here = [objects([], [])] * 2
    divisor = number_of_objects(here)
    assert float(divisor) == 1
    losses = SetCriterion()(Predictions(logits, boxes, boxes), here, divisor)
    assert float(losses["classification"].detach()) == pytest.approx(2 * 12 * 0.75 / 4 * LN2)
    assert losses["l1"] == losses["giou"] == 0
    sum(losses.values()).backward()
    assert (logits.grad > 0).all()
    assert (boxes.grad == 0).all()


def test_more_objects_than_predictions():
    found = predictions([[0.0], [0.0]], [[0, 0, 1, 1], [5, 5, 6, 6]])
    here = objects([0] * 4, [[9, 9, 9.5, 9.5], [5, 5, 6, 6], [0, 0, 1, 1], [3, 3, 4, 4]])
    ((rows, columns),) = SetCriterion().match(found, [here])
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [2, 1])
    losses = SetCriterion()(found, [here], number_of_objects([here]))
    assert float(losses["classification"]) == pytest.approx(2 * 2 * 0.25 / 4 * LN2 / 4)
    assert float(losses["l1"]) == 0


def test_images_with_many_one_and_no_objects():
    """The losses of a batch are the sums over its images."""
    torch.manual_seed(0)
    low = torch.rand(3, 6, 2)
    boxes = torch.cat([low, low + torch.rand(3, 6, 2)], -1)
    found = Predictions(torch.randn(3, 6, 4), boxes, boxes / 2)
    counts = (3, 1, 0)
    here = [Objects(torch.randint(4, (n,)), boxes[i, :n] + 0.1, boxes[i, :n] / 3) for i, n in enumerate(counts)]
    assert float(number_of_objects(here)) == 4
    whole = SetCriterion()(found, here, 4)
    parts = [SetCriterion()(Predictions(*(x[i : i + 1] for x in found)), here[i : i + 1], 4) for i in range(3)]
    for name, value in whole.items():
        assert float(value) == pytest.approx(sum(float(part[name]) for part in parts))


def test_overlap_equals_torchvision():
    low = torch.rand(2, 5, 2)
    a, b = torch.cat([low, low + torch.rand(2, 5, 2)], -1)
    torch.testing.assert_close(pairwise_giou(a, b), generalized_box_iou(a, b), rtol=1e-5, atol=1e-6)


def test_boxes_without_area():
    point = [[0.5, 0.5, 0.5, 0.5]]
    assert pairwise_giou(torch.tensor(point), torch.tensor(point)).isfinite().all()
    boxes = torch.tensor([point], requires_grad=True)
    losses = SetCriterion()(Predictions(torch.zeros(1, 1, 1), boxes, boxes), [objects([0], point)], 1)
    sum(losses.values()).backward()
    assert boxes.grad.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_network_that_overflowed_has_no_finite_loss_but_no_error(value):
    found = predictions([[value], [0.0]], [[0, 0, 1, 1], [value] * 4])
    losses = SetCriterion()(found, [objects([0, 0], [[0, 0, 1, 1]] * 2)], 2)
    assert not sum(losses.values()).isfinite()


def test_half_precision_is_computed_in_float32():
    found = Predictions(*(x.half() for x in predictions([[0.0]], [[0, 0, 600, 600]])))
    losses = SetCriterion()(found, [objects([0], [[0, 0, 600, 600]])], 1)
    assert float(losses["giou"]) == pytest.approx(0, abs=1e-6)


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ValueError, match=r"needs scipy: pip install 'dgmn\[detr\]'"):
        SetCriterion().match(predictions([[0.0]], [[0, 0, 1, 1]]), [objects([0], [[0, 0, 1, 1]])])
