"""The scripts beside the package: what they import from it is there."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [path for folder in ("benchmarks", "docs/scripts", "examples") for path in (ROOT / folder).glob("*.py")]


def imported(path: Path) -> list[tuple[str, str]]:
    """Module and name of all imports from our packages, also those inside of functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found += [(node.module, alias.name) for alias in node.names]
    return [(module, name) for module, name in found if module.split(".")[0] in ("dgmn", "dgmn_base", "dgmn_cli")]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_imports(path):
    for module, name in imported(path):
        if not hasattr(importlib.import_module(module), name or "__name__"):
            importlib.import_module(f"{module}.{name}")


def test_there_are_scripts():
    assert {"floor.py", "gpu.py", "tables.py"} <= {path.name for path in SCRIPTS}
