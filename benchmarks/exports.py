"""Exports networks with random weights and times the files beside PyTorch: `python benchmarks/exports.py`.

Writes `exports_cpu.csv`, and its rows as the table of `docs/export.md`. All networks are exported before any is timed,
so only the last minutes need an idle machine. PyTorch and the files take turns on one image, so that a slower clock
affects all. `--table` writes the table again from the CSV alone.
"""

import argparse
import gc
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import dgmn
from dgmn.classification.builders import classifier
from dgmn.classification.predictor import ClassificationPredictor
from dgmn.detection.builders import BUILDERS as DETECTORS
from dgmn.detection.predictor import DetectionPredictor
from dgmn.errors import InputError
from dgmn.exporting import Exported, onnx_graph, package
from dgmn.exporting.comparison import batches, milliseconds, scene
from dgmn.predictor import Predictor
from dgmn.segmentation.builders import BUILDERS as SEGMENTERS
from dgmn.segmentation.predictor import SegmentationPredictor

from pages import RESULTS, ROOT, facts, markdown, read_csv, write_csv, write_table

CSV, PAGE = RESULTS / "exports_cpu.csv", ROOT / "docs/export.md"
COLUMNS = ("network", "size", "file", "sizes", "megabytes", "error", "ms", "eager_ms", "compiled_ms", "export_s")
CLASSES = 20
KINDS = ("classifier", *SEGMENTERS, "retinanet", "mask_rcnn", "deformable_detr", "sparse_rcnn")


def network(kind: str, backbone: str, size: tuple[int, int], quick: bool) -> Predictor:
    names = [str(i) for i in range(CLASSES)]
    small = {"depths": (1, 1, 1, 1)} if quick and backbone.startswith("dgmn2") else {}
    torch.manual_seed(0)
    if kind == "classifier":
        built = classifier(backbone, CLASSES, small)
        predictor: Predictor = ClassificationPredictor(built, names, image_size=size[0])
    elif kind in SEGMENTERS:
        args: dict[str, Any] = {"backbone": backbone, "backbone_args": small}
        if kind == "dilated_fcn":
            args = {"backbone": "resnet10t" if quick else "resnet50", "module": "dgmn"}
        built = SEGMENTERS[kind](num_classes=CLASSES, **args)
        predictor = SegmentationPredictor(built, names, [(i, i, i) for i in range(CLASSES)])
    else:
        sides = {"min_size": min(size), "max_size": max(size)}
        built = DETECTORS[kind](backbone, CLASSES, **sides, backbone_args=small)
        predictor = DetectionPredictor(built, names, list(range(1, CLASSES + 1)))
    with torch.no_grad():  # walks start at zero: give them somewhere to go
        for name, parameter in built.named_parameters():
            if "offset." in name or "walks." in name:
                parameter.add_(0.02 * torch.randn_like(parameter))
            if "classification_head" in name and name.endswith("weight"):
                parameter.mul_(4)  # an untrained RetinaNet finds nothing: all its scores are 0.01
            if name.endswith("box_deltas.weight"):
                # Random stages of Sparse R-CNN move boxes so far that PyTorch's own float32 and float64 differ by 2e-2.
                parameter.mul_(0.1)
    return predictor


@dataclass
class Prepared:
    """A network with its files, ready to be timed."""

    kind: str
    size: tuple[int, int]
    runs: dict[str, Callable[[], object]]  # "eager", "compiled", and the files by their form
    files: dict[str, tuple[Exported, float, float]]  # with their megabytes, and the seconds that the export took


def prepare(kind: str, size: tuple[int, int], arguments: argparse.Namespace) -> Prepared:
    predictor = network(kind, arguments.backbone, size, arguments.quick)
    detects = predictor.task == "detection"
    run = predictor.network
    (images, *_) = batches(scene()[0], *size, None if detects else predictor.preprocessing)
    prepared = Prepared(kind, size, {"eager": lambda: run([images] if detects else images)}, {})
    if not detects:
        compiled = torch.compile(run, dynamic=False)
        prepared.runs["compiled"] = lambda: compiled(images)
    with tempfile.TemporaryDirectory() as folder:
        for form, module in (("ONNX", onnx_graph), ("pt2", package)):
            if form not in arguments.forms or (detects and form == "pt2"):
                continue
            path = Path(folder) / ("model.onnx" if form == "ONNX" else "model.pt2")
            start = time.perf_counter()
            try:
                exported = dgmn.export(predictor, path, size=size, dynamic=form == "ONNX" or arguments.any_size)
            except InputError as error:
                print(f"{kind}, {form}: {error}")
                continue
            content = path.read_bytes()
            prepared.files[form] = (exported, len(content) / 1e6, time.perf_counter() - start)
            opened = module.opened(content)
            prepared.runs[form] = lambda opened=opened: opened(images)  # type: ignore[misc]
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in prepared.runs.values():
            each()
    return prepared


def rows(prepared: Prepared) -> Iterator[dict[str, Any]]:
    """One row for each file of a network."""
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        times = dict(zip(prepared.runs, milliseconds(*prepared.runs.values()), strict=True))
    for form, (exported, megabytes, seconds) in prepared.files.items():
        fixed = "any" if exported.fixed is None else "one"
        checked = " ".join("x".join(map(str, each)) for each in exported.sizes)
        yield {
            "network": prepared.kind,
            "size": "x".join(map(str, prepared.size)),
            "file": form,
            "sizes": f"{fixed}: {checked}",
            "megabytes": f"{megabytes:.1f}",
            "error": "" if exported.error is None else f"{exported.error:.1e}",
            "ms": f"{times[form]:.1f}",
            "eager_ms": f"{times['eager']:.1f}",
            "compiled_ms": f"{times['compiled']:.1f}" if "compiled" in times else "",
            "export_s": f"{seconds:.0f}",
        }


def table(path: Path) -> str:
    """The rows of a CSV for the documentation."""
    about, found = read_csv(path)
    header = ("network", "image", "file", "sizes", "MB", "largest error", "ms", "eager", "`torch.compile`", "export")
    text = f"Backbone {about.pop('backbone')}, {CLASSES} classes, random weights, one image, milliseconds; "
    text += "; ".join(f"{key} {value}" for key, value in about.items()) + ".\n\n"
    rows = []
    for row in found:
        sizes = row["sizes"].partition(":")[0]
        cells = (f"`{row['network']}`", row["size"], row["file"], sizes, row["megabytes"], row["error"], row["ms"])
        rows.append((*cells, row["eager_ms"], row["compiled_ms"] or "-", row["export_s"] + " s"))
    return text + markdown(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="dgmn2_nano")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--forms", nargs="+", default=("ONNX", "pt2"), choices=("ONNX", "pt2"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--any-size", action="store_true", help="packages for any size, which take long to compile")
    parser.add_argument("--quick", action="store_true", help="small networks and images, to see that it works")
    parser.add_argument("--out", type=Path, help=f"the CSV; default {CSV.relative_to(ROOT)}, and the table of the page")
    parser.add_argument("--table", action="store_true", help="only write the page's table again")
    arguments = parser.parse_args()
    if arguments.table:
        write_table(PAGE, Path(__file__).name, table(CSV))
        return
    if arguments.quick and arguments.out is None:
        parser.error("--quick needs --out FILE: its figures are not for the documentation")
    torch.set_num_threads(arguments.threads)
    prepared = []
    for kind in arguments.kinds:
        size = (64, 96) if arguments.quick else (224, 224) if kind == "classifier" else (256, 384)
        prepared.append(prepare(kind, size, arguments))
        print(f"{kind}: exported", flush=True)
        gc.collect()
    import onnxruntime

    path = arguments.out or CSV
    about = facts(
        onnxruntime=onnxruntime.__version__,
        backbone=arguments.backbone + (", one block a stage" if arguments.quick else ""),
        threads=str(torch.get_num_threads()),
    )
    write_csv(path, about, COLUMNS, [row for each in prepared for row in rows(each)])
    print(table(path))
    if arguments.out is None:
        write_table(PAGE, Path(__file__).name, table(path))


if __name__ == "__main__":
    main()
