"""The house rules of imports, read from the source."""

import ast
import json
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"

# The floor of each part, see CONTRIBUTING.md. A part is a folder or module in the package `dgmn`, or beside it.
FLOORS = {
    "dgmn_base": -1,
    **dict.fromkeys(
        ("about", "errors", "finite", "images", "layout", "ops", "processes", "report", "split", "video", "writers"), 0
    ),
    **dict.fromkeys(("objects", "weights"), 1),
    "layers": 2,
    **dict.fromkeys(("models", "nodes"), 3),
    "training": 4,
    **dict.fromkeys(("classification", "detection", "pictures", "predictor", "segmentation"), 5),
    **dict.fromkeys(
        (
            *("bench", "cli", "complexity", "convert_data", "doctor", "loading", "paper_tables", "predict"),
            *("quickstart", "run_summary", "reproduce", "sharing", "validate_data", "zoo"),
        ),
        6,
    ),
    **dict.fromkeys(("app", "exporting", "onnx_network"), 6),
    "dgmn_cli": 7,
}
TASKS = {"classification", "detection", "segmentation"}

# Only these files may import these packages, be it at the top or inside a function.
ONLY_IN = {
    "lightning": ("dgmn/training/*", "dgmn/*/data.py", "dgmn/*/task.py", "dgmn/cli.py"),
    "torchmetrics": ("dgmn/*/task.py",),
    "transformers": ("dgmn/detection/deformable_detr.py",),
    "av": ("dgmn/video.py",),
    "supervision": ("dgmn/detection/predictor.py",),
    "ctypes": ("dgmn/ops/native.py", "dgmn/bench/measure.py"),
    "triton": ("dgmn/ops/triton_kernels.py", "dgmn/ops/triton_position.py"),
    "matplotlib": ("dgmn/bench/charts.py", "dgmn/bench/report.py", "dgmn/pictures/curves.py"),
    "gradio": ("dgmn/app/command.py", "dgmn/app/page.py"),
    "onnx": ("dgmn/exporting/int8.py", "dgmn/exporting/onnx_graph.py", "dgmn/onnx_network.py"),
}
ALIASES = {"pytorch_lightning": "lightning", "lightning_fabric": "lightning", "onnxruntime": "onnx"}

FILES = sorted(SRC.rglob("*.py"))


def identify(path):
    return path.relative_to(SRC).as_posix()


def imports(path):
    """Absolute names that a file imports anywhere in it: `from a import b` gives a.b."""
    package = path.relative_to(SRC).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            for alias in node.names:
                yield ".".join((*base, *([node.module] if node.module else []), alias.name))


def files_imported(path):
    """Our files that a file imports: `from dgmn.weights import find` gives weights/__init__.py."""
    for name in imports(path):
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            place = SRC.joinpath(*parts[:length])
            file = next((f for f in (place.with_suffix(".py"), place / "__init__.py") if f.is_file()), None)
            if file is not None:
                if file != path:
                    yield file
                break


def part(path):
    """The part that a file belongs to; None for `dgmn` itself, which combines all parts."""
    first, *rest = path.relative_to(SRC).with_suffix("").parts
    if first != "dgmn":
        return first
    return None if rest == ["__init__"] else rest[0]


def test_every_part_has_its_floor():
    assert {part(path) for path in FILES} - {None} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_imports_point_down(path):
    here = part(path)
    for file in files_imported(path) if here is not None else ():
        there = part(file)
        if there not in (here, None):
            assert FLOORS[there] <= FLOORS[here], f"{identify(path)} must not import {identify(file)}"


def test_imports_form_no_circle():
    """No file and no part imports itself through others. Imports inside functions count, too."""
    graph = {path: set(files_imported(path)) for path in FILES}
    parts: dict[str, set[str]] = {name: set() for name in FLOORS}
    for path, files in graph.items():
        if part(path) is not None:
            parts[part(path)] |= {part(file) for file in files} - {None, part(path)}
    for edges in (graph, parts):
        try:
            TopologicalSorter(edges).prepare()
        except CycleError as error:
            pytest.fail(" -> ".join(identify(x) if isinstance(x, Path) else x for x in error.args[1]))


def test_tasks_do_not_import_each_other():
    for path in FILES:
        if part(path) in TASKS:
            assert {part(file) for file in files_imported(path)} & TASKS <= {part(path)}, identify(path)


@pytest.mark.parametrize("path", sorted((SRC / "dgmn/ops").rglob("*.py")), ids=identify)
def test_ops_import_torch_only(path):
    allowed = {"torch", "dgmn", *sys.stdlib_module_names}
    if path.name.startswith("triton_"):
        allowed |= {"triton"}
    assert {name.split(".")[0] for name in imports(path)} <= allowed
    assert {part(file) for file in files_imported(path)} <= {"ops", "errors"}


def matches(path, pattern):
    name = path.relative_to(SRC)
    return name.match(pattern) and len(name.parts) == pattern.count("/") + 1


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_heavy_packages_stay_in_their_files(path):
    for imported in imports(path):
        package = imported.split(".")[0]
        patterns = ONLY_IN.get(ALIASES.get(package, package))
        if patterns is not None:
            assert any(matches(path, p) for p in patterns), f"{identify(path)} must not import {package}"


def test_the_rules_are_about_files_that_are_there():
    for patterns in ONLY_IN.values():
        for pattern in patterns:
            assert any(matches(path, pattern) for path in FILES), pattern


def run_python(code):
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return run.stdout


def test_what_answers_at_once_imports_nothing_heavy():
    light = ["dgmn_cli", *(f"dgmn_base.{path.stem}" for path in (SRC / "dgmn_base").glob("[a-z]*.py"))]
    heavy = {"torch", "timm", "lightning", "dgmn", "numpy", "PIL"}
    assert run_python(f"import sys, {', '.join(light)}; print({heavy} & set(sys.modules))") == "set()\n"


STEPS = ("timm", "dgmn", "dgmn.detection", "dgmn.loading", "dgmn.detection.predictor")


@pytest.fixture(scope="module")
def added():
    """The modules that each of `STEPS` adds to those before it, in a fresh interpreter."""
    code = "import importlib, json, sys\nseen, added = set(), {}\n"
    code += f"for step in {STEPS}:\n    importlib.import_module(step)\n"
    code += "    added[step] = sorted(set(sys.modules) - seen)\n    seen = set(sys.modules)\nprint(json.dumps(added))"
    return json.loads(run_python(code))


def test_importing_the_package_brings_nothing_slow_that_timm_does_not(added):
    """timm imports torchvision, which imports torch._dynamo and its own detectors. We add no more of the kind."""
    slow = ("torchvision.", "torch._dynamo", "torch._inductor", "PIL.", "numpy.", "dgmn.bench", "dgmn.loading")
    assert [name for name in added["dgmn"] if name.startswith((*slow, "dgmn.ops.triton_"))] == []


@pytest.mark.parametrize("step", STEPS[1:])
def test_networks_and_prediction_need_no_optional_dependency(step, added):
    optional = {"lightning", "transformers", "gradio", "matplotlib", "onnx", "onnxscript", "onnxruntime", "scipy"}
    optional |= {"torchmetrics", "jsonargparse", "gdown", "tensorboard", "supervision", "faster_coco_eval"}
    assert optional & set(added[step]) == set()
