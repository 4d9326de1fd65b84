"""Checkpoints from anyone: whatever they hold, the answer is one line."""

import io
import json
import os
import pickle
import re
import resource
import zipfile

import pytest
import timm
import torch

import dgmn
from dgmn.errors import InputError
from dgmn.training.checkpoint import AtomicCheckpointIO
from dgmn.weights import read_checkpoint

COMMON = {"model_args": {}, "num_classes": 2, "classes": ["cat", "dog"]}
INFERENCE = {"mode": "whole", "crop": 64, "stride": 32, "scales": (1.0,), "flip": False, "fit": None, "batch_size": 2}
DESCRIPTIONS = {
    "classification": {**COMMON, "task": "classification", "model": "dgmn2_nano", "image_size": 32},
    "detection": {
        **COMMON,
        "task": "detection",
        "model": "retinanet",
        "backbone": "dgmn2_nano",
        "category_ids": [1, 2],
        "inference": {"sizes": [], "max_size": 4000, "flip": False, "overlap": 0.5},
    },
    "segmentation": {
        **COMMON,
        "task": "segmentation",
        "model": "semantic_fpn",
        "backbone": "dgmn2_nano",
        "colors": [[0, 0, 0], [1, 2, 3]],
        "inference": {**INFERENCE, "tile": 2048},
    },
}
PREPROCESSING = {
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def repeating(levels):
    """A list of a few bytes that has 9 ** levels values."""
    value = [1] * 9
    for _ in range(levels):
        value = [value] * 9
    return value


# None of them is right for any field of a description. Some are right for `classes` or `model_args`, see below.
VALUES = {
    "a tensor": torch.ones(2),
    "bytes": b"dgmn2_nano",
    "a long text": "x" * 100_000,
    "a text of two lines": "a\nb",
    "an address": "hf-hub:timm/resnet18",
    "a folder": "local-dir:x",
    "a huge number": 10**400,
    "longer than Python prints": 10**6000,
    "a negative number": -(10**30),
    "NaN": float("nan"),
    "infinity": float("inf"),
    "a complex number": 1j,
    "True": True,
    "a deep list": deep(100),
    "a list that repeats": repeating(20),
    "a list of lists": [[1], [2, [3]]],
    "a dict of numbers": {1: 2},
    "a set": {1, 2},
    "nothing": "",
}


def fields(description, place=()):
    for name, value in description.items():
        yield (*place, name)
        if isinstance(value, dict) and name != "model_args":
            yield from fields(value, (*place, name))


CASES = [
    pytest.param(task, place, id=f"{task}-{'.'.join(place)}")
    for task, description in DESCRIPTIONS.items()
    for place in fields({**description, "preprocessing": PREPROCESSING, "total_batch": 8, "training": {"kept": {}}})
]


def changed(description, place, value):
    (name, *inner) = place
    return {**description, name: changed(description[name], inner, value) if inner else value}


@pytest.fixture
def file(tmp_path):
    """`file(content)` writes a checkpoint."""

    def write(content, name="x.ckpt", **options):
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return write


def refusal(read, path):
    """The line that refuses a file; None if it is read."""
    try:
        read(path)
    except (InputError, FileNotFoundError) as error:
        line = str(error)
        assert len(line.splitlines()) == 1
        assert len(line) < 1000
        assert str(path) in line
        return line
    return None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("classes", ["\x1b[2J", *"bcdefghij"], r"classes: got .*x1b.*; accepted .* without control characters"),
        ("model_args", {"features_only": True}, "model_args: got .*; accepted .* other outputs"),
        ("model_args", {"drop_rate": float("nan")}, "model_args: got .*; accepted .* finite"),
        ("image_size", 16384, r"image_size: got 16384; accepted a whole number in 1\.\.4096"),
    ],
)
def test_what_a_network_or_a_terminal_cannot_take(name, value, message, file):
    description = {**DESCRIPTIONS["classification"], "num_classes": 10, "classes": list("abcdefghij"), name: value}
    line = refusal(read_checkpoint, file({"state_dict": {"weight": torch.ones(1)}, "dgmn": description}))
    assert re.search(message, line)


@pytest.mark.parametrize(("task", "place"), CASES)
def test_every_field_is_checked(task, place, file):
    whole = {**DESCRIPTIONS[task], "preprocessing": PREPROCESSING, "total_batch": 8, "training": {"kept": {}}}
    weights = {"weight": torch.ones(1)}
    assert refusal(read_checkpoint, file({"state_dict": weights, "dgmn": whole})) is None
    accepted = []
    for name, value in VALUES.items():
        path = file({"state_dict": weights, "dgmn": changed(whole, place, value)})
        line = refusal(read_checkpoint, path)
        if line is None:
            accepted.append(name)
        elif "damaged" in line:  # torch itself refuses to read such values
            assert name in ("a complex number", "a set", "longer than Python prints")
        else:
            assert f"dgmn.{'.'.join(place).removesuffix('.kept')}: got " in line
            assert "; accepted " in line
    flags = ["True"] if place[-1] == "flip" else []
    assert accepted == flags


@pytest.mark.parametrize("task", DESCRIPTIONS)
def test_fields_that_are_missing_or_too_many(task, file):
    description = DESCRIPTIONS[task]
    weights = {"weight": torch.ones(1)}
    for name in description.keys() - {"inference", "task"}:
        path = file({"state_dict": weights, "dgmn": {k: v for k, v in description.items() if k != name}})
        assert f"dgmn.{name}: is missing; accepted" in refusal(read_checkpoint, path)
    assert refusal(read_checkpoint, file({"state_dict": weights, "dgmn": {**description, "more": 1}})) is None
    for value in (None, [], {}, "text", torch.ones(1)):
        assert "dgmn" in refusal(read_checkpoint, file({"state_dict": weights, "dgmn": value}))


@pytest.mark.parametrize(
    "arguments",
    [
        {"pretrained": True},
        {"pretrained_cfg": {"url": "x"}},
        {"pretrained_cfg_overlay": {"url": "http://x/y.pth"}},
        {"pretrained_cfg_overlay": {"file": "x.pth"}},
        {"pretrained_cfg_overlay": {"hf_hub_id": "timm"}},
        {"checkpoint_path": "x.pth"},
        {"cache_dir": "x"},
        {"backbone_args": {"checkpoint_path": "x.pth"}},
        {"norm_layer": "https://x"},
        {"a": {"b": [{"file": "x"}]}},
    ],
)
def test_arguments_never_fetch_weights(arguments, file):
    for description in DESCRIPTIONS.values():
        path = file({"state_dict": {"weight": torch.ones(1)}, "dgmn": {**description, "model_args": arguments}})
        assert "dgmn.model_args: got " in refusal(read_checkpoint, path)


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        ("classification", {"model": "no_such_network"}, "timm knows no 'no_such_network'"),
        ("classification", {"model_args": {"nonsense": 1}}, "cannot be built"),
        ("classification", {"model_args": {"embed_dims": "wide"}}, "cannot be built"),
        ("classification", {"classes": ["a"]}, "dgmn.classes: got 1 values; accepted 2, one for every class"),
        ("detection", {"backbone": "no_such_network"}, "timm knows no 'no_such_network'"),
        ("detection", {"model": "no_such_network"}, "no network 'no_such_network'"),
        ("detection", {"model_args": {"channels": "many"}}, "cannot be built"),
        ("detection", {"category_ids": [1]}, "dgmn.category_ids: got 1 values; accepted 2"),
        ("segmentation", {"model_args": {"channels": {"a": 1}}}, "cannot be built"),
        ("segmentation", {"colors": [[0, 0, 0]]}, "dgmn.colors: got 1 values; accepted 2"),
        ("segmentation", {"inference": {**INFERENCE, "stride": 100}}, "inference.stride must be in 1..crop"),
        ("segmentation", {"inference": {"unknown": 1}}, "unexpected keyword argument 'unknown'"),
    ],
)
def test_descriptions_of_no_network(task, more, message, file):
    path = file({"state_dict": {"weight": torch.ones(1)}, "dgmn": {**DESCRIPTIONS[task], **more}})
    assert message in refusal(lambda path: dgmn.load(path, device="cpu"), path)


@pytest.mark.parametrize(
    "more",
    [
        {"model": "eva_giant_patch14_224"},  # a billion numbers
        {"model_args": {"embed_dims": (4096, 64, 64, 64)}},
        {"model_args": {"depths": (10**6, 1, 1, 1), "embed_dims": (16, 16, 16, 16), "num_heads": (1, 1, 1, 1)}},
    ],
)
def test_a_network_far_larger_than_its_weights_is_not_built(more, file):
    weights = timm.create_model("dgmn2_nano", num_classes=2).state_dict()
    path = file({"state_dict": weights, "dgmn": {**DESCRIPTIONS["classification"], **more}})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "describes a network that is far larger than its weights" in refusal(lambda path: dgmn.load(path), path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # a gigabyte


def test_a_description_of_every_task_is_loaded(file):
    network = timm.create_model("dgmn2_nano", num_classes=2)
    path = file({"state_dict": network.state_dict(), "dgmn": DESCRIPTIONS["classification"]})
    assert dgmn.load(path, device="cpu").names == ("cat", "dog")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": torch.ones(2, 2).to_sparse()}, "it is sparse"),
        ({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, "it is a quantised tensor"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "its type is torch.complex64"),
        ({"a": torch.ones(2).to(torch.float8_e4m3fn)}, "its type is torch.float8_e4m3fn"),
        ({"a": torch.ones(2, device="meta")}, "it has no values"),
        ({"a": torch.ones(1).expand(10**6, 10**6)}, "is beyond the file"),
        ({f"a{i}": torch.ones(1).expand(10**8) for i in range(20)}, "is beyond the file"),
        ({3: torch.ones(1)}, "names of weights are texts"),
        ({"a" * 5000: torch.ones(1)}, "names of weights are texts"),
        ({"a\nb": torch.ones(1)}, "names of weights are texts"),
        ({"a": {"b": torch.ones(1)}}, "no weights in it"),
        ({"model": {"model": {"model": {"model": {"a": torch.ones(1)}}}}}, "no weights in it"),
        ({"_orig_mod.a": torch.ones(1), "a": torch.zeros(1)}, "two tensors have the name 'a'"),
    ],
)
def test_tensors_that_are_no_weights(weights, message, file):
    assert message in refusal(read_checkpoint, file({"state_dict": weights}))
    content = {"state_dict": weights, "pytorch-lightning_version": "2.6"}
    if "no weights" not in message and "two tensors" not in message:
        assert message in refusal(AtomicCheckpointIO().load_checkpoint, file(content))


def test_whole_numbers_where_fractions_are_wanted(file):
    network = timm.create_model("dgmn2_nano", num_classes=2)
    weights = {name: tensor.int() for name, tensor in network.state_dict().items()}
    line = refusal(lambda path: dgmn.load_checkpoint(network, path), file(weights))
    assert "types differ" in line
    assert "is torch.int32, wanted torch.float32" in line


def test_a_file_that_unpacks_to_gigabytes(file, tmp_path):
    """The records of a checkpoint are stored as they are. Packed zeros are a thousandth of their size."""
    path = file({"state_dict": {"weight": torch.zeros(2**22)}})
    packed = tmp_path / "packed.ckpt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for record in source.infolist():
            target.writestr(record.filename, source.read(record))
    assert packed.stat().st_size < 2**16
    for read in (read_checkpoint, AtomicCheckpointIO().load_checkpoint):
        assert "its records unpack to more than the file" in refusal(read, packed)


def test_a_storage_that_claims_to_be_larger_than_the_file(file, tmp_path):
    """The count of values in the pickle is changed; the record stays as it is."""
    for old in (False, True):
        path = file({"state_dict": {"weight": torch.zeros(1234567)}}, _use_new_zipfile_serialization=not old)
        count, more = (number.to_bytes(4, "little") for number in (1234567, 2**31 - 1))
        content = path.read_bytes()
        if old:
            (tmp_path / "changed.ckpt").write_bytes(content.replace(b"J" + count, b"J" + more))
        else:
            with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "changed.ckpt", "w") as target:
                for record in source.infolist():
                    target.writestr(record.filename, source.read(record).replace(b"J" + count, b"J" + more))
        assert "damaged" in refusal(read_checkpoint, tmp_path / "changed.ckpt")


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors"])
def test_what_is_no_file(name, tmp_path):
    path = tmp_path / name
    os.mkfifo(path)
    assert "no such file" in refusal(read_checkpoint, path)
    path.unlink()
    path.mkdir()
    assert "no such file" in refusal(read_checkpoint, path)
    path.rmdir()
    path.symlink_to("nowhere")
    assert "no such file" in refusal(read_checkpoint, path)
    path.unlink()
    path.touch()
    assert "damaged" in refusal(read_checkpoint, path)


def test_headers_of_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    whole = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    headers = [
        {"a": {**whole["a"], "shape": [2**60]}},
        {"a": {**whole["a"], "data_offsets": [0, 2**60]}},
        {"a": {**whole["a"], "dtype": "F4"}},
        {"a": {**whole["a"], "dtype": "text"}},
        {"__metadata__": {"a": 1}, **whole},
    ]
    texts = [json.dumps(header).encode() for header in headers] + [b'{"a":' * 10_000, b"[" * 10_000]
    for text in texts:
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
        assert "damaged or not a safetensors file" in refusal(read_checkpoint, path)
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    assert "damaged or not a safetensors file" in refusal(read_checkpoint, path)


def test_pickles_of_other_things(tmp_path):
    path = tmp_path / "x.ckpt"
    recursive = {}
    recursive["model"] = recursive
    for content in (recursive, deep(100), 10**6000, "text"):
        stream = io.BytesIO()
        torch.save(content, stream)
        path.write_bytes(stream.getvalue())
        assert refusal(read_checkpoint, path) is not None
        assert refusal(AtomicCheckpointIO().load_checkpoint, path) is not None
    path.write_bytes(pickle.dumps({"a": 1}))
    assert refusal(read_checkpoint, path) is not None


def test_a_description_as_deep_as_no_pickler_writes_it(file, tmp_path):
    levels = 100_000
    content = b"\x80\x02}X\x04\x00\x00\x00dgmn" + b"]" * levels + b"a" * (levels - 1) + b"s."
    with zipfile.ZipFile(file({})) as source, zipfile.ZipFile(tmp_path / "deep.ckpt", "w") as target:
        for record in source.infolist():
            target.writestr(record.filename, content if record.filename.endswith("data.pkl") else source.read(record))
    assert "dgmn: got [[[" in refusal(read_checkpoint, tmp_path / "deep.ckpt")
