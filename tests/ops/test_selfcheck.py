"""Self-checks of the backends, and the variable that forces one."""

import os
import subprocess
import sys
import warnings

import pytest
import timm
import torch
from PIL import Image
from torch._subclasses import FakeTensorMode

from dgmn.errors import InputError
from dgmn.ops import direct, functional, native, position_scores, sampled_attention, selfcheck
from dgmn.ops.linear import perceptron

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forget():
    selfcheck._is_trusted.cache_clear()
    yield
    selfcheck._is_trusted.cache_clear()


@pytest.mark.skipif(native.LIBRARY is None, reason="no compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_right_kernels(dtype):
    assert 0 < selfcheck.largest_error("native", CPU, dtype) < 0.5 * selfcheck.TOLERANCES[dtype]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert selfcheck.is_trusted("native", CPU, dtype)


@pytest.mark.skipif(native.LIBRARY is None, reason="no compiler")
def test_the_check_computes_where_tensors_are_fake():
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert selfcheck.is_trusted("native", CPU, torch.float32)


@pytest.mark.skipif(native.LIBRARY is None, reason="no compiler")
@pytest.mark.parametrize("default", [torch.bfloat16, torch.device("meta"), "deterministic"])
def test_what_the_user_has_set_does_not_disturb_it(default, monkeypatch):
    def strict(*arguments):
        assert not torch.are_deterministic_algorithms_enabled()
        return right(*arguments)

    right = native.attention_backward
    monkeypatch.setattr(native, "attention_backward", strict)
    before = selfcheck.check("native", CPU, torch.float32)
    try:
        if isinstance(default, torch.dtype):
            torch.set_default_dtype(default)
        elif isinstance(default, torch.device):
            torch.set_default_device(default)
        else:
            torch.use_deterministic_algorithms(True, warn_only=True)
        assert selfcheck.check("native", CPU, torch.float32) == before
        assert torch.are_deterministic_algorithms_enabled() == (default == "deterministic")
        assert torch.is_deterministic_algorithms_warn_only_enabled() == (default == "deterministic")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.use_deterministic_algorithms(False)
    assert before[1] is None


def no_compiler():
    raise OSError("ptxas: not found\nand more")


@pytest.mark.skipif(native.LIBRARY is None, reason="no compiler")
@pytest.mark.parametrize(
    ("factor", "reason"),
    [
        (lambda: 1.01, "off by 1.0e-02, more than 1e-04"),
        (lambda: torch.nan, "off by inf"),
        (no_compiler, "OSError: ptxas: not found. "),
    ],
)
def test_a_kernel_that_fails_is_told_once(factor, reason, monkeypatch):
    right = native.attention_forward

    def wrong(*arguments):
        out, log_sum = right(*arguments)
        return out * factor(), log_sum

    monkeypatch.setattr(native, "attention_forward", wrong)
    with pytest.warns(UserWarning, match="'native' failed its self-check with torch.float32 on cpu .dgmn ") as told:
        trusted = {selfcheck.is_trusted("native", CPU, torch.float32) for _ in range(2)}
    assert trusted == {False}
    assert len(told) == 1
    assert reason in str(told[0].message)
    assert f"torch {torch.__version__.split('+')[0]}" in str(told[0].message)
    assert "\n" not in str(told[0].message)


INPUTS = [torch.randn(1, 3, 4, 1, 8) for _ in range(3)] + [torch.zeros(1, 3, 4, 1, 9, 2)]


def test_a_backend_is_forced(monkeypatch):
    monkeypatch.setattr(direct, "FORCED", "reference")
    chosen = []
    monkeypatch.setattr(functional.library, "sampled_attention", lambda *_: chosen.append("kernel"))
    monkeypatch.setattr(native, "gelu_backward", lambda *_: chosen.append("kernel"))
    sampled_attention(*INPUTS)
    perceptron(*(torch.randn(*size).requires_grad_() for size in ((3, 5), (9, 5), (9,), (2, 9), (2,)))).sum().backward()
    assert chosen == []
    monkeypatch.setattr(direct, "FORCED", "triton")
    if functional.unsupported("triton", INPUTS[0]) is not None:
        for function in (lambda: sampled_attention(*INPUTS), lambda: position_scores(INPUTS[0], torch.randn(11, 8))):
            with pytest.raises(InputError, match="variable DGMN_BACKEND is 'triton', which cannot run: "):
                function()
    sampled_attention(*INPUTS, backend="reference")  # what the code says comes first


@pytest.mark.skipif(native.LIBRARY is None, reason="no compiler")
def test_a_compiler_does_not_look_into_it():
    def function(x):
        return x + 1 if selfcheck.is_trusted("native", x.device, x.dtype) else x

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = torch.compile(function, fullgraph=True, backend="eager")
        assert compiled(torch.zeros(1)) == 1


@pytest.mark.skipif(native.LIBRARY is None, reason="no compiler")
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_where_nothing_is_differentiated(mode):
    """The first use is often a prediction."""
    with mode():
        assert selfcheck.check("native", CPU, torch.float32)[1] is None


@pytest.mark.slow
@pytest.mark.parametrize("value", ["cuda", "triton"])
def test_a_mistake_in_the_variable_is_one_line(value, tmp_path):
    torch.save({"state_dict": timm.create_model("dgmn2_tiny").state_dict()}, tmp_path / "a.pth")
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    command = ["predict", str(tmp_path / "a.png"), "--ckpt_path", str(tmp_path / "a.pth"), "--model", "dgmn2_tiny"]
    program = f"import dgmn_cli, sys; sys.exit(dgmn_cli.run({command!r}))"
    environment = {**os.environ, "DGMN_BACKEND": value, "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith("dgmn: error: the environment variable DGMN_BACKEND ")
    assert "Traceback" not in run.stderr
