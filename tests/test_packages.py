"""The packages that a release holds: what is in them, and what their names promise."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_KEPT = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")


def built(kind, source, folder, **environment):
    """Builds an sdist or a wheel, as pip does after it has made an environment for the build. Returns its path."""
    code = f"import setuptools.build_meta as b; print(b.build_{kind}({str(folder)!r}))"
    done = subprocess.run(
        (sys.executable, "-c", code), cwd=source, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The unpacked sdist; it is built from what git keeps."""
    folder = tmp_path_factory.mktemp("sdist")
    clone = folder / "clone"
    clone.mkdir()
    for name in ("csrc", "src", "tests"):
        shutil.copytree(ROOT / name, clone / name, ignore=NOT_KEPT)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, clone)
    with tarfile.open(built("sdist", clone, folder)) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"dgmn-{PROJECT['version']}"


def content(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def sources():
    found = {name for name in content(ROOT / "src") if not re.search(r"__pycache__/|\.egg-info/|\.so$", name)}
    assert "dgmn/recipes/classification/digits.yaml" in found
    return found


def read(wheel):
    """The files of a wheel without its metadata, and the fields of its file WHEEL."""
    with zipfile.ZipFile(wheel) as archive:
        about = Parser().parsestr(archive.read(f"dgmn-{PROJECT['version']}.dist-info/WHEEL").decode())
        return {name for name in archive.namelist() if ".dist-info/" not in name}, about


def test_the_sdist_holds_all_that_a_build_needs(unpacked):
    needed = {f"src/{name}" for name in sources()} | {f"csrc/{name}" for name in content(ROOT / "csrc")}
    needed |= {"pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CITATION.cff", "CHANGELOG.md"}
    found = {name for name in content(unpacked) if ".egg-info/" not in name}
    assert found - {"PKG-INFO", "setup.cfg"} == needed


@pytest.mark.parametrize("before", [False, True])
def test_without_a_compiler_the_wheel_is_for_every_platform(before, unpacked, tmp_path):
    source = shutil.copytree(unpacked, tmp_path / "source")
    if before:  # a build of older sources, with a compiler
        folder = source / f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}/dgmn"
        folder.mkdir(parents=True)
        for name in ("_native.so", "_onnxruntime.so"):
            (folder / name).write_bytes(b"old")
            os.utime(folder / name, (1e9, 1e9))
    wheel = built("wheel", source, tmp_path, CC="false", CXX="false")
    assert wheel.name == f"dgmn-{PROJECT['version']}-py3-none-any.whl"
    files, about = read(wheel)
    assert files == sources()
    assert about["Root-Is-Purelib"] == "true"
    assert about["Tag"] == "py3-none-any"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32" or shutil.which("c++") is None, reason="no C++ compiler")
def test_with_a_compiler_the_wheel_is_for_this_platform(unpacked, tmp_path):
    wheel = built("wheel", unpacked, tmp_path)
    files, about = read(wheel)
    assert files == sources() | {"dgmn/_native.so", "dgmn/_onnxruntime.so"}
    assert about["Root-Is-Purelib"] == "false"
    assert re.fullmatch(r"py3-none-(linux|macosx)_\w+", about["Tag"])  # manylinux is for auditwheel to say
    assert wheel.name == f"dgmn-{PROJECT['version']}-{about['Tag']}.whl"


def test_versions_agree():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_pythons_of_the_classifiers_are_tested():
    named = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    jobs = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]
    assert named[0] == PROJECT["requires-python"].removeprefix(">=")
    assert jobs["linux"]["strategy"]["matrix"]["python"] == jobs["others"]["strategy"]["matrix"]["python"] == named
    assert jobs["lowest"]["env"]["UV_PYTHON"] == named[0]
