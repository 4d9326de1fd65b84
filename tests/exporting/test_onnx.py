"""`dgmn export`: ONNX files predict what the networks do, in onnxruntime and with nothing but standard operators."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import dgmn
from dgmn.app.view import View
from dgmn.classification.builders import classifier
from dgmn.classification.predictor import ClassificationPredictor
from dgmn.detection import mask_rcnn
from dgmn.detection.inference import Inference
from dgmn.detection.predictor import DetectionPredictor
from dgmn.errors import InputError
from dgmn.exporting import Exported, comparison, export
from dgmn.onnx_network import OnnxNetwork
from dgmn_cli import run

SEGMENTERS = ("semantic_fpn", "setr_naive", "setr_pup", "setr_mla", "dilated_fcn")
KINDS = [pytest.param(k, marks=[pytest.mark.slow] * (k != "semantic_fpn")) for k in ("classifier", *SEGMENTERS)]


@pytest.fixture(scope="module")
def load(small_run):
    """`load("setr_pup")`: a small trained network of this kind, whose nodes walk."""

    def of(kind):
        model = dgmn.load(small_run(kind), device="cpu")
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.network.named_parameters():
                if "offset." in name or "walks." in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                if "classification_head" in name and name.endswith("weight"):
                    parameter.mul_(14)  # after one step, all scores of a RetinaNet are alike
        return model

    return of


@pytest.fixture(scope="module")
def photos(few_coco_scenes):
    return sorted((few_coco_scenes / "val").iterdir())[:2]


@pytest.fixture(scope="module")
def written(load, tmp_path_factory):
    """The file of a small classifier."""
    return export(load("classifier"), tmp_path_factory.mktemp("onnx") / "a.onnx")


def operators(path):
    return [(node.domain, node.op_type) for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_predicts_what_its_network_does(kind, load, photos, tmp_path):
    model = load(kind)
    done = export(model, tmp_path / "model.onnx", size=(96, 128))
    assert done.error < 1e-4
    assert done.fixed is None
    assert done.sizes[0] == (1, 96, 128)
    assert done.sizes[1][1:] not in ((96, 128), (128, 96))
    assert {domain for domain, _ in operators(done.path)} <= {"", "ai.onnx"}
    assert "Einsum" not in {name for _, name in operators(done.path)}
    again = dgmn.load(done.path)
    assert isinstance(again.network, OnnxNetwork)
    assert again.names == model.names
    for photo in photos:
        if kind == "classifier":
            got, want = (dict(each.predict(photo).top) for each in (again, model))
            assert got == pytest.approx(want, abs=1e-5)
        else:
            got, want = (each.predict(photo, probabilities=True).probabilities for each in (again, model))
            np.testing.assert_allclose(got, want, atol=1e-5)


DETECTORS = ("retinanet", "mask_rcnn", "deformable_detr", "sparse_rcnn")


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * (k != "mask_rcnn")) for k in DETECTORS])
def test_detectors(kind, load, request, photos, tmp_path):
    if kind == "mask_rcnn":
        model, done = request.getfixturevalue("detector")
    else:
        model = load(kind)
        done = export(model, tmp_path / "model.onnx", size=(96, 144))
    assert done.error < 1e-4
    assert done.fixed is None
    assert {domain for domain, _ in operators(done.path)} <= {"", "ai.onnx"}
    again = dgmn.load(done.path)
    for photo in (*photos, np.asarray(Image.open(photos[0]).convert("RGB").resize((130, 203)))):
        got, want = (each.predict(photo, score=0.0) for each in (again, model))
        assert len(got) == len(want) > 0
        np.testing.assert_allclose(got.scores, want.scores, atol=1e-5)
        assert (got.masks is None) == (want.masks is None)
        for one, other in ((got, want), (want, got)):  # objects of equal scores have no order
            for i in np.flatnonzero(one.scores > one.scores.min() + 1e-4):
                near = np.abs(other.boxes - one.boxes[i]).max(1) + 100 * np.abs(other.scores - one.scores[i])
                (same,) = np.flatnonzero((near < 0.02) & (other.labels == one.labels[i]))
                assert one.masks is None or (one.masks[i] != other.masks[same]).mean() < 1e-3


def test_a_classifier_of_one_size(load, photos, tmp_path):
    """It predicts at the size of the file."""
    model = load("classifier")
    done = export(model, tmp_path / "model.onnx", size=(48, 48), dynamic=False)
    assert done.fixed == "as asked"
    other = ClassificationPredictor(model.network, model.names, 48, model.preprocessing, "cpu")
    got, want = (dict(each.predict(photos[0]).top) for each in (dgmn.load(done.path), other))
    assert got == pytest.approx(want, abs=1e-5)


def test_a_segmenter_of_one_size(load, photos, tmp_path):
    """An image of another size is resized to fit, and the classes lie where they are in the image."""
    model = load("semantic_fpn")
    again = dgmn.load(export(model, tmp_path / "model.onnx", size=(64, 96), dynamic=False).path)
    photo = Image.open(photos[0]).convert("RGB").resize((96, 64))
    fitting, larger, high = (
        again.predict(picture, probabilities=True).probabilities
        for picture in (photo, photo.resize((192, 128)), photo.resize((40, 200)))
    )
    want = model.predict(photo, probabilities=True).probabilities
    np.testing.assert_allclose(fitting, want, atol=1e-5)
    assert larger.shape[-2:] == (128, 192)
    assert np.abs(larger[:, ::2, ::2] - want).mean() < 0.05
    assert high.shape[-2:] == (200, 40)


def test_a_detector_at_several_sizes(load, tmp_path, capsys):
    """A file has one size inside, and says nothing else."""
    model = load("mask_rcnn")
    model.inference = Inference(sizes=(48, 64), max_size=96)
    done = export(model, tmp_path / "model.onnx", size=(64, 96), dynamic=False)
    again = dgmn.load(done.path)
    assert again.inference.sizes == ()
    again.predict(np.zeros((64, 96, 3), np.uint8))
    again.inference = model.inference
    with pytest.raises(InputError, match=r"inference\.sizes: got \[48, 64\]; accepted none: an ONNX file has its own"):
        again.predict(np.zeros((64, 96, 3), np.uint8))


def test_a_detector_that_finds_classes_without_a_name(detector, photos, tmp_path):
    path = Path(shutil.copy(detector[1].path, tmp_path))
    changed(path, with_classes(1))
    with pytest.raises(InputError, match="finds objects of other classes than the 1 that it names"):
        dgmn.load(path).predict(photos[0], score=0.0)


@pytest.mark.slow
def test_a_detector_of_one_size(load, photos, tmp_path):
    """An image of another size is resized to fit, and its objects lie in it."""
    model = load("mask_rcnn")
    done = export(model, tmp_path / "model.onnx", size=(96, 144), dynamic=False)
    assert (done.fixed, set(done.sizes)) == ("as asked", {(96, 144)})
    again = dgmn.load(done.path)
    got, want = (each.predict(photos[0], score=0.0) for each in (again, model))
    np.testing.assert_allclose(got.scores, want.scores, atol=1e-5)
    found = again.predict(Image.new("RGB", (50, 80), (200, 30, 30)), score=0.0)
    assert (found.boxes[:, 2:] <= (50, 80)).all()
    assert found.masks.shape[1:] == (80, 50)


@pytest.mark.slow
def test_low_scores_keep_their_order(tmp_path):
    """A trained detector gives most places scores near 0, which onnxruntime's own sigmoid puts into another order.

    Which places are proposed, and so which objects are found, depends on that order.
    """
    torch.manual_seed(0)
    sizes = {"min_size": 96, "max_size": 144, "channels": 16, "representation_size": 32}
    network = mask_rcnn("resnet10t", 3, **sizes)
    with torch.no_grad():
        network.rpn.head.cls_logits.weight.mul_(40)
        network.rpn.head.cls_logits.bias.fill_(-14)
        network.rpn.head.bbox_pred.weight.mul_(20)  # boxes that differ, so that few are suppressed
        for layer in (network.roi_heads.box_predictor.cls_score, network.roi_heads.box_predictor.bbox_pred):
            layer.weight.mul_(30)
    model = DetectionPredictor(network, ("a", "b", "c"))
    done = export(model, tmp_path / "a.onnx", size=(96, 144))
    assert done.error < 1e-3
    assert len(model.predict(np.zeros((96, 144, 3), np.uint8), score=0.0)) == 100


@pytest.mark.slow
def test_without_grid_sample(load, tmp_path):
    model = load("classifier")
    done = export(model, tmp_path / "a.onnx", grid_sample=False, licence="MIT")
    assert done.error < 1e-5
    assert {"MIT"} == {fact.value for fact in onnx.load(done.path).metadata_props if fact.key == "license"}
    names = {name for _, name in operators(done.path)}
    assert "GridSample" not in names
    assert "Gather" in names


@pytest.mark.slow
def test_networks_that_need_grid_sample(load, tmp_path):
    with pytest.raises(InputError, match="grid_sample: got False; accepted True, because DeformableDETR samples"):
        export(load("deformable_detr"), tmp_path / "a.onnx", size=(96, 144), grid_sample=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_other_runtimes_find_what_they_need(written):
    path = written.path
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert "license" not in facts  # nobody has said what it is
    assert facts["dgmn_version"] == dgmn.__version__
    said = json.loads(facts["dgmn"])
    assert said["task"] == "classification"
    assert len(said["classes"]) == 3
    assert set(said["preprocessing"]) >= {"mean", "std", "interpolation", "crop_pct"}
    size = said["image_size"]
    (logits,) = session.run(None, {"images": np.zeros((2, 3, size, size), np.float32)})
    assert logits.shape == (2, 3)


@pytest.mark.slow
def test_nobody_is_told(written, photos, tmp_path):
    """onnxruntime's telemetry leaves its identifiers in the folders of temporary files and of the user."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {name: str(tmp_path) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_DATA_HOME")}
    code = f"import dgmn; print(dgmn.load({str(written.path)!r}).predict({str(photos[0])!r}))"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_the_page_has_no_nodes_of_a_file(written, photos):
    view = View.of(dgmn.load(written.path), Image.open(photos[0]))
    assert "Probability" in view.findings(0.3)
    with pytest.raises(InputError, match="choose the checkpoint"):
        view.nodes()


@pytest.mark.slow
def test_a_network_of_one_size(tmp_path):
    """timm's plain Transformers add one vector to each patch of an image of their own size."""
    model = ClassificationPredictor(classifier("test_vit", 3), ("a", "b", "c"), image_size=160)
    done = export(model, tmp_path / "a.onnx")
    assert done.fixed is not None
    assert done.sizes == ((1, 160, 160),)
    assert dgmn.load(done.path).network(torch.zeros(2, 3, 160, 160)).shape == (2, 3)


def test_the_command(small_run, photos, tmp_path, capsys):
    model = tmp_path / "model.onnx"
    assert run(["export", str(small_run("classifier")), "--out", str(model), "--image", str(photos[0])]) == 0
    told = capsys.readouterr().out
    for words in ("any size", "largest error", "ms in onnxruntime", f"--ckpt_path {model}"):
        assert words in told
    results = []
    for checkpoint in (model, small_run("classifier")):
        file = tmp_path / "result.json"
        command = ["predict", *map(str, photos), "--json", str(file), "--pictures", str(tmp_path / "pictures")]
        assert run([*command, "--ckpt_path", str(checkpoint), "--device", "cpu"]) == 0
        results.append(json.loads(file.read_text()))
        assert len(list((tmp_path / "pictures").iterdir())) == 2
        shutil.rmtree(tmp_path / "pictures")
    for got, want in zip(*results, strict=True):
        assert got["image"] == want["image"]
        assert [x["class"] for x in got["top"]] == [x["class"] for x in want["top"]]


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--size", "96", "144"], ["--size", "64"]])
def test_the_command_with_a_detector(options, small_run, photos, tmp_path, capsys):
    model = tmp_path / "model.onnx"
    assert run(["export", str(small_run("retinanet")), "--out", str(model), *options]) == 0
    told = capsys.readouterr().out
    height, width = (options[1:] * 2)[:2]
    for words in ("any size", f"with digits painted on it, of the quickstart: {height} x {width}", "largest error"):
        assert words in told
    assert run(["predict", str(photos[0]), "--ckpt_path", str(model), "--score", "0"]) == 0


def found(*scores):
    return torch.zeros(len(scores), 4), torch.tensor(scores), torch.ones(len(scores), dtype=torch.int64)


@pytest.mark.parametrize(
    ("ours", "theirs", "error"), [((), (), None), ((0.9, 0.2), (0.9, 0.2), 0.0), ((0.9,), (), "differ")]
)
def test_what_is_compared_of_detectors(ours, theirs, error):
    def compared():
        return comparison.compare(lambda _: found(*theirs), lambda: lambda _: found(*ours), [torch.zeros(3, 8, 8)], "x")

    if error == "differ":
        with pytest.raises(comparison.DifferenceError, match="differ by inf"):
            compared()
    else:
        assert compared().error == error


def test_the_picture_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    picture, what = comparison.scene.__wrapped__()
    assert picture.size == (288, 192)
    assert np.asarray(picture).std() > 10
    assert "scikit-learn" in what


@pytest.mark.slow
def test_a_file_that_differs_is_not_kept(load, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "LIMIT", 0.0)
    with pytest.raises(InputError, match=r"is not written: onnxruntime's results differ by .* more than 0e"):
        export(load("classifier"), tmp_path / "a.onnx", dynamic=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.pt", {}, "out: got .*a.pt; accepted a file that ends with .onnx"),
        ("a.onnx", {"size": (0, 5)}, r"size: got \(0, 5\); accepted a height and a width in 1..10000"),
        ("a.onnx", {"licence": "\x1b[2J"}, "licence: got .*; accepted the name of a licence, for instance Apache-2.0"),
        ("a.onnx", {"size": (5,)}, r"size: got \(5,\); accepted a height and a width"),
        ("a.onnx", {"size": 64}, "size: got 64; accepted a height and a width"),
        ("a.onnx", {"size": (64, 96), "dynamic": False}, "size: got 64 x 96; accepted a square"),
    ],
)
def test_wrong_arguments(name, options, message, load, tmp_path):
    with pytest.raises(InputError, match=message):
        export(load("classifier"), tmp_path / name, **options)


def test_what_cannot_be_exported(load, written, tmp_path):
    done = written
    with pytest.raises(InputError, match="accepted a predictor of a network in PyTorch"):
        export(dgmn.load(done.path), tmp_path / "b.onnx")
    with pytest.raises(InputError, match="accepted a predictor of a network in PyTorch"):
        export(load("classifier").network, tmp_path / "b.onnx")
    with pytest.raises(InputError, match=r"OnnxNetwork has no layer that samples nodes.*exported"):
        dgmn.load(done.path).nodes(np.zeros((64, 64, 3), np.uint8))
    assert isinstance(done, Exported)


def changed(path, change):
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)


def with_classes(count):
    """Says that there are fewer classes."""

    def change(model):
        (text,) = (fact.value for fact in model.metadata_props if fact.key == "dgmn")
        facts = json.loads(text)
        fewer = {name: facts[name][:count] for name in ("classes", "category_ids") if name in facts}
        say(json.dumps({**facts, **fewer, "num_classes": count}))(model)

    return change


def say(text):
    return lambda model: onnx.helper.set_model_props(model, {} if text is None else {"dgmn": text})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (say(None), "not a file of dgmn export"),
        (say("{"), "is no JSON"),
        (say("[" * 100_000), "is no JSON"),
        (say("[]"), r"dgmn: got \[\]; accepted a dict"),
        (say('{"task": "x"}'), "dgmn.task: got 'x'; accepted one of"),
        (say('{"task": "classification"}'), "is missing"),
        (lambda model: model.graph.node[0].ClearField("op_type"), "onnxruntime cannot read this file"),
        (with_classes(1), r"a\.onnx: gives \d+ classes, but names 1"),
    ],
)
def test_files_from_anyone(change, message, written, tmp_path):
    path = Path(shutil.copy(written.path, tmp_path))
    changed(path, change)
    with pytest.raises(InputError, match=message) as told:
        dgmn.load(path)
    assert "\n" not in str(told.value)
    path.write_bytes(b"not ONNX")
    with pytest.raises(InputError, match="onnxruntime cannot read this file"):
        dgmn.load(path)


def run_example(example, *arguments):
    """What an example prints, without torch."""
    program = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", program, f"examples/{example}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classifier", "semantic_fpn"])
def test_the_example_needs_no_torch(kind, load, photos, tmp_path):
    """The same classes, and nearly the same numbers: the example resizes with Pillow alone."""
    model = load(kind)
    path = export(model, tmp_path / "model.onnx").path
    photo = shutil.copy(photos[0], tmp_path)
    words = run_example("onnx_predict.py", path, photo).split()
    result = model.predict(photo)
    names = [name for name, _ in result.top] if kind == "classifier" else list(result.shares)
    assert words[1::2][: len(names)] == names[:5]


@pytest.fixture(scope="module")
def detector(load, tmp_path_factory):
    """A small Mask R-CNN and its file."""
    model = load("mask_rcnn")
    return model, export(model, tmp_path_factory.mktemp("onnx") / "model.onnx", size=(96, 144))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [True, False])
def test_the_example_for_detectors_needs_no_torch(dynamic, detector, photos, tmp_path):
    model, done = detector
    path = done.path if dynamic else export(model, tmp_path / "a.onnx", size=(96, 144), dynamic=False).path
    photo = shutil.copy(photos[0], tmp_path)
    lines = [line.split() for line in run_example("onnx_detect.py", path, photo, "0").splitlines()]
    result = model.predict(photo, score=0.0)
    assert len(lines) == len(result) > 0
    assert [float(line[0].rstrip("%")) / 100 for line in lines] == pytest.approx(result.scores.tolist(), abs=6e-4)
    best = [[float(x) for x in line[2:]] for line in lines if line[1] == result.names[0]]
    assert np.abs(np.array(best) - result.boxes[0]).max(1).min() < 0.06
    picture = np.asarray(Image.open(Path(photo).with_suffix(".objects.png")), int)
    assert np.abs(picture - np.asarray(Image.open(photo).convert("RGB"))).max() > 20  # something is drawn
