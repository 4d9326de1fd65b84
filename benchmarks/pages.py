"""CSV files of measurements, and the tables that they make in the documentation."""

import csv
import subprocess
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from dgmn.bench.report import environment
from dgmn_base.files import writing

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
_END = "<!-- its end -->\n"


def facts(**more: str) -> dict[str, str]:
    """What a file of measurements on the CPU begins with: machine, versions, commit, date."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = " with changes" if git("status", "--porcelain", "--", "src", "csrc") else ""
    return {**environment("cpu", "float32"), "commit": git("rev-parse", "--short", "HEAD") + changed, **more}


def write_csv(path: Path, about: dict[str, str], columns: Sequence[str], rows: list[dict[str, Any]]) -> None:
    text = StringIO()
    text.writelines(f"# {key}: {value}\n" for key, value in about.items())
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with writing(path) as file:
        file.write(text.getvalue().encode())


def read_csv(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """What a file begins with, and its rows."""
    lines = path.read_text().splitlines()
    about = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    return about, list(csv.DictReader(line for line in lines if not line.startswith("# ")))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ["---"] * len(header), *rows))


def write_table(page: Path, script: str, text: str) -> None:
    """Puts a table where a page has the marks of the script."""
    start = f"<!-- the table of benchmarks/{script} -->\n"
    before, found, rest = page.read_text().partition(start)
    if not found:
        raise SystemExit(f"{page}: lacks the line {start}")
    _, _, after = rest.partition(_END)
    with writing(page) as file:
        file.write((before + start + "\n" + text + "\n" + _END + after).encode())
