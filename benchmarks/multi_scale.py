"""Times Deformable DETR's multi-scale attention in dgmn.ops and in transformers, alone and in the whole network.

Both take turns, so that other work on the machine affects both. Queries are the pixels of four maps, as in the encoder.
"""

import statistics
import time
from collections.abc import Callable

import torch
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from dgmn.detection import deformable_detr
from dgmn.detection.multi_scale import FusedMultiScaleAttention, multi_scale_aggregate
from dgmn_base.terminal import format_table

ROUNDS = 5
HEADS, DIM, POINTS = 8, 32, 4
Function = Callable[[], object]


def times(functions: dict[str, Function]) -> dict[str, float]:
    """Returns the median time of each function in seconds."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for step in range(ROUNDS + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if step:  # the first step warms up
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def inputs_of(shapes: list[tuple[int, int]], device: torch.device) -> list[torch.Tensor]:
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


def attention(height: int, width: int, device: torch.device) -> tuple[dict[str, Function], dict[str, Function]]:
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
    torch.manual_seed(0)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    rows = []
    for height, width in ((512, 640), (800, 1333)):
        forward, backward = attention(height, width, device)
        with torch.no_grad():
            rows.append((f"forward, {height} x {width}", times(forward)))
        rows.append((f"forward and backward, {height} x {width}", times(backward)))

    model = deformable_detr("dgmn2_tiny").eval().to(device)
    layers = [module for module in model.modules() if isinstance(module, FusedMultiScaleAttention)]
    image = [torch.rand(3, 800, 1333, device=device)]

    def whole(fused: bool) -> None:
        for layer in layers:
            layer.fused = fused
        model(image)

    with torch.inference_mode():
        networks: dict[str, Function] = {"transformers": lambda: whole(False), "dgmn": lambda: whole(True)}
        rows.append(("whole network on dgmn2_tiny, 800 x 1333", times(networks)))
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    cells = [
        (
            what,
            f"{taken['transformers']:.3f} s",
            f"{taken['dgmn']:.3f} s",
            f"{taken['transformers'] / taken['dgmn']:.1f}x",
        )
        for what, taken in rows
    ]
    print(format_table(("multi-scale attention", "transformers", "dgmn", "gain"), cells))


if __name__ == "__main__":
    main()
