"""`dgmn.save`, and what reads the folder: dgmn, timm, transformers, and the Hugging Face Hub."""

import base64
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image

import dgmn
from dgmn.detection import deformable_detr, mask_rcnn, retinanet, sparse_rcnn
from dgmn.errors import InputError
from dgmn.pictures import distinct_colors
from dgmn.segmentation import dilated_fcn, semantic_fpn, setr_mla, setr_naive, setr_pup
from dgmn_cli import run

CLASSES = ["a", "b", "ü"]
SIZES = {"min_size": 64, "max_size": 96}
DETR = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
NETWORKS = {
    "classifier": lambda: timm.create_model("dgmn2_nano", num_classes=3, depths=(1, 1, 1, 1), drop_path_rate=0.1),
    "another classifier": lambda: timm.create_model("resnet10t", num_classes=3),
    "retinanet": lambda: retinanet("dgmn2_nano", 3, channels=16, **SIZES),
    "mask_rcnn": lambda: mask_rcnn("dgmn2_nano", 3, channels=16, representation_size=32, **SIZES),
    "deformable_detr": lambda: deformable_detr("dgmn2_nano", 3, transformer_args={**DETR, "num_queries": 10}, **SIZES),
    "two stages": lambda: deformable_detr(
        "dgmn2_nano", 3, box_refine=True, two_stage=True, transformer_args={**DETR, "num_queries": 10}, **SIZES
    ),
    "sparse_rcnn": lambda: sparse_rcnn("dgmn2_nano", 3, channels=16, num_proposals=10, num_stages=2, **SIZES),
    "semantic_fpn": lambda: semantic_fpn("dgmn2_nano", 3, pyramid_channels=16, channels=16),
    "setr_naive": lambda: setr_naive("dgmn2_nano", 3, image_size=64),
    "setr_pup": lambda: setr_pup("dgmn2_nano", 3, channels=16),
    "setr_mla": lambda: setr_mla("dgmn2_nano", 3, channels=16, image_size=64),
    "dilated_fcn": lambda: dilated_fcn("resnet10t", 3, channels=16, module="dgmn", backbone_args={"drop_rate": 0.1}),
}
CARD = """\
---
library_name: dgmn
"""


@pytest.fixture
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 144, 3), dtype=np.uint8))


@pytest.fixture
def nano():
    return NETWORKS["classifier"]()


@pytest.fixture
def shared(nano, tmp_path):
    """The folder of a classifier."""
    return dgmn.save(nano, tmp_path / "shared", classes=CLASSES, image_size=64)


def outputs(network, image):
    network.eval()
    with torch.inference_mode():
        found = network([image]) if dgmn.about.about(network).images == "list" else network(image[None])
    return found[0] if isinstance(found, list) else {"logits": found}


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------------------ round trip


@pytest.mark.parametrize("kind", NETWORKS)
def test_round_trip(kind, tmp_path, photo):
    network = NETWORKS[kind]()
    before = torch.random.get_rng_state()
    folder = dgmn.save(network, str(tmp_path / "a/b"), classes=CLASSES)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert network.training, "it is not changed"
    assert sorted(content(folder)) == ["README.md", "config.json", "model.safetensors"]
    model = dgmn.load(folder, device="cpu")
    assert model.names == tuple(CLASSES)
    image = torch.rand(3, 64, 96)
    expected, found = outputs(network, image), outputs(model.network, image)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name

    # A predictor writes the same folder again, and its copy predicts the same.
    again = dgmn.save(model, tmp_path / "again")
    assert content(again) == content(folder)
    options = {"score": 0.0} if model.task == "detection" else {}
    copy = dgmn.load(again, device="cpu")
    assert copy.predict(photo, **options).to_dict() == model.predict(photo, **options).to_dict()


def test_what_the_user_says_is_kept(tmp_path):
    colors = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    folder = dgmn.save(
        NETWORKS["semantic_fpn"](),
        tmp_path / "a",
        classes=CLASSES,
        colors=colors,
        inference={"mode": "slide", "crop": 64, "stride": 32, "fit": [64, 96]},
    )
    model = dgmn.load(folder, device="cpu")
    assert list(model.colors) == colors
    named = dgmn.save(NETWORKS["semantic_fpn"](), tmp_path / "named", classes=["background", "cat", "dog"])
    assert dgmn.load(named, device="cpu").colors == ((0, 0, 0), *distinct_colors(2))
    assert (model.inference.mode, model.inference.crop, model.inference.fit) == ("slide", 64, (64, 96))
    folder = dgmn.save(
        NETWORKS["retinanet"](), tmp_path / "b", classes=CLASSES, category_ids=[7, 8, 90], inference={"sizes": [64, 80]}
    )
    model = dgmn.load(folder, device="cpu")
    assert model.category_ids == (7, 8, 90)
    assert model.inference.sizes == (64, 80)
    again = dgmn.load(dgmn.save(model, tmp_path / "c", classes=["x", "y", "z"]), device="cpu")
    assert (again.names, again.category_ids, again.inference) == (("x", "y", "z"), (7, 8, 90), model.inference)


def test_preprocessing_is_kept(tmp_path):
    other = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.2), "interpolation": "bilinear", "crop_pct": 1.0}
    network = timm.create_model("dgmn2_nano", num_classes=3, pretrained_cfg_overlay=other)
    folder = dgmn.save(network, tmp_path / "a", image_size=48)
    model = dgmn.load(folder, device="cpu")
    assert model.names == ("0", "1", "2")
    assert (model.image_size, model.preprocessing.mean, model.preprocessing.crop_pct) == (48, other["mean"], 1.0)
    data = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{folder}", pretrained=True))
    assert tuple(data["input_size"]) == (3, 48, 48)
    assert (tuple(data["mean"]), data["interpolation"]) == (other["mean"], "bilinear")
    detector = retinanet("dgmn2_nano", 3, channels=16, backbone_args={"pretrained_cfg_overlay": other}, **SIZES)
    model = dgmn.load(dgmn.save(detector, tmp_path / "b", classes=CLASSES), device="cpu")
    assert tuple(model.network.transform.image_mean) == other["mean"]


def test_a_card_that_someone_wrote_stays(nano, tmp_path):
    folder = dgmn.save(nano, tmp_path / "a")
    assert (folder / "README.md").read_text().startswith(CARD)
    (folder / "README.md").write_text("mine")
    (folder / "notes.txt").write_text("mine, too")
    before = content(folder)
    nano.head.bias.data += 1
    dgmn.save(nano, folder)
    after = content(folder)
    assert before.pop("model.safetensors") != after.pop("model.safetensors")
    assert before == after


# ------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("retinanet", {}, "classes: is missing; accepted a list of"),
        ("retinanet", {"classes": ["a"]}, "classes: got 1 values; accepted 3, one for every class"),
        ("retinanet", {"classes": "abc"}, "classes: got 'abc'; accepted a list of"),
        ("retinanet", {"classes": CLASSES, "image_size": 64}, "image_size: got 64; .* for detection, which accepts no"),
        ("retinanet", {"classes": CLASSES, "category_ids": [1, 2, 2.5]}, "category_ids: got .*; accepted a list of"),
        (
            "retinanet",
            {"classes": CLASSES, "inference": {"crop": 3}},
            "retinanet cannot be built again: .*'crop'",
        ),
        (
            "semantic_fpn",
            {"classes": CLASSES, "inference": {"size": 3}},
            "cannot be built again: .*'size'",
        ),
        ("semantic_fpn", {"classes": CLASSES, "inference": {"mode": "x"}}, "inference.mode: got 'x'; accepted one of"),
        ("semantic_fpn", {"classes": CLASSES, "colors": [(1, 2)] * 3}, "colors: got .*; accepted a list of"),
        ("classifier", {"classes": ["a\x1b", "b", "c"]}, "classes: got .* without control characters"),
        ("classifier", {"licence": "MIT\nx: y"}, "licence: got .*; accepted the name of a licence"),
        ("classifier", {"image_size": 0}, "image_size: got 0; accepted a whole number in 1..4096"),
        ("classifier", {"colors": [(1, 2, 3)] * 3}, "colors: got .*; this is a network for classification"),
    ],
)
def test_wrong_arguments(kind, options, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        dgmn.save(NETWORKS[kind](), tmp_path / "a", **options)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "a").exists()


def test_a_network_for_other_than_square_images(tmp_path, photo):
    """One that takes any size is shared for the square that is given, and again as it was loaded."""
    wide = {"input_size": (3, 64, 96)}
    network = timm.create_model("dgmn2_nano", num_classes=3, pretrained_cfg_overlay=wide)
    with pytest.raises(InputError, match=r"model: takes images of 64 x 96; .*: give image_size"):
        dgmn.save(network, tmp_path / "a")
    loaded = dgmn.load(dgmn.save(network, tmp_path / "a", image_size=64), device="cpu")
    again = dgmn.load(dgmn.save(loaded, tmp_path / "b"), device="cpu")
    assert loaded.image_size == again.image_size == 64
    assert str(again.predict(photo)) == str(loaded.predict(photo))


def test_networks_that_cannot_be_built_again(nano, tmp_path):
    backbone = timm.create_model("dgmn2_nano", features_only=True)
    broken = NETWORKS["classifier"]()
    broken.head.weight.data[0, 0] = float("nan")
    changed = NETWORKS["semantic_fpn"]()
    changed.head.classifier = torch.nn.Conv2d(16, 4, 1)
    for model, message in (
        (torch.nn.Linear(2, 2), "model: got a Linear; accepted a predictor"),
        (backbone, "model: got a FeatureGetterNet; accepted a predictor"),
        ("runs/x", "model: got a str; accepted a predictor"),
        (dgmn.fuse(nano.eval()), "model: its weights do not fill a DGMN2 that is built as it was: .*names"),
        (changed, "model: its weights do not fill a Segmenter that is built as it was: .*classifier"),
        (broken, "model: DGMN2: 1 of .* tensors hold NaN"),
        (timm.create_model("dgmn2_nano", in_chans=1, num_classes=3), "model: takes images of 1 channel; .* of 3"),
        (timm.create_model("vit_tiny_patch16_224", img_size=(64, 32), num_classes=3), "model: takes images of 64 x 32"),
    ):
        with pytest.raises(InputError, match=message):
            dgmn.save(model, tmp_path / "a", classes=CLASSES)
        assert not (tmp_path / "a").exists()


def test_a_compiled_network_is_saved_plainly(nano, shared, tmp_path):
    compiled = torch.compile(nano, backend="eager")
    assert content(dgmn.save(compiled, tmp_path / "b", classes=CLASSES, image_size=64)) == content(shared)
    nano.head = torch.compile(nano.head, backend="eager")
    assert content(dgmn.save(nano, tmp_path / "c", classes=CLASSES, image_size=64)) == content(shared)


def changed_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "hf-hub:x/y"}, "dgmn.model: got 'hf-hub:x/y'"),
        ({"architecture": None}, "dgmn.model: got None"),
        ({"num_classes": 10**9}, "dgmn.num_classes: got 1000000000"),
        ({"num_classes": 4}, "dgmn.classes: got 3 values; accepted 4"),
        ({"label_names": {"0": "a"}}, "dgmn.classes: got "),
        ({"label_names": ["\x1b[2J", "b", "c"]}, "without control characters"),
        ({"model_args": {"pretrained": True}}, "dgmn.model_args: got "),
        ({"model_args": {"checkpoint_path": "x.pth"}}, "dgmn.model_args: got "),
        ({"model_args": {"depths": [1, 1, 1, 500]}}, "larger than its weights"),
        ({"model_args": {"depths": [1, 1, 1, 2]}}, "names missing"),
        ({"model_args": {"no": 1}}, "cannot be built"),
        ({"pretrained_cfg": {}}, "does not describe a network"),
        ({"pretrained_cfg": {"input_size": [3, 1e9, 1e9]}}, "dgmn.image_size: got "),
        ({"pretrained_cfg": {"input_size": [3, 64, 32]}}, "accepted square images of 3 channels"),
        ({"pretrained_cfg": {"input_size": [1, 64, 64]}}, "accepted square images of 3 channels"),
        ({"pretrained_cfg": {"input_size": [3, 64, 64], "mean": ["x"]}}, "dgmn.preprocessing.mean: got "),
        ({"dgmn": []}, "accepted a dict"),
        ({"dgmn": {"task": "poetry"}}, "dgmn.task: got 'poetry'"),
        ({"dgmn": {"task": "detection", "model": "retinanet"}}, "dgmn.model_args: is missing"),
    ],
)
def test_what_a_folder_says_is_checked(changes, message, shared):
    changed_config(shared, **changes)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        dgmn.load(shared, device="cpu")
    assert str(shared) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_damaged_folders(shared, tmp_path):
    whole = content(shared)
    for name, wrong, message in (
        ("config.json", b"", r"not JSON \(it is empty\)"),
        ("config.json", b"[]", "must be a dict"),
        ("config.json", b"[" * 10**6, "not JSON"),
        ("config.json", b" " * (2**24 + 1), "has 16,777,217 bytes"),
        ("model.safetensors", whole["model.safetensors"][:-100], "damaged"),
        ("model.safetensors", b"", "damaged"),
    ):
        for each, right in whole.items():
            (shared / each).write_bytes(right)
        (shared / name).write_bytes(wrong)
        with pytest.raises(InputError, match=message):
            dgmn.load(shared, device="cpu")
    for name in ("config.json", "model.safetensors"):
        (shared / "config.json").write_bytes(whole["config.json"])
        (shared / "model.safetensors").write_bytes(whole["model.safetensors"])
        (shared / name).unlink()
        with pytest.raises(InputError, match=r"it has no model\.safetensors with config\.json"):
            dgmn.load(shared)


# ------------------------------------------------------------------------------------------------- other libraries


def test_timm_reads_the_folder(nano, shared):
    image = torch.rand(2, 3, 64, 64)
    model = timm.create_model(f"local-dir:{shared}", pretrained=True).eval()
    with torch.inference_mode():
        assert torch.equal(model(image), nano.eval()(image))
    assert timm.create_model(f"local-dir:{shared}", pretrained=True, num_classes=7).num_classes == 7
    maps = timm.create_model(f"local-dir:{shared}", pretrained=True, features_only=True)
    assert torch.equal(maps.model.stem[0].conv.weight, nano.stem[0].conv.weight)


def test_dgmn_reads_timm_s_folders(tmp_path):
    network = timm.create_model("resnet10t", num_classes=3)
    timm.models.save_for_hf(
        network, tmp_path / "a", model_config={"label_names": CLASSES}, model_args={}, safe_serialization=True
    )
    model = dgmn.load(tmp_path / "a", device="cpu")
    assert model.names == tuple(CLASSES)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model.network(image), network.eval()(image))


def test_transformers_reads_the_folder(nano, shared, photo):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForImageClassification.from_pretrained(shared).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(shared)
    assert model.config.id2label == dict(enumerate(CLASSES))
    pixels = processor(photo)["pixel_values"]
    assert pixels.shape == (1, 3, 64, 64)
    with torch.inference_mode():
        logits = model(pixels).logits
        assert torch.equal(logits, nano.eval()(pixels))
    found = dict(dgmn.load(shared, device="cpu").predict(photo, top=3).top)
    for name, probability in zip(CLASSES, logits.softmax(1)[0].tolist(), strict=True):
        assert found[name] == pytest.approx(probability, abs=1e-5)


def test_the_weights_of_a_folder_start_a_network(shared, nano):
    model = NETWORKS["classifier"]()
    assert dgmn.load_checkpoint(model, shared / "model.safetensors").ignored == ()
    assert torch.equal(model.head.weight, nano.head.weight)


# ---------------------------------------------------------------------------------------------------------- the hub


COMMIT = "0" * 40


@contextmanager
def hub(monkeypatch, card=False):
    """A local server in the place of the Hugging Face Hub; gives the files that are committed to it."""
    committed = {}

    class Handler(BaseHTTPRequestHandler):
        def answer(self, content, status=200, reason="EntryNotFound"):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if status == 404:
                self.send_header("X-Error-Code", reason)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(json.dumps(content).encode())

        def do_HEAD(self):
            if "/resolve/main/" in self.path:
                self.answer({}, 200 if card else 404)
            else:
                self.do_GET()

        def do_GET(self):
            """What was committed, as the hub lists and gives it."""
            *_, name = self.path.partition(f"/resolve/{COMMIT}/")
            if "/api/models/me/x/revision/" in self.path:
                self.answer({"id": "me/x", "sha": COMMIT, "siblings": [{"rfilename": each} for each in committed]})
            elif "/api/models/me/x/tree/" in self.path:
                self.answer(
                    [{"type": "file", "path": each, "size": len(x), "oid": "0"} for each, x in committed.items()]
                )
            elif name not in committed:
                self.answer({}, 404, "EntryNotFound" if self.path.startswith("/me/x/") else "RepoNotFound")
            else:
                self.send_response(200)
                for header, value in (("X-Repo-Commit", COMMIT), ("ETag", f'"{hash(committed[name])}"')):
                    self.send_header(header, value)
                self.send_header("Content-Length", str(len(committed[name])))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(committed[name])

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            address = f"http://127.0.0.1:{server.server_port}/me/x"
            if "/preupload/" in self.path:
                files = [each["path"] for each in json.loads(body)["files"]]
                plain = {"uploadMode": "regular", "shouldIgnore": False}
                self.answer({"files": [{"path": path, **plain} for path in files]})
            elif "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        committed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": f"{address}/commit/{'0' * 40}"})
            else:  # create_repo, validate-yaml
                self.answer({"url": address, "name": "me/x", "errors": [], "warnings": []})

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    files = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    yield committed
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("card", [False, True])
def test_push_to_hub(card, nano, shared, monkeypatch):
    with hub(monkeypatch, card) as committed:
        address = dgmn.push_to_hub(nano, "me/x", classes=CLASSES, image_size=64, token="hf_x")
    assert address.endswith(f"/me/x/commit/{'0' * 40}")
    expected = content(shared)
    if card:
        del expected["README.md"]  # a card that someone has written stays
    assert committed == expected


def test_load_from_the_hub(nano, shared, photo, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with hub(monkeypatch):
        dgmn.push_to_hub(nano, "me/x", classes=CLASSES, image_size=64, token="hf_x")
        model = dgmn.load("hf-hub:me/x", device="cpu")
        assert dict(model.predict(photo).top) == dict(dgmn.load(shared, device="cpu").predict(photo).top)
        assert not list((tmp_path / "cache").rglob("README.md"))
        picture, found = tmp_path / "a.png", tmp_path / "found.json"
        photo.save(picture)
        arguments = ["predict", str(picture), "--ckpt_path", "hf-hub:me/x@main", "--json", str(found)]
        assert run(arguments) == 0
        assert json.loads(found.read_text())[0]["top"][0]["class"] in CLASSES
        with pytest.raises(InputError, match="hf-hub:me/y: nothing on the hub has this name; what is private needs"):
            dgmn.load("hf-hub:me/y")
    assert dgmn.load("hf-hub:me/x", device="cpu").names == tuple(CLASSES)  # the hub does not answer any more
    with pytest.raises(ConnectionError, match="hf-hub:me/z: cannot be fetched"):
        dgmn.load("hf-hub:me/z")
    for wrong in ("hf-hub:", "hf-hub:x", "hf-hub:../x", "hf-hub:a/b/c", "hf-hub:me/x@"):
        with pytest.raises(InputError, match="accepted hf-hub:owner/name, or hf-hub:owner/name@revision"):
            dgmn.load(wrong)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "config.json",
            b'{"architecture": "hf-hub:x/y", "pretrained_cfg": {"input_size": [3, 4, 4]}}',
            "dgmn.model: got",
        ),
        ("model.safetensors", b"", "damaged"),
        ("model.safetensors", None, "not a repository of dgmn.push_to_hub"),
    ],
)
def test_what_the_hub_gives_is_checked(name, content, message, nano, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with hub(monkeypatch) as committed:
        dgmn.push_to_hub(nano, "me/x", classes=CLASSES, image_size=64, token="hf_x")
        committed[name] = content
        if content is None:
            del committed[name]
        with pytest.raises(InputError, match=message):
            dgmn.load("hf-hub:me/x", device="cpu")


def test_nothing_is_pushed_after_a_mistake(monkeypatch):
    with hub(monkeypatch) as committed:
        with pytest.raises(InputError, match="classes: is missing"):
            dgmn.push_to_hub(NETWORKS["retinanet"](), "me/x", token="hf_x")
        assert committed == {}


def test_the_card_says_how_to_load(shared, tmp_path):
    card = huggingface_hub.ModelCard.load(shared / "README.md")
    assert (card.data.license, card.data.library_name) == (None, "dgmn")
    assert card.data.pipeline_tag == "image-classification"
    assert "dgmn.load(" in card.text
    detector = dgmn.save(NETWORKS["retinanet"](), tmp_path / "a", classes=CLASSES, licence="apache-2.0")
    card = huggingface_hub.ModelCard.load(detector / "README.md")
    assert (card.data.license, card.data.pipeline_tag) == ("apache-2.0", "object-detection")
