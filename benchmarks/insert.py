"""Puts DGMN into a network of every family and measures what that costs: `python benchmarks/insert.py`.

Writes `insert_cpu.csv` after every network, and its rows as the table of `docs/insert.md`. The plain network and the
one with modules take turns, so that a slower clock affects both. `--table` writes the table again from the CSV alone.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_model_input_config

import dgmn
from dgmn.complexity import count
from dgmn.exporting.comparison import milliseconds

from pages import RESULTS, ROOT, facts, markdown, read_csv, write_csv, write_table

CSV, PAGE = RESULTS / "insert_cpu.csv", ROOT / "docs/insert.md"
COLUMNS = (
    *("family", "network", "module", "places", "modules", "size"),
    *("params", "params_added", "gmacs", "gmacs_added", "ms", "ms_added"),
)
# A network of every family, and layers of its last stage.
NETWORKS = {
    "ResNet": ("resnet50", "layer4.*.act2"),
    "ResNeXt": ("resnext50_32x4d", "layer4.*.act2"),
    "RegNet": ("regnety_008", "s4.*.conv2"),
    "EfficientNet": ("efficientnet_b0", "blocks.6.*.bn2.act"),
    "MobileNetV4": ("mobilenetv4_conv_small", "blocks.3.*"),
    "ConvNeXt": ("convnext_tiny", "stages.3.blocks.*.conv_dw"),
    "DenseNet": ("densenet121", "features.denseblock4.*.conv1"),
    "HRNet": ("hrnet_w18_small", "stage4.*.branches.3.*.conv2"),
    "Swin": ("swin_tiny_patch4_window7_224", "layers.3.blocks.*"),
    "PVTv2": ("pvt_v2_b1", "stages.3"),
    "ViT": ("vit_tiny_patch16_224", "patch_embed.proj"),
    "FastViT": ("fastvit_t8", "stages.3.blocks.*"),
    "EdgeNeXt": ("edgenext_small", "stages.3.blocks.*"),
    "MambaOut": ("mambaout_tiny", "stages.3.blocks.*"),
}
REPLACED = {
    "Swin": ("swin_tiny_patch4_window7_224", "layers.*.blocks.*.attn"),
    "PVTv2": ("pvt_v2_b1", "stages.*.blocks.*.attn"),
}
CASES = [
    *((family, *case, "dgmn") for family, case in NETWORKS.items()),
    *((family, *case, "dgmn2_attention") for family, case in REPLACED.items()),
]


def measured(family: str, name: str, places: str, module: str) -> dict[str, Any]:
    torch.manual_seed(0)
    plain = timm.create_model(name).eval()
    other = dgmn.insert(copy.deepcopy(plain), places, module).eval()
    size = get_model_input_config(plain)["input_size"][1:]
    x = torch.randn(1, 3, *size)
    with torch.inference_mode():
        for network in (plain, other):
            network(x)
        before, after = milliseconds(lambda: plain(x), lambda: other(x))
    costs = [count(network.to("meta"), size) for network in (plain, other)]
    names = {n for n, _ in other.named_modules()} - {n for n, _ in plain.named_modules()}
    return {
        "family": family,
        "network": name,
        "module": module,
        "places": places,
        "modules": sum(n.endswith((".module", ".attn.offset")) for n in names),
        "size": f"{size[0]}x{size[1]}",
        "params": costs[0].params,
        "params_added": costs[1].params - costs[0].params,
        "gmacs": f"{costs[0].macs / 1e9:.3f}",
        "gmacs_added": f"{(costs[1].macs - costs[0].macs) / 1e9:.3f}",
        "ms": f"{before:.1f}",
        "ms_added": f"{after - before:.1f}",
    }


def table(path: Path) -> str:
    """The rows of a CSV for the documentation."""
    about, found = read_csv(path)
    text = "One image of the network's own size, random weights; "
    text += "; ".join(f"{key} {value}" for key, value in about.items()) + ".\n\n"
    header = (
        "family",
        "network",
        "module",
        "behind",
        "modules",
        "parameters",
        "added",
        "GMACs",
        "added",
        "ms",
        "added",
    )
    rows = []
    for row in found:
        params = (f"{int(row['params']) / 1e6:.2f} M", f"{int(row['params_added']) / 1e6:+.2f} M")
        macs = (f"{float(row['gmacs']):.2f}", f"{float(row['gmacs_added']):+.2f}")
        times = (row["ms"], f"{float(row['ms_added']):+.1f} ({float(row['ms_added']) / float(row['ms']):+.0%})")
        names = (row["family"], *(f"`{row[name]}`" for name in ("network", "module", "places")), row["modules"])
        rows.append((*names, *params, *macs, *times))
    return text + markdown(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=tuple(NETWORKS), choices=tuple(NETWORKS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help=f"the CSV; default {CSV.relative_to(ROOT)}, and the table of the page")
    parser.add_argument("--table", action="store_true", help="only write the page's table again")
    arguments = parser.parse_args()
    if arguments.out is None and set(arguments.families) != set(NETWORKS):
        parser.error("--families: some families alone go to a file of their own: give --out FILE")
    if not arguments.table:
        torch.set_num_threads(arguments.threads)
        about, rows, path = facts(), [], arguments.out or CSV
        for case in CASES:
            if case[0] in arguments.families:
                rows.append(measured(*case))
                write_csv(path, about, COLUMNS, rows)
                print(table(path).splitlines()[-1], flush=True)
    if arguments.out is None:
        write_table(PAGE, Path(__file__).name, table(CSV))


if __name__ == "__main__":
    main()
