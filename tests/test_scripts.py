"""The scripts beside the package: what they import from it is there; what one computes anew has the same numbers."""

import ast
import importlib
from pathlib import Path

import pytest
import torch

from dgmn.layers.context import DeformableConv2d

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


def test_sampled_convolution_is_deformable_convolution(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    sampled = importlib.import_module("elsewhere").SampledConv2d(3, 5, bias=False).double()
    torch.manual_seed(0)
    torch.nn.init.normal_(sampled.offset_and_mask.weight, std=0.5)
    deformable = DeformableConv2d(3, 5, bias=False).double()
    deformable.load_state_dict(sampled.state_dict())
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64, requires_grad=True)
    results = []
    for layer in (sampled, deformable):
        out = layer.train()(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), (x, *layer.parameters()))))
    torch.testing.assert_close(*results)
