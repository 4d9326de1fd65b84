"""Tables and progress for the terminal."""

import sys
from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table whose columns are as wide as their content; columns of numbers are aligned to the right."""
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
    """Updates one line on the error output; writes nothing if that is no terminal."""
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
