"""Mask R-CNN on any timm backbone, as the published weights were trained."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import batched_nms, clip_boxes_to_image

from dgmn.about import About
from dgmn.detection.anchors import ClampedBoxCoder, ExactAnchors, Pyramid, Subsampled, counted_anchors
from dgmn.detection.official import official_mask_rcnn
from dgmn.detection.regions import AlignedRoIs, mask_targets, paste_masks
from dgmn.detection.resizing import Resize
from dgmn.detection.targets import check_labels
from dgmn.errors import InputError, check_number
from dgmn.finite import check_scores
from dgmn.models.build import noted
from dgmn.models.features import feature_maps, normalisation
from dgmn.ops.precision import compute_dtype
from dgmn.processes import mean_divisor

_STRIDES = (4, 8, 16, 32, 64)
_CAFFE_MEAN = (102.9801 / 255, 115.9465 / 255, 122.7717 / 255)  # blue, green and red


class OverlapMatcher(Matcher):
    """torchvision's matcher, with a least overlap for the candidates that a ground truth takes below the threshold.

    Args:
        high: least overlap of a positive candidate.
        low: candidates with less overlap are background.
        least: overlap that the best candidates of a ground truth need.
    """

    def __init__(self, high: float, low: float, least: float) -> None:
        super().__init__(high, low, allow_low_quality_matches=True)
        self.least = least

    def set_low_quality_matches_(self, matches: Tensor, all_matches: Tensor, match_quality_matrix: Tensor) -> None:
        # As in mmdet, the last ground truth wins, even over one that overlaps more.
        best = match_quality_matrix.amax(1)
        for i, overlap in enumerate(best):
            if overlap >= self.least:
                matches[match_quality_matrix[i] == overlap] = i


class BoxPredictor(nn.Module):
    """Class scores and boxes of every class; the background is last in the weights and first in the output."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_channels, num_classes + 1)
        self.bbox_pred = nn.Linear(in_channels, 4 * num_classes)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        for module in (self.cls_score, self.bbox_pred):
            nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x).roll(1, -1), F.pad(self.bbox_pred(x), (4, 0))


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's region proposal network with mmdet's L1 loss and choice of anchors.

    Args:
        *args: those of torchvision's network.
        beta: difference at which the loss of the boxes becomes linear; 0 is the L1 loss.
    """

    def __init__(self, *args: Any, beta: float) -> None:
        super().__init__(*args)
        self.beta = beta

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Anchors beyond an image's own padding are neither objects nor background."""
        inside = [counted_anchors(here, target) for here, target in zip(anchors, targets, strict=True)]
        counted = [here[part] for here, part in zip(anchors, inside, strict=True)]
        labels, boxes = [], []
        for here, part, *found in zip(
            anchors, inside, *super().assign_targets_to_anchors(counted, targets), strict=True
        ):
            labels.append(here.new_full((len(here),), -1.0).masked_scatter(part, found[0].to(here.dtype)))
            boxes.append(here.masked_scatter(part[:, None], found[1].to(here.dtype)))
        return labels, boxes

    def filter_proposals(self, proposals: Tensor, objectness: Tensor, *args: Any) -> tuple[list[Tensor], list[Tensor]]:
        if not self.training:
            check_scores(objectness)
        # Near 0 and 1, many scores are the same in half precision.
        boxes, scores = super().filter_proposals(proposals, objectness.to(compute_dtype(objectness)), *args)
        return boxes, scores

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        positive, negative = (torch.where(torch.cat(x))[0] for x in self.fg_bg_sampler(labels))
        sampled = torch.cat([positive, negative])
        targets = torch.cat(regression_targets)[positive]
        boxes = F.smooth_l1_loss(pred_bbox_deltas[positive], targets, reduction="sum", beta=self.beta)
        logits, wanted = objectness.flatten()[sampled], torch.cat(labels)[sampled]
        scores = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        divisor = mean_divisor(len(sampled), boxes)
        return scores / divisor, boxes / divisor


class Heads(RoIHeads):
    """torchvision's heads with mmdet's losses, choice of detections and mask targets.

    Args:
        *args: those of torchvision's heads.
        beta: difference at which the loss of the boxes becomes linear; 0 is the L1 loss.
        **kwargs: those of torchvision's heads.
    """

    def __init__(self, *args: Any, beta: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.beta = beta

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if self.training:
            assert targets is not None
            proposals, matched, labels, box_targets = self.select_training_samples(proposals, targets)
            return [], self.compute_loss(features, proposals, image_shapes, targets, matched, labels, box_targets)
        scores, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        boxes, found, labels = self.postprocess_detections(scores, deltas, proposals, image_shapes)
        results = [{"boxes": b, "labels": n, "scores": s} for b, n, s in zip(boxes, labels, found, strict=True)]
        masks = self.mask_logits(features, boxes, image_shapes)
        counts = [b.shape[0] for b in boxes]  # len() would be a constant of an exported graph
        for result, logits in zip(results, torch.split(masks, counts), strict=True):
            chosen = logits[torch.arange(logits.shape[0], device=logits.device), result["labels"] - 1]
            result["masks"] = chosen.sigmoid()[:, None]
        return results, {}

    def mask_logits(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Logits of the masks, (regions, classes, 28, 28)."""
        logits: Tensor = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))
        return logits

    def compute_loss(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
        matched: list[Tensor],
        labels: list[Tensor],
        box_targets: list[Tensor],
    ) -> dict[str, Tensor]:
        """Losses of the sampled regions.

        Those of classes and boxes are divided by the number of these regions, those of masks by the number of the
        regions with objects, and both count in the batches of all processes.
        """
        scores, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        label = torch.cat(labels)
        positive = torch.where(label > 0)[0]
        chosen = deltas.view(len(deltas), -1, 4)[positive, label[positive]]
        boxes = F.smooth_l1_loss(chosen, torch.cat(box_targets)[positive], reduction="sum", beta=self.beta)
        sampled = mean_divisor(len(label), boxes)
        classes = F.cross_entropy(scores, label, reduction="sum")

        regions = [p[n > 0] for p, n in zip(proposals, labels, strict=True)]
        logits = self.mask_logits(features, regions, image_shapes)
        wanted = torch.cat(
            [
                mask_targets(target["masks"], index[n > 0], boxes_)
                for target, index, n, boxes_ in zip(targets, matched, labels, regions, strict=True)
            ]
        )
        chosen = logits[torch.arange(len(logits), device=logits.device), label[positive] - 1]
        # Without positives the loss is 0, and the mask head gets gradients of 0.
        masks = F.binary_cross_entropy_with_logits(chosen, wanted, reduction="none").mean((1, 2)).sum()
        masks = masks / mean_divisor(len(wanted), masks)
        return {"loss_classifier": classes / sampled, "loss_box_reg": boxes / sampled, "loss_mask": masks}

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        check_scores(class_logits)
        counts = [p.shape[0] for p in proposals]
        decoded = self.box_coder.decode_single(box_regression, torch.cat(proposals)).view(-1, class_logits.shape[1], 4)
        results: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        scored = torch.split(class_logits.to(compute_dtype(class_logits)).softmax(-1), counts)
        images = zip(torch.split(decoded, counts), scored, image_shapes, strict=True)
        for boxes, scores, shape in images:
            index, label = torch.where(scores[:, 1:] > self.score_thresh)
            label = label + 1
            boxes, scores = clip_boxes_to_image(boxes, shape)[index, label], scores[index, label]
            keep = batched_nms(boxes, scores, label, self.nms_thresh)[: self.detections_per_img]
            for out, value in zip(results, (boxes, scores, label), strict=True):
                out.append(value[keep])
        return results


class Transform(Resize):
    """Also pastes the masks of detections, as mmdet does."""

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        for found, shape, original in zip(result, image_shapes, original_image_sizes, strict=False):
            found["boxes"] = resize_boxes(found["boxes"], shape, original)
            found["masks"] = paste_masks(found["masks"], found["boxes"], original)
        return result


class MaskRCNN(GeneralizedRCNN):
    """torchvision's Mask R-CNN with labels from 0, as in the data. Its background class is used only inside."""

    num_classes: int  # without the background

    def about(self) -> About:
        return About(
            images="list",
            masks=True,
            classifier=("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits."),
            backbone="backbone.body",
            official=official_mask_rcnn,
            products=self.products,
        )

    def products(self, images: Tensor) -> None:
        """Runs everything except the choice of boxes on a batch (B, 3, H, W): 1000 proposals and 100 detections."""
        features, channels, heads = self.backbone(images), self.backbone.out_channels, self.roi_heads
        self.rpn.head(list(features.values()))
        heads.box_predictor(heads.box_head(images.new_empty(1000, channels, 7, 7)))
        heads.mask_predictor(heads.mask_head(images.new_empty(100, channels, 14, 14)))

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        if targets is not None:
            check_labels(targets, self.num_classes)
            targets = [{**target, "labels": target["labels"] + 1} for target in targets]
        out = super().forward(images, targets)
        if not self.training:
            for result in out:
                result["labels"] = result["labels"] - 1
        return out


@noted
def mask_rcnn(
    backbone: str = "dgmn2_tiny",
    num_classes: int = 80,
    *,
    min_size: int = 800,
    max_size: int = 1333,
    channels: int = 256,
    representation_size: int = 1024,
    box_batch_size_per_image: int = 512,
    detections_per_img: int = 100,
    training_proposals: int = 1000,
    rpn_beta: float = 0.0,
    box_beta: float = 0.0,
    sampling_ratio: int = 0,
    image_format: Literal["RGB", "BGR"] = "RGB",
    pretrained: bool = False,
    backbone_args: dict[str, Any] | None = None,
) -> MaskRCNN:
    """Mask R-CNN (Table 8).

    Args:
        backbone: as in [`retinanet`][dgmn.detection.retinanet.retinanet].
        num_classes: as in `retinanet`.
        min_size: as in `retinanet`.
        max_size: as in `retinanet`.
        channels: channels of the pyramid and the mask head.
        representation_size: channels of the box head.
        box_batch_size_per_image: regions of an image that the heads are trained on.
        detections_per_img: as in `retinanet`.
        training_proposals: proposals of an image that the heads see in training; an evaluation takes 1000.
        rpn_beta: difference at which the proposals' loss of the boxes becomes linear; 0 is the L1 loss.
        box_beta: the same for the box head.
        sampling_ratio: samples along a side of a bin in RoIAlign; 0 takes as many as a region has pixels.
        image_format: "BGR" for a backbone with weights of Caffe2, as Detectron and its successors have them: it takes
            blue first, and values in 0..255 minus Caffe's mean. Their bottlenecks also have the stride elsewhere; see
            `stride_in_1x1` of [`DGMNResNet`][dgmn.models.DGMNResNet].
        pretrained: as in `retinanet`.
        backbone_args: as in `retinanet`.

    Returns:
        The network. It takes images (3, H, W) in 0..1, of any sizes. In training it also takes targets with `boxes`
        (x1, y1, x2, y2) in pixels, `labels`, 0 to num_classes - 1, and `masks` (N, H, W) of 0 and 1, and gives a dict
        of losses. Otherwise it gives `boxes`, `scores`, `labels` and `masks` (N, 1, H, W), bool, for every image.

    Raises:
        InputError (a ValueError): timm does not know the backbone, or the backbone gives no maps of several strides; a
            number is too small, or the format unknown.

    Source: Dynamic Graph Message Passing Networks, section 6.2 (https://arxiv.org/abs/2209.09760); Mask R-CNN
        (https://arxiv.org/abs/1703.06870), in the form of mmdet 2.12. The first paper's is that of maskrcnn-benchmark:
        `training_proposals=2000, rpn_beta=1 / 9, box_beta=1.0, sampling_ratio=2`.
    """
    check_number("num_classes", num_classes)
    check_number("detections_per_img", detections_per_img)
    check_number("training_proposals", training_proposals)
    check_number("sampling_ratio", sampling_ratio, at_least=0)
    for name, value in {"rpn_beta": rpn_beta, "box_beta": box_beta}.items():
        if not value >= 0:
            raise InputError(f"{name} must be at least 0, got {value}")
    if image_format not in ("RGB", "BGR"):
        raise InputError(f'image_format must be "RGB" or "BGR", got {image_format!r}')
    maps = feature_maps(backbone, pretrained, backbone_args)
    pyramid = Pyramid(maps, 4, Subsampled(), channels)
    anchors = ExactAnchors([[8 * stride] for stride in _STRIDES], (0.5, 1.0, 2.0), _STRIDES)
    # Proposals of a level before, and of an image after the suppression.
    before, after = {"training": 2000, "testing": 1000}, {"training": training_proposals, "testing": 1000}
    proposals = ProposalNetwork(anchors, RPNHead(channels, 3), 0.7, 0.3, 256, 0.5, before, after, 0.7, beta=rpn_beta)
    proposals.min_size = 0.0
    proposals.proposal_matcher = OverlapMatcher(0.7, 0.3, 0.3)
    proposals.box_coder = ClampedBoxCoder((1.0, 1.0, 1.0, 1.0))
    heads = Heads(
        AlignedRoIs(7, sampling_ratio),
        TwoMLPHead(channels * 7 * 7, representation_size),
        BoxPredictor(representation_size, num_classes),
        *(0.5, 0.5, box_batch_size_per_image, 0.25, None, 0.05, 0.5, detections_per_img),
        beta=box_beta,
        mask_roi_pool=AlignedRoIs(14, sampling_ratio),
        mask_head=MaskRCNNHeads(channels, (channels,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(channels, channels, num_classes),
    )
    for hidden in (heads.box_head.fc6, heads.box_head.fc7):
        nn.init.xavier_uniform_(hidden.weight)
        nn.init.zeros_(hidden.bias)
    heads.proposal_matcher = OverlapMatcher(0.5, 0.5, 0.5)
    heads.box_coder = ClampedBoxCoder((10.0, 10.0, 5.0, 5.0))
    values = (
        {"image_mean": list(_CAFFE_MEAN), "image_std": [1 / 255] * 3} if image_format == "BGR" else normalisation(maps)
    )
    transform = Transform(min_size, max_size, **values, bgr=image_format == "BGR")
    model = MaskRCNN(pyramid, proposals, heads, transform)
    model.num_classes = num_classes
    return model
