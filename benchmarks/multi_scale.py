"""Times Deformable DETR's attention, ours and transformers', alone and in it: `python benchmarks/multi_scale.py`.

Both take turns, so that other work on the machine affects both. Queries are the pixels of four maps, as in the encoder.
Writes `multi_scale_cpu.csv`, and its rows as a table of `docs/detection.md`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from dgmn.bench.measure import time_side_by_side
from dgmn.detection import deformable_detr
from dgmn.detection.multi_scale import FusedMultiScaleAttention, multi_scale_aggregate

from pages import publish

HEADS, DIM, POINTS = 8, 32, 4
Function = Callable[[], object]


def inputs_of(shapes: list[tuple[int, int]], device: str) -> list[torch.Tensor]:
    """Returns value, locations a few pixels around every query, and weights."""
    size = torch.tensor([(width, height) for height, width in shapes], dtype=torch.float32)
    starts = []
    for height, width in shapes:
        y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
        starts.append(torch.stack((x, y), -1).reshape(-1, 2))
    start = torch.cat(starts)[None, :, None, None, None]
    pixels = start.shape[1]
    locations = start + 3 * torch.randn(1, pixels, HEADS, 4, POINTS, 2) / size[:, None]
    weights = torch.randn(1, pixels, HEADS, 4 * POINTS).softmax(-1).view(1, pixels, HEADS, 4, POINTS)
    value = torch.randn(1, pixels, HEADS, DIM)
    return [x.to(device).requires_grad_() for x in (value, locations, weights)]


def attention(height: int, width: int, device: str) -> tuple[dict[str, Function], dict[str, Function]]:
    """Returns the functions that run forward, and forward and backward, for an image of this size."""
    shapes = [(-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64)]
    inputs = inputs_of(shapes, device)
    theirs = MultiScaleDeformableAttention()
    forward: dict[str, Function] = {
        "transformers": lambda: theirs(inputs[0], None, shapes, None, *inputs[1:], 64),
        "dgmn": lambda: multi_scale_aggregate(inputs[0], shapes, *inputs[1:]),
    }
    backward: dict[str, Function] = {
        name: lambda function=function: torch.autograd.grad(function().sum(), inputs)
        for name, function in forward.items()
    }
    return forward, backward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="the CSV; by default that of benchmarks/results, and the page's table")
    given = parser.parse_args()
    torch.manual_seed(0)
    device = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    forward, backward = attention(800, 1333, device)
    with torch.no_grad():
        taken = {"the attention, forward": time_side_by_side(forward, given.rounds, device)}
    taken["the attention, forward and backward"] = time_side_by_side(backward, given.rounds, device)

    model = deformable_detr("dgmn2_tiny").eval().to(device)
    layers = [module for module in model.modules() if isinstance(module, FusedMultiScaleAttention)]
    image = [torch.rand(3, 800, 1333, device=device)]

    def whole(fused: bool) -> None:
        for layer in layers:
            layer.fused = fused
        model(image)

    with torch.inference_mode():
        networks: dict[str, Function] = {"transformers": lambda: whole(False), "dgmn": lambda: whole(True)}
        taken["the network on `dgmn2_tiny`"] = time_side_by_side(networks, given.rounds, device)
    rows = [
        {
            "800 x 1333": what,
            "transformers, s": f"{times['transformers'].median / 1e3:.3f}",
            "dgmn, s": f"{times['dgmn'].median / 1e3:.3f}",
            "times as fast": f"{times['transformers'].median / times['dgmn'].median:.1f}",
        }
        for what, times in taken.items()
    ]
    publish(Path(__file__), "detection.md", rows, given.out, device)


if __name__ == "__main__":
    main()
