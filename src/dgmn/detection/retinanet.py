"""RetinaNet on any timm backbone, as the published weights were trained."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection._utils import _topk_min
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, sigmoid_focal_loss

from dgmn.about import About
from dgmn.detection.anchors import ClampedBoxCoder, ExactAnchors, ExtraLevels, Pyramid, counted_anchors
from dgmn.detection.official import official_retinanet
from dgmn.detection.resizing import Resize
from dgmn.detection.targets import check_labels
from dgmn.errors import check_number
from dgmn.finite import check_scores
from dgmn.models.build import noted
from dgmn.models.features import feature_maps, normalisation
from dgmn.ops.precision import compute_dtype
from dgmn.processes import mean_divisor

_STRIDES = (8, 16, 32, 64, 128)


class RetinaNet(TorchvisionRetinaNet):
    """torchvision's RetinaNet with mmdet's losses and choice of detections."""

    def about(self) -> About:
        return About(
            images="list",
            classifier=("head.classification_head.cls_logits.",),
            backbone="backbone.body",
            official=official_retinanet,
            products=self.products,
        )

    def products(self, images: Tensor) -> None:
        """Runs everything except the choice of boxes on a batch (B, 3, H, W)."""
        self.head(list(self.backbone(images).values()))

    def compute_loss(
        self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        """Focal and L1 loss, both divided by the number of positive anchors in the batch of all processes.

        Anchors beyond an image's own padding do not count.
        """
        logits, deltas = head_outputs["cls_logits"], head_outputs["bbox_regression"]
        check_labels(targets, logits.shape[-1])
        classification, regression = logits.new_zeros(()), deltas.new_zeros(())
        positives = torch.zeros((), dtype=torch.long, device=logits.device)
        for i, target in enumerate(targets):
            inside = counted_anchors(anchors[i], target)
            matched = torch.full_like(inside, self.proposal_matcher.BETWEEN_THRESHOLDS, dtype=torch.long)
            matched[inside] = self.match(target["boxes"], anchors[i][inside])
            positive = matched >= 0
            wanted = torch.zeros_like(logits[i])
            wanted[positive, target["labels"][matched[positive]]] = 1.0
            counted = matched != self.proposal_matcher.BETWEEN_THRESHOLDS
            scores = logits[i][counted]
            scores = scores.to(compute_dtype(scores))  # in half precision, many gradients would be 0
            classification = classification + sigmoid_focal_loss(scores, wanted[counted], reduction="sum")
            boxes = self.box_coder.encode_single(target["boxes"][matched[positive]], anchors[i][positive])
            regression = regression + F.l1_loss(deltas[i][positive], boxes, reduction="sum")
            positives += positive.sum()
        divisor = mean_divisor(positives, regression)
        return {"classification": classification / divisor, "bbox_regression": regression / divisor}

    def match(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """The index of every anchor's box; -1 for background, -2 for neither."""
        if len(boxes) == 0:
            return torch.full((len(anchors),), -1, dtype=torch.long, device=anchors.device)
        matched: Tensor = self.proposal_matcher(box_iou(boxes, anchors))
        return matched

    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: list[list[Tensor]],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Chooses the detections.

        Every level gives its anchors with the highest score in any class; all their classes above the threshold count.
        """
        detections = []
        check_scores(*head_outputs["cls_logits"])
        for i, shape in enumerate(image_shapes):
            all_boxes, all_scores = [], []
            levels = zip(head_outputs["cls_logits"], head_outputs["bbox_regression"], anchors[i], strict=True)
            for logits, deltas, level_anchors in levels:
                scores = logits[i].to(compute_dtype(logits)).sigmoid()
                best = scores.amax(1).topk(_topk_min(scores, self.topk_candidates, 0)).indices
                boxes = self.box_coder.decode_single(deltas[i][best], level_anchors[best])
                all_boxes.append(clip_boxes_to_image(boxes, shape))
                all_scores.append(scores[best])
            boxes, scores = torch.cat(all_boxes), torch.cat(all_scores)
            index, labels = torch.where(scores > self.score_thresh)
            boxes, scores = boxes[index], scores[index, labels]
            keep = batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_img]
            detections.append({"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]})
        return detections


@noted
def retinanet(
    backbone: str = "dgmn2_tiny",
    num_classes: int = 80,
    *,
    min_size: int = 800,
    max_size: int = 1333,
    channels: int = 256,
    detections_per_img: int = 100,
    pretrained: bool = False,
    backbone_args: dict[str, Any] | None = None,
) -> RetinaNet:
    """RetinaNet (Table 7).

    Args:
        backbone: any of timm's networks that gives maps of several strides.
        num_classes: number of object classes; there is no class for the background.
        min_size: pixels of the short side of a resized image.
        max_size: pixels of the long side at most.
        channels: channels of the pyramid and the heads.
        detections_per_img: largest number of detections in an image; COCO counts 100.
        pretrained: start the backbone from its published weights.
        backbone_args: more arguments for the backbone, for instance `drop_path_rate`.

    Returns:
        The network. It takes images (3, H, W) in 0..1, of any sizes. In training it also takes targets with `boxes`
        (x1, y1, x2, y2) in pixels and `labels`, 0 to num_classes - 1, and gives a dict of losses. Otherwise it gives
        `boxes`, `scores` and `labels` for every image.

    Raises:
        InputError (a ValueError): timm does not know the backbone, or the backbone gives no maps of several strides.

    Source: Dynamic Graph Message Passing Networks, section 6.2 (https://arxiv.org/abs/2209.09760); RetinaNet
        (https://arxiv.org/abs/1708.02002), in the form of mmdet 2.12.
    """
    check_number("num_classes", num_classes)
    check_number("detections_per_img", detections_per_img)
    maps = feature_maps(backbone, pretrained, backbone_args, levels=3)
    pyramid = Pyramid(maps, 3, ExtraLevels(maps.feature_info.channels()[-1], channels), channels)
    anchors = ExactAnchors(
        [[4 * stride * 2 ** (i / 3) for i in range(3)] for stride in _STRIDES], (0.5, 1.0, 2.0), _STRIDES
    )
    head = RetinaNetHead(pyramid.out_channels, anchors.num_anchors_per_location()[0], num_classes)
    model = RetinaNet(
        pyramid,
        num_classes,
        anchor_generator=anchors,
        head=head,
        detections_per_img=detections_per_img,
    )
    model.box_coder = ClampedBoxCoder((1.0, 1.0, 1.0, 1.0))
    model.transform = Resize(min_size, max_size, **normalisation(maps))
    return model
