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


def renumbered(truth, results, image=lambda i: i, annotation=lambda i: i, category=lambda i: i):
    """The same with other ids; an annotation's id is left out for None."""
    content = json.loads(json.dumps(truth))
    for entry in content["images"]:
        entry["id"] = image(entry["id"])
    for entry in content["categories"]:
        entry["id"] = category(entry["id"])
    for entry in content["annotations"]:
        number = annotation(entry.pop("id"))
        entry |= {"image_id": image(entry["image_id"]), "category_id": category(entry["category_id"])}
        entry |= {} if number is None else {"id": number}
    rows = [{**row, "image_id": image(row["image_id"]), "category_id": category(row["category_id"])} for row in results]
    return content, rows


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize(
    "ids",
    [
        {"annotation": lambda i: i - 1},
        {"annotation": lambda i: -i},
        {"annotation": lambda i: i + 2**53},
        {"annotation": lambda i: None},
        {"annotation": lambda i: 7},
        {"annotation": lambda i: f"object {i}"},
        {"image": lambda i: i + 2**60},
        {"image": lambda i: i - 20},
        {"image": lambda i: f"{i:03d}.jpg"},
        {"category": lambda i: i - 7},
        {"category": lambda i: i + 2**60},
    ],
    ids=[
        "from 0",
        "negative",
        "huge",
        "missing",
        "all equal",
        "text",
        "huge image",
        "0 image",
        "text image",
        "0",
        "2^60",
    ],
)
def test_ids_do_not_matter(truth, results, kind, ids):
    want, want_by = average_precision(truth, results, kind)
    content, rows = renumbered(truth, results, **ids)
    got, got_by = average_precision(content, rows, kind)
    assert got == want
    category = ids.get("category", lambda i: i)
    assert got_by == {category(number): value for number, value in want_by.items()}
    some = [ids.get("image", lambda i: i)(i) for i in (1, 2, 30)]
    assert average_precision(content, rows, kind, some)[0] == average_precision(truth, results, kind, [1, 2, 30])[0]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_what_tools_leave_out(truth, results, kind):
    """Missing and odd fields read as the values that they stand for."""
    content = json.loads(json.dumps(truth))
    for i, entry in enumerate(content["annotations"]):
        entry["iscrowd"] = i % 5 == 0  # true and false
        entry["area"] = [None, "large", -1, 0, float("nan")][i % 5]
    content["categories"].append({"id": 100, "name": "without objects"})
    got, by_category = average_precision(content, results, kind)
    expected = json.loads(json.dumps(truth))
    for i, entry in enumerate(expected["annotations"]):
        entry["iscrowd"] = int(i % 5 == 0)
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    assert got == average_precision(expected, results, kind)[0]
    assert by_category[100] == -1
    for entry in content["annotations"][1::5]:
        entry["iscrowd"] = None
        entry.pop("area")
    assert got == average_precision(content, results, kind)[0]
    # A crowd without run lengths is its box.
    for entry in content["annotations"][::5]:
        x, y, width, height = entry["bbox"]
        entry["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    boxed, _ = average_precision(content, results, kind)
    for odd in ([], None):
        for entry in content["annotations"][::5]:
            entry["segmentation"] = odd
        assert average_precision(content, results, kind)[0] == boxed


def test_a_file_with_a_mark_at_its_beginning(truth, tmp_path):
    file = tmp_path / "truth.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(truth).encode())
    assert average_precision(file, [])[0]["AP"] == 0


def test_only_crowds(truth):
    content = json.loads(json.dumps(truth))
    for entry in content["annotations"]:
        entry["iscrowd"] = 1
    scores, by_category = average_precision(content, [])
    assert set(scores.values()) == set(by_category.values()) == {-1}


def test_mistakes_are_named(truth):
    with pytest.raises(InputError, match=r'kind must be "bbox" or "segm", got \'box\''):
        average_precision(truth, [], "box")
    with pytest.raises(InputError, match=r"results of the image 99, which is not in the annotations"):
        average_precision(truth, [{"image_id": 99, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 1.0}])
    for odd in ({"score": float("nan")}, {"bbox": [0, 0, float("inf"), 1]}):
        row = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 1.0, **odd}
        with pytest.raises(InputError, match=r"results of the image 1: a score or a box is not finite"):
            average_precision(truth, [row])
    content = json.loads(json.dumps(truth))
    content["annotations"][3]["iscrowd"] = 2
    with pytest.raises(InputError, match=r"annotations\[3\]: iscrowd must be 0 or 1, got 2"):
        average_precision(content, [])
    content["annotations"][1].pop("bbox")
    with pytest.raises(InputError, match=r"annotations\[1\] needs a known image_id and category_id, and a bbox"):
        average_precision(content, [])


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


@pytest.mark.parametrize("most", [1, 5, 20])
def test_only_the_best_detections_count(most):
    """Of twenty right detections, as many as count are found."""
    boxes = [[4 * i, 0, 3, 3] for i in range(20)]
    truth = {
        "images": [{"id": 1, "width": 100, "height": 10}],
        "categories": [{"id": 1, "name": "dot"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": 9, "iscrowd": 0}
            for i, box in enumerate(boxes, 1)
        ],
    }
    found = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 1 - i / 40} for i, box in enumerate(boxes)]
    scores, _ = average_precision(truth, found, most=most)
    # Precision is 1 up to the recall that is reached, of 101 values of recall.
    assert scores["AP"] == pytest.approx((100 * most // 20 + 1) / 101, abs=1e-6)
