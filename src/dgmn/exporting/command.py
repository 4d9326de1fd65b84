"""The command `dgmn export`."""

import argparse
import shlex

from dgmn.detection.predictor import DetectionPredictor
from dgmn.exporting.export import RUNTIMES, Exported, export
from dgmn.exporting.int8 import score_name
from dgmn.loading import load
from dgmn_base.terminal import counted, format_table


def run_export(options: argparse.Namespace) -> int:
    source = options.source or options.model
    predictor = load(
        source,
        model=options.model if options.source else None,
        recipe=options.config,
        trust_code=options.trust_code or (),
        device="cpu",
    )
    size = options.size and (options.size * 2 if len(options.size) == 1 else options.size)
    if options.out.endswith(".pt2"):
        print("compiling, which takes minutes ...", flush=True)
    done = export(
        predictor,
        options.out,
        size=size,
        dynamic=not options.fixed,
        grid_sample=options.grid_sample,
        kernel=options.kernel,
        image=options.image,
        licence=options.licence,
        int8=options.int8,
        calibrate=options.calibrate,
    )
    height, width = done.sizes[0][-2:]
    megabytes = done.path.stat().st_size / 1e6
    sizes = "any size" if done.fixed is None else f"{height} x {width} only: {done.fixed}"
    print(f"{done.path}: {megabytes:.1f} MB, images of {sizes}\n")
    print(f"checked on {done.image}: {', '.join(' x '.join(map(str, size)) for size in dict.fromkeys(done.sizes))}")
    error = "unknown: no object was found in these images; give --image, one with objects"
    if done.error is not None:
        error = f"{done.error:.1e} of the largest result{'' if done.int8 is None else ', before int8'}"
    rows = [
        ("largest error", error),
        (
            f"{height} x {width}",
            f"{done.milliseconds:.1f} ms in {RUNTIMES[done.path.suffix]}, {done.pytorch:.1f} in PyTorch",
        ),
        *_of_int8(done, predictor.task),
    ]
    print(format_table(("", ""), rows))
    if isinstance(predictor, DetectionPredictor) and predictor.inference.sizes:
        print("\nThe file finds objects at the network's own size; inference.sizes of the checkpoint are left out.")
    if options.kernel:
        print("\nonnxruntime needs options.register_custom_ops_library(dgmn.onnxruntime_library()) for it")
    if done.path.suffix == ".onnx":
        print(f"\nuse it: dgmn predict IMAGE --ckpt_path {shlex.quote(str(done.path))}")
    else:
        print(f"\nuse it: torch._inductor.aoti_load_package({str(done.path)!r})(images)")
    return 0


def _of_int8(done: Exported, task: str) -> list[tuple[str, str]]:
    """What quantisation has changed, in rows of a table."""
    if done.int8 is None:
        return []
    changed, what = done.int8, "pixels" if task == "segmentation" else "images"
    rows = [
        (
            "layers in int8",
            f"{changed.layers[0]} of {changed.layers[1]}, calibrated on {counted(changed.calibrated, 'image')}",
        ),
        ("the float32 file", f"{changed.megabytes:.1f} MB, {changed.milliseconds:.1f} ms in onnxruntime"),
        ("same class", f"{changed.agreement:.1%} of the {what}, on {counted(changed.compared, 'other image')}"),
    ]
    if changed.score is not None:
        rows.append((score_name(task), f"{changed.score[1]:.1%} in int8, {changed.score[0]:.1%} in float32"))
    return rows
