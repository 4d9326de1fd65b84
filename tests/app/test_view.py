"""What the page shows, without a browser."""

import asyncio
import subprocess
import sys

import numpy as np
import pytest
import timm
from PIL import Image

from dgmn import load
from dgmn.app.command import _OnlyHere, names
from dgmn.app.view import DENSITY, LONGEST, Choice, View
from dgmn.classification.predictor import ClassificationPredictor
from dgmn.errors import InputError
from dgmn.segmentation import Inference
from dgmn_cli import run

from untrained import checkpoint

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))


@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_the_network_runs_twice_for_everything(task, tmp_path):
    """Once to predict and once for the nodes; scores, opacity, points, layers and heads need no more."""
    predictor = load(checkpoint(task, tmp_path), device="cpu")
    runs = []
    predictor.network.register_forward_hook(lambda *_: runs.append(1))
    view = View.of(predictor, IMAGE)
    pictures = {view.picture(score, opacity).tobytes() for score, opacity in ((0.06, 0.2), (0.99, 0.9))}
    assert len(pictures) == (1 if task == "classification" else 2)
    view.points = [(20, 30), (70.5, 40)]
    tables = set()
    for choice in (Choice(1), Choice(6), Choice(6, stage=True), Choice(6, head="head 2"), Choice(6, shows=DENSITY)):
        assert view.sheet(choice).width > 100
        tables.add(view.table(choice))
    assert len(tables) == 4, "the density has the table of its layer"
    assert len(runs) == 2


def test_windows_of_a_large_image(tmp_path):
    """A segmenter that predicts by windows runs once for each window that is pointed at."""
    predictor = load(checkpoint("segmentation", tmp_path), device="cpu")
    predictor.inference = Inference("slide", crop=64, stride=64)
    view = View.of(predictor, IMAGE.resize((192, 64)))
    runs = []
    predictor.network.register_forward_hook(lambda *_: runs.append(1))
    for point in ((10, 10), (30, 30), (180, 10), (20, 20), (170, 60)):
        alone = predictor.nodes(view.image, point)
        assert view.nodes(point)[0].receiver == alone[0].receiver
    assert len(runs) == 5 + 2


def test_points_outside_of_the_part_that_a_classifier_sees(tmp_path):
    view = View.of(load(checkpoint("classification", tmp_path), device="cpu"), IMAGE)
    view.nodes((48, 32))
    for point in ((1, 32), (float("nan"), 32)):
        with pytest.raises(InputError, match="at must lie in the image"):
            view.nodes(point)


def test_large_images_are_shrunk(tmp_path):
    view = View.of(load(checkpoint("classification", tmp_path), device="cpu"), IMAGE.resize((3000, 1500)))
    assert view.image.size == (LONGEST, LONGEST // 2)


def test_names_are_no_html(tmp_path):
    network = timm.create_model("resnet10t", num_classes=2)
    view = View.of(ClassificationPredictor(network, ("<b>cat</b>", "dog"), 64), IMAGE)
    assert "&lt;b&gt;cat" in view.findings(0.3)
    assert "<b>" not in view.findings(0.3)
    with pytest.raises(InputError, match="has no layer that samples nodes"):
        view.nodes()


def test_mistakes(capsys):
    for source, message in (("nothing.ckpt", "nothing.ckpt: no such file"), ("dgmn2_tinny", "did you mean dgmn2_tiny")):
        assert run(["app", source]) == 2
        assert message in capsys.readouterr().err
    for port in ("0", "70000", "x"):
        with pytest.raises(SystemExit):
            run(["app", "--port", port])
        assert f"must be a port from 1 to 65535, got '{port}'" in capsys.readouterr().err
    assert run(["app", "--host", "192.0.2.1", "dgmn2_tiny"]) == 2  # an address for documentation
    assert "--host 192.0.2.1: nothing can listen there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "method", "headers", "code"),
    [
        ("0.0.0.0", "POST", {b"host": b"demo.example", b"origin": b"https://demo.example"}, 200),  # behind a proxy
        ("0.0.0.0", "POST", {b"host": b"127.0.0.1:7860", b"origin": b"https://demo.example"}, 200),
        ("0.0.0.0", "GET", {b"host": b"demo.example", b"sec-fetch-site": b"cross-site"}, 200),  # a link
        ("0.0.0.0", "POST", {b"host": b"demo.example", b"sec-fetch-site": b"cross-site"}, 403),
        ("127.0.0.1", "POST", {b"host": b"demo.example"}, 403),
        ("127.0.0.1", "POST", {b"host": b"[::1]:80", b"origin": b"http://[::1]:80"}, 200),
    ],
)
def test_who_is_answered(host, method, headers, code):
    pytest.importorskip("starlette")
    answers = []

    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        answers.append(message)

    scope = {"type": "http", "method": method, "headers": list(headers.items())}
    asyncio.run(_OnlyHere(page, host)(scope, None, send))
    assert answers[0]["status"] == code


def test_names_of_models():
    sources = ["runs/a/checkpoints/best.ckpt", "runs/q/run/checkpoints/best.ckpt", "x/m.onnx", "y/m.onnx", "dgmn2_tiny"]
    assert names(sources) == dict(zip(["a", "q", "x/m.onnx", "y/m.onnx", "dgmn2_tiny"], sources, strict=True))


def test_without_gradio(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run(["app"]) == 2
    assert "pip install 'dgmn[app]'" in capsys.readouterr().err


def test_help_is_quick():
    run = subprocess.run(
        [sys.executable, "-m", "dgmn_cli", "app", "--help"], capture_output=True, text=True, timeout=60
    )
    assert "127.0.0.1" in run.stdout
