"""Writes the tables and the chart of the documentation that come from rows in the repository.

    python docs/scripts/tables.py

The tables are between comments in the pages. A test checks that they are what this script writes.
"""

import csv
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dgmn_base.zoo import ZOO

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"
CHART = ROOT / "docs/images/speed.svg"
NETWORKS = (
    ("dgmn2_small", "`dgmn2_small`"),
    ("dgmn2_small:fused", "the same, `dgmn.fuse(model)`"),
    ("dgmn2_small:original", "the same, original formulation"),
    ("swin_tiny_patch4_window7_224", "Swin-T of timm"),
    ("pvt_v2_b2", "PVTv2-B2"),
    ("convnext_tiny", "ConvNeXt-T"),
    ("resnet50", "ResNet-50"),
    ("deit_small_patch16_224", "DeiT-S"),
)


def read(name: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The facts at the top of a file of results, and its rows."""
    lines = (RESULTS / name).read_text(encoding="utf-8").splitlines()
    facts = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    return facts, list(csv.DictReader(line for line in lines if not line.startswith("#")))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def measured_on(facts: dict[str, str]) -> str:
    return f"*{facts['processor']}, {facts['threads']}, {facts['dtype']}, {facts['torch']}, {facts['date']}.*"


def zoo(task: str) -> str:
    metrics = {
        "classification": {"top1": "top-1"},
        "detection": {"box_ap": "box AP", "mask_ap": "mask AP"},
        "segmentation": {"miou": "mIoU", "miou_ms_flip": "mIoU, multi-scale"},
    }[task]
    numbers = {**metrics, "params_m": "parameters, M", "gmacs": "GMACs"}
    digits = 2 if task == "segmentation" else 1
    rows = []
    for m in ZOO:
        if m.task == task:
            values = [f"{m.metrics[number]:.{digits}f}" if number in m.metrics else "" for number in numbers]
            rows.append((f"`{m.name}`", m.method, m.schedule, *values))
    return table(("name", "network", "training", *numbers.values()), rows)


def ops() -> str:
    facts, rows = read("ops_cpu.csv")
    contenders = ("native", "original", "reference", "inductor")
    ms = {(row["case"], row["contender"], row["mode"]): float(row["ms"]) for row in rows}
    cases = dict.fromkeys(row["case"] for row in rows)
    lines = [
        (
            case.replace("x", " x "),
            *(f"{ms[case, name, 'forward']:.3g}, {ms[case, name, 'forward+backward']:.3g}" for name in contenders),
        )
        for case in cases
    ]
    return f"{table(('batch x height x width x heads x D', *contenders), lines)}\n\n{measured_on(facts)}"


def gpu() -> str:
    _, rows = read("gpu_h200_times.csv")
    numbers = {(row["case"], row["quantity"]): row["number"] for row in rows if row["part"] == "times"}
    dtypes = ("float32", "bfloat16")
    lines = [
        (
            case.replace("x", " x "),
            *(
                ", ".join(f"{float(numbers[f'{case} {dtype}', f'{mode}, {who}, ms']):.3g}" for mode in MODES)
                for dtype in dtypes
                for who in ("triton", "original")
            ),
        )
        for case in dict.fromkeys(case.split()[0] for case, _ in numbers)
    ]
    header = [f"{who}, {dtype}" for dtype in dtypes for who in ("triton", "original")]
    return table(("batch x height x width x heads x D", *header), lines)


MODES = ("forward", "forward + backward")


def networks() -> str:
    facts, rows = read("models_cpu.csv")
    found = {(row["contender"], row["case"], row["mode"]): row for row in rows}
    cases = dict.fromkeys(row["case"] for row in rows)

    def cell(name: str, case: str, column: str) -> str:
        both = [found.get((name, case, mode), {}).get(column) for mode in ("inference", "train")]
        return ", ".join(f"{float(number):.0f}" for number in both if number) or "does not take it"

    largest = list(cases)[1]
    lines = [
        (title, *(cell(name, case, "ms") for case in cases), cell(name, largest, "peak_mb")) for name, title in NETWORKS
    ]
    header = ("network", *(case.replace("x", " x ") for case in cases), f"MB at {largest.replace('x', ' x ')}")
    return f"{table(header, lines)}\n\n{measured_on(facts)}"


def scaling() -> str:
    facts, rows = read("scaling_cpu.csv")
    cases = dict.fromkeys(row["case"] for row in rows)
    found = {(row["contender"], row["case"]): row for row in rows}
    names, lines = dict(NETWORKS), []
    for name in dict.fromkeys(row["contender"] for row in rows):
        costs = [1e3 * float(found[name, case]["ms"]) / float(found[name, case]["pixels"]) for case in cases]
        lines.append((names[name], *(f"{cost:.2f}" for cost in costs)))
    return f"{table(('µs a pixel', *(case.replace('x', ' x ') for case in cases)), lines)}\n\n{measured_on(facts)}"


def compiled() -> str:
    facts, rows = read("compiled_cpu.csv")
    ms = {row["contender"]: f"{float(row['ms']):.0f}" for row in rows}
    names = dict(NETWORKS)
    lines = [(names[name], ms.get(name, ""), ms[f"{name}:compiled"]) for name in names if f"{name}:compiled" in ms]
    return f"{table(('network', 'eager, ms', 'compiled, ms'), lines)}\n\n{measured_on(facts)}"


BLOCKS: dict[str, Callable[[], str]] = {
    "models.md classifiers": lambda: zoo("classification"),
    "models.md detectors": lambda: zoo("detection"),
    "models.md segmenters": lambda: zoo("segmentation"),
    "benchmarks.md ops": ops,
    "benchmarks.md gpu": gpu,
    "benchmarks.md networks": networks,
    "benchmarks.md scaling": scaling,
    "benchmarks.md compiled": compiled,
}


def chart() -> str:
    """Two bar charts as SVG, with letters that can be read on a phone."""
    facts, rows = read("models_cpu.csv")
    titles = {name: re.sub("[`]| of timm|the same, ", "", title) for name, title in NETWORKS}
    speeds = {
        titles[row["contender"]]: float(row["images_per_s"])
        for row in rows
        if (row["case"], row["mode"]) == ("224x224", "inference") and "fused" not in row["contender"]
    }
    cpu_facts, cpu = read("ops_cpu.csv")
    _, gpu_rows = read("gpu_h200_times.csv")
    faster = {"original formulation": 1.0}
    for title, mode in (("forward", "forward"), ("with backward", "forward+backward")):
        found = [row for row in cpu if (row["contender"], row["mode"]) == ("native", mode)]
        faster[f"CPU, {title}"] = geometric(float(row["ratio"]) for row in found)
    for title, mode in zip(("forward", "with backward"), MODES, strict=True):
        found = [row for row in gpu_rows if row["quantity"] == f"{mode}, speed-up" and "float32" in row["case"]]
        faster[f"H200, {title}"] = geometric(float(row["number"]) for row in found)
    parts, y = [], 8
    for title, bars in (
        ("Attention, times as fast (float32)", faster),
        ("Whole networks, images a second (CPU)", speeds),
    ):
        parts.append(f'<text x="10" y="{y + 18}" class="title">{title}</text>')
        y += 30
        for name, value in bars.items():
            ours = bars is faster or name == titles["dgmn2_small"]
            color = "#e08a3c" if "original" in name else "#1f5fa8" if ours else "#999999"
            width = 210 * value / max(bars.values())
            parts.append(
                f'<text x="168" y="{y + 16}" text-anchor="end">{name}</text>'
                f'<rect x="176" y="{y + 2}" width="{width:.1f}" height="19" fill="{color}"/>'
                f'<text x="{180 + width:.1f}" y="{y + 16}">{value:.1f}</text>'
            )
            y += 25
        y += 10
    dates = " and ".join(sorted({facts["date"], cpu_facts["date"]}))
    foot = f"{facts['processor'].split(',')[0]}, {facts['threads']}, {dates}; NVIDIA H200, 2026-11-26"
    parts.append(f'<text x="10" y="{y + 12}" class="foot">{foot}</text>')
    style = "text{font:15px sans-serif;fill:#222}.title{font-weight:bold}.foot{font-size:12px;fill:#555}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 440 {y + 24}" width="440" height="{y + 24}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def geometric(numbers: Iterable[float]) -> float:
    logarithms = [math.log(number) for number in numbers]
    return math.exp(sum(logarithms) / len(logarithms))


def written() -> dict[Path, str]:
    """The files that this script writes, with their content."""
    files = {CHART: chart()}
    for name, make in BLOCKS.items():
        page, block = name.split()
        path = ROOT / "docs" / page
        text = files.get(path) or path.read_text(encoding="utf-8")
        begin = f"<!-- made by docs/scripts/tables.py: {block} -->\n"
        before, _, rest = text.partition(begin)
        _, end, after = rest.partition("\n<!-- its end -->")
        if not end:
            raise SystemExit(f"{page} has no place for {block}")
        files[path] = f"{before}{begin}\n{make()}\n{end}{after}"
    return files


if __name__ == "__main__":
    for path, text in written().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
