"""Memory and time of predicting one large image: `python benchmarks/memory.py`.

Every network with random weights predicts a JPEG of noise in a process of its own, of which Linux counts the peak.
Writes `memory_cpu.csv`, and its rows as the table of `docs/predict.md`.
"""

import argparse
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dgmn.loading import predictor_of

from pages import publish

LARGEST, STREET = (10_000, 10_000), (1024, 2048)  # height and width
# What it is, task, builder, backbone, size.
CASES = [
    ("classifier", "classification", "classifier", "dgmn2_nano", LARGEST),
    ("RetinaNet", "detection", "retinanet", "dgmn2_nano", LARGEST),
    ("Semantic FPN", "segmentation", "semantic_fpn", "dgmn2_nano", LARGEST),
    ("Semantic FPN", "segmentation", "semantic_fpn", "dgmn2_tiny", STREET),
    ("SETR-Naive", "segmentation", "setr_naive", "dgmn2_tiny", STREET),
    ("SETR-PUP", "segmentation", "setr_pup", "dgmn2_tiny", STREET),
    ("SETR-MLA", "segmentation", "setr_mla", "dgmn2_tiny", STREET),
]


def peak() -> float:
    """Of this process, in MiB. What `getrusage` says begins with the peak of the process that started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def measured(task: str, builder: str, backbone: str, image: Path) -> tuple[float, float, float]:
    """Peak of the process before and after the prediction in MiB, and the seconds of the prediction."""
    torch.manual_seed(0)
    predictor = predictor_of(task).published(builder, backbone)
    before, start = peak(), time.perf_counter()
    predictor.predict(image)
    return before, peak(), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="the CSV; by default that of benchmarks/results, and the page's table")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        images = {}
        for height, width in (LARGEST, STREET):
            noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
            images[height, width] = Path(folder) / f"{height}.jpg"
            Image.fromarray(noise).resize((width, height)).save(images[height, width])
        for name, task, builder, backbone, size in CASES:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                before, after, seconds = pool.submit(measured, task, builder, backbone, images[size]).result()
            rows.append(
                {
                    "network": f"{name} on `{backbone}`",
                    "image": f"{size[0]} x {size[1]}",
                    "peak of the process, MiB": f"{after:.0f}",
                    "before the prediction, MiB": f"{before:.0f}",
                    "seconds": f"{seconds:.1f}",
                }
            )
            print(*rows[-1].values(), flush=True)
    publish(Path(__file__), "predict.md", rows, given.out, "cpu")


if __name__ == "__main__":
    main()
