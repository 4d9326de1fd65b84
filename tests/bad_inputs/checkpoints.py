"""Bad checkpoints, for `dgmn predict`, `dgmn fit` and `dgmn zoo download`."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import save

from bad_inputs.cases import Case, World
from bad_inputs.command_line import DIGITS
from bad_inputs.images import encoded, pipe

DAMAGED = "damaged or (not a|no )"


class Intruder:
    """Unpickling it runs a command."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def zipped(records: dict[str, bytes], packed: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tensors_file(header: bytes | dict[str, Any], content: bytes = b"", length: int | None = None) -> bytes:
    """A .safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def entry(**changes: Any) -> dict[str, Any]:
    return {"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


SYSTEM = Intruder(os.system, "touch executed")
EVAL = Intruder(eval, "open('executed', 'w')")

FILES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": ("x.ckpt", lambda: b"", DAMAGED),
    "text": ("x.ckpt", lambda: b"no weights\n", DAMAGED),
    "html": ("x.ckpt", lambda: b"<!DOCTYPE html><html>Quota exceeded</html>", DAMAGED),
    "image": ("x.ckpt", lambda: encoded("PNG"), DAMAGED),
    "zip-empty": ("x.ckpt", lambda: zipped({}), DAMAGED),
    "zip-of-text": ("x.ckpt", lambda: zipped({"a.txt": b"a"}), DAMAGED),
    "zip-without-pickle": ("x.ckpt", lambda: zipped({"x/version": b"3\n"}), DAMAGED),
    "zip-of-empty-pickle": ("x.ckpt", lambda: zipped({"x/data.pkl": b"", "x/version": b"3\n"}), DAMAGED),
    "zip-bomb": ("x.ckpt", lambda: zipped({"x/data.pkl": bytes(500 * 2**20)}, packed=True), "unpack to more than"),
    "zip-start-only": ("x.ckpt", lambda: b"PK\x03\x04", DAMAGED),
    "pickle-number": ("x.ckpt", lambda: pickle.dumps(3, protocol=2), DAMAGED),
    "pickle-system": ("x.ckpt", lambda: pickle.dumps({"state_dict": SYSTEM}, protocol=2), DAMAGED),
    "pickle-eval": ("x.ckpt", lambda: pickle.dumps(EVAL, protocol=2), DAMAGED),
    "pickle-cut": ("x.ckpt", lambda: b"\x80\x02}q\x00", DAMAGED),
    "torch-system": ("x.ckpt", lambda: saved({"state_dict": {"a": SYSTEM}}), "would execute code|" + DAMAGED),
    "torch-eval": (
        "x.ckpt",
        lambda: saved({"model": {"a": torch.ones(1)}, "args": EVAL}),
        r"would execute code \(.*eval",
    ),
    "torch-old-system": (
        "x.ckpt",
        lambda: saved({"model": SYSTEM}, _use_new_zipfile_serialization=False),
        "would execute code|" + DAMAGED,
    ),
    "torch-module": ("x.ckpt", lambda: saved(torch.nn.Linear(2, 2)), "would execute code"),
    "torch-none": ("x.ckpt", lambda: saved(None), "no weights in it"),
    "torch-list": ("x.ckpt", lambda: saved([torch.ones(2)]), "no weights in it"),
    "torch-tensor": ("x.ckpt", lambda: saved(torch.ones(2)), "no weights in it"),
    "torch-empty": ("x.ckpt", lambda: saved({}), "no weights in it"),
    "torch-numbers": ("x.ckpt", lambda: saved({"state_dict": {"a": 1}}), "no weights in it"),
    "torch-state-none": ("x.ckpt", lambda: saved({"state_dict": None}), "no weights in it"),
    "torch-number-names": ("x.ckpt", lambda: saved({1: torch.ones(2)}), "names of weights are texts"),
    "torch-long-name": ("x.ckpt", lambda: saved({"x" * 10_000: torch.ones(2)}), "names of weights are texts"),
    "torch-name-newline": ("x.ckpt", lambda: saved({"a\nb": torch.ones(2)}), "names of weights are texts"),
    "torch-sparse": ("x.ckpt", lambda: saved({"a": torch.eye(2).to_sparse()}), "must be a plain tensor"),
    "torch-meta": ("x.ckpt", lambda: saved({"a": torch.ones(2, device="meta")}), "must be a plain tensor"),
    "torch-complex": ("x.ckpt", lambda: saved({"a": torch.ones(2, dtype=torch.complex64)}), "must be a plain tensor"),
    "torch-expanded": ("x.ckpt", lambda: saved({"a": torch.ones(1).expand(2**20, 2**20)}), "must be a plain tensor"),
    "torch-other": ("x.ckpt", lambda: saved({"weight": torch.ones(2)}), "does not say what network it is for"),
    "tensors-empty": ("x.safetensors", lambda: b"", DAMAGED),
    "tensors-text": ("x.safetensors", lambda: b"no weights\n", DAMAGED),
    "tensors-huge-header": ("x.safetensors", lambda: tensors_file(b"{}", length=2**63), DAMAGED),
    "tensors-long-header": ("x.safetensors", lambda: tensors_file(b"{}", length=2**31), DAMAGED),
    "tensors-no-json": ("x.safetensors", lambda: tensors_file(b"{broken"), DAMAGED),
    "tensors-list": ("x.safetensors", lambda: tensors_file(b"[]"), DAMAGED),
    "tensors-nothing": ("x.safetensors", lambda: tensors_file({}), "no weights in it"),
    "tensors-nested": ("x.safetensors", lambda: tensors_file(b"[" * 100_000), DAMAGED),
    "tensors-without-data": ("x.safetensors", lambda: tensors_file(entry()), DAMAGED),
    "tensors-negative": ("x.safetensors", lambda: tensors_file(entry(shape=[-2]), bytes(8)), DAMAGED),
    "tensors-huge": ("x.safetensors", lambda: tensors_file(entry(shape=[2**62, 2**62]), bytes(8)), DAMAGED),
    "tensors-other-size": ("x.safetensors", lambda: tensors_file(entry(shape=[3]), bytes(8)), DAMAGED),
    "tensors-dtype": ("x.safetensors", lambda: tensors_file(entry(dtype="X99"), bytes(8)), DAMAGED),
    "tensors-reversed": ("x.safetensors", lambda: tensors_file(entry(data_offsets=[8, 0]), bytes(8)), DAMAGED),
    "tensors-pickle": ("x.safetensors", lambda: pickle.dumps(SYSTEM, protocol=2), DAMAGED),
    "tensors-other": ("x.safetensors", lambda: save({"weight": torch.ones(2)}), "does not say what network it is for"),
}

# Changes of a whole checkpoint, and what is told.
WEIGHTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "nan": (lambda state: first(state).fill_(float("nan")), "NaN|nan"),
    "one-nan": (lambda state: first(state).view(-1)[:1].fill_(float("nan")), "NaN|nan"),
    "missing": (lambda state: state["state_dict"].pop(name(state)), "missing"),
    "more": (lambda state: state["state_dict"].update({"model.zzz": torch.ones(2)}), "zzz"),
    "flat": (
        lambda state: state["state_dict"].update({name(state): first(state).flatten()[:3]}),
        "shape|not a checkpoint",
    ),
    "empty-tensor": (lambda state: state["state_dict"].update({name(state): torch.ones(0)}), "shape|not a checkpoint"),
    "texts": (lambda state: state["state_dict"].update({name(state): "weights"}), "missing"),
    "all-missing": (lambda state: state.update(state_dict={}), "no weights in it"),
    "renamed": (
        lambda state: state.update(state_dict={f"x.{k}.y": v for k, v in state["state_dict"].items()}),
        "not a checkpoint|missing|unknown",
    ),
}
MISSING = object()
FIELDS: dict[str, dict[str, Any]] = {
    "task": {"unknown": "poetry", "none": None, "number": 3, "list": ["classification"], "missing": MISSING},
    "model": {"number": 3, "scheme": "hf-hub:nobody/x", "path": "/etc/passwd", "empty": "", "missing": MISSING},
    "model_args": {
        "text": "x",
        "file": {"pretrained_cfg_overlay": {"file": "/dev/zero"}},
        "pretrained": {"pretrained": True},
        "deep": {"a": [[[[[[[[[[[[1]]]]]]]]]]]]},
        "number-keys": {1: 2},
    },
    "num_classes": {
        "zero": 0,
        "negative": -1,
        "huge": 10**400,
        "half": 2.5,
        "text": "3",
        "nan": float("nan"),
        "true": True,
    },
    "classes": {"text": "abc", "short": ["a"], "numbers": [1, 2, 3], "long": ["x" * 5000] * 3, "object": {}},
    "image_size": {"zero": 0, "huge": 10**9, "half": 32.5, "none": None, "text": "32", "tensor": torch.ones(1)},
    "preprocessing": {
        "text": "x",
        "list": [1],
        "mean": {"mean": [0.5]},
        "std": {"std": [0.0] * 3},
        "nan": {"mean": [float("nan")] * 3},
    },
}


def name(state: dict[str, Any]) -> str:
    return next(key for key, tensor in state["state_dict"].items() if tensor.ndim == 4)


def first(state: dict[str, Any]) -> torch.Tensor:
    tensor: torch.Tensor = state["state_dict"][name(state)]
    return tensor


def _predict(world: World, file: str) -> list[str]:
    world.file("image.png", encoded("PNG"))
    return ["predict", "image.png", "--ckpt_path", file, "--device", "cpu"]


def _fit(world: World, file: str) -> list[str]:
    for place in ("train/a", "train/b", "val/a", "val/b"):
        world.file(f"data/{place}/1.png", encoded("PNG"))
    given = [
        "fit",
        "-c",
        DIGITS,
        "--data.root",
        "data",
        "--model.num_classes",
        "2",
        "--trainer.default_root_dir",
        "run",
    ]
    return [*given, "--trainer.accelerator", "cpu", "--model.checkpoint", file]


def _of_file(file: str, content: Callable[[], bytes], command: Callable[[World, str], list[str]]) -> Any:
    def arguments(world: World) -> list[str]:
        world.file(file, content())
        return command(world, file)

    return arguments


def _changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[World], list[str]]:
    def arguments(world: World) -> list[str]:
        state = torch.load(world.checkpoint("classifier"), weights_only=True)
        change(state)
        world.file("x.ckpt", saved(state))
        return _predict(world, "x.ckpt")

    return arguments


def _with(field: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(state: dict[str, Any]) -> None:
        state["dgmn"].pop(field) if value is MISSING else state["dgmn"].update({field: value})

    return change


def _cut(share: float) -> Callable[[World], list[str]]:
    def arguments(world: World) -> list[str]:
        content = world.checkpoint("classifier").read_bytes()
        world.file("x.ckpt", content[: int(share * len(content))])
        return _predict(world, "x.ckpt")

    return arguments


def _pipe(world: World) -> list[str]:
    pipe(world.here / "x.ckpt")
    return _predict(world, "x.ckpt")


CASES = [
    *(
        Case(f"checkpoint-{kind}", _of_file(file, content, _predict), rf"{file}.*({told})", alone="bomb" in kind)
        for kind, (file, content, told) in FILES.items()
    ),
    *(
        Case(f"start-from-{kind}", _of_file(file, content, _fit), rf"{file}.*({told})")
        for kind, (file, content, told) in list(FILES.items())[::5]
        if "does not say" not in told
    ),
    *(
        Case(f"checkpoint-weights-{kind}", _changed(change), rf"x\.ckpt.*({told})")
        for kind, (change, told) in WEIGHTS.items()
    ),
    *(
        Case(f"checkpoint-{field}-{kind}", _changed(_with(field, value)), rf"x\.ckpt: dgmn\.{field}")
        for field, values in FIELDS.items()
        for kind, value in values.items()
    ),
    *(
        Case(
            f"checkpoint-description-{kind}",
            _changed(lambda state, value=value: state.update(dgmn=value)),
            r"x\.ckpt: dgmn",
        )
        for kind, value in {"none": None, "text": "x", "list": [1], "empty": {}, "number": 3}.items()
    ),
    *(Case(f"checkpoint-cut-{share}", _cut(share), f"x.ckpt.*{DAMAGED}") for share in (0.001, 0.3, 0.9, 0.999)),
    Case("checkpoint-pipe", _pipe, r"x\.ckpt", alone=True),
]
