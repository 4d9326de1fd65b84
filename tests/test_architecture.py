"""The house rules of imports, read from the source."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"
PACKAGE = SRC / "dgmn"

# Which floor a part of the package is on; every other module at its top is a face.
FLOORS = {"errors": 0, "ops": 1, "weights": 1, "layers": 2, "models": 3, "nodes": 3, "training": 4, "visualize": 5}
TASKS = ("classification", "detection", "segmentation")
FLOORS |= dict.fromkeys(TASKS, 6)
FACES = 7

# Which files may import what, anywhere in them; paths below src/dgmn.
ONLY_IN = {
    "lightning": ("training/*", "*/data.py", "*/task.py", "cli.py", "quickstart.py"),
    "transformers": ("detection/deformable_detr.py",),
    "gradio": ("app.py",),
    "ctypes": ("ops/native.py", "bench/measure.py"),
    "triton": ("ops/triton_kernels.py",),
    "matplotlib": ("bench/charts.py", "bench/report.py"),
    "onnx": ("export.py",),
    "onnxscript": ("export.py",),
    "onnxruntime": ("export.py",),
}
ALIASES = {"pytorch_lightning": "lightning", "lightning_fabric": "lightning"}

FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """Absolute names that a file imports anywhere in it: `from a import b` gives a.b."""
    package = ("dgmn", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            for alias in node.names:
                yield ".".join((*base, *([node.module] if node.module else []), alias.name))


def part(path):
    """The folder, or the module, at the top of the package that a file belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def parts_imported(path):
    """The parts of the package that a file imports. `import dgmn` alone only registers the networks."""
    for name in imports(path):
        if name.startswith("dgmn."):
            yield name.split(".")[1]


def identify(path):
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_imports_point_down(path):
    here = part(path)
    floor = FLOORS.get(here, FACES)
    for there in parts_imported(path):
        if there == here:
            continue
        below = FLOORS.get(there, FACES)
        assert below < floor or below == floor == FACES, f"{identify(path)} must not import dgmn.{there}"


def test_tasks_do_not_import_each_other():
    for path in FILES:
        if part(path) in TASKS:
            assert set(parts_imported(path)) & set(TASKS) <= {part(path)}, identify(path)


@pytest.mark.parametrize("path", sorted((PACKAGE / "ops").rglob("*.py")), ids=identify)
def test_ops_import_torch_only(path):
    allowed = {"torch", "dgmn", *sys.stdlib_module_names}
    if path.name == "triton_kernels.py":
        allowed |= {"triton"}
    assert {name.split(".")[0] for name in imports(path)} <= allowed
    assert set(parts_imported(path)) <= {"ops"}


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_heavy_packages_stay_in_their_files(path):
    name = path.relative_to(PACKAGE)
    for imported in imports(path):
        package = imported.split(".")[0]
        patterns = ONLY_IN.get(ALIASES.get(package, package))
        if patterns is not None:
            # Path.match compares from the right: `training/*` means that folder.
            allowed = any(name.match(pattern) and len(name.parts) == pattern.count("/") + 1 for pattern in patterns)
            assert allowed, f"{identify(path)} must not import {package}"


def modules_after(statement, names):
    """Which of these modules are loaded after a statement, in a fresh interpreter."""
    code = f"import sys; {statement}; print(*(name for name in {names} if name in sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return run.stdout.split()


def test_the_command_starts_without_heavy_imports():
    if not (SRC / "dgmn_cli.py").exists():
        pytest.skip("there is no command yet")
    assert modules_after("import dgmn_cli", ["torch", "timm", "lightning", "dgmn"]) == []


def test_importing_the_package_imports_no_optional_dependency():
    optional = ["lightning", "transformers", "gradio", "matplotlib", "onnx", "onnxscript", "onnxruntime"]
    optional += ["torchmetrics", "jsonargparse", "gdown", "tensorboard"]
    assert modules_after("import dgmn", [*optional, "dgmn.ops.triton_kernels", "dgmn.bench"]) == []


def test_importing_the_detectors_imports_no_optional_dependency():
    optional = ["lightning", "transformers", "scipy", "faster_coco_eval"]
    assert modules_after("import dgmn.detection", optional) == []
