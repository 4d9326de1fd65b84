"""`dgmn bench ops`: compares sampled attention on every backend with the original formulation."""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import torch

from dgmn.bench.charts import draw_ops
from dgmn.bench.measure import Job, Work, measure, progress
from dgmn.bench.original import original_attention
from dgmn.bench.report import Report
from dgmn.errors import InputError
from dgmn.ops import BACKENDS, sampled_attention

# Batch, height, width, heads and channels of a head: the four stages of dgmn2_small at 224 x 224, and the first stage
# for a 512 x 1024 image.
SHAPES = ("4x56x56x1x64", "4x28x28x2x64", "4x14x14x5x64", "4x7x7x8x64", "1x128x256x1x64")
QUICK_SHAPES = ("1x28x28x2x64",)
TINY = "1x4x4x1x8"
MODES = ("forward", "forward+backward")
BASELINE = "original"


def contenders() -> list[str]:
    """Names all contenders: our backends, the original formulation, and Inductor on the reference."""
    return [*(name for name in BACKENDS if name != "auto"), BASELINE, "inductor"]


def prepare(job: Job) -> Work:
    """Returns what one measurement runs. Query, key and value are slices of one projection, as in the networks."""
    batch, height, width, heads, dim = _numbers(job.case)
    dtype = getattr(torch, job.dtype)
    torch.manual_seed(0)
    qkv = torch.randn(batch, height, width, 3, heads, dim, device=job.device, dtype=dtype)
    # The networks keep walks and bias in float32, whatever the dtype of the rest.
    offset = torch.randn(batch, height, width, heads, 9, 2, device=job.device)
    bias = torch.randn(batch, height, width, heads, 9, device=job.device)
    attend = _attention(job.contender)
    if job.mode == "forward":

        def forward() -> object:
            with torch.no_grad():
                return attend(*qkv.unbind(3), offset, bias)

        return forward
    inputs = [tensor.requires_grad_() for tensor in (qkv, offset, bias)]
    grad = torch.randn(batch, height, width, heads, dim, device=job.device, dtype=dtype)

    def forward_backward() -> object:
        return torch.autograd.grad(attend(*qkv.unbind(3), offset, bias), inputs, grad)

    return forward_backward


def _attention(contender: str) -> Callable[..., Any]:
    if contender == BASELINE:
        return original_attention
    if contender == "inductor":
        return torch.compile(functools.partial(sampled_attention, backend="reference"), dynamic=False)
    return functools.partial(sampled_attention, backend=contender)


def _numbers(shape: str) -> tuple[int, ...]:
    return tuple(int(number) for number in shape.split("x"))


def bench_ops(options: argparse.Namespace) -> int:
    shapes = options.shapes or (QUICK_SHAPES if options.quick else SHAPES)
    rounds = options.rounds or (3 if options.quick else 30)
    names = options.contenders or contenders()
    for name in names:
        if name not in contenders():
            raise InputError(f"--contenders: {name!r} must be one of {', '.join(contenders())}")
    report = Report("ops", options)
    for mode in MODES:
        for shape in shapes:
            progress(f"{mode} {shape}")
            jobs = [report.job(name, shape, 1, mode) for name in names]
            measured = measure(jobs, prepare, rounds, options.memory)
            batch, height, width, *_ = _numbers(shape)
            report.add(shape, mode, batch, batch * height * width, rounds, measured, dict.fromkeys(measured, BASELINE))
    report.require_rows()
    for mode in MODES:
        print(f"\nSampled attention, {mode}, {options.dtype}")
        print(report.table(mode, "x original"))
        means = report.mean_ratios(mode)
        if means:
            print("Geometric mean of x original: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in means.items()))
    return report.finish(draw_ops)
