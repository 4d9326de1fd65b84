"""The rows of the paper's tables on convolutional networks: the network, training and cost of each row."""

import argparse
import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dgmn.complexity import count
from dgmn.detection.builders import BUILDERS as DETECTORS
from dgmn.models.build import build_named
from dgmn.segmentation.builders import BUILDERS as SEGMENTERS
from dgmn_base.terminal import format_table


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: name as in the paper.
        args: arguments of the network, added to what the table says.
        scores: scores as printed in the paper.
        cost: the paper's parameters (M) and multiply-adds (G); what they count depends on the table.
        options: further options for the command that trains the row.
        backbone: backbone, if it is not the table's.
    """

    name: str
    args: Mapping[str, Any]
    scores: tuple[str, ...]
    cost: tuple[float, float] | None = None
    options: str = ""
    backbone: str = ""


@dataclass(frozen=True)
class PaperTable:
    """One table.

    Attributes:
        title: what the table is about.
        recipe: recipe that trains the rows, with each row's options.
        builder: name of the network.
        backbone: backbone of the rows that name none.
        size: height and width of the image for the counts.
        classes: number of classes of the network.
        metrics: the paper's score columns.
        rows: rows in the paper's order; the first one is a baseline.
        notes: explanations for readers of the table.
        args: arguments of the network in all rows.
    """

    title: str
    recipe: str
    builder: str
    backbone: str
    size: tuple[int, int]
    classes: int
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    args: Mapping[str, Any] = field(default_factory=dict)


def _fcn(*sampling_rates: int, **args: Any) -> dict[str, Any]:
    return {"module": "dgmn", "module_args": {"sampling_rates": list(sampling_rates), "fusion": "concat", **args}}


def _inside(module: str, at: str = "c5", **args: Any) -> dict[str, Any]:
    place = {"frozen_norms": True, "frozen_stages": 1, "module": module, "at": at}
    return {"backbone_args": {**place, "module_args": args} if args else place}


_FIVE = (1, 6, 12, 24, 36)
_UNIFORM: dict[str, Any] = {"dynamic_sampling": False}
_FCN: dict[str, Any] = {
    "recipe": "recipes/segmentation/fcn_r101_dgmn_cityscapes_40k.yaml",
    "builder": "dilated_fcn",
    "backbone": "resnet101.tv_in1k",
    "size": (769, 769),
    "classes": 19,
    "metrics": ("mIoU",),
}
_MASK_RCNN: dict[str, Any] = {
    "recipe": "recipes/detection/mask_rcnn_r50_dgmn_coco_1x.yaml",
    "builder": "mask_rcnn",
    "backbone": "dgmn_resnet50",
    "size": (800, 1280),
    "classes": 80,
    "metrics": ("box AP", "mask AP"),
    # Those of maskrcnn-benchmark, on which the paper builds.
    "args": {"training_proposals": 2000, "rpn_beta": 0.111111, "box_beta": 1.0, "sampling_ratio": 2},
}
# ResNeXt-101 was trained with half the batch and half the learning rate for twice as many steps.
_LONGER = "--model.lr_batch 8 --model.optimizer.lr 0.01 --data.batch_size 1 --trainer.max_epochs 36"
_OHEM = "--model.loss.hard_below 0.7"
_MULTI_SCALE = "--model.inference.scales '[0.5, 0.75, 1.0, 1.25, 1.5, 1.75]' --model.inference.flip true"
_BASELINE_FCN = Row("Dilated FCN", {}, ("75.0",))
_ONE_RATE = (
    Row("+ DGMN w/ DA, rate 1", _fcn(1, groups=0, **_UNIFORM), ("76.5",), (0.57, 5.32)),
    Row("+ DGMN w/ DA+DW, rate 1", _fcn(1, **_UNIFORM), ("79.1",), (0.73, 6.88)),
)
_ALL = Row("+ DGMN w/ DA+DW+DS, rates 1 6 12 24 36", _fcn(*_FIVE), ("80.4",), (2.61, 24.55))
_BASELINE_MASK = Row("Mask R-CNN", _inside("none"), ("37.8", "34.4"))
_C5 = "+ DGMN (C5)"
_R101, _X101 = "dgmn_resnet101", "dgmn_resnext101_32x8d"

_NOTE = (
    "Parameters and GMACs are our own counts for whole networks; a number with a sign is what a row adds to the first "
    "row. Scores are the paper's; we measured none. GMACs are billions of multiply-adds of convolutions and matrix "
    "products (the paper calls them FLOPs); bilinear sampling and norms are not counted."
)
_TRAINED = (
    "Only trained parameters are counted: the stem, the first stage and the batch norms of the pretrained network are "
    "frozen. This gives the paper's 51.1 M for ResNet-50 with DGMN in C4 and C5, and its 63.1 M for ResNet-101."
)

TABLES: Mapping[int, PaperTable] = {
    2: PaperTable(
        "Modules compared on Cityscapes val",
        **_FCN,
        rows=(
            _BASELINE_FCN,
            Row(
                "+ Deformable",
                {"module": "deformable", "module_args": {"inner_channels": 256}},
                ("78.2",),
                (1.31, 12.34),
            ),
            Row("+ ASPP", {"module": "aspp"}, ("78.9",), (4.42, 38.45)),
            Row(
                "+ Non-local",
                {"module": "non_local", "module_args": {"inner_channels": 256, "convolution": True}},
                ("79.0",),
                (2.88, 73.33),
            ),
            *_ONE_RATE,
            _ALL,
            Row("  the same without walks (the paper's cost)", _fcn(*_FIVE, **_UNIFORM), ("-",), (2.61, 24.55)),
        ),
        notes=(
            "Deformable is a 3 x 3 deformable convolution (v2) to 256 channels and a 1 x 1 convolution back to 512. "
            "The paper does not say so, but its figures are those of these two convolutions, 1.311 M and 12.340 G, "
            "without the convolution that predicts offsets and masks.",
            "ASPP is torchvision's, with rates 12, 24 and 36 and 256 channels, and a 1 x 1 convolution back to 512.",
            "Non-local is a block of 256 inner channels and a 3 x 3 convolution.",
            "DGMN concatenates input and messages. The paper's cost of five rates leaves out the convolutions for the "
            "walks; with them, dynamic sampling costs 0.41 M more.",
        ),
    ),
    3: PaperTable(
        "Modules compared on COCO val, in ResNet-50: before the last block of res4, or in all of C5",
        **_MASK_RCNN,
        rows=(
            _BASELINE_MASK,
            Row("+ GCNet", _inside("global_context", "res4"), ("38.1", "34.9")),
            Row(
                "+ Deformable Message Passing",
                _inside("deformable_message_passing", "res4"),
                ("38.7", "35.0"),
            ),
            Row("+ Non-local", _inside("non_local", "res4"), ("39.0", "35.5")),
            Row("+ CCNet", _inside("criss_cross", "res4"), ("39.3", "36.1")),
            Row("+ DGMN", _inside("dgmn", "res4"), ("39.5", "35.7")),
            Row("+ GCNet (C5)", _inside("global_context"), ("38.7", "35.2")),
            Row("+ Deformable (C5)", _inside("deformable"), ("39.9", "34.9")),
            Row(_C5, _inside("dgmn"), ("40.2", "36.0")),
        ),
        notes=(
            _TRAINED,
            "Deformable Message Passing has neither dynamic weights nor affinities: each of its four messages is a "
            "deformable convolution of all 1024 channels with weights of its own (eq. 1).",
            "Deformable (C5) replaces the 3 x 3 convolutions; the other modules come after them.",
        ),
    ),
    4: PaperTable(
        "Cityscapes test server, trained on the training and validation sets",
        **{**_FCN, "recipe": "recipes/segmentation/fcn_r101_dgmn_cityscapes_test.yaml"},
        rows=(
            Row("DGMN", {**_fcn(*_FIVE), "multi_grid": [1, 2, 4]}, ("81.6",), options="--data.splits.train train+val"),
        ),
        notes=("The paper's other rows are other methods. Evaluated at several scales and mirrored.",),
    ),
    5: PaperTable(
        "DGMN in several backbones, on COCO test-dev",
        **_MASK_RCNN,
        rows=(
            Row("Mask R-CNN, ResNet-50", _inside("none"), ("38.0", "34.6")),
            Row(_C5, _inside("dgmn"), ("40.2", "36.2")),
            Row("+ DGMN (C4, C5)", _inside("dgmn", "c4_c5"), ("41.0", "36.8"), (51.1, 297.1)),
            Row("Mask R-CNN, ResNet-101", _inside("none"), ("40.2", "36.2"), (63.1, 354.0), backbone=_R101),
            Row(_C5, _inside("dgmn"), ("41.9", "37.6"), backbone=_R101),
            Row("Mask R-CNN, ResNeXt-101", _inside("none"), ("42.6", "38.3"), options=_LONGER, backbone=_X101),
            Row(_C5, _inside("dgmn"), ("44.3", "39.5"), options=_LONGER, backbone=_X101),
        ),
        notes=(_TRAINED, "The paper's costs are those of section 5.3; it does not give the image size of its GFLOPs."),
    ),
    13: PaperTable(
        "Strategies of training and evaluation on Cityscapes val",
        **_FCN,
        rows=(
            Row("FCN w/ DGMN", _fcn(1, 1, 1, 1, **_UNIFORM), ("79.2",)),
            Row("+ OHEM", _fcn(1, 1, 1, 1, **_UNIFORM), ("79.7",), options=_OHEM),
            Row(
                "+ OHEM, multi-grid",
                {**_fcn(1, 1, 1, 1, **_UNIFORM), "multi_grid": [1, 2, 4]},
                ("80.3",),
                options=_OHEM,
            ),
            Row(
                "+ OHEM, multi-grid, multi-scale",
                {**_fcn(1, 1, 1, 1, **_UNIFORM), "multi_grid": [1, 2, 4]},
                ("81.1",),
                options=f"{_OHEM} {_MULTI_SCALE}",
            ),
        ),
        notes=(
            "The paper calls the module DA+DW+US, with US for uniform sampling. We take it to be the row of Table 14 "
            "with the same score, but without walks. The paper gives neither the threshold nor the grid; 0.7 and "
            "(1, 2, 4) are the usual values.",
        ),
    ),
    14: PaperTable(
        "Sampling rates on Cityscapes val",
        **_FCN,
        rows=(
            _BASELINE_FCN,
            *_ONE_RATE,
            Row("+ DGMN, rates 1 1 1 1", _fcn(1, 1, 1, 1), ("79.2",)),
            Row("+ DGMN, rates 1 6 12", _fcn(1, 6, 12), ("79.7",)),
            _ALL,
        ),
    ),
    15: PaperTable(
        "Groups and sampling rates in C5 of ResNet-50, on COCO val",
        **_MASK_RCNN,
        rows=(
            _BASELINE_MASK,
            Row("+ DA, rates 1 4 8 12, G = 0", _inside("dgmn", groups=0, **_UNIFORM), ("39.4", "35.6")),
            Row("+ DA+DS, rates 1 4 8 12, G = 0", _inside("dgmn", groups=0), ("39.9", "35.9")),
            Row(
                "+ DA+DW+DS, rates 1 4 8, G = 2", _inside("dgmn", sampling_rates=[1, 4, 8], groups=2), ("39.5", "35.6")
            ),
            Row("+ DA+DW+DS, rates 1 4 8, G = 4", _inside("dgmn", sampling_rates=[1, 4, 8]), ("39.8", "35.9")),
            Row("+ DA+DW+DS, rates 1 4 8 12, G = 4", _inside("dgmn"), ("40.2", "36.0")),
        ),
        notes=(_TRAINED,),
    ),
    16: PaperTable(
        "DGMN in stronger backbones, on COCO val",
        **_MASK_RCNN,
        rows=(
            Row("Mask R-CNN, ResNet-101", _inside("none"), ("40.1", "36.2"), backbone=_R101),
            Row(_C5, _inside("dgmn"), ("41.7", "37.4"), backbone=_R101),
            Row("Mask R-CNN, ResNeXt-101", _inside("none"), ("42.2", "37.8"), options=_LONGER, backbone=_X101),
            Row(_C5, _inside("dgmn"), ("43.7", "38.7"), options=_LONGER, backbone=_X101),
        ),
        notes=(_TRAINED,),
    ),
    17: PaperTable(
        "The state of the art on COCO test-dev",
        **{**_MASK_RCNN, "recipe": "recipes/detection/mask_rcnn_x101_dgmn_coco_1x.yaml", "backbone": _X101},
        rows=(
            Row("Mask R-CNN, ResNeXt-101", _inside("none"), ("42.6", "38.3")),
            Row(_C5, _inside("dgmn"), ("44.3", "39.5")),
        ),
        notes=(_TRAINED, "The paper's other rows are other methods."),
    ),
}
"""The tables by their numbers in the paper. All scores are the paper's; we measured none."""


def options_of(table: PaperTable, row: Row) -> str:
    """The options with which the table's recipe trains this row."""
    args = json.dumps({**table.args, **row.args, "pretrained": True})
    backbone = f"--model.backbone {row.backbone} " if row.backbone else ""
    return f"{backbone}--model.model_args '{args}' {row.options}".rstrip()


def show_table(options: argparse.Namespace) -> int:
    """Prints each row's parameters and multiply-adds beside the paper's, and how to train the row."""
    number: int = options.table
    table = TABLES[number]
    told = any(row.cost for row in table.rows)
    rows: list[tuple[str, ...]] = []
    first = (0.0, 0.0)
    for row in table.rows:
        cost = _cost(table, row)
        sign = "+" if first[0] else ""
        own = [f"{value - base:{sign}.2f}" for value, base in zip(cost, first, strict=True)]
        paper = [f"{value:{sign}g}" for value in row.cost] if row.cost else ["", ""]
        pairs = [text for pair in zip(own, paper, strict=True) for text in pair] if told else own
        rows.append((row.name, *pairs, *row.scores))
        if table.builder == "dilated_fcn" and not first[0]:  # here, the paper's costs are what a row adds
            first = cost
    height, width = table.size
    print(f"Table {number}. {table.title}\nOne image of {height} x {width}, {table.classes} classes\n")
    costs = ("params (M)", "paper's", "GMACs", "paper's") if told else ("params (M)", "GMACs")
    print(format_table(("row", *costs, *(f"paper's {name}" for name in table.metrics)), rows))
    for note in (_NOTE, *table.notes):
        print(f"\n{textwrap.fill(note, 118)}")
    print(f"\nTo train a row: dgmn fit -c {table.recipe} --data.root FOLDER, with")
    for row in table.rows:
        print(f"  {row.name.strip()}\n    {options_of(table, row)}")
    return 0


def _cost(table: PaperTable, row: Row) -> tuple[float, float]:
    """Trained parameters in millions, and multiply-adds in billions."""
    builders: Mapping[str, Any] = {**SEGMENTERS, **DETECTORS}
    with torch.device("meta"):  # counting needs only shapes
        network = build_named(
            builders, table.builder, row.backbone or table.backbone, table.classes, {**table.args, **row.args}
        )
        cost = count(network, table.size)
    return cost.trained_params / 1e6, cost.macs / 1e9
