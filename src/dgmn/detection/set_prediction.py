"""Matches predictions with objects, and gives the losses that DETR's relatives are trained with.

The L1 distance compares boxes relative to the image: Deformable DETR as (cx, cy, w, h), Sparse R-CNN as
(x1, y1, x2, y2). So a box comes in two forms: `boxes` are its corners in any unit, for the overlap; `coordinates` are
what the L1 distance compares.

    criterion = SetCriterion()
    objects = [Objects(labels, boxes, coordinates) for every image]
    divisor = number_of_objects(objects)
    losses = [criterion(Predictions(logits, boxes, coordinates), objects, divisor) for every layer]
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_area, generalized_box_iou_loss, sigmoid_focal_loss

from dgmn.errors import InputError
from dgmn.ops.precision import compute_dtype
from dgmn.processes import mean_divisor

_EPSILON = 1e-9  # far below the area of a pixel relative to its image


class Predictions(NamedTuple):
    """What a layer predicts for a batch.

    Attributes:
        logits: logits of the classes, before the sigmoid, (B, N, classes).
        boxes: x1, y1, x2, y2 in the unit of the objects' `boxes`, (B, N, 4).
        coordinates: what the L1 distance compares, (B, N, 4).
    """

    logits: Tensor
    boxes: Tensor
    coordinates: Tensor


class Objects(NamedTuple):
    """The objects of an image; there may be none.

    Attributes:
        labels: classes, counted from 0, (M,), integers.
        boxes: x1, y1, x2, y2, (M, 4).
        coordinates: what the L1 distance compares, (M, 4).
    """

    labels: Tensor
    boxes: Tensor
    coordinates: Tensor


class SetCriterion:
    """Hungarian matching on the CPU, and the losses of the matched predictions.

    The cost of a pair has three terms: the focal loss as the object's class minus the focal loss as background, the L1
    distance, and the negative GIoU. The losses are the same three, with the same weights.

    Args:
        classification: weight of the focal loss.
        l1: weight of the L1 distance.
        giou: weight of the GIoU.
        alpha: the focal loss's alpha.
        gamma: the focal loss's gamma.

    Source: Deformable DETR (https://arxiv.org/abs/2010.04159) and Sparse R-CNN (https://arxiv.org/abs/2011.12450), in
        the form of their own code.
    """

    def __init__(
        self,
        classification: float = 2.0,
        l1: float = 5.0,
        giou: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        self.weights = {"classification": classification, "l1": l1, "giou": giou}
        self.alpha = alpha
        self.gamma = gamma

    @torch.no_grad()
    def cost(self, predictions: Predictions, image: int, objects: Objects) -> Tensor:
        """The cost of every prediction for every object of an image, (N, M)."""
        logits, boxes, coordinates = (_precise(x[image]) for x in predictions)
        labels = objects.labels
        probability = logits.sigmoid()
        as_object = self.alpha * (1 - probability) ** self.gamma * -F.logsigmoid(logits)
        as_background = (1 - self.alpha) * probability**self.gamma * -F.logsigmoid(-logits)
        distance = (coordinates[:, None] - _precise(objects.coordinates)).abs().sum(-1)
        overlap = pairwise_giou(boxes, _precise(objects.boxes))
        weights = self.weights
        return (
            weights["classification"] * (as_object - as_background)[:, labels]
            + weights["l1"] * distance
            - weights["giou"] * overlap
        )

    def match(self, predictions: Predictions, objects: Sequence[Objects]) -> list[tuple[Tensor, Tensor]]:
        """The pairs with the least total cost, min(N, M) in every image.

        Returns:
            For every image, the indices of predictions, rising, and of their objects; both on the predictions' device.

        Raises:
            InputError (a ValueError): scipy is not installed.
        """
        try:
            from scipy.optimize import linear_sum_assignment
        except ImportError as error:
            raise InputError("training a set of predictions needs scipy: pip install 'dgmn[detr]'") from error
        device = predictions.logits.device
        pairs = []
        for image, here in enumerate(objects):
            # If the network overflowed, the matching must not fail: a gradient scaler skips a loss that is not finite.
            cost = self.cost(predictions, image, here).cpu().nan_to_num(1e6, 1e6, -1e6)
            rows, columns = linear_sum_assignment(cost.numpy())
            pairs.append((torch.as_tensor(rows, device=device), torch.as_tensor(columns, device=device)))
        return pairs

    def __call__(
        self, predictions: Predictions, objects: Sequence[Objects], divisor: float | Tensor
    ) -> dict[str, Tensor]:
        """The weighted losses of a layer: `classification`, `l1` and `giou`, scalars in at least float32.

        Args:
            predictions: predictions of the layer.
            objects: objects of every image.
            divisor: divides the losses; see [`number_of_objects`][dgmn.detection.set_prediction.number_of_objects].

        Raises:
            InputError (a ValueError): scipy is not installed.
        """
        pairs = self.match(predictions, objects)
        logits, boxes, coordinates = (_precise(x) for x in predictions)
        image = torch.cat([torch.full_like(rows, i) for i, (rows, _) in enumerate(pairs)])
        rows = torch.cat([rows for rows, _ in pairs])
        labels, wanted_boxes, wanted_coordinates = (
            torch.cat([values[columns] for values, (_, columns) in zip(of_images, pairs, strict=True)])
            for of_images in zip(*objects, strict=True)
        )
        wanted = torch.zeros_like(logits)
        wanted[image, rows, labels] = 1.0
        matched = boxes[image, rows]
        losses = {
            "classification": sigmoid_focal_loss(logits, wanted, self.alpha, self.gamma, reduction="sum"),
            "l1": F.l1_loss(coordinates[image, rows], _precise(wanted_coordinates), reduction="sum"),
            "giou": generalized_box_iou_loss(matched, _precise(wanted_boxes), reduction="sum", eps=_EPSILON),
        }
        return {name: self.weights[name] * loss / divisor for name, loss in losses.items()}


def number_of_objects(objects: Sequence[Objects]) -> Tensor:
    """The divisor of the losses: the objects in the batch of all processes; see `dgmn.processes.mean_divisor`."""
    return mean_divisor(sum(len(here.labels) for here in objects), _precise(objects[0].boxes))


def _precise(x: Tensor) -> Tensor:
    return x.to(compute_dtype(x))


def pairwise_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of boxes (N, 4) and (M, 4), in -1..1, (N, M). A hull without area gives 0, not NaN.

    Source: equations of https://arxiv.org/abs/1902.09630.
    """
    low, high = torch.max(a[:, None, :2], b[:, :2]), torch.min(a[:, None, 2:], b[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    union = box_area(a)[:, None] + box_area(b) - shared
    low, high = torch.min(a[:, None, :2], b[:, :2]), torch.max(a[:, None, 2:], b[:, 2:])
    hull = (high - low).clamp(min=0).prod(-1)
    giou: Tensor = shared / (union + _EPSILON) - (hull - union) / (hull + _EPSILON)
    return giou
