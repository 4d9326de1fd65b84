"""Measures time and cost of DGMN and the modules it is compared with, behind a dilated ResNet and alone.

Run `python benchmarks/context.py`. All take turns, so that other work on the machine affects all of them.
"""

import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from dgmn.complexity import count
from dgmn.layers import context_module
from dgmn.segmentation import dilated_fcn
from dgmn_base.terminal import format_table

ROUNDS = 15
UNIFORM = {"dynamic_sampling": False, "fusion": "concat"}
# The modules of Table 2 of the paper. DS comes with five rates, and with three as in Table 14.
MODULES = {
    "none": ("none", {}),
    "Deformable": ("deformable", {}),
    "ASPP": ("aspp", {}),
    "Non-local": ("non_local", {"convolution": True}),
    "GCNet": ("global_context", {}),
    "CCNet": ("criss_cross", {}),
    "DGMN, DA": ("dgmn", {"sampling_rates": (1,), "groups": 0, **UNIFORM}),
    "DGMN, DA+DW": ("dgmn", {"sampling_rates": (1,), **UNIFORM}),
    "DGMN, DA+DW+DS, 3 rates": ("dgmn", {"sampling_rates": (1, 6, 12), "fusion": "concat"}),
    "DGMN, DA+DW+DS, 5 rates": ("dgmn", {"sampling_rates": (1, 6, 12, 24, 36), "fusion": "concat"}),
}


def in_turns(runs: dict[str, Callable[[], object]], device: torch.device) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for step in range(ROUNDS + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if step:  # the first step warms up
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def show(title: str, networks: dict[str, nn.Module], x: torch.Tensor, device: torch.device) -> None:
    """Prints a table of networks. Its costs are those added to the first network."""
    x = x.to(device)
    for network in networks.values():
        network.to(device).eval()
    with torch.inference_mode():
        times = in_turns({name: lambda network=network: network(x) for name, network in networks.items()}, device)
    costs = {}
    for name, network in networks.items():
        # `count` takes dtype and device from the parameters, and the empty module has none.
        empty = next(network.parameters(), None) is None
        shape = (x.shape[2], x.shape[3])
        cost = None if empty else count(copy.deepcopy(network).to("meta"), shape, x.shape[1])
        costs[name] = (cost.params / 1e6, cost.macs / 1e9) if cost else (0.0, 0.0)
    params, macs = next(iter(costs.values()))
    rows = []
    for name, taken in times.items():
        added = (f"{costs[name][0] - params:.2f}", f"{costs[name][1] - macs:.2f}")
        rows.append((name, *added, f"{statistics.median(taken):.1f}", f"{min(taken):.1f} to {max(taken):.1f}"))
    print(f"\n{title}")
    print(format_table(("module", "params added (M)", "GMACs added", "ms", "least to most"), rows))


def main() -> None:
    torch.manual_seed(0)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    behind: dict[str, nn.Module] = {
        name: dilated_fcn("resnet18", 11, module=module, module_args=args, channels=256)
        for name, (module, args) in MODULES.items()
    }
    show("Dilated FCN on ResNet-18, 256 channels, one image of 360 x 480", behind, torch.randn(1, 3, 360, 480), device)
    alone = {name: context_module(module, 512, args) for name, (module, args) in MODULES.items()}
    show("The module alone, one map of 97 x 97 with 512 channels", alone, torch.randn(1, 512, 97, 97), device)


if __name__ == "__main__":
    main()
