"""How far a network is from its limit: all its linear layers and convolutions at their own shapes, and nothing else.

    uv run python benchmarks/floor.py --models dgmn2_small:fused,swin_tiny_patch4_window7_224 --threads 2

Every layer runs as fast as it can here: a linear layer adds its bias inside the matrix product, into memory that is
already there, or with packed weights where that is faster. The networks and their layers take turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dgmn.bench.measure import Job, time_side_by_side
from dgmn.bench.models import SWIN, build, prepare
from dgmn.models.fuse import fuse
from dgmn.ops import onednn
from dgmn_base.terminal import format_table

Work = Callable[[], Any]
SIZES = {"224x224": (4, 1), "512x1024": (1,), "800x1333": (1,)}


def seconds(work: Work, rounds: int = 5) -> float:
    work()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def linear_work(layer: nn.Linear, x: Tensor) -> Work:
    """The faster of two ways."""
    rows, weight = x.reshape(-1, x.shape[-1]).clone(), layer.weight.detach()
    bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach()
    out = torch.empty(len(rows), len(weight))
    ways: list[Work] = [lambda: torch.addmm(bias, rows, weight.T, out=out)]
    if onednn.computes(rows, weight, bias):
        packed = onednn.pack(weight)
        ways.append(lambda: onednn.linear(rows, packed, bias))
    return min(ways, key=seconds)


def layers_of(model: nn.Module, images: Tensor) -> list[Work]:
    """What computes every linear layer and convolution of the network, on inputs of the same shapes."""
    work: list[Work] = []

    def record(module: nn.Module, inputs: tuple[Tensor]) -> None:
        x = torch.randn_like(inputs[0])
        work.append(linear_work(module, x) if isinstance(module, nn.Linear) else lambda: module(x))

    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    handles = [layer.register_forward_pre_hook(record) for layer in layers]
    model(images)
    for handle in handles:
        handle.remove()
    return work


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=f"dgmn2_small,dgmn2_small:fused,{SWIN}")
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names, rows = options.models.split(","), []
    for size in options.sizes.split(","):
        shape = tuple(map(int, size.split("x")))
        for batch in SIZES.get(size, (1,)):
            works: dict[str, Work] = {}
            for name in names:
                works[name] = prepare(Job("models", name, size, batch, "inference", "cpu", "float32", options.threads))
            model = fuse(build("dgmn2_small", (shape[0], shape[1])))
            layers = layers_of(model, torch.randn(batch, 3, *shape).to(memory_format=torch.channels_last))
            works["layers of dgmn2_small"] = lambda layers=layers: [work() for work in layers]
            order = list(works)
            median = {name: time.median for name, time in time_side_by_side(works, options.rounds, "cpu").items()}
            for name in order:
                others = (SWIN, order[-1])
                cells = [f"{median[name] / median[other]:.2f}" if other in median else "-" for other in others]
                rows.append((size, batch, name, f"{median[name]:.1f}", *cells))
    print(format_table(("size", "batch", "work", "ms", "x Swin-T", "x layers"), rows))


if __name__ == "__main__":
    main()
