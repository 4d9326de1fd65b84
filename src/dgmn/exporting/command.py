"""The command `dgmn export`."""

import argparse

from dgmn.exporting.onnx_graph import export
from dgmn.loading import load
from dgmn_base.terminal import format_table


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
    done = export(
        predictor,
        options.out,
        size=size,
        dynamic=not options.fixed,
        grid_sample=options.grid_sample,
        kernel=options.kernel,
        image=options.image,
        licence=options.licence,
    )
    height, width = done.sizes[0][-2:]
    megabytes = done.path.stat().st_size / 1e6
    sizes = "any size" if done.fixed is None else f"{height} x {width} only: {done.fixed}"
    print(f"{done.path}: {megabytes:.1f} MB, images of {sizes}\n")
    print(f"checked on {done.image}: {', '.join(' x '.join(map(str, size)) for size in dict.fromkeys(done.sizes))}")
    rows = [
        ("largest error", f"{done.error:.1e} of the largest result"),
        (f"{height} x {width}", f"{done.milliseconds:.1f} ms in onnxruntime, {done.pytorch:.1f} in PyTorch"),
    ]
    print(format_table(("", ""), rows))
    if options.kernel:
        print("\nonnxruntime needs options.register_custom_ops_library(dgmn.onnxruntime_library()) for it")
    print(f"\nuse it: dgmn predict IMAGE --ckpt_path {done.path}")
    return 0
