"""Deformable DETR on any timm backbone, as the published weights were trained.

Its encoder and decoder come from the transformers library.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import MLP, box_convert

from dgmn.about import About, about
from dgmn.detection.multi_scale import FusedMultiScaleAttention
from dgmn.detection.official import official_deformable_detr
from dgmn.detection.regions import extent
from dgmn.detection.resizing import Resize
from dgmn.detection.set_prediction import Objects, Predictions, SetCriterion, number_of_objects
from dgmn.detection.targets import check_labels
from dgmn.errors import InputError, check_number
from dgmn.models.build import noted
from dgmn.models.features import feature_maps, normalisation
from dgmn.ops.precision import compute_dtype
from dgmn.ops.tracing import is_jit_tracing

_MAPS = 3  # levels that come from the backbone, if there are several
_GROUPS = 32  # groups of the norm of a level
_PRIOR = 0.01  # probability of every class before training
_OWN = {"with_box_refine", "two_stage", "two_stage_num_proposals", "num_feature_levels", "backbone_config"}


class Outputs(NamedTuple):
    """What the network predicts for a batch.

    Attributes:
        layers: the logits (B, queries, classes) and the boxes (B, queries, 4) of every layer of the decoder; boxes are
            cx, cy, w, h in 0..1 of the image without padding.
        proposals: with two stages, the same for every position of the maps, (B, positions, ...); otherwise None.
    """

    layers: list[tuple[Tensor, Tensor]]
    proposals: tuple[Tensor, Tensor] | None


class DeformableDETR(nn.Module):
    """A backbone, transformers' deformable encoder and decoder, and heads that are initialised as in the original.

    Args:
        backbone: gives a list of maps, the finest first; the last three are used, or the last, for a single level.
        config: transformers' `DeformableDetrConfig`; `num_labels` is the number of classes.
        transform: resizes, normalises and pads the images.
        detections_per_img: largest number of detections in an image.
    """

    def __init__(self, backbone: Any, config: Any, transform: Resize, detections_per_img: int) -> None:
        super().__init__()
        self.transform = transform
        self.backbone = backbone
        self.maps = min(config.num_feature_levels, _MAPS)
        self.transformer = _transformer(config, backbone.feature_info.channels()[-self.maps :])
        # transformers' own backbone has frozen batch norms. A method is no module, so weights do not get a second name.
        self.transformer.backbone = self.levels
        self.num_queries: int = config.num_queries
        self.detections_per_img = detections_per_img
        self.criterion = SetCriterion()

        width = config.d_model
        heads = config.decoder_layers + config.two_stage if config.with_box_refine else 1
        self.class_heads = nn.ModuleList(nn.Linear(width, config.num_labels) for _ in range(heads))
        self.box_heads = nn.ModuleList(MLP(width, [width, width, 4]) for _ in range(heads))
        if config.with_box_refine:  # a list is no module, so no second name here either
            self.transformer.decoder.bbox_embed = list(self.box_heads)
        if config.two_stage:
            self.transformer.decoder.class_embed = list(self.class_heads)
        self._initialise_heads(config.two_stage)

    @torch.no_grad()
    def _initialise_heads(self, two_stage: bool) -> None:
        for head in self.class_heads:
            assert isinstance(head, nn.Linear)
            nn.init.constant_(head.bias, -math.log((1 - _PRIOR) / _PRIOR))
        for i, head in enumerate(self.box_heads):
            assert isinstance(head, MLP)
            last = head[-2]  # head[-1] is a dropout
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            if i == 0 and not two_stage:
                last.bias[2:] = -2.0  # boxes start with sides of an eighth of the image

    def about(self) -> About:
        return About(
            images="list",
            classifier=("class_heads.",),
            backbone="backbone",
            official=partial(official_deformable_detr, num_classes=self.transformer.config.num_labels),
            products=self.products,
        )

    def products(self, images: Tensor) -> None:
        """Runs everything except the choice of boxes on a batch. Sampled points are summed as in the original."""
        fused = [module for module in self.modules() if isinstance(module, FusedMultiScaleAttention)]
        for module in fused:
            module.fused = False
        try:
            self.predict(images)
        finally:
            for module in fused:
                module.fused = True

    def levels(self, images: Tensor, valid: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The backbone's maps, each with the mask of its valid positions, (B, h, w), bool."""
        maps = self.backbone(images)[-self.maps :]
        height, width = maps[-1].shape[-2:]
        positions = sum(x.shape[-2] * x.shape[-1] for x in maps)
        for _ in range(self.transformer.config.num_feature_levels - self.maps):
            height, width = (height + 1) // 2, (width + 1) // 2
            positions += height * width
        # A small image can have fewer positions than the proposals that are wanted.
        self.transformer.config.two_stage_num_proposals = min(self.num_queries, positions)
        mask = valid[None].float()
        return [(x, F.interpolate(mask, size=x.shape[-2:])[0].bool()) for x in maps]

    def predict(self, images: Tensor, valid: Tensor | None = None) -> Outputs:
        """Logits and boxes of every layer for a batch.

        Args:
            images: normalised and padded, (B, 3, H, W).
            valid: (B, H, W), bool, False in the padding; None if there is no padding.
        """
        if valid is None:
            valid = torch.ones_like(images[:, 0], dtype=torch.bool)
        out = self.transformer(images, valid)
        references = (out.init_reference_points, *out.intermediate_reference_points.unbind(1))
        layers = []
        # There is one more reference than layers.
        for i, (hidden, reference) in enumerate(
            zip(out.intermediate_hidden_states.unbind(1), references, strict=False)
        ):
            head = min(i, len(self.class_heads) - 1)
            start = torch.logit(reference.to(compute_dtype(reference)), eps=1e-5)
            start = F.pad(start, (0, 4 - start.shape[-1]))  # a point becomes a box
            boxes = (self.box_heads[head](hidden).to(start.dtype) + start).sigmoid()
            layers.append((self.class_heads[head](hidden), boxes))
        proposals = None
        if out.enc_outputs_class is not None:
            proposals = (out.enc_outputs_class, out.enc_outputs_coord_logits.float().sigmoid())
        return Outputs(layers, proposals)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        if self.training:
            if targets is None:
                raise InputError("the detector needs targets in training")
            check_labels(targets, self.transformer.config.num_labels)
        originals = [(image.shape[-2], image.shape[-1]) for image in images]
        batch, targets = self.transform(images, targets)
        rows, columns = (torch.arange(side, device=batch.tensors.device) for side in batch.tensors.shape[-2:])
        valid = torch.stack([(rows < height)[:, None] & (columns < width) for height, width in batch.image_sizes])
        outputs = self.predict(batch.tensors, valid)
        if not self.training:
            return self.choose(*outputs.layers[-1], originals)
        assert targets is not None
        return self.compute_loss(outputs, [normalised(*x) for x in zip(targets, batch.image_sizes, strict=True)])

    def compute_loss(self, outputs: Outputs, objects: Sequence[Objects]) -> dict[str, Tensor]:
        """The weighted losses.

        Returns:
            `classification`, `l1` and `giou` of the last layer, and `auxiliary`, the sum over all other layers. With
            two stages also `encoder`, the loss of the proposals, which know one class only.
        """
        divisor = number_of_objects(objects)
        *earlier, last = (self.criterion(predicted(*x), objects, divisor) for x in outputs.layers)
        losses = dict(last)
        if earlier:
            losses["auxiliary"] = torch.stack([value for layer in earlier for value in layer.values()]).sum()
        if outputs.proposals is not None:
            one_class = [x._replace(labels=torch.zeros_like(x.labels)) for x in objects]
            encoder = self.criterion(predicted(*outputs.proposals), one_class, divisor)
            losses["encoder"] = torch.stack(list(encoder.values())).sum()
        return losses

    def choose(self, logits: Tensor, boxes: Tensor, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """The best pairs of query and class in every image, the highest score first.

        Args:
            logits: logits of a layer.
            boxes: boxes of the layer.
            sizes: height and width of the images, in pixels. The boxes are scaled to them.
        """
        classes = logits.shape[-1]
        results = []
        for scores, here, size in zip(logits.float().sigmoid(), boxes, sizes, strict=True):
            best, index = scores.flatten().topk(min(self.detections_per_img, scores.numel()))
            corners = box_convert(here[index // classes], "cxcywh", "xyxy")
            corners = corners * extent(corners, size)
            results.append({"boxes": corners, "scores": best, "labels": index % classes})
        return results


def predicted(logits: Tensor, boxes: Tensor) -> Predictions:
    """A layer's predictions, as the criterion takes them."""
    return Predictions(logits, box_convert(boxes, "cxcywh", "xyxy"), boxes)


def normalised(target: dict[str, Tensor], size: tuple[int, int]) -> Objects:
    """An image's objects relative to its height and width in pixels, as the criterion takes them."""
    corners = target["boxes"] / extent(target["boxes"], size)
    return Objects(target["labels"], corners, box_convert(corners, "xyxy", "cxcywh"))


def _transformer(config: Any, channels: Sequence[int]) -> Any:
    """transformers' model without its backbone, initialised as in the original."""
    from transformers import DeformableDetrModel

    model = DeformableDetrModel(config)
    del model.backbone
    model.encoder.dropout = 0.0  # the original drops nothing before the first layer
    for layer in model.encoder.layers:
        layer.self_attn.attn = FusedMultiScaleAttention(layer.self_attn.attn)
    for part in (model.encoder, model.decoder):
        part.register_forward_pre_hook(_traced_shapes, with_kwargs=True)
    width = config.d_model
    projections = [nn.Conv2d(n, width, 1) for n in channels]
    for i in range(config.num_feature_levels - len(channels)):
        projections.append(nn.Conv2d(width if i else channels[-1], width, 3, 2, 1))
    for projection in projections:
        nn.init.xavier_uniform_(projection.weight)
        assert projection.bias is not None
        nn.init.zeros_(projection.bias)
    model.input_proj = nn.ModuleList(nn.Sequential(x, nn.GroupNorm(_GROUPS, width)) for x in projections)
    # A new parameter, because the model's own ignores `with torch.device`.
    model.level_embed = nn.Parameter(nn.init.normal_(torch.empty(config.num_feature_levels, width)))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("fc1", "fc2", "o_proj", "enc_output", "pos_trans")):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Linear) and name.endswith(("q_proj", "k_proj", "v_proj")):
            # The original initialises the three as one matrix with three times as many rows.
            nn.init.xavier_uniform_(module.weight, gain=2**-0.5)
    if not config.two_stage:
        nn.init.normal_(model.query_position_embeddings.weight)
    return model


def _traced_shapes(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """transformers makes one tensor of the maps' sizes, in a way that torch.jit.trace takes for a constant."""
    if is_jit_tracing():
        shapes = [torch.stack([torch.as_tensor(side) for side in shape]) for shape in options["spatial_shapes_list"]]
        options = {**options, "spatial_shapes": torch.stack(shapes)}
    return args, options


@noted
def deformable_detr(
    backbone: str = "dgmn2_tiny",
    num_classes: int = 80,
    *,
    box_refine: bool = False,
    two_stage: bool = False,
    num_levels: int = 4,
    dc5: bool = False,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    detections_per_img: int = 100,
    pretrained: bool = False,
    backbone_args: dict[str, Any] | None = None,
    transformer_args: dict[str, Any] | None = None,
) -> DeformableDETR:
    """Deformable DETR (Table 9). Needs `pip install 'dgmn[detr]'`.

    Args:
        backbone: as in [`retinanet`][dgmn.detection.retinanet.retinanet]. Its batch norms are trained.
        num_classes: as in `retinanet`.
        box_refine: every layer of the decoder has its own heads, and refines the boxes of the layer before.
        two_stage: the queries start from the best positions of the encoder; needs `box_refine`.
        num_levels: number of maps that the transformer reads: 1 takes the backbone's last map; 3 or more take its last
            three, and make the coarser ones.
        dc5: the backbone's last map keeps the stride of the map before, 16, as in DETR-DC5.
        min_size: pixels of the short side of a resized image. If several are given, training takes one at random
            for every image, and evaluation takes the last.
        max_size: as in `retinanet`.
        detections_per_img: as in `retinanet`.
        pretrained: as in `retinanet`.
        backbone_args: as in `retinanet`.
        transformer_args: options of transformers' `DeformableDetrConfig`, for instance
            `{num_queries: 100, encoder_layers: 3, decoder_layers: 3}`.

    Returns:
        The network. It takes images (3, H, W) in 0..1, of any sizes. In training it also takes targets with `boxes`
        (x1, y1, x2, y2) in pixels and `labels`, 0 to num_classes - 1, and gives a dict of losses. Otherwise it gives
        `boxes`, `scores` and `labels` for every image, the highest score first. As in the original, boxes can stick
        out of the image.

    Raises:
        InputError (a ValueError): timm does not know the backbone, or the backbone gives no maps of several strides; an
            option is unknown, or transformers is not installed.

    Source: Dynamic Graph Message Passing Networks, section 6.2 (https://arxiv.org/abs/2209.09760); Deformable DETR
        (https://arxiv.org/abs/2010.04159), in the form of its own code.
    """
    check_number("num_classes", num_classes)
    check_number("detections_per_img", detections_per_img)
    if two_stage and not box_refine:
        raise InputError("two_stage needs box_refine: its queries start from boxes")
    if num_levels < 1 or num_levels == 2:
        raise InputError(f"num_levels must be 1, or at least 3, got {num_levels}")
    config = _config(num_classes, box_refine, two_stage, num_levels, transformer_args or {})
    levels = min(num_levels, _MAPS)
    maps = feature_maps(backbone, pretrained, backbone_args, 16 if dc5 else 32, levels)
    # As in the original, images are padded only to the largest of the batch, if the backbone takes that.
    divisible = about(maps).multiple
    sizes = (min_size,) if isinstance(min_size, int) else tuple(min_size)
    transform = Resize(sizes, max_size, **normalisation(maps), size_divisible=divisible, antialias=True)
    return DeformableDETR(maps, config, transform, detections_per_img)


def _config(num_classes: int, box_refine: bool, two_stage: bool, num_levels: int, options: dict[str, Any]) -> Any:
    try:
        from transformers import DeformableDetrConfig, ResNetConfig
    except ImportError as error:
        raise InputError("deformable_detr needs transformers: pip install 'dgmn[detr]'") from error
    known = set(DeformableDetrConfig.__annotations__) - _OWN
    if odd := sorted(set(options) - known):
        raise InputError(f"transformer_args: no option {', '.join(odd)}; one of {', '.join(sorted(known))}")
    # The smallest backbone that needs no network access; it is thrown away.
    unused = ResNetConfig(
        embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic", out_indices=[2, 3, 4]
    )
    given = {"attention_dropout": 0.1, "activation_dropout": 0.1, **options}
    try:
        config = DeformableDetrConfig(
            backbone_config=unused,
            num_labels=num_classes,
            with_box_refine=box_refine,
            two_stage=two_stage,
            num_feature_levels=num_levels,
            **given,
        )
    except Exception as error:  # transformers' validation raises errors of its own
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"transformer_args: {options} cannot be used ({reason})") from error
    if any(config.d_model % n for n in (_GROUPS, config.encoder_attention_heads, config.decoder_attention_heads)):
        wanted = f"a multiple of {_GROUPS} and of the numbers of heads"
        raise InputError(f"transformer_args: d_model must be {wanted}, got {config.d_model}")
    return config
