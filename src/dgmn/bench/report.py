"""Writes the results of `dgmn bench`: tables, a CSV file that starts with hardware and versions, and charts."""

import argparse
import csv
import datetime
import math
import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import timm
import torch

import dgmn
from dgmn.bench.measure import Job, Timing
from dgmn.errors import InputError
from dgmn_base.files import writing
from dgmn_base.terminal import counted, format_table

COLUMNS = (
    *("case", "mode", "contender", "ms", "q25", "q75", "images_per_s", "ratio", "peak_mb"),
    *("batch", "pixels", "rounds"),
)


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        case: shape of the maps, or size of the images.
        mode: what ran: forward, inference, train and so on.
        contender: name of the backend or network that ran.
        time: milliseconds of one call.
        batch: images in one call.
        pixels: pixels of all images of one call, or of the maps for an operator.
        rounds: how many times it was timed.
        ratio: median time of the baseline over that of this contender; above 1 is faster.
        peak_mb: peak memory on top of model and input, in 10⁶ bytes.
    """

    case: str
    mode: str
    contender: str
    time: Timing
    batch: int
    pixels: int
    rounds: int
    ratio: float | None
    peak_mb: float | None

    @property
    def images_per_s(self) -> float:
        return 1e3 * self.batch / self.time.median


class Report:
    """Collects the rows of one command. Every case rewrites the CSV file, so a stopped run keeps its cases.

    Args:
        name: start of the file names.
        options: device, dtype, threads (or None) and out (the folder).

    Raises:
        InputError: there is no such device, or the folder cannot be made.
    """

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        if options.device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device cuda: this PyTorch finds no CUDA device; --device cpu always works")
        if options.threads:
            torch.set_num_threads(options.threads)
        self.kind = "ops" if name == "ops" else "models"
        self.device = options.device
        self.dtype = options.dtype
        self.rows: list[Row] = []
        self.environment = environment(options.device, options.dtype)
        dtype = "" if options.dtype == "float32" else f"_{options.dtype}"
        try:
            Path(options.out).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {options.out}: cannot make this folder: {error}") from error
        self.csv = Path(options.out) / f"{name}_{options.device}{dtype}.csv"

    def job(self, contender: str, case: str, batch: int, mode: str) -> Job:
        return Job(self.kind, contender, case, batch, mode, self.device, self.dtype, torch.get_num_threads())

    def add(
        self,
        case: str,
        mode: str,
        batch: int,
        pixels: int,
        rounds: int,
        measured: Mapping[str, tuple[Timing, float | None]],
        baselines: Mapping[str, str],
    ) -> None:
        """Adds the measurements of one case.

        `measured` and `baselines` have the contenders as keys. A baseline is the contender to compare with.
        """
        for name, (timing, memory) in measured.items():
            baseline = measured.get(baselines[name])
            ratio = baseline[0].median / timing.median if baseline else None
            self.rows.append(Row(case, mode, name, timing, batch, pixels, rounds, ratio, memory))
        self._write_csv()

    def _write_csv(self) -> None:
        text = StringIO()
        for key, value in self.environment.items():
            text.write(f"# {key}: {value}\n")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for r in self.rows:
            times = (f"{ms:.6g}" for ms in (r.time.median, r.time.q25, r.time.q75, r.images_per_s))
            optional = ("" if number is None else f"{number:.6g}" for number in (r.ratio, r.peak_mb))
            writer.writerow((r.case, r.mode, r.contender, *times, *optional, r.batch, r.pixels, r.rounds))
        with writing(self.csv) as file:
            file.write(text.getvalue().encode())

    def table(self, mode: str, ratio: str) -> str:
        """Formats the rows of a mode; `ratio` is the heading of the column of ratios."""
        header = ("case", "contender", "ms", "25 %", "75 %", "images/s", ratio, "peak MB")
        rows = [
            (
                r.case,
                r.contender,
                short(r.time.median),
                short(r.time.q25),
                short(r.time.q75),
                short(r.images_per_s),
                "-" if r.ratio is None else f"{r.ratio:.2f}",
                "-" if r.peak_mb is None else short(r.peak_mb),
            )
            for r in self.rows
            if r.mode == mode
        ]
        return format_table(header, rows)

    def mean_ratios(self, mode: str) -> dict[str, float]:
        """Returns the geometric mean of the ratio over all cases, for each contender that ran in all of them."""
        rows = [r for r in self.rows if r.mode == mode]
        cases = {r.case for r in rows}
        means = {}
        for name in dict.fromkeys(r.contender for r in rows):
            ratios = [r.ratio for r in rows if r.contender == name and r.ratio is not None]
            if len(ratios) == len(cases):
                means[name] = math.exp(sum(map(math.log, ratios)) / len(ratios))
        return means

    def require_rows(self) -> None:
        if not self.rows:
            raise InputError("nothing could be measured: the lines above say why each contender was skipped")

    def finish(self, draw: Callable[[list[Row], str, Path], list[Path]]) -> int:
        """Prints where the files are, and draws the charts if matplotlib is installed."""
        line = ", ".join(
            self.environment[key] for key in ("device", "threads", "dtype", "torch", "date") if key in self.environment
        )
        print(f"\n{line}\nwrote {self.csv}")
        if find_spec("matplotlib") is None:
            print("no chart, because matplotlib is missing: pip install 'dgmn[bench]'")
            return 0
        for path in draw(self.rows, line, self.csv.with_suffix("")):
            print(f"wrote {path}")
        return 0


def short(number: float) -> str:
    """Formats a number without an exponent: 3 decimals below 10, 1 below 1000, else none."""
    return f"{number:.0f}" if number >= 1000 else f"{number:.1f}" if number >= 10 else f"{number:.3f}"


def environment(device: str, dtype: str) -> dict[str, str]:
    """Describes hardware and versions, for the head of a file."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processor = _processor()
    threads = torch.get_num_threads()
    described = {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor,
        "processor": f"{processor}, {counted(cores, 'core')}, {torch.backends.cpu.get_cpu_capability()}",
        "system": f"{platform.system()} {platform.machine()}",
        "threads": counted(threads, "thread"),
        "dtype": dtype,
        "torch": f"torch {torch.__version__}",
        "timm": timm.__version__,
        "dgmn": dgmn.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    if device == "cuda":
        described["cuda"] = str(torch.version.cuda)
    return described


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()
