"""Scores of semantic segmentation, from one confusion matrix over the whole set."""

from dataclasses import dataclass

from torch import Tensor

from dgmn.errors import InputError


@dataclass(frozen=True)
class Scores:
    """Scores of predicted labels.

    Attributes:
        miou: mean of `iou` over the classes that occur in the labels or in the predictions.
        accuracy: share of the labelled pixels that are predicted right.
        iou: intersection over union of each class; NaN for a class that neither labels nor predictions have.
        recall: share of each class's pixels that are predicted right; NaN for a class that the labels lack.
    """

    miou: float
    accuracy: float
    iou: tuple[float, ...]
    recall: tuple[float, ...]


def scores(confusion: Tensor) -> Scores:
    """Scores from a confusion matrix, as cityscapesscripts computes them.

    Args:
        confusion: (classes, classes), the number of pixels of the row's class that were predicted as the column's.
            Pixels without a label are left out.

    Raises:
        InputError (a ValueError): `confusion` is not a square matrix.
    """
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise InputError(f"confusion must be (classes, classes), got {tuple(confusion.shape)}")
    counts = confusion.cpu().double()  # not every device has float64
    right = counts.diagonal()
    iou = right / (counts.sum(0) + counts.sum(1) - right)
    recall = right / counts.sum(1)
    accuracy = right.sum() / counts.sum()
    return Scores(float(iou.nanmean()), float(accuracy), tuple(iou.tolist()), tuple(recall.tolist()))
