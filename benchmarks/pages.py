"""CSV files of measurements, and the tables that they make in the documentation."""

import csv
import os
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from dgmn.bench.report import environment
from dgmn_base.files import writing

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
_END = "<!-- its end -->\n"


def facts(device: str = "cpu", **more: str) -> dict[str, str]:
    """What a file of measurements begins with: machine, versions, commit, date."""
    return {**environment(device, "float32"), "commit": commit(), **more}


def row_facts(device: str) -> dict[str, str]:
    """The same for a single row of a file that several runs fill."""
    known = environment(device, "float32")
    return {"commit": commit(), **{key: known[key] for key in ("dgmn", "torch", "timm", "device", "date")}}


def commit() -> str:
    """The commit of this tree; a copy without git is told it by DGMN_COMMIT."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    if "DGMN_COMMIT" in os.environ:
        return os.environ["DGMN_COMMIT"]
    changed = " with changes" if git("status", "--porcelain", "--", "src", "csrc") else ""
    return git("rev-parse", "--short", "HEAD") + changed


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """Adds a row to a file, which gets its header with the first."""
    fresh = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of such a file; none if it does not exist yet."""
    return read_csv(path)[1] if path.exists() else []


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


def spread(values: Sequence[float]) -> str:
    """Mean, and the lowest and the highest."""
    ends = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{ends}" if values else ""


def publish(
    script: Path, page: str, rows: list[dict[str, str]], out: Path | None, device: str, name: str | None = None
) -> None:
    """Writes rows to a CSV file and shows them, and puts them into a page unless the file or the device is another.

    The file is called as the script, or `name`.
    """
    path, about = out or RESULTS / f"{name or script.stem}_{device}.csv", facts(device)
    write_csv(path, about, list(rows[0]), rows)
    text = "; ".join(f"{key} {value}" for key, value in about.items() if key != "device") + ".\n\n"
    text += markdown(list(rows[0]), [list(row.values()) for row in rows])
    print(text)
    if out is None and device == "cpu":
        write_table(ROOT / "docs" / page, script.name, text)


def write_table(page: Path, script: str, text: str) -> None:
    """Puts a table where a page has the marks of the script."""
    start = f"<!-- the table of benchmarks/{script} -->\n"
    before, found, rest = page.read_text().partition(start)
    if not found:
        raise SystemExit(f"{page}: lacks the line {start}")
    _, _, after = rest.partition(_END)
    with writing(page) as file:
        file.write((before + start + "\n" + text + "\n" + _END + after).encode())
