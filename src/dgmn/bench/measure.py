"""Times contenders side by side and measures the memory that each needs."""

import ctypes
import gc
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dgmn.errors import first_line

Work = Callable[[], object]
"""One forward pass, or forward and backward."""

# A timing is the mean of as many calls as fill this time: a single short call is mostly noise.
_SECONDS_PER_SAMPLE = 0.01

# Errors of a contender that cannot run: from our checks, torch's, timm's (which asserts), or a missing package.
REFUSALS = (ValueError, TypeError, RuntimeError, AssertionError, ImportError)


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call."""

    median: float
    q25: float
    q75: float


@dataclass(frozen=True)
class Job:
    """Describes what to run, fully enough to build it again in another process."""

    kind: str
    contender: str
    case: str
    batch: int
    mode: str
    device: str
    dtype: str
    threads: int

    @property
    def compiled(self) -> bool:
        return self.contender == "inductor" or self.contender.endswith(":compiled")


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(
    jobs: Iterable[Job], prepare: Callable[[Job], Work], rounds: int, memory: bool
) -> dict[str, tuple[Timing, float | None]]:
    """Measures time and, if `memory`, peak memory of the contenders of one case.

    A contender that cannot run is left out, and its reason is printed.
    """
    torch.compiler.reset()  # torch keeps compiled code for a limited number of shapes
    ready: dict[Job, Work] = {}
    for job in jobs:
        try:
            work = prepare(job)
            work()  # a compiled contender compiles here
            synchronize(job.device)
        except REFUSALS as error:
            progress(f"  {job.contender} skipped: {first_line(error)}")
        else:
            ready[job] = work
    if not ready:
        return {}
    timings = time_side_by_side({job.contender: work for job, work in ready.items()}, rounds, next(iter(ready)).device)
    return {
        job.contender: (timings[job.contender], peak_memory(job, work) if memory else None)
        for job, work in ready.items()
    }


def time_side_by_side(contenders: Mapping[str, Work], rounds: int, device: str) -> dict[str, Timing]:
    """Times all contenders in turn, round after round, so that a change in the machine's speed affects all of them."""
    calls = {name: _calls_per_sample(work, device) for name, work in contenders.items()}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            if sys.stderr.isatty():
                print(f"\r  round {i + 1} of {rounds} ", end="", file=sys.stderr, flush=True)
            # Each round starts with another one, so that none always runs on the caches of the same neighbour.
            for name in names[i % len(names) :] + names[: i % len(names)]:
                samples[name].append(_sample(contenders[name], calls[name], device))
    finally:
        gc.enable()
        if sys.stderr.isatty():
            print("\r" + " " * 30 + "\r", end="", file=sys.stderr, flush=True)
    timings = {}
    quarters = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    for name, seconds in samples.items():
        q25, median, q75 = (1e3 * torch.tensor(seconds, dtype=torch.float64).quantile(quarters)).tolist()
        timings[name] = Timing(median, q25, q75)
    return timings


def _sample(work: Work, calls: int, device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        work()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def _calls_per_sample(work: Work, device: str) -> int:
    once = min(_sample(work, 1, device) for _ in range(2))
    return min(1000, max(1, math.ceil(_SECONDS_PER_SAMPLE / max(once, 1e-9))))


def peak_memory(job: Job, work: Work) -> float | None:
    """Returns the peak memory of one call on top of model and input, in MB (10⁶ bytes); None if it is unknown."""
    if job.device == "cuda":
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    # PyTorch does not count memory on the CPU, so a fresh process does the work and asks the system.
    child = subprocess.run(
        [sys.executable, "-m", "dgmn.bench.child", json.dumps(asdict(job))], capture_output=True, text=True, check=False
    )
    if child.returncode:
        last = child.stderr.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
        progress(f"  memory of {job.contender} not measured: {last[0]}")
        return None
    answer: float | None = json.loads(child.stdout.splitlines()[-1])
    return answer


def peak_of_this_process(work: Work, *, already_ran: bool) -> float | None:
    """Returns what `peak_memory` does, for the CPU, and runs the work in this process.

    `already_ran` says that the same work ran in this process before.
    """
    gc.collect()
    _give_back_freed()
    reset = _reset_peak()
    before = _peak()
    if before is None or (already_ran and not reset):
        return None  # the peak may be that of the earlier run
    work()
    after = _peak()
    return None if after is None else (after - before) / 1e6


def _peak() -> int | None:
    """Returns the most bytes that this process has held so far."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: getrusage's peak starts at that of the parent process
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return 1024 * int(found[1])
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _reset_peak() -> bool:
    """Sets the peak to the memory held now, and returns whether the system can do that.

    Making the weights may have needed more for a moment.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _give_back_freed() -> None:
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)
