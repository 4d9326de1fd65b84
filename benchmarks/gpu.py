"""Checks and times the Triton kernels on a GPU: `python benchmarks/gpu.py --out gpu.csv`.

Prints a line per measurement, with PASS or FAIL where there is a target. `--out` writes all as CSV. Takes minutes.
"""

import argparse
import copy
import csv
import math
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

# Stages of the classification network at 224 x 224: height and width, heads, channels of a head.
STAGES = ((56, 1, 64), (28, 2, 64), (14, 5, 64), (7, 8, 64))
SPEEDUP = 5.0
BANDWIDTH_RATIO = 3.0
FP32_ERROR = 1e-5

ROWS: list[dict[str, object]] = []


def report(part: str, case: str, quantity: str, number: float | str, passed: bool | None = None) -> None:
    verdict = "" if passed is None else "PASS" if passed else "FAIL"
    shown = f"{number:.4g}" if isinstance(number, float) else number
    print(f"{part:11} {case:40} {quantity:34} {shown:>12} {verdict}", flush=True)
    ROWS.append({"part": part, "case": case, "quantity": quantity, "number": number, "verdict": verdict})


def milliseconds(run: Callable[[], object], repeats: int = 20, warm_up: int = 5) -> float:
    """Returns the median time of `repeats` runs, each between two events.

    A large buffer is written before each run. So the cache is cold, and the host has time to enqueue the whole run:
    its launches do not count.
    """
    flush = torch.empty(2 * 2**30, dtype=torch.int8, device="cuda")
    for _ in range(warm_up):
        run()
    times = []
    for _ in range(repeats):
        flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def make_inputs(batch: int, size: int, heads: int, dim: int, dtype: torch.dtype, shared: bool = False) -> list:
    """Returns query, key, value (slices of one projection), offset, bias. Walks: a few pixels, off pixel centres."""
    nodes = 9
    generator = torch.Generator("cuda").manual_seed(0)
    maps = torch.randn(batch, size, size, 3, heads, dim, device="cuda", generator=generator).to(dtype).unbind(3)
    shape = (batch, size, size, 1 if shared else heads, nodes, 2)
    offset = torch.randint(-2, 3, shape, device="cuda", generator=generator)
    offset = offset + 0.2 + 0.6 * torch.rand(shape, device="cuda", generator=generator)
    bias = torch.randn(batch, size, size, heads, nodes, device="cuda", generator=generator)
    return [*maps, offset, bias]


def check_errors() -> None:
    from dgmn.ops import reference, triton_kernels, triton_position

    for size, heads, dim, shared in ((56, 1, 64, False), (14, 5, 64, False), (9, 3, 20, True), (5, 2, 256, False)):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            inputs = make_inputs(2, size, heads, dim, dtype, shared)
            scale, value = dim**-0.5, inputs[2]
            case = f"{size}x{size} {heads}x{dim} {str(dtype)[6:]}{' shared walks' if shared else ''}"
            cotangent = torch.randn(value.shape, device="cuda").to(dtype)
            wide = [x.double().requires_grad_() for x in inputs]
            # The error of storing results in this dtype, with room for the order of accumulation.
            limit = FP32_ERROR if dtype == torch.float32 else torch.finfo(dtype).eps

            want = reference.sampled_attention(*wide, scale, 3, 1, 0.0)
            wanted = torch.autograd.grad(want, wide, cotangent.double())
            out, lse = triton_kernels.attention_forward(*inputs, scale, 3, 1)
            got = triton_kernels.attention_backward(cotangent, *inputs, lse, scale, 3, 1)
            names = ("out", "grad_query", "grad_key", "grad_value", "grad_offset", "grad_bias")
            report_errors("attention", case, names, (out, *got), (want, *wanted), limit)

            want = reference.sampled_aggregate(*wide[2:], 3, 1)
            wanted = torch.autograd.grad(want, wide[2:], cotangent.double())
            out = triton_kernels.aggregate_forward(*inputs[2:], 3, 1)
            got = triton_kernels.aggregate_backward(cotangent, *inputs[2:], 3, 1)
            names = ("out", "grad_value", "grad_offset", "grad_weight")
            report_errors("aggregate", case, names, (out, *got), (want, *wanted), limit)

            tables = [torch.randn(size + 8, dim, device="cuda") for _ in range(2)]
            query, grad = inputs[0], torch.randn_like(inputs[4])
            wide = [x.double().requires_grad_() for x in (query, *tables)]
            want = reference.position_scores(*wide, True, 9)
            wanted = torch.autograd.grad(want, wide, grad.double())
            out = triton_position.position_forward(query, *tables, True, 9)
            got = triton_position.position_backward(grad, query, *tables, True)
            names = ("out", "grad_query", "grad_rows", "grad_columns")
            report_errors("position", case, names, (out, *got), (want, *wanted), limit)


def report_errors(part: str, case: str, names: tuple, got: tuple, want: tuple, limit: float) -> None:
    for name, one, other in zip(names, got, want, strict=True):
        error = ((one.double() - other).norm() / other.norm()).item()
        report(part, case, f"{name} relative error", error, error <= limit)


def copy_bandwidth() -> float:
    """Measures bytes per second, read and written, of a copy that no cache holds."""
    source = torch.empty(2**30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (milliseconds(lambda: target.copy_(source)) / 1e3)


def time_operation(batch: int) -> None:
    from dgmn.bench.original import original_attention
    from dgmn.ops import sampled_attention

    bandwidth = copy_bandwidth()
    report("copy", "1 GiB", "TB/s", bandwidth / 1e12)
    for dtype in (torch.float32, torch.bfloat16):
        for size, heads, dim in STAGES:
            case = f"{batch}x{size}x{size}x{heads}x{dim} {str(dtype)[6:]}"
            inputs = make_inputs(batch, size, heads, dim, dtype)
            leaves = [x.detach().requires_grad_() for x in inputs]
            cotangent = torch.randn_like(inputs[2].contiguous())

            def forward(function: Callable, options: dict, inputs: list = inputs) -> Callable[[], object]:
                def run() -> None:
                    with torch.no_grad():
                        function(*inputs, **options)

                return run

            def both(
                function: Callable, options: dict, leaves: list = leaves, cotangent: torch.Tensor = cotangent
            ) -> Callable[[], object]:
                return lambda: torch.autograd.grad(function(*leaves, **options), leaves, cotangent)

            needed = sum(x.numel() * x.element_size() for x in (*inputs, inputs[2])) + 4 * inputs[2][..., 0].numel()
            ideal = 1e3 * needed / bandwidth
            for name, measured in (("forward", forward), ("forward + backward", both)):
                original = milliseconds(measured(original_attention, {}), repeats=10, warm_up=3)
                ours = milliseconds(measured(sampled_attention, {"backend": "triton"}))
                report("times", case, f"{name}, original, ms", original)
                report("times", case, f"{name}, triton, ms", ours)
                report("times", case, f"{name}, speed-up", original / ours, original / ours >= SPEEDUP)
                if name == "forward":
                    report("times", case, "forward, bytes alone, ms", ideal)
                    report("times", case, "forward over its bytes", ours / ideal, ours / ideal <= BANDWIDTH_RATIO)
            # Training starts with all walks at zero.
            leaves[3].detach().zero_()
            ours = milliseconds(both(sampled_attention, {"backend": "triton"}))
            report("times", case, "forward + backward, no walks, ms", ours)
            del inputs, leaves, cotangent


def check_layer() -> None:
    """Checks that DGMN2Attention launches the Triton kernels by itself, and compiles to one graph of equal results."""
    from dgmn.layers import DGMN2Attention

    layer = DGMN2Attention(128, 2, (28, 28)).cuda()
    torch.nn.init.normal_(layer.offset.weight, std=0.05)
    x = torch.randn(4, 28, 28, 128, device="cuda", requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        eager = layer(x)
        torch.cuda.synchronize()
    launched = any("attention_forward" in event.key for event in profile.key_averages())
    report("layer", "DGMN2Attention", "launches the Triton kernel", str(launched), launched)
    compiled = torch.compile(layer, fullgraph=True)(x)
    error = ((compiled - eager).norm() / eager.norm()).item()
    # The compiler may choose other matrix products, so this limit is looser than the kernel's own.
    report("layer", "DGMN2Attention", "compiled, relative error", error, error <= 1e-4)
    got = torch.autograd.grad(compiled.sum(), x)[0]
    want = torch.autograd.grad(eager.sum(), x)[0]
    error = ((got - want).norm() / want.norm()).item()
    report("layer", "DGMN2Attention", "compiled, gradient's relative error", error, error <= 1e-4)


def check_module() -> None:
    """Checks DGMN with walks against its reference, both on the GPU: output and gradient.

    The reference is in float32, too. In float64 a few walks would end on the other side of a pixel, where the gradient
    jumps.
    """
    from dgmn.layers import DGMN

    for options in ({}, {"groups": 0}, {"groups": 0, "dynamic_affinity": False}, {"fusion": "concat"}):
        module = DGMN(512, (1, 6, 12), **options).cuda()
        for message in module.messages:
            torch.nn.init.normal_(message.walks.weight, std=0.01)
        plain = copy.deepcopy(module)
        for message in plain.messages:
            message.backend = "reference"
        x = torch.randn(1, 512, 49, 49, device="cuda", requires_grad=True)
        twin = x.detach().requires_grad_()
        with torch.backends.cudnn.flags(allow_tf32=False):  # TF32 keeps ten bits of a number
            got, want = module(x), plain(twin)
            gradients = [torch.autograd.grad(out.square().mean(), leaf)[0] for out, leaf in ((got, x), (want, twin))]
        case = ", ".join(f"{key} {value}" for key, value in options.items()) or "all dynamic"
        # Convolutions of 4,608 products come first, so this limit is looser than the kernel's own.
        report_errors("module", case, ("out", "gradient"), *zip((got, want), gradients, strict=True), 1e-4)


def training_step(name: str, batch: int) -> Callable[[], object]:
    import timm

    model = timm.create_model(name, num_classes=1000).cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images = torch.randn(batch, 3, 224, 224, device="cuda")
    labels = torch.randint(1000, (batch,), device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def time_training(batch: int, rounds: int = 7, steps: int = 8) -> None:
    import dgmn  # noqa: F401 - registers the networks with timm

    names = ("dgmn2_small", "swin_tiny_patch4_window7_224")
    runs = {name: training_step(name, batch) for name in names}
    rates: dict[str, list[float]] = {name: [] for name in names}
    for run in runs.values():
        for _ in range(5):
            run()
    # The networks take turns, so that a slower clock affects both.
    for _ in range(rounds):
        for name, run in runs.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(steps):
                run()
            torch.cuda.synchronize()
            rates[name].append(steps * batch / (time.perf_counter() - start))
    medians = {name: statistics.median(rates[name]) for name in names}
    for name in names:
        spread = f"{min(rates[name]):.0f} to {max(rates[name]):.0f}"
        report("training", f"{name} batch {batch} bf16", "images/s", medians[name])
        report("training", f"{name} batch {batch} bf16", "images/s, range", spread)
    ratio = medians[names[0]] / medians[names[1]]
    report("training", f"{names[0]} over {names[1][:10]}", "ratio", ratio, ratio >= 1)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "errors": lambda _: check_errors(),
    "times": lambda arguments: time_operation(arguments.batch),
    "layer": lambda _: check_layer(),
    "module": lambda _: check_module(),
    "training": lambda arguments: time_training(arguments.train_batch),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="CSV file for the results")
    parser.add_argument("--batch", type=int, default=64, help="batch size for the timings of the operation")
    parser.add_argument("--train-batch", type=int, default=128)
    parser.add_argument("--parts", nargs="+", default=[*PARTS], choices=[*PARTS], help="what to run; all by default")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py needs a CUDA device, and there is none.")
    import triton

    report("machine", torch.cuda.get_device_name(), "torch, triton", f"{torch.__version__}, {triton.__version__}")
    start = time.perf_counter()
    for part in arguments.parts:
        try:
            PARTS[part](arguments)
        except Exception as error:  # the other parts still tell something
            traceback.print_exc()
            report(
                "error", type(error).__name__, str(error).splitlines()[0][:60] if str(error) else "", math.nan, False
            )
        torch.cuda.empty_cache()
    failed = sum(row["verdict"] == "FAIL" for row in ROWS)
    passed = sum(row["verdict"] == "PASS" for row in ROWS)
    print(f"{passed} passed, {failed} failed, {time.perf_counter() - start:.0f} s")
    if arguments.out:
        with arguments.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
