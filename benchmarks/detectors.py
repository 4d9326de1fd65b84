"""Times RetinaNet on DGMN2-Tiny and torchvision's own RetinaNet, for one image of 800 x 1333.

The networks take turns, so that other work on the machine affects all of them.
"""

import statistics
import time

import torch
import torchvision

import dgmn
from dgmn.detection import retinanet
from dgmn_base.terminal import format_table

ROUNDS = 7


def main() -> None:
    torch.manual_seed(0)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    ours = retinanet("dgmn2_tiny").eval()
    theirs = torchvision.models.detection.retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=80)
    networks = {
        "RetinaNet on dgmn2_tiny": ours,
        "the same, fused": dgmn.fuse(ours),
        "torchvision's retinanet_resnet50_fpn_v2": theirs.eval(),
    }
    image = [torch.rand(3, 800, 1333, device=device)]
    times: dict[str, list[float]] = {name: [] for name in networks}
    for network in networks.values():
        network.to(device)
    with torch.inference_mode():
        for step in range(ROUNDS + 1):
            for name, network in networks.items():
                start = time.perf_counter()
                network(image)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if step:  # the first step warms up
                    times[name].append(time.perf_counter() - start)
    rows = [
        (
            name,
            f"{sum(p.numel() for p in networks[name].parameters()) / 1e6:.1f} M",
            f"{statistics.median(taken):.3f} s",
            f"{min(taken):.3f} to {max(taken):.3f}",
        )
        for name, taken in times.items()
    ]
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(format_table(("network", "parameters", "median", "least to most"), rows))


if __name__ == "__main__":
    main()
