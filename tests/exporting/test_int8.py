"""`dgmn export --int8`: wide layers have 8 bits, walks and logits do not, and what is lost is measured."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import dgmn
from dgmn.classification.builders import classifier
from dgmn.classification.predictor import ClassificationPredictor
from dgmn.errors import InputError
from dgmn.exporting import export, int8
from dgmn.images import load_image
from dgmn_base.files import images_in
from dgmn_cli import run


@pytest.fixture(scope="module")
def digits(few_digits):
    """The images, and a network whose classifier was fitted to them in one step, so that it knows its classes."""
    torch.manual_seed(0)
    network = classifier("dgmn2_nano", 3, {"depths": (1, 1, 1, 1)}).eval()
    model = ClassificationPredictor(network, ("0", "1", "2"), image_size=32)
    files = images_in(few_digits / "train")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "offset." in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
        images = torch.stack([model.transform(load_image(file)) for file in files])
        features = network.forward_head(network.forward_features(images), pre_logits=True)
        wanted = torch.eye(3)[[int(file.parent.name) for file in files]]
        middle = features.mean(0)
        system = (features - middle).T @ (features - middle) + 0.1 * torch.eye(features.shape[1])
        weight = torch.linalg.solve(system, (features - middle).T @ wanted).T
        network.head.weight.copy_(10 * weight)
        network.head.bias.copy_(-10 * weight @ middle)
    return few_digits / "train", model


@pytest.fixture(scope="module")
def files(digits, tmp_path_factory):
    """The float file, the one in 8 bits, and what was said about it."""
    folder, model = digits
    place = tmp_path_factory.mktemp("int8")
    plain = export(model, place / "a.onnx").path
    return plain, export(model, place / "b.onnx", int8=True, calibrate=folder)


def test_it_loses_little(digits, files):
    folder, model = digits
    plain, done = files
    again = dgmn.load(done.path)
    results = {each: list(each.predict(folder, top=3)) for each in (model, again)}
    right = {each: np.mean([r.top[0][0] == r.source.parent.name for r in rs]) for each, rs in results.items()}
    assert right[model] > 0.9
    assert right[again] > right[model] - 0.02
    for want, got in zip(*results.values(), strict=True):
        assert dict(got.top) == pytest.approx(dict(want.top), abs=0.1)
    assert done.path.stat().st_size < 0.7 * plain.stat().st_size
    changed = done.int8
    assert (changed.calibrated, changed.compared) == (50, 50)
    assert changed.megabytes == pytest.approx(plain.stat().st_size / 1e6)
    assert min(changed.score) > 0.9


def test_what_stays_in_float(files):
    _, done = files
    model = onnx.load(done.path)
    maker = {name: node for node in model.graph.node for name in node.output}
    small = {
        node.name
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm", "Conv") and maker.get(node.input[1], node).op_type == "DequantizeLinear"
    }
    assert len(small) == done.int8.layers[0]
    assert any("qkv" in name for name in small)
    assert any("fc1" in name for name in small)
    assert not [name for name in small if "offset" in name or "rel_pos" in name or "head" in name]
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    for node in model.graph.node:
        if node.op_type in ("GridSample", "Softmax", "LayerNormalization"):
            assert {maker[name].op_type for name in node.input if name in maker} != {"DequantizeLinear"}


def arranged(path, folder):
    """The file's graph as onnxruntime arranges it before it runs, on any CPU."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED  # no layouts of this CPU
    options.optimized_model_filepath = str(folder / "arranged.onnx")
    for each in onnx.load(path).graph.input[0].type.tensor_type.shape.dim:
        if each.dim_param:  # with all sizes known, it makes a Gemm of a product and a sum
            options.add_free_dimension_override_by_name(each.dim_param, 1)
    options.register_custom_ops_library(dgmn.onnxruntime_library())
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "arranged.onnx").graph


def check_integers(path, folder):
    """No weights in 8 bits are turned back into floats in every run."""
    graph = arranged(path, folder)
    kept = {each.name for each in graph.initializer if len(each.dims) > 1}
    assert any(name in kept for node in graph.node if "Integer" in node.op_type for name in node.input)
    assert not [node.name for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in kept]


def test_onnxruntime_computes_in_integers(digits, tmp_path):
    folder, model = digits
    done = export(model, tmp_path / "a.onnx", dynamic=False, int8=True, calibrate=folder)
    check_integers(done.path, tmp_path)


def test_with_the_kernel(digits, files, tmp_path):
    folder, model = digits
    done = export(model, tmp_path / "a.onnx", kernel=True, int8=True, calibrate=folder)
    assert done.int8.layers[0] == files[1].int8.layers[0]
    check_integers(done.path, tmp_path)
    opened = onnx.load(done.path).graph
    assert {each.name for each in opened.initializer} <= {name for node in opened.node for name in node.input}
    maker = {name: node for node in opened.node for name in node.output}
    sampling = [node for node in opened.node if node.op_type == "SampledAttention"]
    assert len(sampling) == 4
    for node in sampling:  # walks are in float
        walks = node.input[3]
        while (before := maker[walks]).op_type not in ("MatMul", "Gemm"):
            walks = next(name for name in before.input if name in maker)
        assert maker.get(before.input[1], before).op_type != "DequantizeLinear"
    image = images_in(folder)[0]
    assert dict(dgmn.load(done.path).predict(image).top) == pytest.approx(dict(model.predict(image).top), abs=0.1)


def test_equal_biases(tmp_path):
    """PyTorch's exporter writes equal biases once; a network that was just made has many."""
    model = ClassificationPredictor(classifier("resnet10t", 3).eval(), ("0", "1", "2"), image_size=32)
    content = export(model, tmp_path / "a.onnx").path.read_bytes()
    noise = torch.randn(4, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    small, (changed, _) = int8.in_int8(content, iter(noise))
    path = tmp_path / "b.onnx"
    path.write_bytes(small)
    kinds = [node.op_type for node in arranged(path, tmp_path).node]
    assert kinds.count("QLinearConv") == changed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["semantic_fpn", "setr_mla", "dilated_fcn"])
def test_segmenters(kind, small_run, few_scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "LOSS", 1.0)  # after one step of training, most pixels are guessed
    model = dgmn.load(small_run(kind), device="cpu")
    done = export(model, tmp_path / "a.onnx", size=(64, 96), int8=True, calibrate=few_scenes)
    assert done.int8.layers[0] >= 5
    assert (done.int8.calibrated, done.int8.compared) == (4, 3)
    image = np.asarray(Image.open(images_in(few_scenes / "leftImg8bit" / "test")[0]))
    got, want = (each.predict(image, probabilities=True).probabilities for each in (dgmn.load(done.path), model))
    assert np.abs(got - want).mean() < 0.02


@pytest.mark.slow
def test_the_command(small_run, few_digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(int8, "AGREEMENT", 0.0)  # as above
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, file in enumerate(images_in(few_digits / "val")[::6]):
        (photos / f"{i}.png").write_bytes(file.read_bytes())
    options = ["--out", str(tmp_path / "a.onnx"), "--int8", "--calibrate", str(photos)]
    assert run(["export", str(small_run("classifier")), *options]) == 0
    told = capsys.readouterr().out
    for words in ("before int8", "layers in int8", "the float32 file", "of the images, on 3 other images"):
        assert words in told
    assert "top-1" not in told  # nothing says what the photos show


@pytest.mark.slow
def test_too_lossy(digits, tmp_path, monkeypatch):
    folder, model = digits
    monkeypatch.setattr(int8, "LOSS", -0.01)
    with pytest.raises(InputError, match=r"int8: is not written: top-1 on 50 images of .* falls from .* by more than"):
        export(model, tmp_path / "a.onnx", int8=True, calibrate=folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"int8": True}, "calibrate: got None; int8 needs a folder of images"),
        ({"calibrate": "."}, "calibrate: got .; int8 needs a folder of images, and nothing else does"),
        ({"int8": True, "calibrate": "nowhere"}, "calibrate: got nowhere; there is no such folder"),
        ({"int8": True, "calibrate": "docs/scripts"}, "calibrate docs/scripts: no images in this folder"),
    ],
)
def test_wrong_arguments(options, message, digits, tmp_path):
    with pytest.raises(InputError, match=message):
        export(digits[1], tmp_path / "a.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_one_image_is_not_enough(digits, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="one image; at least two are needed"):
        export(digits[1], tmp_path / "a.onnx", int8=True, calibrate=tmp_path)


def test_masks_as_predict_writes_them(small_run, tmp_path, monkeypatch):
    """They have a palette; other classes than the network's are told."""
    monkeypatch.setattr(int8, "LOSS", 1.0)
    random, model = np.random.default_rng(0), small_run("semantic_fpn")
    for split in ("train", "val"):
        (tmp_path / "data/images" / split).mkdir(parents=True)
        for i in range(2):
            image = Image.fromarray(random.integers(0, 256, (64, 96, 3), np.uint8))
            image.save(tmp_path / f"data/images/{split}/{i}.png")
    labels = ["--labels", str(tmp_path / "data/masks"), "--device", "cpu"]
    assert run(["predict", str(tmp_path / "data/images"), "--ckpt_path", str(model), *labels]) == 0
    (tmp_path / "data/masks/classes.txt").rename(tmp_path / "data/classes.txt")
    given = {"size": (64, 96), "int8": True, "calibrate": tmp_path / "data"}
    assert export(dgmn.load(model, device="cpu"), tmp_path / "a.onnx", **given).int8.score is not None
    text = (tmp_path / "data/classes.txt").read_text()
    (tmp_path / "data/classes.txt").write_text(text.upper())
    with pytest.raises(InputError, match=r"has masks of the classes PHOTO, 0, .* accepted those of the network, photo"):
        export(dgmn.load(model, device="cpu"), tmp_path / "b.onnx", **given)


def test_detectors_are_refused(small_run, few_digits, tmp_path):
    with pytest.raises(InputError, match="int8: is for classifiers and segmenters; small differences of scores decide"):
        export(dgmn.load(small_run("retinanet")), tmp_path / "a.onnx", int8=True, calibrate=few_digits)
