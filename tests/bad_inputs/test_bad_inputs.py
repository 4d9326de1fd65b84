"""Every bad input of the corpus gets one clear line, and leaves nothing behind."""

import os
import re
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bad_inputs import checkpoints, coco, command_line, configurations, formats, images, masks, python_api
from bad_inputs.cases import INTERNAL, Case, World
from dgmn_cli import run

COMMANDS = [
    case for group in (command_line, images, masks, coco, configurations, checkpoints, formats) for case in group.CASES
]
_MEMORY = 3 * 2**20  # kilobytes
_QUICK = 45  # one of so many cases is in the default run


def parameters(cases: list[Case]) -> list[object]:
    slow = [pytest.mark.slow]
    return [pytest.param(case, id=case.id, marks=[] if i % _QUICK == 0 else slow) for i, case in enumerate(cases)]


@pytest.fixture
def world(small_run, tmp_path, monkeypatch) -> World:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return World(here, lambda kind: small_run(kind) / "checkpoints/last.ckpt")


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything in a folder, with its size and time."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }


def check(case: Case, code: object, out: str, err: str) -> None:
    told = f"exit code {code}\n{out[-2000:]}\n{err[-4000:]}"
    assert "Traceback" not in out + err, told
    assert code == case.code, told
    if case.code != 2:
        assert re.search(case.expected, out), told
        return
    (line,) = [line for line in err.splitlines() if line.startswith("dgmn: error: ")] or [""]
    assert re.search(case.expected, line), told
    assert err.splitlines()[-1] == line, told
    assert len(line) < 3000, told


@pytest.mark.parametrize("case", parameters([case for case in COMMANDS if not case.alone]))
def test_the_command_line(case: Case, world: World, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = case.make(world)
    before, peak = files(world.here), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    capfd.readouterr()
    try:
        code: object = run(arguments)
    except SystemExit as stop:
        code = stop.code
    check(case, code, *capfd.readouterr())
    check_folder(case, world, before)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < peak + _MEMORY


# A training leaves logs in its folder, but no checkpoint.
_LOGS = re.compile(r"run/(\.lock|(logs|tensorboard)/.*)")


def check_folder(case: Case, world: World, before: dict[str, tuple[int, int]]) -> None:
    after = files(world.here)
    if case.code != 0:
        assert {name: after[name] for name in after if name not in case.written and not _LOGS.match(name)} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.id) for i, case in enumerate(COMMANDS) if case.alone or i % 80 == 7]
)
def test_in_a_process_of_its_own(case: Case, world: World, tmp_path: Path) -> None:
    """Its memory and time are its own."""
    arguments = case.make(world)
    before = files(world.here)
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        command = [sys.executable, "-c", "from dgmn_cli import main; main()", *arguments]
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        stop = threading.Timer(60, child.kill)
        stop.start()
        _, status, usage = os.wait4(child.pid, 0)
        stop.cancel()
        child.returncode = os.waitstatus_to_exitcode(status)
    check(case, child.returncode, out.read_text(errors="replace"), err.read_text(errors="replace"))
    check_folder(case, world, before)
    assert usage.ru_maxrss < _MEMORY


@pytest.mark.parametrize("case", parameters(python_api.CASES))
def test_the_python_api(case: Case, world: World) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError, OSError)) as told:
        case.make(world)
    assert not isinstance(told.value, INTERNAL)
    assert re.search(case.expected, str(told.value)), f"{type(told.value).__name__}: {told.value}"
    assert "\n" not in str(told.value)
