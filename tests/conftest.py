"""Shared fixtures. The golden vectors come from the official code: see golden_vectors.py."""

import ctypes
import functools
import gc
import os
import sys
from pathlib import Path

import pytest

# torch reads this when it is imported, and lets waiting threads sleep. Threads that spin take the cores from other
# processes, and from each other on a busy machine: the tests take four times as long.
os.environ["OMP_WAIT_POLICY"] = "passive"
# The workers read these when they start. Every thread's own arena would keep memory that the others cannot use, and
# large tensors between small objects would leave holes that nothing fits into.
os.environ.setdefault("MALLOC_ARENA_MAX", "2")
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "1000000")
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime reads this when it is imported

import hypothesis
import torch

import dgmn  # noqa: F401 - registers the networks with timm

from coco_scenes import coco_scenes, few_coco_scenes  # noqa: F401 - fixtures
from digits import all_digits, few_digits  # noqa: F401 - fixtures
from golden_vectors import Vectors, fill, load_keys
from google_drive import CLOSED, GoogleDrive, reroute
from scenes import few_scenes, scenes  # noqa: F401 - fixtures
from small_runs import small_run  # noqa: F401 - a fixture

GOLDEN = Path(__file__).parent / "golden"

torch.set_num_threads(1)
hypothesis.settings.register_profile("dgmn", deadline=None)  # a busy machine needs longer
hypothesis.settings.load_profile("dgmn")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_official_weights(case):
    keys = load_keys(GOLDEN / f"{case}.keys.json")
    return {name: torch.from_numpy(array) for name, array in fill(keys["keys"], keys["aliases"]).items()}


# The tests of a file use the same ones, and all together are gigabytes.
_official_weights = functools.lru_cache(maxsize=1)(make_official_weights)


@pytest.fixture
def official_weights():
    """`official_weights("a_cls_tiny")`: the weights of a golden case under their official names."""
    return lambda case: dict(_official_weights(case))


@pytest.fixture
def golden():
    """`golden("a_cls_tiny").check(name, value, rtol)`: compares with the numbers of the official code."""
    return lambda case: Vectors(GOLDEN / f"{case}.npz")


@pytest.fixture
def cache_dir(tmp_path, monkeypatch):
    """The empty folder of fetched weights, beside an empty one of torch.hub. Google cannot be reached."""
    monkeypatch.setenv("DGMN_HOME", str(tmp_path / "cache"))
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    reroute(CLOSED, monkeypatch)
    yield tmp_path / "cache"
    torch.hub.set_dir(before)


@pytest.fixture
def google_drive(cache_dir, monkeypatch):
    """A local server in the place of Google Drive; see google_drive.py."""
    with GoogleDrive() as drive:
        reroute(drive.port, monkeypatch)
        yield drive


def _resident():
    """Bytes of memory that this process holds; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


_kept = 0


def pytest_collection_finish():
    gc.freeze()  # what was imported stays, so no collection need look at it


@pytest.hookimpl(trylast=True)  # after the fixtures
def pytest_runtest_teardown(item, nextitem):
    """Gives memory that tests have freed back to the system, which the allocator does not do by itself."""
    global _kept
    last = nextitem is None or nextitem.path != item.path
    if last or _resident() > _kept + 50e6:
        if last:
            _official_weights.cache_clear()
            torch.compiler.reset()
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
        _kept = _resident()


_LONG = ("detection/test_cli", "segmentation/test_cli", "training/", "test_loading", "models/test_dgmn2")
_LARGE = ("weights/test_zoo", "weights/test_load", "segmentation/test_builders")


def pytest_collection_modifyitems(items):
    """Puts the files that take longest first, so that no worker has to finish them alone at the end.

    So too those that hold most memory, because workers grow.
    """
    items.sort(key=lambda item: not any(part in item.nodeid for part in (*_LONG, *_LARGE)))
