"""`dgmn doctor`."""

import re

import pytest
import torch

import dgmn_cli
from dgmn import doctor
from dgmn.ops import native


def test_one_screen(capsys):
    assert dgmn_cli.run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"torch {torch.__version__.split('+')[0]}" in out
    assert len(out.splitlines()) < 40
    assert max(map(len, out.splitlines())) < 180
    if native.LIBRARY is not None:
        assert re.search(r"native +cpu +float32 +\d\.\de-\d\d", out)
        with_kernels, without = (float(x) for x in re.findall(r"([\d.]+) images/s", out))
        assert with_kernels > 0 < without
    if not torch.cuda.is_available():
        assert re.search("triton .*the Triton kernels run on CUDA devices, not on cpu", out)
    assert "train   dgmn fit, validate, test, quickstart and validate-data: installed" in out


@pytest.mark.skipif(native.LIBRARY is None, reason="no compiler")
def test_a_wrong_kernel(monkeypatch, capsys):
    right = native.aggregate_backward

    def wrong(*arguments):
        grad_value, *others = right(*arguments)
        return 1.5 * grad_value, *others

    monkeypatch.setattr(native, "aggregate_backward", wrong)
    assert dgmn_cli.run(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "FAILED: its results are off by 5.0e-01" in out
    assert "Failed its self-check: native on cpu in float32, native on cpu in bfloat16. DGMN_BACKEND=reference" in out


def test_kernels_that_cannot_be_loaded(monkeypatch, tmp_path, capsys):
    path = tmp_path / "_native.so"
    path.write_bytes(b"not a library")
    library, problem = native.load(path)
    monkeypatch.setattr(native, "LIBRARY", library)
    monkeypatch.setattr(native, "PROBLEM", problem)
    assert dgmn_cli.run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert re.search(
        rf"native .*the CPU kernels cannot be loaded \({re.escape(str(path))}: .+\)\. Install dgmn again", out
    )


def test_extras_that_are_too_old_or_missing(monkeypatch):
    found = {"transformers": "4.30.0", "lightning": "missing"}
    monkeypatch.setattr(doctor, "version_of", lambda name: found.get(name, "99.0"))
    lines = {line.split()[0]: line for line in doctor._extras()}
    assert "needs transformers >=" in lines["detr"]
    assert lines["detr"].endswith("(4.30.0); pip install -U 'dgmn[detr]'")
    assert re.search(r"needs lightning \S+ \(missing\)", lines["train"])
    assert lines["video"].endswith(": installed")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a GPU that does not start")
def test_a_gpu_that_does_not_start(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("DGMN_BACKEND", "fast")
    assert dgmn_cli.run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"GPU +does not start: \S+", out)
    assert "DGMN_BACKEND=fast, which is wrong: it must be one of auto, reference, native" in out
