"""The scores are those of cityscapesscripts on the same files."""

import math

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official  # noqa: N813
from PIL import Image
from torchmetrics.classification import MulticlassConfusionMatrix

from dgmn.errors import InputError
from dgmn.segmentation import scores
from dgmn.segmentation.cityscapes import CITYSCAPES, CITYSCAPES_IDS, to_label_ids
from dgmn.segmentation.labels import read_mask


def test_equals_cityscapesscripts(tmp_path):
    random = np.random.default_rng(0)
    matrix = MulticlassConfusionMatrix(19, ignore_index=255)
    predictions, truths = [], []
    for i in range(3):
        ids = random.integers(0, 34, (40, 60), dtype=np.uint8)
        ids[ids == 16] = 7  # so that one class does not occur in the truth
        truth_path = tmp_path / f"city_{i:06d}_000019_gtFine_labelIds.png"
        Image.fromarray(ids).save(truth_path)
        truth = read_mask(truth_path, CITYSCAPES_IDS)
        # The guess copies the truth in about half of the pixels.
        guess = np.where(random.random(truth.shape) < 0.5, truth, random.integers(0, 19, truth.shape)).astype(np.uint8)
        guess[truth == 255] = random.integers(0, 18, int((truth == 255).sum()))
        prediction_path = tmp_path / f"city_{i:06d}_000019_pred.png"
        Image.fromarray(to_label_ids(guess)).save(prediction_path)
        matrix.update(torch.from_numpy(guess), torch.from_numpy(truth))
        predictions.append(str(prediction_path))
        truths.append(str(truth_path))
    official.args.evalInstLevelScore = False
    official.args.quiet = True
    official.args.JSONOutput = False
    want = official.evaluateImgLists(predictions, truths, official.args)
    got = scores(matrix.compute())
    assert got.miou == pytest.approx(want["averageScoreClasses"], abs=1e-12)
    for name, iou in zip(CITYSCAPES.names, got.iou, strict=True):
        assert iou == pytest.approx(want["classScores"][name], abs=1e-12, nan_ok=True), name


def test_by_hand():
    result = scores(torch.tensor([[3, 1, 0], [2, 4, 0], [0, 0, 0]]))
    assert result.iou[:2] == (3 / 6, 4 / 7)
    assert math.isnan(result.iou[2])
    assert result.miou == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert result.accuracy == pytest.approx(7 / 10)
    assert result.recall[:2] == (3 / 4, 4 / 6)


def test_mistakes_are_named():
    with pytest.raises(InputError, match=r"confusion must be \(classes, classes\), got \(2, 3\)"):
        scores(torch.zeros(2, 3))
