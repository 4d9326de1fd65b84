"""Tables for the terminal, and the one of the published models."""

import argparse
import sys
from collections.abc import Sequence

from dgmn.errors import InputError
from dgmn.weights import ZOO, download


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their content; numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    numeric = [all(_is_number(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        parts = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        return "  ".join(parts).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, cells)])


def show_progress(done: float, total: float, what: str, quiet: bool = False) -> None:
    """One line on the error output that is written again and again; nothing where nobody sees it."""
    if quiet or not sys.stderr.isatty():
        return
    filled = round(30 * done / max(total, 1))
    end = "\n" if done >= total else ""
    print(
        f"\r[{'#' * filled}{'.' * (30 - filled)}] {done:.0f} of {total:.0f} {what}",
        end=end,
        file=sys.stderr,
        flush=True,
    )


def _is_number(text: str) -> bool:
    return text.strip("%-+ ").replace(".", "", 1).replace(",", "").isdigit() or text in ("", "-")


_METRICS = {
    "classification": ("top1",),
    "detection": ("box_ap", "mask_ap"),
    "segmentation": ("miou", "miou_ms_flip"),
}


def zoo(options: argparse.Namespace) -> int:
    if options.command == "download":
        try:
            path = download(options.name, options.file)
        except ImportError as error:
            raise InputError(str(error)) from error
        print(f"verified and converted: {path}")
        return 0
    for task, metrics in _METRICS.items():
        if options.task in (None, task):
            rows = [
                (m.name, m.method, m.dataset, m.schedule, *(m.metrics.get(metric, "-") for metric in metrics))
                for m in ZOO
                if m.task == task
            ]
            print(format_table(("name", "method", "dataset", "schedule", *metrics), rows), end="\n\n")
    print("The metrics are the paper's, not measured here.")
    print("Fetch one: dgmn zoo download NAME")
    return 0
