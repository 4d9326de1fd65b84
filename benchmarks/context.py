"""Measures time and cost of DGMN and the modules it is compared with: `python benchmarks/context.py`.

They stand in a dilated FCN on ResNet-18 (256 channels), and alone (512 channels), without and with gradients. All take
turns, so that other work on the machine affects all of them. Writes `context_cpu.csv`, and its rows as the table of
`docs/resnets.md`.
"""

import argparse
import copy
from pathlib import Path

import torch
from torch import nn

from dgmn.bench.measure import time_side_by_side
from dgmn.complexity import count
from dgmn.layers import DeformableConv2d, context_module
from dgmn.segmentation import dilated_fcn

from pages import publish

UNIFORM = {"dynamic_sampling": False, "fusion": "concat"}
# The modules of Table 2 of the paper, but for Deformable, which goes there to 256 channels and back. DS comes
# with five rates, and with three as in Table 14.
MODULES = {
    "none": ("none", {}),
    "Deformable": ("deformable", {}),
    "Deformable, torchvision's": ("deformable", {}),
    "ASPP": ("aspp", {}),
    "Non-local": ("non_local", {"convolution": True}),
    "GCNet": ("global_context", {}),
    "CCNet": ("criss_cross", {}),
    "DGMN, DA": ("dgmn", {"sampling_rates": (1,), "groups": 0, **UNIFORM}),
    "DGMN, DA+DW": ("dgmn", {"sampling_rates": (1,), **UNIFORM}),
    "DGMN, DA+DW+DS, 3 rates": ("dgmn", {"sampling_rates": (1, 6, 12), "fusion": "concat"}),
    "DGMN, DA+DW+DS, 5 rates": ("dgmn", {"sampling_rates": (1, 6, 12, 24, 36), "fusion": "concat"}),
}


class TorchvisionConv2d(DeformableConv2d):
    """The layer on torchvision's operator, on the CPU, too."""

    def _is_fast(self, x: torch.Tensor) -> bool:
        return False


def with_torchvision(network: nn.Module) -> nn.Module:
    for part in network.modules():
        if isinstance(part, DeformableConv2d):
            part.__class__ = TorchvisionConv2d
    return network


def step(network: nn.Module, x: torch.Tensor) -> None:
    """Forward and backward, with the statistics of the norms fixed: a batch of one has none."""
    network(x.detach().requires_grad_()).sum().backward()


def rows_of(
    where: str, networks: dict[str, nn.Module], x: torch.Tensor, device: str, rounds: int, training: bool = False
) -> list[dict[str, str]]:
    """Times and costs of networks; the costs are those added to the first network."""
    x = x.to(device)
    for network in networks.values():
        network.to(device).eval()
    with torch.inference_mode(not training):
        work = step if training else nn.Module.__call__
        works = {name: lambda network=network: work(network, x) for name, network in networks.items()}
        times = time_side_by_side(works, rounds, device)
    costs = {}
    for name, network in networks.items():
        # `count` takes dtype and device from the parameters, and the empty module has none.
        empty = next(network.parameters(), None) is None
        shape = (x.shape[2], x.shape[3])
        cost = None if empty else count(copy.deepcopy(network).to("meta"), shape, x.shape[1])
        costs[name] = (cost.params / 1e6, cost.macs / 1e9) if cost else (0.0, 0.0)
    params, macs = next(iter(costs.values()))
    return [
        {
            "where": where,
            "module": name,
            "parameters added, M": f"{costs[name][0] - params:.2f}",
            "GMACs added": f"{costs[name][1] - macs:.2f}",
            "ms": f"{time.median:.1f}",
            "quartiles": f"{time.q25:.1f} to {time.q75:.1f}",
        }
        for name, time in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="the CSV; by default that of benchmarks/results, and the page's table")
    given = parser.parse_args()
    torch.manual_seed(0)
    device = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    behind: dict[str, nn.Module] = {
        name: dilated_fcn("resnet18", 11, module=module, module_args=args, channels=256)
        for name, (module, args) in MODULES.items()
    }
    with_torchvision(behind["Deformable, torchvision's"])
    rows = rows_of("in the FCN", behind, torch.randn(1, 3, 360, 480), device, given.rounds)
    alone = {name: context_module(module, 512, args) for name, (module, args) in MODULES.items() if module != "none"}
    with_torchvision(alone["Deformable, torchvision's"])
    plain, x = {"none": nn.Identity(), **alone}, torch.randn(1, 512, 97, 97)
    rows += rows_of("alone", plain, x, device, given.rounds)[1:]
    rows += rows_of("alone, forward and backward", plain, x, device, given.rounds, training=True)[1:]
    publish(Path(__file__), "resnets.md", rows, given.out, device)


if __name__ == "__main__":
    main()
