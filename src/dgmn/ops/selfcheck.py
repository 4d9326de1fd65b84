"""Compares the kernels of a backend with the reference, on this machine: a few tiny shapes, forward and backward."""

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from dgmn.ops import library, reference
from dgmn.ops.linear import perceptron

# Largest error that rounding explains, relative to the largest number. Kernels sum in float32 and round once.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def largest_error(backend: str, device: torch.device, dtype: torch.dtype) -> float:
    """The largest error of a backend's outputs and gradients, relative to the largest number of each.

    Args:
        backend: "native" or "triton".
        device: where to run.
        dtype: of query, key and value; walks, bias and the reference are in float32.

    Raises:
        RuntimeError: the backend cannot run here; errors of compilers and drivers go through as they are.
    """
    worst = 0.0
    # The first use may be under inference_mode, whose tensors have no gradients.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for inputs, kernel, plain in _cases(backend, device, dtype):
            given = [x.detach().requires_grad_() for x in inputs]
            wide = [x.detach().float().requires_grad_() for x in inputs]
            out, expected = kernel(*given), plain(*wide)
            grad = torch.linspace(-1, 1, expected.numel(), dtype=torch.float32, device=device).view_as(expected)
            grads = torch.autograd.grad(out, given, grad.to(out.dtype))
            wanted = torch.autograd.grad(expected, wide, grad)
            for got, want in zip((out, *grads), (expected, *wanted), strict=True):
                error = (got.detach().float() - want.detach()).abs().amax() / want.detach().abs().amax()
                worst = max(worst, float(error.nan_to_num(nan=torch.inf)))
    return worst


Function = Callable[..., Any]


def _cases(backend: str, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[list[Tensor], Function, Function]]:
    random = torch.Generator("cpu").manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float32, device="cpu").to(device)

    for batch, height, width, heads, walks in ((1, 3, 5, 2, 2), (2, 3, 3, 1, 1)):
        maps = [numbers(batch, height, width, heads, 64).to(dtype) for _ in range(3)]
        offset, weight = numbers(batch, height, width, walks, 9, 2), numbers(batch, height, width, heads, 9)
        yield (
            [*maps, offset, weight],
            lambda *x: library.sampled_attention(*x, 0.125, 3, 1, backend)[0],
            lambda q, k, v, o, w: reference.sampled_attention(q, k, v, o, w, 0.125, 3, 1, 0.0),
        )
        yield (
            [maps[0], offset, weight],
            lambda *x: library.sampled_aggregate(*x, 3, 2, backend),
            lambda v, o, w: reference.sampled_aggregate(v, o, w, 3, 2),
        )
        for mirrored in (False, True) if height == width or backend == "native" else (False,):
            yield (
                [maps[0], numbers(height + 8, 64), numbers(width + 8, 64)],
                lambda q, r, c, mirrored=mirrored: library.position_scores(q, r, c, mirrored, 9, backend),
                lambda q, r, c, mirrored=mirrored: reference.position_scores(q, r, c, mirrored, 9),
            )
        if backend == "native" and dtype == torch.float32:
            yield (
                [numbers(height, width, 5), numbers(37, 5), numbers(37), numbers(7, 37), numbers(7)],
                perceptron,
                lambda x, w1, b1, w2, b2: F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2),
            )


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without what the user has set for other work: a counter would count the check, fake tensors would fail it."""
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)  # the order of sums matters to training, not to this check
    try:
        with _disable_current_modes():
            yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warns)


def check(backend: str, device: torch.device, dtype: torch.dtype) -> tuple[float, str | None]:
    """The largest error, infinite if the backend did not run, and why it cannot be trusted, or None."""
    try:
        with _undisturbed():
            error = largest_error(backend, device, dtype)
    except Exception as exception:  # a compiler or a driver may raise anything
        lines = str(exception).strip().splitlines()
        return math.inf, f"{type(exception).__name__}: {lines[0] if lines else 'no message'}"
    tolerance = TOLERANCES[dtype]
    if error <= tolerance:
        return error, None
    return error, f"its results are off by {error:.1e}, more than {tolerance:.0e} of the largest"


@torch.compiler.assume_constant_result  # a compiler runs it; it must not look into the cache and compile the check
def is_trusted(backend: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a backend computes on a device what the reference does. It is asked once; a failure is one warning."""
    return _is_trusted(backend, device, dtype)


@functools.cache
def _is_trusted(backend: str, device: torch.device, dtype: torch.dtype) -> bool:
    _, reason = check(backend, device, dtype)
    if reason is not None:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        versions = ", ".join(f"{package} {version_of(package)}" for package in ("dgmn", "torch", "triton"))
        warnings.warn(
            f"dgmn: the backend {backend!r} failed its self-check with {dtype} on {name} ({versions}): {reason}. The "
            "reference runs instead, which is slower. `dgmn doctor` says more",
            stacklevel=3,
        )
    return reason is None


def version_of(package: str) -> str:
    """The version of an installed package, or \"missing\"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
