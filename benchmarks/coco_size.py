"""What a dataset of COCO's size costs before the first step, and beside it: `python benchmarks/coco_size.py`.

Draws 118,000 images with 860,000 objects, and 5,000 images with 36,500 for the validation, as files in COCO's format.
The image files are hard links to four pictures. Then it measures, each in processes of their own:

* the time from the start of Python to the first batch, without and with masks;
* the memory of that process and of the four that load images for it, after the first batch and after thousands of
  images. Memory that processes share counts once (Pss_Anon in /proc/PID/smaps_rollup). The same processes on 200
  images show what PyTorch and the pictures need by themselves, and only the rest is the dataset's;
* the evaluation of 5,000 images with 100 detections each.

Writes `coco_size_cpu.csv`, and its rows as the table of `docs/train.md`. It needs Linux, 3 GB in the temporary folder
and 8 GB of memory, and takes about five minutes.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZES = ((480, 640), (640, 480), (427, 640), (640, 427))  # height, width
WORKERS = 4


def write_part(root: Path, part: str, images: int, objects: int, seed: int) -> Path:
    """Draws a part of a dataset in COCO's layout; returns its file of annotations."""
    from dgmn.detection.categories import CATEGORIES

    random = np.random.default_rng(seed)
    folder, file = root / part, root / f"annotations/instances_{part}.json"
    folder.mkdir(parents=True)
    file.parent.mkdir(exist_ok=True)
    pictures = [root / f"{part}_{i}.jpg" for i in range(len(SIZES))]
    for picture, (height, width) in zip(pictures, SIZES, strict=True):
        pixels = random.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(picture)
    # Outlines of 29 points on average, with two decimals: a file as large as COCO's.
    lengths = random.integers(6, 53, 5000)
    outlines = [",".join(f"{x:.2f}" for x in random.uniform(0, 427, 2 * n)) for n in lengths]
    ids = np.sort(random.choice(600_000, images, replace=False))
    owners = np.sort(random.choice(images, objects, p=random.dirichlet(np.ones(images))))
    categories = random.choice(list(CATEGORIES), objects)
    boxes = np.round(random.uniform((0, 0, 8, 8), (300, 300, 120, 120), (objects, 4)), 2)
    with file.open("w") as out:
        out.write('{"info": {}, "licenses": [], "images": [')
        for i, number in enumerate(ids.tolist()):
            name, (height, width) = f"{number:012d}.jpg", SIZES[i % len(SIZES)]
            os.link(pictures[i % len(SIZES)], folder / name)
            out.write(
                f'{", " if i else ""}{{"license": 1, "file_name": "{name}", "coco_url": '
                f'"http://images.cocodataset.org/{part}/{name}", "height": {height}, "width": {width}, '
                f'"date_captured": "2013-11-14 11:18:45", "id": {number}}}'
            )
        out.write('], "annotations": [')
        rows = zip(owners.tolist(), categories.tolist(), boxes.tolist(), strict=True)
        for i, (owner, category, box) in enumerate(rows):
            out.write(
                f'{", " if i else ""}{{"segmentation": [[{outlines[i % len(outlines)]}]], "area": '
                f'{box[2] * box[3]:.4f}, "iscrowd": 0, "image_id": {ids[owner]}, "bbox": {box}, '
                f'"category_id": {category}, "id": {1000 + i}}}'
            )
        out.write('], "categories": ')
        json.dump([{"id": i, "name": name, "supercategory": "thing"} for i, name in CATEGORIES.items()], out)
        out.write("}")
    return file


def memory(process: int) -> tuple[float, float]:
    """Megabytes of a process: its share of what processes share, and what it has for itself alone.

    Without files and without shared memory, where the images wait that workers have read.
    """
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {name.rstrip(":"): int(value) for name, value, *_ in map(str.split, lines)}
    return kilobytes["Pss_Anon"] / 1024, kilobytes["Private_Dirty"] / 1024


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def loading(root: Path, part: str, masks: bool, images: int) -> dict[str, float]:
    """Starts a training's data, and reads this many images. Runs in a process of its own."""
    import lightning as L
    import torch

    from dgmn.detection.data import DetectionData

    torch.set_num_threads(1)
    imported = time.time()
    data = DetectionData(root, part, "val", masks=masks, batch_size=2, epoch_steps=images // 2, num_workers=WORKERS)
    data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.setup("fit")
    found: dict[str, float] = {"read": time.time() - imported}
    batches = iter(data.train_dataloader())
    next(batches)
    found |= {"start": time.time() - float(os.environ["STARTED"]), "peak": peak()}
    processes = [os.getpid(), *map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())]
    assert len(processes) == 1 + WORKERS
    found["first"] = sum(memory(process)[0] for process in processes)
    for _ in range(images // 2 - 1 - 2 * WORKERS):  # the workers are still there, each with two batches in its hands
        next(batches)
    found["all"] = sum(memory(process)[0] for process in processes)
    found["worker"] = max(memory(process)[1] for process in processes[1:])
    return found


def evaluation(file: Path, detections: int) -> dict[str, float]:
    """Evaluates detections near the objects, and elsewhere. Runs in a process of its own."""
    import torch

    from dgmn.detection.coco_metric import CocoMetric

    content = json.loads(file.read_text())
    ids = [entry["id"] for entry in content["categories"]]
    objects: dict[int, list[Any]] = {entry["id"]: [] for entry in content["images"]}
    for entry in content["annotations"]:
        objects[entry["image_id"]].append((entry["bbox"], ids.index(entry["category_id"])))
    del content
    random = torch.Generator().manual_seed(0)
    metric, before, seconds = CocoMetric(file, ids), peak(), 0.0
    for image, here in objects.items():
        boxes = torch.rand(detections, 4, generator=random) * 200
        labels = torch.randint(len(ids), (detections,), generator=random)
        for i, (box, label) in enumerate(here[:detections]):
            shift = 0.2 * torch.tensor(box[2:] * 2) * torch.rand(4, generator=random)
            boxes[i] = torch.tensor(box) + shift
            labels[i] = label
        boxes[:, 2:] += boxes[:, :2]
        scores = torch.rand(detections, generator=random)
        scores[: len(here)] += 0.5
        start = time.perf_counter()
        metric.update([image], [{"boxes": boxes, "labels": labels, "scores": scores}])
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    scored = metric.compute()
    assert 0.1 < scored["box"][0]["AP50"] < 1, scored["box"][0]
    return {"keeping": seconds, "scoring": time.perf_counter() - start, "peak": peak() - before}


def measured(*arguments: str) -> dict[str, float]:
    """The figures of a process of its own."""
    command = [sys.executable, __file__, "--child", *arguments]
    # Large tensors go back to the system when they are freed, so that the figures show what is held.
    environment = {**os.environ, "STARTED": str(time.time()), "MALLOC_MMAP_THRESHOLD_": "100000"}
    out = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if out.returncode:
        raise SystemExit(out.stderr)
    found: dict[str, float] = json.loads(out.stdout.splitlines()[-1])
    return found


def figures(root: Path, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Every row of the table."""
    train = write_part(root, "train", options.images, options.objects, 0)
    val = write_part(root, "val", options.images * 5 // 118, options.objects * 5 // 118, 1)
    write_part(root, "small", 200, 1000, 2)
    yield f"file of {options.images:,} images and {options.objects:,} objects", f"{train.stat().st_size / 1e6:.0f} MB"
    for what, masks in (("boxes", ""), ("boxes and masks", "masks")):
        big, small = (measured("loading", str(root), part, masks, str(options.read)) for part in ("train", "small"))
        yield f"{what}: from Python's start to the first batch", f"{big['start']:.1f} s"
        yield f"{what}: of it the dataset", f"{big['read']:.1f} s"
        yield f"{what}: peak of the process at the start", f"{big['peak']:.0f} MiB"
        yield f"{what}: five processes without a dataset", f"{small['all']:.0f} MiB"
        yield f"{what}: what the dataset adds, after the first batch", f"{big['first'] - small['first']:.0f} MiB"
        yield f"{what}: the same after {options.read:,} images", f"{big['all'] - small['all']:.0f} MiB"
        yield f"{what}: what a worker holds alone", f"{big['worker']:.0f} MiB (without a dataset {small['worker']:.0f})"
    images = options.images * 5 // 118
    scored = measured("evaluation", str(val), "100")
    yield f"evaluation of {images:,} images with 100 detections each", f"{scored['scoring']:.1f} s"
    yield "keeping these detections during the validation", f"{scored['keeping']:.1f} s"
    yield "peak of both, above the process before", f"{scored['peak']:.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--objects", type=int, default=860_000)
    parser.add_argument("--read", type=int, default=6000, help="images that the workers read")
    parser.add_argument("--out", type=Path, help="the CSV; default benchmarks/results, and the table of the page")
    parser.add_argument("--table", action="store_true", help="only write the page's table again")
    parser.add_argument("--child", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, place, *more = options.child
        if what == "loading":
            found = loading(Path(place), more[0], bool(more[1]), int(more[2]))
        else:
            found = evaluation(Path(place), int(more[0]))
        print(json.dumps(found))
        return
    from pages import RESULTS, ROOT, facts, markdown, read_csv, write_csv, write_table

    path = options.out or RESULTS / "coco_size_cpu.csv"
    if not options.table:
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            for what, figure in figures(Path(folder), options):
                print(f"{what}: {figure}", flush=True)
                rows.append({"what": what, "figure": figure})
                write_csv(path, facts(), ("what", "figure"), rows)
    about, found = read_csv(path)
    text = "; ".join(f"{key} {value}" for key, value in about.items() if key not in ("device", "dtype")) + ".\n\n"
    if options.out is None:
        table = markdown(("", "figure"), [(row["what"], row["figure"]) for row in found])
        write_table(ROOT / "docs/train.md", Path(__file__).name, text + table)


if __name__ == "__main__":
    main()
