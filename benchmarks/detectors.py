"""Times RetinaNet on DGMN2-Tiny and torchvision's own, for one image of 800 x 1333: `python benchmarks/detectors.py`.

With random weights no score reaches the threshold, so selecting boxes costs nothing in any of these networks. They take
turns, so that other work on the machine affects all of them. Writes `detectors_cpu.csv`, and its rows as the table of
`docs/detection.md`.
"""

import argparse
from pathlib import Path

import torch
import torchvision

import dgmn
from dgmn.bench.measure import time_side_by_side
from dgmn.detection import retinanet

from pages import publish


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="the CSV; by default that of benchmarks/results, and the page's table")
    given = parser.parse_args()
    torch.manual_seed(0)
    device = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    ours = retinanet("dgmn2_tiny").eval()
    theirs = torchvision.models.detection.retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=80)
    networks = {
        "RetinaNet on `dgmn2_tiny`": ours,
        "the same, `dgmn.fuse(model)`": dgmn.fuse(ours),
        "torchvision's `retinanet_resnet50_fpn_v2`": theirs.eval(),
    }
    image = [torch.rand(3, 800, 1333, device=device)]
    works = {name: lambda network=network: network(image) for name, network in networks.items()}
    for network in networks.values():
        network.to(device)
    with torch.inference_mode():
        times = time_side_by_side(works, given.rounds, device)
    rows = [
        {
            "network": name,
            "parameters": f"{sum(p.numel() for p in networks[name].parameters()) / 1e6:.1f} M",
            "seconds": f"{time.median / 1e3:.2f}",
            "quartiles": f"{time.q25 / 1e3:.2f} to {time.q75 / 1e3:.2f}",
        }
        for name, time in times.items()
    ]
    publish(Path(__file__), "detection.md", rows, given.out, device)


if __name__ == "__main__":
    main()
