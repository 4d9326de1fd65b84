"""Bad recipes, for `dgmn fit` and `dgmn validate-data`."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import yaml

from bad_inputs.cases import Case, World
from bad_inputs.images import encoded, pipe
from dgmn_base.recipes import find_recipe, read_recipe

DIGITS = "recipes/classification/digits.yaml"
SECTIONS = "a recipe has sections such as model and data"
SAFE = r"recipe\.yaml: "
TAG = "could not determine a constructor for the tag"

FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", f"{SAFE}{SECTIONS}, got nothing"),
    "comment-only": (b"# nothing\n", f"{SAFE}{SECTIONS}, got nothing"),
    "null": (b"null\n", f"{SAFE}{SECTIONS}, got nothing"),
    "list": (b"- model\n- data\n", f"{SAFE}{SECTIONS}"),
    "text": (b"hello\n", f"{SAFE}{SECTIONS}"),
    "number": (b"3\n", f"{SAFE}{SECTIONS}"),
    "number-keys": (b"1: 2\n", f"{SAFE}{SECTIONS}"),
    "null-key": (b"null: 2\n", f"{SAFE}{SECTIONS}"),
    "broken": (b"model: [1, 2\n", SAFE),
    "tab": (b"model:\n\tclass_path: x\n", SAFE),
    "two-documents": (b"model: {}\n---\ndata: {}\n", SAFE),
    "unknown-alias": (b"model: *nowhere\n", SAFE),
    "cycle": (b"model: &a\n  data: *a\n", SAFE),
    "bomb": (
        b"a: &a [x, x, x, x, x, x, x, x, x]\n"
        + b"".join(f"{c}: &{c} [{', '.join([f'*{b}'] * 9)}]\n".encode() for b, c in pairwise("abcdefghi")),
        f"{SAFE}a recipe has at most",
    ),
    "deep": (b"model: " + b"[" * 3000, f"{SAFE}a recipe is nested at most"),
    "large": (b"#" * 2**21, f"{SAFE}a recipe has at most"),
    "latin-1": (b"model: gr\xfcn\n", SAFE),
    "utf-16": ("model: {}\n".encode("utf-16"), SAFE),
    "binary": (bytes(range(256)), SAFE),
    "zero-byte": (b"model: a\0b\n", SAFE),
    "tag-system": (b"!!python/object/apply:os.system ['touch executed']\n", f"{SAFE}{TAG}"),
    "tag-inside": (b"model: !!python/object/apply:os.system ['touch executed']\n", f"{SAFE}{TAG}"),
    "tag-eval": (b"data: !!python/object/new:eval [\"open('executed', 'w')\"]\n", f"{SAFE}{TAG}"),
    "tag-name": (b"data: !!python/name:os.system ''\n", f"{SAFE}{TAG}"),
    "tag-module": (b"data: !!python/module:os ''\n", f"{SAFE}{TAG}"),
    "tag-own": (b"data: !include /etc/passwd\n", f"{SAFE}{TAG}"),
    "json-cut": (b'{"model": {', SAFE),
    "html": (b"<!DOCTYPE html><html></html>\n", f"{SAFE}{SECTIONS}"),
    "unknown-section": (b"modle: {}\n", "required: fit.data, fit.model"),
    "model-only": (b"model: {class_path: dgmn.classification.ClassificationTask}\n", "data"),
    "data-only": (b"data: {class_path: dgmn.classification.ClassificationData}\n", "model"),
}

MISSING = object()
REFUSED = "is refused"
# A place in the recipe, the values that it gets, and what is told.
CHANGES: list[tuple[tuple[str, ...], dict[str, Any], str]] = [
    (("model",), {"text": "x", "list": [1], "number": 3, "empty": {}, "missing": MISSING}, "model"),
    (("data",), {"text": "x", "list": [1], "number": 3, "missing": MISSING}, "data"),
    (("trainer",), {"text": "x", "list": [1], "number": 3}, "trainer"),
    (("model", "class_path"), {"number": 3, "empty": "", "unknown": "dgmn.classification.Nothing"}, "model|Nothing"),
    (("model", "class_path"), {"system": "os.system", "popen": "subprocess.Popen", "eval": "builtins.eval"}, REFUSED),
    (("model", "class_path"), {"function": "torch.load", "other-class": "torch.nn.Linear"}, REFUSED),
    (("data", "class_path"), {"system": "os.system", "task": "dgmn.classification.ClassificationTask"}, REFUSED),
    (("model", "init_args"), {"text": "x", "list": [1]}, "init_args|model"),
    (("model", "init_args", "zzz"), {"unknown": 1}, "zzz"),
    (("data", "init_args", "zzz"), {"unknown": 1}, "zzz"),
    (("trainer", "zzz"), {"unknown": 1}, "zzz"),
    (("zzz",), {"unknown": 1}, "zzz"),
    (
        ("model", "init_args", "num_classes"),
        {
            "text": "ten",
            "half": 2.5,
            "nan": float("nan"),
            "list": [2],
            "negative": -2,
            "object": {},
            "date": "2020-01-01",
        },
        "num_classes",
    ),
    (
        ("model", "init_args", "optimizer", "init_args", "lr"),
        {"text": "fast", "nan": float("nan"), "inf": float("inf"), "negative": -1.0, "list": [1]},
        "lr|learning rate",
    ),
    (("model", "init_args", "optimizer", "class_path"), {"system": "os.system", "linear": "torch.nn.Linear"}, REFUSED),
    (("model", "init_args", "schedule", "class_path"), {"system": "os.system", "load": "torch.hub.load"}, REFUSED),
    (("model", "init_args", "model"), {"number": 3, "unknown": "dgmn2_tny", "path": "../x"}, "model"),
    (("model", "init_args", "checkpoint"), {"missing": "x.pth", "folder": "."}, "checkpoint"),
    (("data", "init_args", "root"), {"missing": "nowhere", "file": "recipe.yaml"}, "data.root .*: there is no such"),
    (("data", "init_args", "root"), {"number": 3, "list": ["data"]}, "root"),
    (("data", "init_args", "image_size"), {"text": "large", "zero": 0, "negative": -32, "half": 1.5}, "image_size"),
    (("data", "init_args", "batch_size"), {"text": "many", "zero": 0, "nan": float("nan")}, "batch_size"),
    (("data", "init_args", "num_workers"), {"negative": -1, "text": "all"}, "num_workers"),
    (("data", "init_args", "augmentation"), {"text": "x", "number": 3}, "augmentation"),
    (("data", "init_args", "augmentation", "scale"), {"text": "x", "one": [1.0], "reversed": [1.0, 0.5]}, "scale"),
    (("data", "init_args", "augmentation", "zzz"), {"unknown": 1}, "zzz"),
    (("data", "init_args", "train"), {"system": {"class_path": "os.system"}}, REFUSED),
    (("trainer", "max_epochs"), {"text": "many", "half": 1.5, "below": -2, "list": [1]}, "max_epochs"),
    (("trainer", "callbacks"), {"system": {"class_path": "os.system"}, "function": "torch.load"}, REFUSED),
    (("trainer", "logger"), {"system": {"class_path": "os.system"}}, REFUSED),
    (("trainer", "accelerator"), {"unknown": "toaster", "number": 3}, "accelerator|toaster"),
    (("trainer", "default_root_dir"), {"below-a-file": "recipe.yaml/run"}, r"recipe\.yaml"),
    (("seed_everything",), {"text": "x", "negative": -1, "huge": 2**64, "half": 1.5}, "seed_everything"),
]


def _changed(path: tuple[str, ...], value: Any) -> bytes:
    content = read_recipe(find_recipe(DIGITS))
    content["data"]["init_args"]["root"] = "data"
    content["model"]["init_args"]["num_classes"] = 2
    content["trainer"] |= {"default_root_dir": "run", "accelerator": "cpu", "max_epochs": 1}
    here: Any = content
    for name in path[:-1]:
        here = here[name]
    if value is MISSING:
        del here[path[-1]]
    else:
        here[path[-1]] = value
    return yaml.safe_dump(content).encode()


def _recipe(content: bytes, *command: str) -> Callable[[World], list[str]]:
    def arguments(world: World) -> list[str]:
        world.file("recipe.yaml", content)
        for place in ("train/a", "train/b", "val/a", "val/b"):
            world.file(f"data/{place}/1.png", encoded("PNG"))
        return [*command, "-c", "recipe.yaml"]

    return arguments


def _pipe(world: World) -> list[str]:
    pipe(world.here / "recipe.yaml")
    return ["fit", "-c", "recipe.yaml"]


CASES = [
    *(
        Case(f"recipe-{name}", _recipe(content, "fit"), told, alone=name == "bomb")
        for name, (content, told) in FILES.items()
    ),
    *(
        Case(f"data-recipe-{name}", _recipe(content, "validate-data"), told)
        for name, (content, told) in FILES.items()
        if told.startswith(SAFE)
    ),
    *(
        Case(f"recipe-{'-'.join(path)}-{kind}", _recipe(_changed(path, value), "fit"), told)
        for path, values, told in CHANGES
        for kind, value in values.items()
    ),
    Case("recipe-pipe", _pipe, r"recipe\.yaml: no such recipe", alone=True),
]
