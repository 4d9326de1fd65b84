"""The native kernels under AddressSanitizer and UndefinedBehaviorSanitizer: hard inputs, from sanitize.cpp."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dgmn.ops import native

HERE = Path(__file__).parent
# onnxruntime.cpp includes the others: tests/exporting/test_kernel.py runs it.
SOURCES = sorted(path for path in (HERE.parents[1] / "csrc").glob("*.cpp") if path.stem != "onnxruntime")
COMPILER = os.environ.get("CXX", "c++")
SANITIZERS = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
# The kernels are optimised for neither speed nor size: with the sanitizers, -O1 compiles three times as long.
FLAGS = ["-std=c++14", "-g1", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", *SANITIZERS]
# Apple's compiler has no OpenMP.
FLAGS += [] if sys.platform == "darwin" else ["-fopenmp"]


def run(*command, **environment):
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def compiled(source, folder, *flags):
    target = folder / f"{source.stem}.o"
    status, output = run(COMPILER, *FLAGS, *flags, "-c", str(source), "-o", str(target))
    assert status == 0, output
    return str(target)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An empty folder; skips where nothing can be compiled with the sanitizers."""
    folder = tmp_path_factory.mktemp("sanitizers")
    source = folder / "empty.cpp"
    source.write_text("int main() { return 0; }")
    try:
        status, output = run(COMPILER, *FLAGS, str(source), "-o", str(folder / "empty"))
        if status == 0:
            status, output = run(str(folder / "empty"))
    except OSError as error:
        status, output = 1, str(error)
    if status:
        pytest.skip(f"{COMPILER} makes no programs with the sanitizers: {output.strip()[-200:]}")
    return folder


def test_the_kernels_are_clean(folder):
    assert SOURCES
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda source: compiled(source, folder, "-O0"), SOURCES))
    objects.append(compiled(HERE / "sanitize.cpp", folder, "-O2"))
    program = str(folder / "sanitize")
    status, output = run(COMPILER, *FLAGS, *objects, "-o", program)
    assert status == 0, output
    # OpenMP never frees its threads.
    (folder / "suppressed").write_text("leak:libgomp\nleak:libomp\n")
    leaks = f"suppressions={folder / 'suppressed'}:print_suppressions=0"
    status, output = run(program, LSAN_OPTIONS=leaks, UBSAN_OPTIONS="print_stacktrace=1", OMP_WAIT_POLICY="passive")
    assert status == 0, output[-3000:]
    assert set(native.targets()) <= set(output.split())
