"""`dgmn doctor`: one screen that a report about a problem can start with."""

import argparse
import os
import platform
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from typing import Any

import timm
import torch
from packaging.requirements import Requirement
from torch import Tensor

from dgmn.errors import first_line
from dgmn.layers import DGMN2Attention
from dgmn.ops import BACKENDS, functional, native, onednn
from dgmn.ops.precision import computes_in_bfloat16
from dgmn.ops.selfcheck import TOLERANCES, check, version_of
from dgmn_base.terminal import counted, format_table

_PACKAGES = ("dgmn", "torch", "torchvision", "timm", "triton", "lightning", "transformers")
_PURPOSES = {
    "train": "dgmn fit, validate, test, quickstart and validate-data",
    "detr": "Deformable DETR and Sparse R-CNN",
    "export": "ONNX",
    "app": "dgmn app",
    "video": "videos in dgmn predict",
    "bench": "charts of dgmn bench",
}
_SECONDS = 1.5  # how long to measure a speed


def doctor(_: argparse.Namespace) -> int:
    """Prints what this machine is and what runs on it. Returns 1 if the kernels compute something wrong."""
    print("\n".join(_machine()))
    print("\nBackends of the operators")
    rows, failed = _backends()
    print(format_table(("backend", "device", "dtype", "largest error", ""), rows))
    print("\nSpeed on the CPU, dgmn2_nano at 224 x 224, float32, one image at a time")
    for name, speed in _speeds():
        print(f"  {name:<36}{speed:>8.1f} images/s")
    print("\nExtras")
    print("\n".join(_extras()))
    if failed:
        print(f"\nFailed its self-check: {', '.join(failed)}. DGMN_BACKEND=reference avoids all kernels.")
    return 1 if failed else 0


def _machine() -> Iterator[str]:
    packages = ", ".join(f"{name} {version_of(name)}" for name in _PACKAGES)
    yield f"packages   {packages}"
    yield f"system     Python {platform.python_version()}, {platform.platform()}"
    targets = ", ".join(native.targets()) or "none"
    cores, threads = counted(os.cpu_count() or 1, "core"), counted(torch.get_num_threads(), "thread")
    yield f"CPU        {_cpu_name()}, {cores}, {threads}"
    yield f"           PyTorch: {torch.backends.cpu.get_cpu_capability()}; dgmn's kernels: {targets}"
    packs = "yes" if onednn.is_available() else "no"
    yield f"           packed linear layers (dgmn.fuse): {packs}; bfloat16: {_bfloat16()}"
    gpus = [_gpu(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        gpus.append("Apple GPU (MPS)")
    built = f"PyTorch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "PyTorch is built without CUDA"
    yield from (f"GPU        {gpu}" for gpu in gpus or [f"none ({built})"])
    forced = os.environ.get("DGMN_BACKEND")
    if forced:
        wrong = "" if forced in BACKENDS else f", which is wrong: it must be one of {', '.join(BACKENDS)}"
        yield f"DGMN_BACKEND={forced}{wrong}"


def _gpu(index: int) -> str:
    try:
        about = torch.cuda.get_device_properties(index)
    except Exception as error:  # a driver that does not fit may raise anything
        return f"does not start: {first_line(error)}"
    return f"{about.name}, compute capability {about.major}.{about.minor}, {about.total_memory / 1e9:.0f} GB"


def _starts(index: int) -> bool:
    try:
        torch.empty(1, device=torch.device("cuda", index))
    except Exception:  # its line above says why
        return False
    return True


def _bfloat16() -> str:
    return "computed by the CPU" if computes_in_bfloat16() else "emulated, slower than float32"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _backends() -> tuple[list[tuple[str, ...]], list[str]]:
    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count()) if _starts(i)]
    devices = [torch.device("cpu"), *gpus]
    rows: list[tuple[str, ...]] = [("reference", "any", "any", "-", "plain PyTorch; the others are compared with it")]
    failed = []
    for backend in BACKENDS[2:]:
        refusals = set()
        for device in devices:
            for dtype in TOLERANCES:
                reason = functional.unsupported(backend, torch.empty(1, 1, 1, 1, 64, dtype=dtype, device=device))
                if reason is not None:
                    refusals.add(reason)
                    continue
                name = str(dtype).removeprefix("torch.")
                error, problem = check(backend, device, dtype)
                rows.append(
                    (backend, str(device), name, f"{error:.1e}", "" if problem is None else f"FAILED: {problem}")
                )
                if problem is not None:
                    failed.append(f"{backend} on {device} in {name}")
        if not any(row[0] == backend for row in rows):
            rows.append((backend, "-", "-", "-", "; ".join(sorted(refusals))))
    return rows, failed


def _speeds() -> Iterator[tuple[str, float]]:
    network = timm.create_model("dgmn2_nano").eval()
    image = torch.randn(1, 3, 224, 224)
    for backend in ("native", "reference") if native.LIBRARY is not None else ("reference",):
        for module in network.modules():
            if isinstance(module, DGMN2Attention):
                module.backend = backend
        yield f"with the backend {backend}", _images_per_second(network, image)


@torch.inference_mode()
def _images_per_second(network: Any, image: Tensor) -> float:
    network(image)
    start, images = time.perf_counter(), 0
    while time.perf_counter() < start + _SECONDS:
        network(image)
        images += 1
    return images / (time.perf_counter() - start)


def _extras() -> Iterator[str]:
    lacking: dict[str, list[str]] = {extra: [] for extra in _PURPOSES}
    try:
        texts = requires("dgmn") or []
    except PackageNotFoundError:
        yield "  dgmn is not installed, so its extras are unknown"
        return
    for text in texts:
        requirement = Requirement(text)
        for extra in _PURPOSES:
            of_extra = requirement.marker is not None and requirement.marker.evaluate({"extra": extra})
            always = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            found = version_of(requirement.name)
            fits = found != "missing" and requirement.specifier.contains(found, prereleases=True)
            if of_extra and not always and not fits:
                lacking[extra].append(f"{requirement.name} {requirement.specifier} ({found})")
    for extra, purpose in _PURPOSES.items():
        lacks = f"needs {', '.join(lacking[extra])}; pip install -U 'dgmn[{extra}]'" if lacking[extra] else "installed"
        yield f"  {extra:<8}{purpose}: {lacks}"
