"""`dgmn bench models`: compares whole networks with timm's, and shows how their cost grows with the image."""

import argparse
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dgmn
from dgmn.bench.charts import draw_models, draw_scaling
from dgmn.bench.measure import Job, Work, measure, progress
from dgmn.bench.original import use_original
from dgmn.bench.report import Report, Row
from dgmn.errors import InputError
from dgmn_base.terminal import format_table

SWIN = "swin_tiny_patch4_window7_224"
MODELS = (
    "dgmn2_small",
    "dgmn2_small:fused",
    "dgmn2_small:original",
    SWIN,
    "pvt_v2_b2",
    "convnext_tiny",
    "resnet50",
    "deit_small_patch16_224",
)
SIZES = ((224, 224), (512, 1024), (800, 1333))
QUICK_SIZES = ((64, 64), (64, 128))
SCALING_MODELS = ("dgmn2_small", "dgmn2_small:original", SWIN)
SCALING_SIZES = ((128, 128), (256, 256), (256, 512), (512, 512), (512, 1024), (1024, 1024), (1024, 2048))
QUICK_SCALING_SIZES = ((64, 64), (64, 128), (128, 128))
TINY = "64x64"
VARIANTS = ("original", "fused", "compiled")
LOGITS_SIZE = (224, 224)


def prepare(job: Job) -> Work:
    """Returns what one measurement runs: inference, or a training step, on images of noise."""
    height, width = (int(side) for side in job.case.split("x"))
    torch.manual_seed(0)
    name, *variants = job.contender.split(":")
    if "fused" in variants and job.mode == "train":
        raise ValueError("a fused network is for inference only")
    dtype = getattr(torch, job.dtype)
    # Convolutional networks are fastest in channels last; for the others it makes no difference.
    model = build(name, (height, width)).to(job.device, dtype).to(memory_format=torch.channels_last)
    model.train(job.mode == "train")
    for variant in variants:
        if variant != "compiled":
            model = _VARIANTS[variant](model)
    images = torch.randn(job.batch, 3, height, width, device=job.device, dtype=dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    if "fused" in variants:
        with torch.inference_mode():
            model(images[:1, :, :64, :64])  # packs its weights, which count as weights
    run: Callable[[Tensor], Any] = torch.compile(model, dynamic=False) if "compiled" in variants else model
    if job.mode == "train":
        return _training_step(model, run, images)

    def inference() -> object:
        with torch.inference_mode():
            return run(images)

    return inference


def _training_step(model: nn.Module, run: Callable[[Tensor], Any], images: Tensor) -> Work:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    labels = torch.arange(len(images), device=images.device)

    def step() -> None:
        out = run(images)
        loss = F.cross_entropy(out, labels) if isinstance(out, Tensor) and out.dim() == 2 else _mean(out)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()  # so each step's memory counts its gradients, and none stay while others run

    return step


def _mean(features: Any) -> Tensor:
    maps = [features] if isinstance(features, Tensor) else list(features)
    return torch.stack([x.float().mean() for x in maps]).sum()


class _Padded(nn.Module):
    """Pads images with zeros to whole patches before the network."""

    def __init__(self, model: nn.Module, height: int, width: int) -> None:
        super().__init__()
        self.model = model
        self.size = (height, width)

    def forward(self, x: Tensor) -> Any:
        height, width = self.size
        return self.model(F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2])))


class _Features(nn.Module):
    """Runs `forward_features` of a network that timm cannot turn into a feature extractor."""

    model: Any

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model.forward_features(x)


def build(name: str, size: tuple[int, int]) -> nn.Module:
    """Builds a network with random weights: a classifier at 224 x 224; at other sizes it gives the maps of all strides.

    Raises:
        ValueError, RuntimeError, AssertionError: timm has no such network for this size.
    """
    options: dict[str, Any] = {}
    padded = size
    if name.startswith("swin_"):
        options["drop_path_rate"] = 0.0  # the default of the others
        if size != LOGITS_SIZE:
            # Swin makes its masks for one size, in whole patches.
            padded = (-(-size[0] // 4) * 4, -(-size[1] // 4) * 4)
            options["img_size"] = padded
    elif name.startswith(("deit_", "vit_")):
        options["dynamic_img_size"] = True
    if size == LOGITS_SIZE:
        model: nn.Module = timm.create_model(name, **options)
        return model
    try:
        model = timm.create_model(name, features_only=True, **options)
    except (RuntimeError, AttributeError):  # no extractor, or none for this network
        model = _Features(timm.create_model(name, num_classes=0, **options))
    return model if padded == size else _Padded(model, *padded)


_VARIANTS: dict[str, Callable[[nn.Module], nn.Module]] = {"original": use_original, "fused": dgmn.fuse}


def bench_models(options: argparse.Namespace) -> int:
    names = [_checked(name) for name in options.models or (SCALING_MODELS if options.scaling else MODELS)]
    if options.compile:
        names += [f"{name}:compiled" for name in names if not name.endswith(":compiled")]
    rounds = options.rounds or (3 if options.quick else 10)
    return _scaling(names, rounds, options) if options.scaling else _models(names, rounds, options)


def _checked(name: str) -> str:
    """The name with its variants in our order, in which "compiled" is the last.

    Raises:
        InputError: timm does not know the network, or it has no such variant.
    """
    model, *variants = name.split(":")
    if not timm.is_model(model):
        raise InputError(f"--models: timm knows no {model!r}; for instance {', '.join(MODELS)}")
    for variant in variants:
        if variant not in VARIANTS:
            raise InputError(f"--models {name}: {variant!r} must be one of {', '.join(VARIANTS)}")
        if variant != "compiled" and not model.startswith("dgmn2"):
            raise InputError(f"--models {name}: only networks of dgmn have the variant {variant!r}")
    return ":".join([model, *(variant for variant in VARIANTS if variant in variants)])


def _models(names: list[str], rounds: int, options: argparse.Namespace) -> int:
    sizes = options.sizes or (QUICK_SIZES if options.quick else SIZES)
    modes = ("inference", "train") if options.mode in (None, "both") else (options.mode,)
    report = Report("models", options)
    for mode in modes:
        for size in sizes:
            batch = options.batch or (4 if size == LOGITS_SIZE else 1)
            _measure(report, names, size, batch, mode, rounds, options.memory)
    report.require_rows()
    for mode in modes:
        print(f"\nNetworks, {mode}, {options.dtype}: classification at 224x224, features at other sizes")
        print(report.table(mode, "x Swin-T"))
    return report.finish(draw_models)


def _scaling(names: list[str], rounds: int, options: argparse.Namespace) -> int:
    sizes = options.sizes or (QUICK_SCALING_SIZES if options.quick else SCALING_SIZES)
    if options.mode not in (None, "inference"):
        raise InputError(f"--scaling measures inference, got --mode {options.mode}")
    if LOGITS_SIZE in sizes:
        raise InputError("--scaling compares features: leave 224 out of --sizes, since networks classify at that size")
    report = Report("scaling", options)
    for size in sizes:
        _measure(report, names, size, options.batch or 1, "inference", rounds, options.memory)
    report.require_rows()
    print(f"\nFeatures, inference, {options.dtype}: cost of one pixel")
    header = ("size", "pixels", "network", "ms", "us/pixel", "bytes/pixel")
    print(format_table(header, [_per_pixel(row) for row in report.rows]))
    return report.finish(draw_scaling)


def _per_pixel(row: Row) -> tuple[object, ...]:
    memory = "-" if row.peak_mb is None else f"{1e6 * row.peak_mb / row.pixels:.0f}"
    time = 1e3 * row.time.median / row.pixels
    return (row.case, row.pixels, row.contender, f"{row.time.median:.1f}", f"{time:.3f}", memory)


def _measure(
    report: Report, names: list[str], size: tuple[int, int], batch: int, mode: str, rounds: int, memory: bool
) -> None:
    height, width = size
    case = f"{height}x{width}"
    progress(f"{mode} {case}, batch {batch}")
    measured = measure([report.job(name, case, batch, mode) for name in names], prepare, rounds, memory)
    # Eager networks are compared to eager Swin-T, compiled ones to compiled Swin-T.
    baselines = {name: f"{SWIN}:compiled" if name.endswith(":compiled") else SWIN for name in measured}
    report.add(case, mode, batch, batch * height * width, rounds, measured, baselines)
