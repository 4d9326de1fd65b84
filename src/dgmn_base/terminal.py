"""Tables and progress for the terminal."""

import sys
import time
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


class Progress:
    """Shows on the error output how far long work is: a bar in a terminal, elsewhere a line every two minutes.

    Nothing is shown in the first second.
    """

    def __init__(self) -> None:
        self._what = ""
        self._start = self._said = 0.0

    def show(self, done: float, total: float, what: str) -> None:
        """Shows that `done` of `total` (0: nobody knows) are done, and how many a second if that says something.

        Time is counted from the first call with this `what`.
        """
        now = time.monotonic()
        if what != self._what:
            self._what, self._start, self._said = what, now, now
        took = now - self._start
        speed = f", {done / took:.1f} a second" if took >= 1 and done / took >= 0.1 else ""
        if sys.stderr.isatty():
            if took >= 1:
                filled = min(30, round(30 * done / max(total, 1)))
                end = "\n" if done >= total > 0 else ""
                bar = f"[{'#' * filled}{'.' * (30 - filled)}] " if total else ""
                print(f"\r{bar}{self._told(done, total)}{speed}  ", end=end, file=sys.stderr, flush=True)
        elif now - self._said >= LINE_EVERY:
            self._said = now
            left = f", {duration(took * (total - done) / done)} left" if done and total >= done else ""
            print(f"{self._told(done, total)}{speed}{left}", file=sys.stderr, flush=True)

    def _told(self, done: float, total: float) -> str:
        return f"{done:.0f} of {total:.0f} {self._what}" if total else f"{done:.0f} {self._what}"


LINE_EVERY = 120.0
"""Seconds between lines about progress where the output is no terminal."""


def duration(seconds: float) -> str:
    """A time in words: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 image, 2 images, 1,000 classes, 3 categories."""
    if number != 1:
        hissing = noun.endswith(("s", "x", "tch"))
        noun = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}es" if hissing else f"{noun}s"
    return f"{number:,} {noun}"


def _is_number(text: str) -> bool:
    return text.strip("%-+ ").replace(".", "", 1).replace(",", "").isdigit() or text in ("", "-")
