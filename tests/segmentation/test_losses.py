import math

import pytest
import torch
import torch.nn.functional as F

from dgmn.errors import InputError
from dgmn.segmentation import PixelLoss


def example():
    """Four pixels, two classes. The true class has probability 0.9, 0.6 and 0.2; the last pixel has no label."""
    probability = torch.tensor([[[[0.9, 0.4, 0.8, 0.5]], [[0.1, 0.6, 0.2, 0.5]]]])
    return probability.log(), torch.tensor([[[0, 1, 1, 255]]])


def nll(*probabilities):
    return sum(-math.log(p) for p in probabilities)


def test_by_hand():
    logits, masks = example()
    for loss, expected in {
        PixelLoss(): nll(0.9, 0.6, 0.2) / 4,
        PixelLoss("labelled"): nll(0.9, 0.6, 0.2) / 3,
        PixelLoss(hard_below=0.7, hard_share=0): nll(0.6, 0.2) / 2,
        PixelLoss(hard_below=0.3, hard_share=0): nll(0.2),
        PixelLoss(hard_below=0.3, hard_share=0.5): nll(0.6, 0.2) / 2,  # at least two of the four pixels
        PixelLoss(hard_below=0.1, hard_share=1): nll(0.9, 0.6, 0.2) / 3,  # never more than the labelled pixels
    }.items():
        assert float(loss(logits, masks)) == pytest.approx(expected, rel=1e-5), loss


def test_equals_torch_where_all_is_labelled():
    logits, masks = torch.randn(2, 5, 7, 9, requires_grad=True), torch.randint(0, 5, (2, 7, 9), dtype=torch.uint8)
    for loss in (PixelLoss(), PixelLoss("labelled"), PixelLoss(hard_below=1.0)):
        torch.testing.assert_close(loss(logits, masks), F.cross_entropy(logits, masks.long()))


@pytest.mark.parametrize("loss", [PixelLoss(), PixelLoss("labelled"), PixelLoss(hard_below=0.7)])
def test_nothing_labelled(loss):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    value = loss(logits, torch.full((1, 4, 4), 255))
    assert value.item() == 0
    value.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_in_half_precision_the_loss_is_not():
    logits, masks = torch.randn(1, 3, 4, 4, dtype=torch.bfloat16), torch.randint(0, 3, (1, 4, 4))
    assert PixelLoss()(logits, masks).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average": "mean"}, r'loss.average must be "all" or "labelled", got \'mean\''),
        ({"hard_below": 0.0}, r"loss.hard_below is a probability, above 0 and at most 1, got 0.0"),
        ({"hard_share": 2}, r"loss.hard_share must be in 0..1, got 2"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InputError, match=message):
        PixelLoss(**options)
