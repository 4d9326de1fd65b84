"""An exported detector finds what its checkpoint finds: the same average precision, by COCO's own code."""

import contextlib
import io
import json

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import dgmn
from dgmn.exporting import export
from dgmn.onnx_network import OnnxNetwork
from dgmn.quickstart.detection import write

from small_runs import train

STEPS = {"retinanet": 300, "mask_rcnn": 250}


def average_precisions(model, scenes):
    """AP of the boxes and, if there are any, the masks in the test scenes."""
    file = scenes / "annotations" / "instances_test.json"
    results = []
    for image in json.loads(file.read_text())["images"]:
        results += model.predict(scenes / "test" / image["file_name"], score=0.0).to_coco(image["id"])
    found = []
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        for kind in ("bbox", "segm") if "segmentation" in results[0] else ("bbox",):
            evaluation = COCOeval(truth, truth.loadRes([dict(row) for row in results]), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            found.append(float(evaluation.stats[0]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["retinanet", "mask_rcnn"])
def test_average_precision(kind, tmp_path):
    scenes = tmp_path / "scenes"
    write(scenes, {"train": 200, "val": 4, "test": 20})
    learn = [f"--data.epoch_steps={STEPS[kind]}", "--model.model_args.min_size=96", "--model.model_args.max_size=144"]
    model = dgmn.load(train(kind, scenes, tmp_path / "run", *learn), device="cpu")
    file = export(model, tmp_path / "model.onnx", size=(96, 144)).path
    again = dgmn.load(file)
    assert isinstance(again.network, OnnxNetwork)
    expected = average_precisions(model, scenes)
    assert min(expected) > 0.02  # it has learned something
    assert average_precisions(again, scenes) == pytest.approx(expected, abs=1e-3)
