"""Times networks in PyTorch, onnxruntime, also in 8 bits, and OpenVINO if it is there: `python benchmarks/runtimes.py`.

onnxruntime also runs our network with our own operators, as `dgmn export --kernel` writes it. The networks of a runtime
take turns, so that a slower clock affects all. Writes medians in milliseconds for one image of 224 x 224 to
`runtimes_cpu.csv`, and as the table of `docs/export.md`.
"""

import argparse
import tempfile
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch

import dgmn
from dgmn.bench.measure import time_side_by_side
from dgmn.exporting import int8
from dgmn.exporting.kernel_nodes import kernel_nodes
from dgmn.exporting.onnx_graph import OPSET

from pages import publish

NETWORKS = ("dgmn2_small", "swin_tiny_patch4_window7_224", "resnet50")
KERNEL = "dgmn2_small --kernel"
Run = Callable[[np.ndarray], object]


def exported(name: str, folder: Path) -> Path:
    path = folder / f"{name}.onnx"
    with warnings.catch_warnings(), kernel_nodes(OPSET) if name == KERNEL else nullcontext():
        warnings.simplefilter("ignore")
        network, image = timm.create_model(name.split()[0]).eval(), torch.randn(1, 3, 224, 224)
        torch.onnx.export(network, (image,), path, dynamo=False, opset_version=OPSET, input_names=["images"])
    return path


def in_onnxruntime(path: Path, threads: int) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would disturb the others
    options.register_custom_ops_library(dgmn.onnxruntime_library())
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"images": image})


def in_int8(path: Path, threads: int) -> Run:
    noise = torch.randn(8, 1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    content, (changed, every) = int8.in_int8(path.read_bytes(), iter(noise))
    before, after = path.stat().st_size / 1e6, len(content) / 1e6
    print(f"{path.stem}: {changed} of {every} layers in 8 bits, {before:.1f} to {after:.1f} MB")
    small = path.with_suffix(".int8.onnx")
    small.write_bytes(content)
    return in_onnxruntime(small, threads)


def in_pytorch(path: Path, threads: int) -> Run:
    torch.set_num_threads(threads)
    network = dgmn.fuse(timm.create_model(path.stem).eval())

    @torch.inference_mode()
    def run(image: np.ndarray) -> object:
        return network(torch.from_numpy(image))

    return run


def in_openvino(path: Path, threads: int) -> Run:
    import openvino

    core = openvino.Core()
    model = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_NUM_THREADS": threads})
    return lambda image: model([image])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="the CSV; by default that of benchmarks/results, and the page's table")
    given = parser.parse_args()
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    ours = f"onnxruntime {onnxruntime.__version__}"
    # The openers of one entry take turns.
    runtimes = [{"PyTorch, after `dgmn.fuse`": in_pytorch}, {ours: in_onnxruntime, f"{ours}, `--int8`": in_int8}]
    try:
        import openvino

        runtimes.append({f"OpenVINO {openvino.__version__.split('-')[0]}": in_openvino})
    except ImportError:
        print("OpenVINO is not installed, so it is left out")
    rows: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: exported(name, Path(folder)) for name in (*NETWORKS, KERNEL)}
        for openers in runtimes:
            works = {}
            for title, opened in openers.items():
                names = NETWORKS if opened in (in_pytorch, in_openvino) else tuple(paths)
                for name in names:
                    run = opened(paths[name], given.threads)
                    works[f"{title}|{name}"] = lambda run=run: run(image)
            times = time_side_by_side(works, given.rounds, "cpu")
            for title in openers:
                found = {name: times.get(f"{title}|{name}") for name in paths}
                rows.append({"": title, **{f"`{name}`": f"{t.median:.0f}" if t else "-" for name, t in found.items()}})
    publish(Path(__file__), "export.md", rows, given.out, "cpu")


if __name__ == "__main__":
    main()
