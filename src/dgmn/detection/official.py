"""Translates the names of the published detectors' weights into ours."""

import re

import torch
from torch import Tensor

from dgmn.about import Renamed, Weights
from dgmn.errors import InputError
from dgmn.models.official import official_around_dgmn2
from dgmn.weights.keys import Rules

_BODY = "backbone.body.model."  # prefix of the DGMN2 in our detectors with a pyramid

# mmdet's neck and heads. For RetinaNet, mmdet numbers the pyramid's coarser levels along with the others.
_RETINANET_RULES: Rules = (
    (r"neck\.lateral_convs\.(\d)\.conv\.(\w+)", lambda m: f"backbone.fpn.inner_blocks.{m[1]}.0.{m[2]}"),
    (r"neck\.fpn_convs\.([0-2])\.conv\.(\w+)", lambda m: f"backbone.fpn.layer_blocks.{m[1]}.0.{m[2]}"),
    (r"neck\.fpn_convs\.([34])\.conv\.(\w+)", lambda m: f"backbone.fpn.extra_blocks.p{int(m[1]) + 3}.{m[2]}"),
    (r"bbox_head\.cls_convs\.(\d)\.conv\.(\w+)", lambda m: f"head.classification_head.conv.{m[1]}.0.{m[2]}"),
    (r"bbox_head\.reg_convs\.(\d)\.conv\.(\w+)", lambda m: f"head.regression_head.conv.{m[1]}.0.{m[2]}"),
    (r"bbox_head\.retina_cls\.(\w+)", lambda m: f"head.classification_head.cls_logits.{m[1]}"),
    (r"bbox_head\.retina_reg\.(\w+)", lambda m: f"head.regression_head.bbox_reg.{m[1]}"),
)

_MASK_RCNN_RULES: Rules = (
    *_RETINANET_RULES[:1],
    (r"neck\.fpn_convs\.([0-3])\.conv\.(\w+)", lambda m: f"backbone.fpn.layer_blocks.{m[1]}.0.{m[2]}"),
    (r"rpn_head\.rpn_conv\.(\w+)", lambda m: f"rpn.head.conv.0.0.{m[1]}"),
    (r"rpn_head\.rpn_cls\.(\w+)", lambda m: f"rpn.head.cls_logits.{m[1]}"),
    (r"rpn_head\.rpn_reg\.(\w+)", lambda m: f"rpn.head.bbox_pred.{m[1]}"),
    (r"roi_head\.bbox_head\.shared_fcs\.([01])\.(\w+)", lambda m: f"roi_heads.box_head.fc{int(m[1]) + 6}.{m[2]}"),
    (r"roi_head\.bbox_head\.fc_cls\.(\w+)", lambda m: f"roi_heads.box_predictor.cls_score.{m[1]}"),
    (r"roi_head\.bbox_head\.fc_reg\.(\w+)", lambda m: f"roi_heads.box_predictor.bbox_pred.{m[1]}"),
    (r"roi_head\.mask_head\.convs\.(\d)\.conv\.(\w+)", lambda m: f"roi_heads.mask_head.{m[1]}.0.{m[2]}"),
    (r"roi_head\.mask_head\.upsample\.(\w+)", lambda m: f"roi_heads.mask_predictor.conv5_mask.{m[1]}"),
    (r"roi_head\.mask_head\.conv_logits\.(\w+)", lambda m: f"roi_heads.mask_predictor.mask_fcn_logits.{m[1]}"),
)


def official_retinanet(state_dict: Weights) -> Renamed | None:
    """The weights of a published RetinaNet (mmdet 2.12) under our names; None for another file.

    Raises:
        InputError (a ValueError): the file has a name that the published network does not have.
    """
    return official_around_dgmn2(state_dict, _RETINANET_RULES, "RetinaNet", _BODY)


def official_mask_rcnn(state_dict: Weights) -> Renamed | None:
    """The weights of a published Mask R-CNN (mmdet 2.12) under our names; None for another file.

    Raises:
        InputError (a ValueError): the file has a name that the published network does not have.
    """
    return official_around_dgmn2(state_dict, _MASK_RCNN_RULES, "Mask R-CNN", _BODY)


# detectron2's pyramid, and the heads of Sparse R-CNN's own code.
_STAGE = r"head\.head_series\.(\d+)\."
_SPARSE_RCNN_RULES: Rules = (
    (r"backbone\.fpn_lateral([2-5])\.(\w+)", lambda m: f"backbone.fpn.inner_blocks.{int(m[1]) - 2}.0.{m[2]}"),
    (r"backbone\.fpn_output([2-5])\.(\w+)", lambda m: f"backbone.fpn.layer_blocks.{int(m[1]) - 2}.0.{m[2]}"),
    (r"init_proposal_boxes\.weight", lambda m: "rpn.boxes"),
    (r"init_proposal_features\.weight", lambda m: "roi_heads.features"),
    (_STAGE + r"self_attn\.in_proj_(\w+)", lambda m: f"roi_heads.stages.{m[1]}.attention.qkv.{m[2]}"),
    (_STAGE + r"self_attn\.out_proj\.(\w+)", lambda m: f"roi_heads.stages.{m[1]}.attention.proj.{m[2]}"),
    (_STAGE + r"inst_interact\.dynamic_layer\.(\w+)", lambda m: f"roi_heads.stages.{m[1]}.interaction.filters.{m[2]}"),
    (_STAGE + r"inst_interact\.out_layer\.(\w+)", lambda m: f"roi_heads.stages.{m[1]}.interaction.out.{m[2]}"),
    (_STAGE + r"inst_interact\.(norm[123]\.\w+)", lambda m: f"roi_heads.stages.{m[1]}.interaction.{m[2]}"),
    (_STAGE + r"linear([12])\.(\w+)", lambda m: f"roi_heads.stages.{m[1]}.mlp.{2 * int(m[2]) - 2}.{m[3]}"),
    (_STAGE + r"(norm[123]\.\w+)", lambda m: f"roi_heads.stages.{m[1]}.{m[2]}"),
    (_STAGE + r"(cls|reg)_module\.(\d\.\w+)", lambda m: f"roi_heads.stages.{m[1]}.{m[2]}_tower.{m[3]}"),
    (_STAGE + r"class_logits\.(\w+)", lambda m: f"roi_heads.stages.{m[1]}.cls_logits.{m[2]}"),
    (_STAGE + r"bboxes_delta\.(\w+)", lambda m: f"roi_heads.stages.{m[1]}.box_deltas.{m[2]}"),
)


def official_sparse_rcnn(state_dict: Weights) -> Renamed | None:
    """The weights of a published Sparse R-CNN (detectron2 0.4) under our names; None for another file.

    Raises:
        InputError (a ValueError): the file has a name that the published network does not have.
    """
    return official_around_dgmn2(state_dict, _SPARSE_RCNN_RULES, "Sparse R-CNN", _BODY, "backbone.bottom_up.")


# The original numbers the decoder's norms in the order of creation: cross-attention, self-attention, the rest.
_DECODER_NORMS = {"1": "encoder_attn_layer_norm", "2": "self_attn_layer_norm", "3": "final_layer_norm"}
_ENCODER_NORMS = {"1": "self_attn_layer_norm", "2": "final_layer_norm"}
_DEFORMABLE_DETR_RULES: Rules = (
    (
        r"(transformer\.(?:level_embed|(?:reference_points|enc_output|enc_output_norm|pos_trans|pos_trans_norm)\.\w+))",
        lambda m: m[1],
    ),
    (
        r"(transformer\.encoder\.layers\.\d+\.self_attn\."
        r"(?:sampling_offsets|attention_weights|value_proj|output_proj)\.\w+)",
        lambda m: m[1],
    ),
    (r"(transformer\.decoder\.layers\.\d+)\.cross_attn\.(\w+\.\w+)", lambda m: f"{m[1]}.encoder_attn.{m[2]}"),
    (r"(transformer\.decoder\.layers\.\d+\.self_attn\.[qkv]_proj\.\w+)", lambda m: m[1]),
    (r"(transformer\.decoder\.layers\.\d+\.self_attn)\.out_proj\.(\w+)", lambda m: f"{m[1]}.o_proj.{m[2]}"),
    (r"(transformer\.\w+\.layers\.\d+)\.linear([12])\.(\w+)", lambda m: f"{m[1]}.mlp.fc{m[2]}.{m[3]}"),
    (r"(transformer\.encoder\.layers\.\d+)\.norm([12])\.(\w+)", lambda m: f"{m[1]}.{_ENCODER_NORMS[m[2]]}.{m[3]}"),
    (r"(transformer\.decoder\.layers\.\d+)\.norm([123])\.(\w+)", lambda m: f"{m[1]}.{_DECODER_NORMS[m[2]]}.{m[3]}"),
    (r"input_proj\.(.+)", lambda m: f"transformer.input_proj.{m[1]}"),
    (r"query_embed\.weight", lambda m: "transformer.query_position_embeddings.weight"),
    (r"class_embed\.(\d)\.(\w+)", lambda m: f"class_heads.{m[1]}.{m[2]}"),
    (r"bbox_embed\.(\d)\.layers\.(\d)\.(\w+)", lambda m: f"box_heads.{m[1]}.{3 * int(m[2])}.{m[3]}"),
)
# The published class heads have 91 outputs, numbered by COCO's category ids. These ids have no category.
_NO_CATEGORY = {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83}


def official_deformable_detr(state_dict: Weights, num_classes: int) -> Renamed | None:
    """The weights of a published Deformable DETR under our names, also with box refinement and in two stages.

    The original stores a head under several names; ours has one. Its joint matrix of query, key and value becomes
    three. If `num_classes` is 80, the 91 outputs of its class heads become those of COCO's 80 categories.

    Returns:
        The weights; None for another file.

    Raises:
        InputError (a ValueError): the file has a name that the published network does not have, or its copies differ.
    """
    found = official_around_dgmn2(
        _single(state_dict), _DEFORMABLE_DETR_RULES, "Deformable DETR", "backbone.model.", "backbone.0."
    )
    if found is not None and num_classes == 80:
        _leave_gaps_out(found.state_dict)
    return found


def _single(state_dict: Weights) -> dict[str, Tensor]:
    """The weights with every tensor once, and with separate tensors for query, key and value."""
    refined = any(key.startswith("transformer.decoder.bbox_embed.") for key in state_dict)
    single: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        inside = re.fullmatch(r"transformer\.decoder\.((?:class|bbox)_embed\..+)", key)
        repeated = None if refined else re.fullmatch(r"(class_embed|bbox_embed)\.[1-9]\d*(\..+)", key)
        packed = re.fullmatch(r"(.+\.self_attn)\.in_proj_(weight|bias)", key)
        first = inside[1] if inside else f"{repeated[1]}.0{repeated[2]}" if repeated else None
        if first is not None:
            if first not in state_dict or not torch.equal(tensor, state_dict[first]):
                raise InputError(
                    f"{key!r} and {first!r} are one tensor in the official Deformable DETR, but here they differ"
                )
        elif packed:
            for name, part in zip("qkv", tensor.chunk(3), strict=True):
                single[f"{packed[1]}.{name}_proj.{packed[2]}"] = part
        else:
            single[key] = tensor
    return single


def _leave_gaps_out(mapped: dict[str, Tensor]) -> None:
    """Keeps only the rows of COCO's categories, in place."""
    rows = [number for number in range(91) if number not in _NO_CATEGORY]
    two_stages = "transformer.enc_output.weight" in mapped
    heads = sorted({key.split(".")[1] for key in mapped if key.startswith("class_heads.")})
    for key, tensor in mapped.items():
        if key.startswith("class_heads.") and len(tensor) == 91:
            # The head of the proposals knows one class, the first, which is not a category of COCO.
            mapped[key] = tensor[:80] if two_stages and key.split(".")[1] == heads[-1] else tensor[rows]
