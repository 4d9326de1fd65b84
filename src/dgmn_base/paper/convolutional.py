"""The rows of the paper's tables on convolutional networks: the network, training and cost of each row."""

from collections.abc import Mapping
from typing import Any

from dgmn_base.paper.table import PaperTable, Row


def _fcn(*sampling_rates: int, **args: Any) -> dict[str, Any]:
    return {"module": "dgmn", "module_args": {"sampling_rates": list(sampling_rates), "fusion": "concat", **args}}


def _inside(module: str, at: str = "c5", **args: Any) -> dict[str, Any]:
    place = {"frozen_norms": True, "frozen_stages": 1, "module": module, "at": at}
    return {"backbone_args": {**place, "module_args": args} if args else place}


def _others(*rows: tuple[str, ...]) -> tuple[Row, ...]:
    return tuple(
        Row(name, {}, tuple(scores), missing="another method, which dgmn does not have") for name, *scores in rows
    )


_FIVE = (1, 6, 12, 24, 36)
_NEAR = (0.01, 0.01)
_PARAMS = (0.05, None)
_UNIFORM: dict[str, Any] = {"dynamic_sampling": False}
_FCN: dict[str, Any] = {
    "recipe": "recipes/segmentation/fcn_r101_dgmn_cityscapes_40k.yaml",
    "machine": "--trainer.devices 4 --data.batch_size 2",
    "builder": "dilated_fcn",
    "backbone": "resnet101.tv_in1k",
    "size": (769, 769),
    "classes": 19,
    "metrics": ("mIoU",),
    "dataset": "Cityscapes val",
    "args": {},
    "added": True,
}
_MASK_RCNN: dict[str, Any] = {
    "recipe": "recipes/detection/mask_rcnn_r50_dgmn_coco_1x.yaml",
    "machine": "--trainer.devices 8",
    "builder": "mask_rcnn",
    "backbone": "dgmn_resnet50",
    "size": (800, 1280),
    "classes": 80,
    "metrics": ("box AP", "mask AP"),
    "dataset": "COCO val2017",
    # Those of maskrcnn-benchmark, on which the paper builds.
    "args": {"training_proposals": 2000, "rpn_beta": 0.111111, "box_beta": 1.0, "sampling_ratio": 2},
}
# ResNeXt-101 was trained with half the batch and half the learning rate for twice as many steps.
_LONGER = "--model.lr_batch 8 --model.optimizer.lr 0.01 --data.batch_size 1 --trainer.max_epochs 36"
_OHEM = "--model.loss.hard_below 0.7"
_MULTI_SCALE = "--model.inference.scales '[0.5, 0.75, 1.0, 1.25, 1.5, 1.75]' --model.inference.flip true"
_BASELINE_FCN = Row("Dilated FCN", {}, ("75.0",))
_ONE_RATE = (
    Row("+ DGMN w/ DA, rate 1", _fcn(1, groups=0, **_UNIFORM), ("76.5",), (0.57, 5.32), close=_NEAR),
    Row("+ DGMN w/ DA+DW, rate 1", _fcn(1, **_UNIFORM), ("79.1",), (0.73, 6.88), close=_NEAR),
)
_ALL = Row("+ DGMN w/ DA+DW+DS, rates 1 6 12 24 36", _fcn(*_FIVE), ("80.4",), (2.61, 24.55))
_BASELINE_MASK = Row("Mask R-CNN", _inside("none"), ("37.8", "34.4"))
_C5 = "+ DGMN (C5)"
_R101, _X101 = "dgmn_resnet101", "dgmn_resnext101_32x8d"

_TRAINED = (
    "Only trained parameters are counted: the stem, the first stage and the batch norms of the pretrained network are "
    "frozen. This gives the paper's 51.1 M for ResNet-50 with DGMN in C4 and C5, and its 63.1 M for ResNet-101."
)

CONVOLUTIONAL: Mapping[int, PaperTable] = {
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
            Row("+ ASPP", {"module": "aspp"}, ("78.9",), (4.42, 38.45), close=(None, 0.02)),
            Row(
                "+ Non-local",
                {"module": "non_local", "module_args": {"inner_channels": 256, "convolution": True}},
                ("79.0",),
                (2.88, 73.33),
                close=(0.02, 0.02),
            ),
            *_ONE_RATE,
            _ALL,
            Row(
                "  the same without walks (the paper's cost)",
                _fcn(*_FIVE, **_UNIFORM),
                ("-",),
                (2.61, 24.55),
                close=_NEAR,
            ),
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
        **{
            **_FCN,
            "recipe": "recipes/segmentation/fcn_r101_dgmn_cityscapes_test.yaml",
            "dataset": "Cityscapes test",
            "server": True,
        },
        rows=(
            *_others(
                ("PSPNet, ResNet-101", "78.4"),
                ("PSANet, ResNet-101", "80.1"),
                ("DenseASPP, DenseNet-161", "80.6"),
                ("GloRe, ResNet-101", "80.9"),
                ("Non-local, ResNet-101", "81.2"),
                ("CCNet, ResNet-101", "81.4"),
                ("DANet, ResNet-101", "81.5"),
            ),
            Row("DGMN", {**_fcn(*_FIVE), "multi_grid": [1, 2, 4]}, ("81.6",), options="--data.splits.train train+val"),
        ),
        notes=("Evaluated at several scales and mirrored.",),
    ),
    5: PaperTable(
        "DGMN in several backbones, on COCO test-dev",
        **{**_MASK_RCNN, "dataset": "COCO test-dev2017", "server": True},
        rows=(
            Row("Mask R-CNN, ResNet-50", _inside("none"), ("38.0", "34.6")),
            Row(_C5, _inside("dgmn"), ("40.2", "36.2")),
            Row("+ DGMN (C4, C5)", _inside("dgmn", "c4_c5"), ("41.0", "36.8"), (51.1, 297.1), close=_PARAMS),
            Row(
                "Mask R-CNN, ResNet-101",
                _inside("none"),
                ("40.2", "36.2"),
                (63.1, 354.0),
                backbone=_R101,
                close=_PARAMS,
            ),
            Row(f"{_C5}, ResNet-101", _inside("dgmn"), ("41.9", "37.6"), backbone=_R101),
            Row("Mask R-CNN, ResNeXt-101", _inside("none"), ("42.6", "38.3"), options=_LONGER, backbone=_X101),
            Row(f"{_C5}, ResNeXt-101", _inside("dgmn"), ("44.3", "39.5"), options=_LONGER, backbone=_X101),
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
            Row(f"{_C5}, ResNet-101", _inside("dgmn"), ("41.7", "37.4"), backbone=_R101),
            Row("Mask R-CNN, ResNeXt-101", _inside("none"), ("42.2", "37.8"), options=_LONGER, backbone=_X101),
            Row(f"{_C5}, ResNeXt-101", _inside("dgmn"), ("43.7", "38.7"), options=_LONGER, backbone=_X101),
        ),
        notes=(_TRAINED,),
    ),
    17: PaperTable(
        "The state of the art on COCO test-dev",
        **{
            **_MASK_RCNN,
            "recipe": "recipes/detection/mask_rcnn_x101_dgmn_coco_1x.yaml",
            "backbone": _X101,
            "dataset": "COCO test-dev2017",
            "server": True,
        },
        rows=(
            *_others(
                ("YOLOv3, Darknet-53", "33.0", "-"),
                ("SSD513, ResNet-101-SSD", "31.2", "-"),
                ("DSSD513, ResNet-101-SSD", "33.2", "-"),
                ("RetinaNet, ResNeXt-101-FPN", "40.8", "-"),
                ("CornerNet, Hourglass-104", "42.2", "-"),
                ("Faster R-CNN+++, ResNet-101-C4", "34.9", "-"),
                ("Faster R-CNN w/ FPN, ResNet-101-FPN", "36.2", "-"),
                ("R-FCN, ResNet-101", "29.9", "-"),
            ),
            Row(
                "Mask R-CNN, ResNet-101",
                _inside("none"),
                ("40.2", "36.2"),
                backbone=_R101,
                recipe="recipes/detection/mask_rcnn_r50_dgmn_coco_1x.yaml",
            ),
            Row("Mask R-CNN, ResNeXt-101", _inside("none"), ("42.6", "38.3")),
            *_others(("Libra R-CNN, ResNeXt-101-FPN", "43.0", "-")),
            Row("DGMN (C5), ResNeXt-101", _inside("dgmn"), ("44.3", "39.5")),
        ),
        notes=(_TRAINED,),
    ),
}
