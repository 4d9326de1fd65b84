"""Average precision equals that of pycocotools on the same results."""

import json

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dgmn.detection.metrics import average_precision, to_results, write_results
from dgmn.errors import InputError


@pytest.fixture(scope="module")
def truth():
    """Forty images of 100 x 80 with objects of all sizes in three categories, some of them crowds."""
    random = np.random.default_rng(0)
    annotations = []
    for image in range(40):
        for _ in range(random.integers(0, 6)):
            x, y = random.uniform(0, 60, 2)
            width, height = random.uniform(4, 100 - x), random.uniform(4, 80 - y)
            polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(random.choice([3, 7, 90])),
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "segmentation": [polygon],
                }
            )
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 80} for i in range(40)],
        "categories": [{"id": i, "name": str(i)} for i in (3, 7, 90)],
        "annotations": annotations,
    }


@pytest.fixture(scope="module")
def results(truth):
    """Detections near the objects, some wrong, some twice."""
    random = np.random.default_rng(1)
    out = []
    for image in range(40):
        boxes, labels = [], []
        for entry in truth["annotations"]:
            if entry["image_id"] == image:
                for _ in range(random.integers(0, 3)):
                    x, y, width, height = np.array(entry["bbox"]) * random.uniform(0.85, 1.15, 4)
                    boxes.append([x, y, min(x + width, 100), min(y + height, 80)])
                    labels.append([3, 7, 90].index(entry["category_id"]) if random.random() < 0.8 else 0)
        masks = torch.zeros(len(boxes), 1, 80, 100, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
            mask[0, int(y1) : int(y2), int(x1) : int(x2)] = True
        found = {
            "boxes": torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
            "scores": torch.from_numpy(random.uniform(size=len(boxes))),
            "labels": torch.tensor(labels, dtype=torch.long),
            "masks": masks,
        }
        out += to_results(image, found, (3, 7, 90))
    return out


def official(truth, results, kind, tmp_path, images=None):
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    coco = COCO(tmp_path / "truth.json")
    evaluation = COCOeval(coco, coco.loadRes(results), kind)
    if images is not None:
        evaluation.params.imgIds = images
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("images", [None, [1, 2, 3, 30]])
def test_equals_pycocotools(truth, results, kind, images, tmp_path):
    truth = json.loads(json.dumps(truth))
    for entry in truth["annotations"][::9]:
        entry["iscrowd"] = 1
        (polygon,) = entry["segmentation"]
        mask = np.zeros((80, 100), np.uint8)
        mask[int(polygon[1]) : int(polygon[5]), int(polygon[0]) : int(polygon[4])] = 1
        from pycocotools import mask as coco_mask

        runs = coco_mask.encode(np.asfortranarray(mask))
        entry["segmentation"] = {"size": runs["size"], "counts": runs["counts"].decode()}
    want = official(truth, results, kind, tmp_path, images)
    got, by_category = average_precision(truth, results, kind, images)
    assert list(got.values()) == pytest.approx(want.stats[:6].tolist(), abs=1e-12)
    assert 0.1 < got["AP"] < 0.9
    precision = want.eval["precision"][:, :, :, 0, -1]
    for i, category in enumerate((3, 7, 90)):
        assert by_category[category] == pytest.approx(precision[:, :, i][precision[:, :, i] > -1].mean(), abs=1e-12)


def test_perfect_and_empty(truth, tmp_path):
    perfect = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 1.0}
        for a in truth["annotations"]
    ]
    assert average_precision(truth, perfect)[0]["AP"] == pytest.approx(1.0)
    assert average_precision(truth, [])[0]["AP"] == 0
    write_results(perfect, tmp_path / "a/results.json")
    assert json.loads((tmp_path / "a/results.json").read_text()) == perfect
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert average_precision(tmp_path / "truth.json", perfect)[0]["AP50"] == pytest.approx(1.0)


def test_mistakes_are_named(truth):
    with pytest.raises(InputError, match=r'kind must be "bbox" or "segm", got \'box\''):
        average_precision(truth, [], "box")
    with pytest.raises(InputError, match=r"results of the image 99, which is not in the annotations"):
        average_precision(truth, [{"image_id": 99, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 1.0}])


def test_without_areas_the_boxes_tell_the_sizes(truth, results):
    """Otherwise every object would count as small."""
    bare = {**truth, "annotations": [{k: v for k, v in e.items() if k != "area"} for e in truth["annotations"]]}
    assert average_precision(bare, results) == average_precision(truth, results)
    assert all("area" not in entry for entry in bare["annotations"]), "what was given is as it was"


def test_more_objects_than_coco_counts():
    boxes = [[x * 10, y * 10, 8, 8] for x in range(25) for y in range(15)]
    entries = [
        {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 64, "iscrowd": 0}
        for i, box in enumerate(boxes)
    ]
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "width": 250, "height": 150}],
        "categories": [{"id": 1, "name": "nucleus"}],
        "annotations": entries,
    }
    results = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9} for box in boxes]
    assert average_precision(truth, results)[0]["AP"] < 0.3
    assert average_precision(truth, results, most=500)[0]["AP"] == pytest.approx(1)
