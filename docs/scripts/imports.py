"""Draws the parts of dgmn and what each imports, to docs/images/imports.svg.

    uv run --with grimp python docs/scripts/imports.py

Needs graphviz (`dot` and `tred`). The picture leaves out an import that follows from others. An arrow that points up is
an error, and so is a cycle.
"""

import subprocess
import sys
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from test_architecture import FLOORS  # noqa: E402 - the tests define the floors

PACKAGES = ("dgmn", "dgmn_base")  # `dgmn_cli` stands on both


def part(module: str) -> str | None:
    first, *rest = module.split(".")
    return first if first != "dgmn" else rest[0] if rest else None


def edges() -> set[tuple[str, str]]:
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    pairs = {(part(a), part(b)) for a in graph.modules for b in graph.find_modules_directly_imported_by(a)}
    return {(a, b) for a, b in pairs if a and b and a != b}


def main() -> None:
    found = edges()
    wrong = [pair for pair in found if FLOORS[pair[0]] < FLOORS[pair[1]]]
    if wrong:
        raise SystemExit(f"imports that point up: {wrong}")
    lines = ["digraph { rankdir=TB; ranksep=0.45; node [shape=box fontname=Helvetica fontsize=11 style=filled]"]
    floors = {name: floor for name, floor in FLOORS.items() if any(name in pair for pair in found)}
    lines += [f'"{name}" [fillcolor="/blues9/{1 + (floor + 1) // 2}"]' for name, floor in floors.items()]
    lines += [f'"{a}" -> "{b}" [color="#00000080" arrowsize=0.6]' for a, b in sorted(found)]
    reduced = subprocess.run(["tred"], input="\n".join([*lines, "}"]), capture_output=True, text=True, check=True)
    if "cycle" in reduced.stderr:
        raise SystemExit(reduced.stderr)
    target = ROOT / "docs/images/imports.svg"
    subprocess.run(["dot", "-Tsvg", "-o", str(target)], input=reduced.stdout, text=True, check=True)
    print(f"{len(floors)} parts, {len(found)} imports between them, all down: {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
