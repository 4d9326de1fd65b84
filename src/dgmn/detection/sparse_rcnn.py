"""Sparse R-CNN on any timm backbone, as the published weights were trained."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_area, box_convert, clip_boxes_to_image

from dgmn.about import About
from dgmn.detection.anchors import Pyramid, Subsampled
from dgmn.detection.official import official_sparse_rcnn
from dgmn.detection.regions import AlignedRoIs, extent
from dgmn.detection.resizing import Resize
from dgmn.detection.set_prediction import Objects, Predictions, SetCriterion, number_of_objects
from dgmn.detection.targets import check_labels
from dgmn.errors import InputError, check_number
from dgmn.models.build import noted
from dgmn.models.features import feature_maps, normalisation

_BINS = 7  # bins along a side of a region
_HEADS = 8  # heads of the attention between proposals
_PRIOR = 0.01  # probability of every class at the start, for the focal loss


class ProposalRoIs(AlignedRoIs):
    """detectron2's RoIAlign, shifted by half a pixel, with two by two samples in every bin."""

    def __init__(self) -> None:
        super().__init__(_BINS, 2)

    @staticmethod
    def levels(boxes: Tensor) -> Tensor:
        # A learned box can turn inside out; the root of its negative area would be NaN.
        size = box_area(boxes).clamp(min=0).sqrt()
        return torch.floor(4 + torch.log2(size / 224 + 1e-8)).clamp(2, 5).long() - 2


class LearnedProposals(nn.Module):
    """The same boxes for every image, relative to its size. Each starts as the whole image.

    Args:
        num_proposals: number of boxes.
    """

    def __init__(self, num_proposals: int) -> None:
        super().__init__()
        self.boxes = nn.Parameter(torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(num_proposals, 1))  # cx, cy, w, h

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The boxes of every image as x1, y1, x2, y2 in pixels, (proposals, 4), and no losses."""
        corners = box_convert(self.boxes, "cxcywh", "xyxy")
        return [corners * extent(corners, size) for size in images.image_sizes], {}


class DynamicInteraction(nn.Module):
    """Every proposal filters its own region with two 1x1 convolutions that it predicts.

    Args:
        channels: channels of proposals and regions.
        hidden: channels between the two convolutions.

    Source: section 3.2 of Sparse R-CNN.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.filters = nn.Linear(channels, 2 * channels * hidden)
        self.norm1 = nn.LayerNorm(hidden)
        self.norm2 = nn.LayerNorm(channels)
        self.out = nn.Linear(channels * _BINS**2, channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, proposals: Tensor, regions: Tensor) -> Tensor:
        """Proposals (N, channels) and regions (N, channels, 7, 7) to (N, channels)."""
        first, second = self.filters(proposals).chunk(2, -1)
        x = regions.flatten(2).transpose(1, 2)
        x = self.norm1(x @ first.unflatten(-1, (x.shape[-1], -1))).relu()
        x = self.norm2(x @ second.unflatten(-1, (x.shape[-1], -1))).relu()
        out: Tensor = self.norm3(self.out(x.flatten(1))).relu()
        return out


class Stage(nn.Module):
    """Refines proposals: attention between them, interaction with their regions, new classes and boxes.

    Args:
        channels: channels of the proposals.
        num_classes: number of object classes.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.attention = Attention(channels, _HEADS, qkv_bias=True)
        self.norm1 = nn.LayerNorm(channels)
        self.interaction = DynamicInteraction(channels, channels // 4)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 8 * channels), nn.ReLU(), nn.Linear(8 * channels, channels))
        self.norm3 = nn.LayerNorm(channels)
        self.cls_tower = _tower(channels, 1)
        self.cls_logits = nn.Linear(channels, num_classes)
        self.reg_tower = _tower(channels, 3)
        self.box_deltas = nn.Linear(channels, 4)
        # Unlike in mmdet, a box can grow 6250-fold in a stage, and there is no lower limit.
        self.box_coder = BoxCoder((2.0, 2.0, 1.0, 1.0), math.log(100_000 / 16))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for layer in (self.attention.qkv, self.attention.proj):  # as in nn.MultiheadAttention
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - _PRIOR) / _PRIOR))

    def forward(self, features: Tensor, regions: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Refines the proposals once.

        Args:
            features: features of the proposals, (B, N, channels).
            regions: the maps' content in the boxes, (B * N, channels, 7, 7).
            boxes: x1, y1, x2, y2 in pixels, (B, N, 4).

        Returns:
            New features, logits (B, N, classes) and boxes. The boxes are not clipped, and some can be without area.
        """
        features = self.norm1(features + self.attention(features))
        features = self.norm2(features + self.interaction(features.flatten(0, 1), regions).view_as(features))
        features = self.norm3(features + self.mlp(features))
        logits = self.cls_logits(self.cls_tower(features))
        # In the boxes' precision: autocast's half precision would round them to whole pixels.
        deltas = self.box_deltas(self.reg_tower(features)).to(boxes.dtype)
        moved = self.box_coder.decode_single(deltas.flatten(0, 1), boxes.flatten(0, 1))
        return features, logits, moved.view_as(boxes)


class SparseHeads(nn.Module):
    """The features of the proposals, the stages that refine them, and their losses.

    Args:
        channels: channels of the maps and the proposals.
        num_classes: number of object classes.
        num_proposals: number of proposals in an image.
        num_stages: number of stages that refine the proposals.
        detections_per_img: largest number of detections in an image.
    """

    def __init__(
        self, channels: int, num_classes: int, num_proposals: int, num_stages: int, detections_per_img: int
    ) -> None:
        super().__init__()
        self.features = nn.Parameter(torch.randn(num_proposals, channels))
        self.roi_pool = ProposalRoIs()
        self.stages = nn.ModuleList(Stage(channels, num_classes) for _ in range(num_stages))
        self.criterion = SetCriterion()
        self.detections_per_img = detections_per_img

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        outputs = self.refine(features, proposals, image_shapes)
        if self.training:
            assert targets is not None
            return [], self.compute_loss(outputs, image_shapes, targets)
        return self.postprocess_detections(*outputs[-1], image_shapes), {}

    def refine(
        self, maps: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Logits (B, N, classes) and boxes (B, N, 4) in pixels after every stage.

        The boxes and features of a stage are the proposals of the next stage, which reads its regions in these boxes.

        Source: section 3.2 of Sparse R-CNN, "Dynamic instance interactive head".
        """
        boxes = torch.stack(proposals)
        features = self.features.expand(len(boxes), -1, -1)
        outputs = []
        for stage in self.stages:
            regions = self.roi_pool(maps, list(boxes.detach()), image_shapes)
            features, logits, boxes = stage(features, regions, boxes)
            outputs.append((logits, boxes))
            # A later stage's gradients end here, so the learned boxes learn from the first stage only.
            boxes = boxes.detach()
        return outputs

    def compute_loss(
        self,
        outputs: list[tuple[Tensor, Tensor]],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """The weighted losses.

        Returns:
            `classification`, `l1` and `giou` of the last stage, and `auxiliary`, the sum over all other stages.
        """
        check_labels(targets, outputs[-1][0].shape[-1])
        *earlier, last = self.stage_losses(outputs, image_shapes, targets)
        if earlier:
            last["auxiliary"] = torch.stack([loss for stage in earlier for loss in stage.values()]).sum()
        return last

    def stage_losses(
        self,
        outputs: list[tuple[Tensor, Tensor]],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> list[dict[str, Tensor]]:
        """Weighted losses of every stage, each with its own matching.

        The L1 distance compares corners relative to the image.
        """
        extents = torch.stack([extent(targets[0]["boxes"], shape) for shape in image_shapes])
        objects = [
            Objects(target["labels"], target["boxes"], target["boxes"] / extent)
            for target, extent in zip(targets, extents, strict=True)
        ]
        divisor = number_of_objects(objects)
        return [
            self.criterion(Predictions(logits, boxes, boxes / extents[:, None]), objects, divisor)
            for logits, boxes in outputs
        ]

    def postprocess_detections(
        self, logits: Tensor, boxes: Tensor, image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """The pairs of proposal and class with the highest scores in every image; empty boxes are left out."""
        detections = []
        # In the boxes' precision: autocast's half precision would make many scores equal.
        probabilities = logits.to(boxes.dtype).sigmoid()
        for scores, corners, shape in zip(probabilities, boxes, image_shapes, strict=True):
            best = scores.flatten().topk(min(self.detections_per_img, scores.numel()))
            corners = clip_boxes_to_image(corners[best.indices // scores.shape[1]], shape)
            keep = (corners[:, 2:] > corners[:, :2]).all(1)
            labels = best.indices % scores.shape[1]
            detections.append({"boxes": corners[keep], "scores": best.values[keep], "labels": labels[keep]})
        return detections


class SparseRCNN(GeneralizedRCNN):
    """torchvision's two-stage detector with learned proposals and the heads that refine them."""

    def about(self) -> About:
        return About(
            images="list",
            classifier=tuple(f"roi_heads.stages.{i}.cls_logits." for i in range(len(self.roi_heads.stages))),
            backbone="backbone.body",
            official=official_sparse_rcnn,
            products=self.products,
        )

    def products(self, images: Tensor) -> None:
        """Runs everything except the pooling of regions on a batch of one image (1, 3, H, W)."""
        self.backbone(images)
        heads = self.roi_heads
        proposals, boxes = heads.features.detach()[None], images.new_empty(1, len(heads.features), 4)
        regions = images.new_empty(len(heads.features), self.backbone.out_channels, _BINS, _BINS)
        for stage in heads.stages:
            proposals, _, boxes = stage(proposals, regions, boxes)


@noted
def sparse_rcnn(
    backbone: str = "dgmn2_small",
    num_classes: int = 80,
    *,
    num_proposals: int = 300,
    num_stages: int = 6,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    channels: int = 256,
    detections_per_img: int | None = None,
    pretrained: bool = False,
    backbone_args: dict[str, Any] | None = None,
) -> SparseRCNN:
    """Sparse R-CNN (Table 10).

    Args:
        backbone: as in [`retinanet`][dgmn.detection.retinanet.retinanet].
        num_classes: as in `retinanet`.
        num_proposals: number of learned boxes, and of their features, that every image starts from.
        num_stages: number of stages that refine the proposals.
        min_size: pixels of the short side of a resized image. If several are given, training takes one at random
            for every image, and evaluation takes the last.
        max_size: as in `retinanet`.
        channels: channels of the pyramid and the proposals; a multiple of 8.
        detections_per_img: largest number of detections in an image; None takes the number of proposals, as in the
            original.
        pretrained: as in `retinanet`.
        backbone_args: as in `retinanet`.

    Returns:
        The network. It takes images (3, H, W) in 0..1, of any sizes. In training it also takes targets with `boxes`
        (x1, y1, x2, y2) in pixels and `labels`, 0 to num_classes - 1, and gives a dict of losses. Otherwise it gives
        `boxes`, `scores` and `labels` for every image, the highest score first. Training needs scipy.

    Raises:
        InputError (a ValueError): timm does not know the backbone, or the backbone gives no maps of several strides; a
            number is too small, or `channels` is not a multiple of 8.

    Source: Dynamic Graph Message Passing Networks, section 6.2 (https://arxiv.org/abs/2209.09760); Sparse R-CNN
        (https://arxiv.org/abs/2011.12450), in the form of its code on detectron2.
    """
    if detections_per_img is None:
        detections_per_img = num_proposals
    numbers = {"num_classes": num_classes, "num_proposals": num_proposals, "num_stages": num_stages}
    for name, value in (numbers | {"detections_per_img": detections_per_img}).items():
        check_number(name, value)
    if channels < 1 or channels % _HEADS:
        raise InputError(f"channels must be a multiple of {_HEADS}, the heads of the attention, got {channels}")
    maps = feature_maps(backbone, pretrained, backbone_args)
    heads = SparseHeads(channels, num_classes, num_proposals, num_stages, detections_per_img)
    sizes = (min_size,) if isinstance(min_size, int) else tuple(min_size)
    transform = Resize(sizes, max_size, **normalisation(maps), antialias=True)
    pyramid = Pyramid(maps, 4, Subsampled(), channels, xavier=False)
    return SparseRCNN(pyramid, LearnedProposals(num_proposals), heads, transform)


def _tower(channels: int, layers: int) -> nn.Sequential:
    parts = ((nn.Linear(channels, channels, bias=False), nn.LayerNorm(channels), nn.ReLU()) for _ in range(layers))
    return nn.Sequential(*(part for layer in parts for part in layer))
