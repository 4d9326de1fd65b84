"""Parameters and multiply-adds of networks, beside the paper's."""

import argparse
import math
from dataclasses import dataclass
from typing import Any, cast

import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dgmn.about import about
from dgmn.detection.builders import BUILDERS as DETECTORS
from dgmn.errors import InputError, did_you_mean, first_line
from dgmn.layers import RelativePosition
from dgmn.models.build import build_named
from dgmn.models.insert import insert_all
from dgmn.segmentation.builders import BUILDERS as SEGMENTERS
from dgmn.weights import ZOO, ZooModel
from dgmn_base.terminal import format_table


@dataclass(frozen=True)
class Complexity:
    """Cost of one image.

    Attributes:
        params: parameters.
        trained_params: parameters that are trained, that is, not frozen.
        macs: multiply-adds of convolutions and matrix products, that is, half of torch's flop count. Attention and
            position logits are included; bilinear sampling, norms and activations are not.
        original_macs: the same, but the position logits are computed as in the original code, with H + W + 16 dot
            products for every position instead of our 18. The paper's figures count this form.
    """

    params: int
    trained_params: int
    macs: int
    original_macs: int


def count(model: nn.Module, size: tuple[int, int], in_chans: int = 3) -> Complexity:
    """Counts the cost of a network on an image of height and width `size`; runs the network once.

    A detector gets the image at the size that it has inside the network. The choice of boxes has no products and is
    left out. Mask R-CNN is counted with 1000 proposals and 100 detections.
    """
    extra = 0

    def add_original(module: RelativePosition, args: tuple[Any, ...], output: Any) -> None:
        nonlocal extra
        _, height, width, heads, dim = args[0].shape
        rows = height + width + 2 * (module.nodes - 1)
        extra += height * width * heads * dim * (rows - 2 * module.nodes)

    handles = [m.register_forward_hook(add_original) for m in model.modules() if isinstance(m, RelativePosition)]
    parameter = next(model.parameters())
    image = torch.zeros(1, in_chans, *size, device=parameter.device, dtype=parameter.dtype)
    products = about(model).products or model
    was_training = model.training
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:  # the counter fails where a module is given a part of a trained parameter
            parameter.requires_grad_(False)
        mapping = {torch.ops.torchvision.deform_conv2d: _deform_conv2d}
        # The counter knows attention as matrix products, not the special kernels of devices.
        attention = sdpa_kernel(SDPBackend.MATH)
        model.eval()
        with torch.no_grad(), attention, FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            products(image)
    finally:
        model.train(was_training)
        for parameter in trained:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()
    macs = counter.get_total_flops() // 2
    params, trained_params = (sum(p.numel() for p in parts) for parts in (model.parameters(), trained))
    return Complexity(params, trained_params, macs, macs + extra)


def _deform_conv2d(input_shape: Any, weight_shape: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    """The flops of a deformable convolution: as many as a convolution's, because sampling is not counted."""
    batch, _, height, width = out_shape
    products: int = batch * height * width * math.prod(weight_shape)
    return 2 * products


# The image size (height, width) and number of classes of the paper's figures.
_PAPER = {"classification": ((224, 224), 1000), "detection": ((800, 1280), 80), "segmentation": ((768, 768), 19)}
# The paper does not give this size. Its two rows of Sparse R-CNN (Table 10), ours and ResNet-50, agree within 0.1 % at
# the padded size of 600 x 1000, and at no other usual size: at 800 x 1280 they would be 173.8 and 168.3.
_PAPER_SIZES = {"sparse_rcnn": (608, 1024)}
_BUILDERS: dict[str, Any] = {"detection": DETECTORS, "segmentation": SEGMENTERS}


def complexity(options: argparse.Namespace) -> int:
    published = {model.name: model for model in ZOO if _is_there(model)}
    names = options.models or _defaults(options.task)
    tasks = {published[name].task if name in published else "classification" for name in names}
    if len(tasks) > 1:
        raise InputError(f"MODEL: one task at a time, got models for {' and '.join(sorted(tasks))}")
    task = tasks.pop()
    size = (options.size[0], options.size[-1]) if options.size else _PAPER[task][0]
    rows: list[tuple[object, ...]] = []
    for name in names:
        row = published.get(name)
        try:
            with torch.device("meta"):  # counting needs only shapes
                cost = _counted(name, row, size)
                more = None if options.insert is None else _counted(name, row, size, options.insert)
        except InputError as error:
            if options.models:
                raise
            print(f"left out {name}: {error}")  # a package that it needs is not installed
            continue
        paper = row.metrics if row is not None else {}
        same_size = row is not None and size == _PAPER_SIZES.get(row.builder, _PAPER[row.task][0])
        rows.append(
            (
                name,
                f"{cost.params:,}",
                f"{paper['params_m']} M" if paper else "-",
                f"{cost.macs / 1e9:.2f}",
                f"{cost.original_macs / 1e9:.2f}",
                paper["gmacs"] if same_size else "-",
            )
        )
        if more is not None:
            macs = ((more.macs - cost.macs) / 1e9, (more.original_macs - cost.original_macs) / 1e9)
            rows.append(("  inserted", f"{more.params - cost.params:+,}", "-", *(f"{x:+.2f}" for x in macs), "-"))
    print(f"One image of {size[0]} x {size[1]}, {_PAPER[task][1]} classes")
    header = ("model", "parameters", "paper", "GMACs", "GMACs, original form", "paper")
    print(format_table(header, rows))
    print(
        "GMACs are billions of multiply-adds (the papers call them FLOPs) of convolutions and matrix products.\n"
        "They include attention, but not bilinear sampling and norms. The original code computes the position term\n"
        "with H + W + 16 dot products for every position instead of 18; the paper's figures count that form."
    )
    return 0


def _is_there(row: ZooModel) -> bool:
    return row.task == "classification" or row.builder in _BUILDERS[row.task]


def _defaults(task: str) -> list[str]:
    if task != "classification":
        return [model.name for model in ZOO if model.task == task and _is_there(model)]
    ours = timm.list_models("dgmn2_*")
    paper = [model.name for model in ZOO if model.name in ours]
    return [*sorted(set(ours) - set(paper)), *paper]


def _counted(name: str, row: ZooModel | None, size: tuple[int, int], insert: Any = None) -> Complexity:
    try:
        return count(_network(name, row, insert), size)
    except InputError:
        raise
    except Exception as error:  # every network has its own way to refuse an image
        raise InputError(
            f"{name} does not run on {size[0]} x {size[1]} pixels ({first_line(error)}); give --size, the height and "
            "width of an image that it takes"
        ) from error


def _network(name: str, row: ZooModel | None, insert: Any = None) -> nn.Module:
    if row is not None and row.task != "classification":
        args = None if insert is None else {"backbone_args": {"insert": insert}}
        classes = _PAPER[row.task][1]
        return cast(nn.Module, build_named(_BUILDERS[row.task], row.builder, row.backbone, classes, args))
    if not timm.is_model(name):
        some = f"; for instance {', '.join(timm.list_models('dgmn2_*'))}, semantic_fpn_dgmn2_tiny"
        near = did_you_mean(name, [*timm.list_models(), *(model.name for model in ZOO)], some)
        raise InputError(f"timm knows no model {name!r}, nor does dgmn zoo{near}")
    network = cast(nn.Module, timm.create_model(name, num_classes=_PAPER["classification"][1]))
    if insert is not None:
        insert_all(network, insert)
    return network
