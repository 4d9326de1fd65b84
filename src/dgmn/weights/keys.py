"""Maps from the names in a checkpoint to the names in a model. Pure: dict in, dict out."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dgmn.errors import InputError

# Where the official repositories keep the backbone: classification; mmdet and mmseg; Deformable DETR; detectron2.
OFFICIAL_PREFIXES = ("backbone.bottom_up.", "backbone.0.", "backbone.", "")
# Where our own files keep the network: a LightningModule and timm's feature extractor have it under `model.`,
# segmenters and detectors have that under `backbone.`.
OWN_PREFIXES = (
    "model.backbone.body.model.",
    "backbone.body.model.",
    "model.backbone.model.",
    "backbone.model.",
    "model.model.",
    "model.",
    "",
)

_Rule = tuple[str, Callable[[re.Match[str]], str]]
_OFFICIAL_RULES: tuple[_Rule, ...] = (
    (r"patch_embed1\.conv([123])\.(\w+)", lambda m: f"stem.{int(m[1]) - 1}.conv.{m[2]}"),
    (r"patch_embed1\.norm([123])\.(\w+)", lambda m: f"stem.{int(m[1]) - 1}.bn.{m[2]}"),
    (r"patch_embed([234])\.conv\.(\w+)", lambda m: f"stages.{int(m[1]) - 1}.downsample.conv.{m[2]}"),
    (r"patch_embed([234])\.norm\.(\w+)", lambda m: f"stages.{int(m[1]) - 1}.downsample.bn.{m[2]}"),
    (
        r"block([1234])\.(\d+)\.attn\.conv_offset\.(\w+)",
        lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}.attn.offset.{m[3]}",
    ),
    (
        r"block([1234])\.(\d+)\.attn\.pos_emb\.(\w+)",
        lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}.attn.rel_pos.{m[3]}",
    ),
    (
        r"block([1234])\.(\d+)\.((?:norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.\w+)",
        lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}.{m[3]}",
    ),
    (r"head\.(\w+)", lambda m: f"head.{m[1]}"),
)
# mmseg's neck and decode heads. In our heads a convolution's parts are 0 (itself) and 1 (its batch norm).
_SEGMENTER_RULES: tuple[_Rule, ...] = (
    (r"neck\.lateral_convs\.(\d)\.conv\.(\w+)", lambda m: f"head.pyramid.inner_blocks.{m[1]}.0.{m[2]}"),
    (r"neck\.fpn_convs\.(\d)\.conv\.(\w+)", lambda m: f"head.pyramid.layer_blocks.{m[1]}.0.{m[2]}"),
    (
        r"decode_head\.scale_heads\.(\d)\.(\d)\.(conv|bn)\.(\w+)",
        lambda m: f"head.levels.{m[1]}.{m[2]}.{int(m[3] == 'bn')}.{m[4]}",
    ),
    (
        r"decode_head\.(conv|syncbn_fc)_(\d)\.(\w+)",
        lambda m: f"head.convs.{m[2]}.{int(m[1] == 'syncbn_fc')}.{m[3]}",
    ),
    (
        r"decode_head\.mlahead\.head([2-5])\.([0134])\.(\w+)",
        lambda m: f"head.branches.{int(m[1]) - 2}.{int(m[2]) // 3}.{int(m[2]) % 3}.{m[3]}",
    ),
    (r"decode_head\.conv_seg\.(\w+)", lambda m: f"head.classifier.{m[1]}"),
)

# mmdet's neck and heads. RetinaNet's pyramid has its coarser levels among the others.
_RETINANET_RULES: tuple[_Rule, ...] = (
    (r"neck\.lateral_convs\.(\d)\.conv\.(\w+)", lambda m: f"backbone.fpn.inner_blocks.{m[1]}.0.{m[2]}"),
    (r"neck\.fpn_convs\.([0-2])\.conv\.(\w+)", lambda m: f"backbone.fpn.layer_blocks.{m[1]}.0.{m[2]}"),
    (r"neck\.fpn_convs\.([34])\.conv\.(\w+)", lambda m: f"backbone.fpn.extra_blocks.p{int(m[1]) + 3}.{m[2]}"),
    (r"bbox_head\.cls_convs\.(\d)\.conv\.(\w+)", lambda m: f"head.classification_head.conv.{m[1]}.0.{m[2]}"),
    (r"bbox_head\.reg_convs\.(\d)\.conv\.(\w+)", lambda m: f"head.regression_head.conv.{m[1]}.0.{m[2]}"),
    (r"bbox_head\.retina_cls\.(\w+)", lambda m: f"head.classification_head.cls_logits.{m[1]}"),
    (r"bbox_head\.retina_reg\.(\w+)", lambda m: f"head.regression_head.bbox_reg.{m[1]}"),
)

_MASK_RCNN_RULES: tuple[_Rule, ...] = (
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

# In the original the decoder's norms are numbered in the order of their making: crosswise attention, own, the rest.
_DECODER_NORMS = {"1": "encoder_attn_layer_norm", "2": "self_attn_layer_norm", "3": "final_layer_norm"}
_ENCODER_NORMS = {"1": "self_attn_layer_norm", "2": "final_layer_norm"}
_DEFORMABLE_DETR_RULES: tuple[_Rule, ...] = (
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
# Of the numbers 0..90 those that COCO has no category for.
_NO_CATEGORY = {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
# detectron2's pyramid, and the heads of Sparse R-CNN's own code.
_STAGE = r"head\.head_series\.(\d+)\."
_SPARSE_RCNN_RULES: tuple[_Rule, ...] = (
    (r"backbone\.fpn_lateral([2-5])\.(\w+)", lambda m: f"backbone.fpn.inner_blocks.{int(m[1]) - 2}.0.{m[2]}"),
    (r"backbone\.fpn_output([2-5])\.(\w+)", lambda m: f"backbone.fpn.layer_blocks.{int(m[1]) - 2}.0.{m[2]}"),
    (r"init_proposal_boxes\.weight", lambda m: "rpn.boxes"),
    (r"init_proposal_features\.weight", lambda m: "roi_heads.features"),
    (_STAGE + r"self_attn\.([\w.]+)", lambda m: f"roi_heads.stages.{m[1]}.attention.{m[2]}"),
    (_STAGE + r"inst_interact\.dynamic_layer\.(\w+)", lambda m: f"roi_heads.stages.{m[1]}.interaction.filters.{m[2]}"),
    (_STAGE + r"inst_interact\.out_layer\.(\w+)", lambda m: f"roi_heads.stages.{m[1]}.interaction.out.{m[2]}"),
    (_STAGE + r"inst_interact\.(norm[123]\.\w+)", lambda m: f"roi_heads.stages.{m[1]}.interaction.{m[2]}"),
    (_STAGE + r"linear([12])\.(\w+)", lambda m: f"roi_heads.stages.{m[1]}.mlp.{2 * int(m[2]) - 2}.{m[3]}"),
    (_STAGE + r"(norm[123]\.\w+)", lambda m: f"roi_heads.stages.{m[1]}.{m[2]}"),
    (_STAGE + r"(cls|reg)_module\.(\d\.\w+)", lambda m: f"roi_heads.stages.{m[1]}.{m[2]}_tower.{m[3]}"),
    (_STAGE + r"class_logits\.(\w+)", lambda m: f"roi_heads.stages.{m[1]}.cls_logits.{m[2]}"),
    (_STAGE + r"bboxes_delta\.(\w+)", lambda m: f"roi_heads.stages.{m[1]}.box_deltas.{m[2]}"),
)


def dgmn2_from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official DGMN2 backbone or classifier names to ours.

    Raises:
        InputError (a ValueError): a name that the official network does not have.
    """
    return _renamed(state_dict, _OFFICIAL_RULES, "network")


def segmenter_from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the official segmenters (mmseg 0.16: Semantic FPN, SETR-Naive, -PUP, -MLA) to ours.

    Raises:
        InputError (a ValueError): a name that no official segmenter has.
    """
    return _with_backbone(state_dict, "backbone.model.", _SEGMENTER_RULES, "segmenters")


def retinanet_from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the official RetinaNet (mmdet 2.12) to ours.

    Raises:
        InputError (a ValueError): a name that it does not have.
    """
    return _with_backbone(state_dict, "backbone.body.model.", _RETINANET_RULES, "RetinaNet")


def mask_rcnn_from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the official Mask R-CNN (mmdet 2.12) to ours.

    Raises:
        InputError (a ValueError): a name that it does not have.
    """
    return _with_backbone(state_dict, "backbone.body.model.", _MASK_RCNN_RULES, "Mask R-CNN")


def deformable_detr_from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the official Deformable DETR, also with refined boxes and two stages, to ours.

    The original keeps heads under several names; ours have one. Its matrix of query, key and value becomes three.

    Raises:
        InputError (a ValueError): a name that it does not have, or copies that differ.
    """
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
                    f"{key!r} and {first!r} are one tensor in the official Deformable DETR, here they are not"
                )
        elif packed:
            for name, part in zip("qkv", tensor.chunk(3), strict=True):
                single[f"{packed[1]}.{name}_proj.{packed[2]}"] = part
        else:
            single[key] = tensor
    return _with_backbone(single, "backbone.model.", _DEFORMABLE_DETR_RULES, "Deformable DETR", "backbone.0.")


def sparse_rcnn_from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the official Sparse R-CNN (detectron2 0.4) to ours.

    Raises:
        InputError (a ValueError): a name that it does not have.
    """
    rules = _SPARSE_RCNN_RULES
    return _with_backbone(state_dict, "backbone.body.model.", rules, "Sparse R-CNN", "backbone.bottom_up.")


def _with_backbone(
    state_dict: Mapping[str, Tensor], prefix: str, rules: tuple[_Rule, ...], whose: str, theirs: str = "backbone."
) -> dict[str, Tensor]:
    inner, _ = _under(state_dict, theirs)
    outer = {key: tensor for key, tensor in state_dict.items() if not key.startswith(theirs)}
    mapped = {prefix + key: tensor for key, tensor in dgmn2_from_official(inner).items()}
    return mapped | _renamed(outer, rules, whose)


def _without_gaps(mapped: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of class heads for the numbers 0..90 the rows of COCO's 80 categories, where 80 classes are wanted."""
    rows = [number for number in range(91) if number not in _NO_CATEGORY]
    two_stages = "transformer.enc_output.weight" in mapped
    heads = sorted({key.split(".")[1] for key in mapped if key.startswith("class_heads.")})
    for key, tensor in mapped.items():
        if key.startswith("class_heads.") and len(tensor) == 91 and key in expected and len(expected[key]) == 80:
            # The head for proposals knows one class, the first, which is no category of COCO.
            mapped[key] = tensor[:80] if two_stages and key.split(".")[1] == heads[-1] else tensor[rows]
    return mapped


# What tells a network with a backbone inside: one of its names, and where the original has the backbone.
_WITH_BACKBONE = (
    ("head.classifier.weight", "backbone.", segmenter_from_official, "official segmenter"),
    ("head.classification_head.cls_logits.weight", "backbone.", retinanet_from_official, "official RetinaNet"),
    ("roi_heads.box_predictor.cls_score.weight", "backbone.", mask_rcnn_from_official, "official Mask R-CNN"),
    ("class_heads.0.weight", "backbone.0.", deformable_detr_from_official, "official Deformable DETR"),
    ("roi_heads.stages.0.cls_logits.weight", "backbone.bottom_up.", sparse_rcnn_from_official, "official Sparse R-CNN"),
)


def _renamed(state_dict: Mapping[str, Tensor], rules: tuple[_Rule, ...], whose: str) -> dict[str, Tensor]:
    mapped: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        for pattern, replacement in rules:
            match = re.fullmatch(pattern, key)
            if match:
                mapped[replacement(match)] = tensor
                break
        else:
            raise InputError(f"unknown key {key!r}: not a name of the official DGMN2 {whose}")
    return mapped


_COUNT = ".num_batches_tracked"


@dataclass(frozen=True)
class Match:
    """A state dict whose names are the model's, and what was found on the way to it.

    `fresh` are those of its names whose tensors are the model's own, because the file is of a network without them.
    """

    state_dict: dict[str, Tensor]
    origin: str
    ignored: tuple[str, ...]
    fresh: tuple[str, ...] = ()


def match_keys(
    state_dict: Mapping[str, Tensor],
    model: nn.Module,
    *,
    reset_head: bool = False,
    check_shapes: bool = True,
    allow_unknown: bool = False,
) -> Match:
    """Finds the weights of `model` in a state dict of any known layout, strictly.

    Layouts: names of the model itself; of our trained networks (under `model.`); of the official DGMN2
    classifiers, detectors and segmenters. What belongs to parts that the model was built without (the classifier of
    a `features_only` network, its stages after the last one asked for, a detector's heads) is left out and named
    in `ignored`. What a module of the model adds to a plain network (the beginnings of names in its attribute `added`)
    may be absent, all of it, and so may the norms' counts of batches, which frozen ones lack: then the model's own
    tensors stand there, named in `fresh`.

    Args:
        state_dict: name to tensor.
        model: the network to fill; not changed.
        reset_head: leave out the classifier, whatever number of classes it has.
        check_shapes: False if the caller adapts shapes.
        allow_unknown: names that nobody needs are left out, too.

    Raises:
        InputError (a ValueError): names that are missing or that nobody needs, or shapes that differ; the message
            lists them.
    """
    expected = model.state_dict()
    # timm's feature extractor wraps the network as `model`.
    wrapper = "model." if expected and all(key.startswith("model.") for key in expected) else ""
    expected = {key.removeprefix(wrapper): tensor for key, tensor in expected.items()}

    source, origin, elsewhere = _find_network(state_dict, expected)
    added = _added(model, wrapper)
    fresh = [key for key in expected if added and key.startswith(added)]
    if any(key in source for key in fresh):
        fresh = []
    fresh += [key for key in expected if key.endswith(_COUNT) and key not in source and key not in fresh]
    source |= {key: expected[key] for key in fresh}
    heads = {key for key in expected if reset_head and _is_head(key, model)}
    wanted = {key: source[key] for key in expected if key in source and key not in heads}
    missing = [key for key in expected if key not in source and key not in heads]
    left = [key for key in source if key not in wanted]
    unknown = [key for key in left if key not in heads and not _absent_by_design(key, expected)]
    unknown = [] if allow_unknown else [key for key in unknown if not key.endswith(_COUNT)]
    if missing or unknown:
        problems = [f"names missing ({len(missing)}): {_first(missing)}"] if missing else []
        problems += [f"names unknown ({len(unknown)}): {_first(unknown)}"] if unknown else []
        hint = ""
        if any(".dw_block." in key for key in state_dict):
            hint = "; the modules of a released DGMN are read by dgmn.weights.dgmn_resnet_from_official"
        raise InputError(f"not a checkpoint of this {type(model).__name__} ({origin}); {'; '.join(problems)}{hint}")
    wrong = [key for key, tensor in wanted.items() if tensor.shape != expected[key].shape]
    if wrong and check_shapes:
        shapes = [f"{key} is {tuple(wanted[key].shape)}, wanted {tuple(expected[key].shape)}" for key in wrong]
        only_head = all(_is_head(key, model) for key in wrong)
        advice = "; the number of classes differs: reset_head=True leaves the classifier out" if only_head else ""
        raise InputError(f"{len(wrong)} shapes differ: {_first(shapes, 3)}{advice}")
    # Of a norm that is here, a count that it does not keep is no loss to speak of.
    left = [key for key in left if not (key.endswith(_COUNT) and key.replace(_COUNT, ".running_mean") in expected)]
    named = {wrapper + key: tensor for key, tensor in wanted.items()}
    return Match(named, origin, tuple(left) + elsewhere, tuple(wrapper + key for key in fresh))


def _find_network(
    state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """The part of a state dict that holds the network, where it was, and the other names."""
    for name, theirs, convert, origin in _WITH_BACKBONE:
        if name in expected and f"{theirs}patch_embed1.conv1.weight" in state_dict:
            return _without_gaps(convert(state_dict), expected), origin, ()
    for prefix in OFFICIAL_PREFIXES:
        if f"{prefix}patch_embed1.conv1.weight" in state_dict and "patch_embed1.conv1.weight" not in expected:
            inner, elsewhere = _under(state_dict, prefix)
            origin = "official network" if not prefix else f"official network under {prefix!r}"
            return dgmn2_from_official(inner), origin, elsewhere
    # The prefix under which most of the wanted names are; without any the plain names, whose report then tells.
    best = max(reversed(OWN_PREFIXES), key=lambda prefix: sum(prefix + key in state_dict for key in expected))
    inner, elsewhere = _under(state_dict, best)
    return inner, "plain names" if not best else f"names under {best!r}", elsewhere


def _under(state_dict: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    inner = {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
    return inner, tuple(key for key in state_dict if not key.startswith(prefix))


def _is_head(key: str, model: nn.Module) -> bool:
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    names = (classifier,) if isinstance(classifier, str) else classifier
    return any(key.startswith(f"{name}.") for name in names)


def _absent_by_design(key: str, expected: Mapping[str, Tensor]) -> bool:
    """Whether the network, a DGMN2 or a ResNet, was built without the part that this name belongs to."""
    if not any(name.startswith(("stem.", "conv1.")) for name in expected):
        return False
    part = re.match(r"(?:head|stages\.\d+|fc|layer\d+)\.", key)
    return part is not None and not any(name.startswith(part[0]) for name in expected)


def _added(model: nn.Module, wrapper: str) -> tuple[str, ...]:
    """The beginnings of the names that a plain network lacks."""
    return tuple(
        f"{name}.{beginning}".removeprefix(".").removeprefix(wrapper)
        for name, module in model.named_modules()
        for beginning in getattr(module, "added", ())
    )


def _first(names: Iterable[str], count: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
