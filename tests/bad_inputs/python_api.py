"""Mistakes in calls of the Python API."""

from collections.abc import Callable, Iterator
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

import dgmn
from bad_inputs.cases import Case, World
from dgmn.classification.builders import classifier
from dgmn.detection import deformable_detr, mask_rcnn, retinanet, sparse_rcnn
from dgmn.layers import DGMN, CrissCross, DeformableConv2d, DGMN2Attention, DGMN2Block, context_module
from dgmn.ops import position_scores, sampled_aggregate, sampled_attention
from dgmn.predictor import Predictor
from dgmn.segmentation import dilated_fcn, semantic_fpn, setr_mla, setr_naive, setr_pup
from dgmn.weights import fetch, find, read_checkpoint

NAN = float("nan")
Calls = dict[str, tuple[Callable[[World], Any], str]]

# ------------------------------------------------------------------------------------------------------ operators

NO_TENSORS: dict[str, Any] = {"none": None, "text": "x", "number": 3, "list": [1.0], "array": np.zeros((1, 4, 4, 1, 8))}


def tensors() -> dict[str, Any]:
    """The arguments of the operators."""
    features = torch.zeros(1, 4, 4, 2, 8)
    return {
        **dict.fromkeys(("query", "key", "value"), features),
        **{"offset": torch.zeros(1, 4, 4, 2, 9, 2), "weight": torch.zeros(1, 4, 4, 2, 9), "bias": None},
    }


def operator_calls() -> Iterator[tuple[str, Callable[[World], Any], str]]:
    """Every tensor of every operator, replaced by every wrong one."""
    of = {
        sampled_aggregate: ("value", "offset", "weight"),
        sampled_attention: ("query", "key", "value", "offset", "bias"),
    }
    wrong: dict[str, Callable[[Any], Any]] = {
        **{name: lambda tensor, value=value: value for name, value in NO_TENSORS.items()},
        "int": lambda tensor: tensor.long(),
        "complex": lambda tensor: tensor.to(torch.complex64),
        "flat": lambda tensor: tensor.flatten(),
        "without-batch": lambda tensor: tensor[0],
        "other-width": lambda tensor: tensor[:, :, 1:],
        "empty": lambda tensor: tensor[:, :0],
        "meta": lambda tensor: tensor.to("meta"),
    }
    for operator, names in of.items():
        for name in names:
            for kind, change in wrong.items():
                if (name, kind) in (("bias", "none"), ("value", "meta"), ("query", "meta")):
                    continue  # right, or the other tensors are on the wrong device

                def call(world: World, operator: Any = operator, name: str = name, change: Any = change) -> Any:
                    given = {each: tensors()[each] for each in of[operator]}
                    if name == "bias":
                        given["bias"] = tensors()["weight"]
                    return operator(**{**given, name: change(given[name])})

                # A wrong width of the first tensor is that of all others.
                told = {"query": "query|key|offset", "value": "value|offset"}.get(name, name)
                yield f"{operator.__name__}-{name}-{kind}", call, told


def _operator(operator: Any, **more: Any) -> Callable[[World], Any]:
    names = ("value", "offset", "weight") if operator is sampled_aggregate else ("query", "key", "value", "offset")
    return lambda world: operator(*(tensors()[name] for name in names), **more)


OPTIONS: dict[str, tuple[Callable[[World], Any], str]] = {
    f"{operator.__name__}-{name}-{kind}": (_operator(operator, **{name: value}), name)
    for operator in (sampled_aggregate, sampled_attention)
    for name, values in {
        "kernel_size": {"zero": 0, "negative": -3, "half": 1.5, "text": "3", "none": None, "huge": 10**9, "true": True},
        "dilation": {"zero": 0, "negative": -1, "half": 1.5, "text": "1", "none": None, "huge": 10**30},
        "backend": {"unknown": "magic", "none": None, "number": 3, "list": ["auto"]},
        **(
            {
                "scale": {"nan": NAN, "inf": float("inf"), "text": "x", "tensor": torch.ones(2)},
                "dropout_p": {"negative": -0.1, "one": 1.0, "nan": NAN, "text": "x", "none": None},
            }
            if operator is sampled_attention
            else {}
        ),
    }.items()
    for kind, value in values.items()
}
SCORES: Calls = {
    "query-none": (lambda world: position_scores(None), "query"),
    "query-int": (lambda world: position_scores(torch.zeros(1, 4, 4, 1, 8, dtype=torch.long)), "query"),
    "query-flat": (lambda world: position_scores(torch.zeros(8)), "query"),
    "rows-short": (lambda world: position_scores(torch.zeros(1, 4, 4, 1, 8), torch.zeros(3, 8)), "rows"),
    "rows-text": (lambda world: position_scores(torch.zeros(1, 4, 4, 1, 8), "rows"), "rows"),
    "nodes-zero": (lambda world: position_scores(torch.zeros(1, 4, 4, 1, 8), torch.zeros(12, 8), nodes=0), "nodes"),
}

# ---------------------------------------------------------------------------------------------- layers, networks

MAP = torch.zeros(1, 4, 4, 16)
LAYERS: Calls = {
    "attention-dim-zero": (lambda world: DGMN2Attention(0, 1, (4, 4)), "dim"),
    "attention-dim-negative": (lambda world: DGMN2Attention(-16, 2, (4, 4)), "dim"),
    "attention-dim-text": (lambda world: DGMN2Attention("16", 2, (4, 4)), "dim"),
    "attention-dim-half": (lambda world: DGMN2Attention(16.5, 1, (4, 4)), "dim"),
    "attention-heads-zero": (lambda world: DGMN2Attention(16, 0, (4, 4)), "num_heads"),
    "attention-heads-none": (lambda world: DGMN2Attention(16, None, (4, 4)), "num_heads"),
    "attention-heads-odd": (lambda world: DGMN2Attention(16, 3, (4, 4)), "num_heads must divide dim = 16, got 3"),
    "attention-map-zero": (lambda world: DGMN2Attention(16, 2, (0, 4)), "map_size"),
    "attention-map-number": (lambda world: DGMN2Attention(16, 2, 4), "map_size"),
    "attention-kernel-zero": (lambda world: DGMN2Attention(16, 2, (4, 4), kernel_size=0), "kernel_size"),
    "attention-position": (lambda world: DGMN2Attention(16, 2, (4, 4), rel_pos="x"), "rel_pos"),
    "attention-drop-2": (lambda world: DGMN2Attention(16, 2, (4, 4), attn_drop=2.0), r"attn_drop must be in 0\.\.1"),
    "attention-drop-all": (lambda world: DGMN2Attention(16, 2, (4, 4), attn_drop=1), "attn_drop must be below 1"),
    "attention-proj-nan": (lambda world: DGMN2Attention(16, 2, (4, 4), proj_drop=NAN), r"proj_drop must be in 0\.\.1"),
    "attention-x-array": (
        lambda world: DGMN2Attention(16, 2, (4, 4))(np.zeros((1, 4, 4, 16))),
        "x must be a tensor, got ndarray",
    ),
    "attention-x-first": (lambda world: DGMN2Attention(16, 2, (4, 4))(torch.zeros(1, 16, 4, 4)), "x must|shape"),
    "block-heads-odd": (lambda world: DGMN2Block(16, 3, (4, 4)), "num_heads must divide dim = 16, got 3"),
    "block-ratio-zero": (lambda world: DGMN2Block(16, 2, (4, 4), mlp_ratio=0), "mlp_ratio"),
    "block-ratio-nan": (lambda world: DGMN2Block(16, 2, (4, 4), mlp_ratio=NAN), "mlp_ratio|integer"),
    "dgmn-channels-zero": (lambda world: DGMN(0), "channels must be a whole number of at least 1, got 0"),
    "dgmn-channels-none": (lambda world: DGMN(None), "channels"),
    "dgmn-channels-text": (lambda world: DGMN("16"), "channels"),
    "dgmn-groups-odd": (lambda world: DGMN(16, groups=3), "groups must divide channels = 16, got 3"),
    "dgmn-rates-empty": (
        lambda world: DGMN(16, sampling_rates=()),
        "sampling_rates must be whole numbers, at least one",
    ),
    "dgmn-rates-number": (lambda world: DGMN(16, sampling_rates=3), "sampling_rates must be whole numbers"),
    "dgmn-rates-huge": (lambda world: DGMN(16, sampling_rates=(10**9,)), "sampling_rates must be at most 1048576"),
    "dgmn-sampling-text": (lambda world: DGMN(16, dynamic_sampling="false"), "dynamic_sampling must be True or False"),
    "dgmn-affinity-none": (lambda world: DGMN(16, dynamic_affinity=None), "dynamic_affinity must be True or False"),
    "dgmn-beta-nan": (lambda world: DGMN(16, initial_beta=NAN), "initial_beta must be a finite number, got nan"),
    "dgmn-beta-text": (lambda world: DGMN(16, initial_beta="1"), "initial_beta must be a finite number, got '1'"),
    "dgmn-x-array": (lambda world: DGMN(16)(np.zeros((1, 16, 4, 4))), "x must be a tensor, got ndarray"),
    "dgmn-rates-zero": (lambda world: DGMN(16, sampling_rates=(0,)), "sampling_rate"),
    "dgmn-rates-text": (lambda world: DGMN(16, sampling_rates="12"), "sampling_rate"),
    "dgmn-fusion": (lambda world: DGMN(16, fusion="x"), 'fusion must be "sum" or "concat"'),
    "dgmn-form": (lambda world: DGMN(16, form="x"), 'form must be "paper" or "released"'),
    "dgmn-steps-zero": (lambda world: DGMN(16, steps=0), "steps must be a whole number of at least 1"),
    "dgmn-x-of-8": (lambda world: DGMN(16)(torch.zeros(1, 8, 4, 4)), "x must have the shape"),
    "dgmn-x-flat": (lambda world: DGMN(16)(torch.zeros(16)), "x must have the shape"),
    "criss-channels-zero": (lambda world: CrissCross(0), "channels must be a whole number"),
    "criss-reduction-zero": (lambda world: CrissCross(16, 0), "reduction must be a whole number"),
    "deformable-kernel": (lambda world: DeformableConv2d(8, 8, (3, 3)), "kernel_size must be"),
    "module-unknown": (lambda world: context_module("magic", 16), "module: no 'magic'; one of"),
    "module-none": (lambda world: context_module(None, 16), "module"),
    "module-argument": (lambda world: context_module("dgmn", 16, {"zzz": 1}), "zzz"),
    "module-channels": (lambda world: context_module("dgmn", -1), "channels"),
}


def create(**options: Any) -> Callable[[World], Any]:
    return lambda world: timm.create_model("dgmn2_nano", **options)


def insert(*arguments: Any, **options: Any) -> Callable[[World], Any]:
    return lambda world: dgmn.insert(nano(), *arguments, **options)


@cache
def nano() -> Any:
    return timm.create_model("dgmn2_nano", num_classes=2).eval()


NETWORKS: Calls = {
    "classes-negative": (create(num_classes=-1), "num_classes"),
    "classes-text": (create(num_classes="ten"), "num_classes"),
    "classes-half": (create(num_classes=2.5), "num_classes"),
    "channels-zero": (create(in_chans=0), "in_chans"),
    "channels-text": (create(in_chans="x"), "in_chans"),
    "pool-unknown": (create(global_pool="magic"), "global_pool|pool"),
    "argument-unknown": (create(zzz=1), "zzz"),
    "position-unknown": (create(rel_pos="magic"), 'rel_pos must be "official" or "aligned"'),
    "stride-of-7": (create(output_stride=7), "output_stride"),
    "stride-none-text": (create(output_stride="x"), "output_stride"),
    "drop-of-2": (create(drop_rate=2.0), "drop_rate|dropout"),
    "path-of-2": (create(drop_path_rate=2.0), "drop_path_rate"),
    "path-nan": (create(drop_path_rate=NAN), "drop_path_rate"),
    "dims-short": (create(embed_dims=(8,)), "embed_dims"),
    "dims-zero": (create(embed_dims=(0, 8, 8, 8)), "embed_dims|dim|channels"),
    "depths-negative": (create(depths=(-1, 1, 1, 1)), "depths"),
    "heads-odd": (create(num_heads=(3, 3, 3, 3)), "num_heads"),
    "pretrained-nano": (create(pretrained=True), "No pretrained weights|pretrained"),
    "size-text": (create(img_size="large"), "img_size"),
    "name-unknown": (lambda world: timm.create_model("dgmn2_tny"), "dgmn2_tny"),
    "image-grey": (lambda world: nano()(torch.zeros(1, 1, 64, 64)), "channels|x must"),
    "image-int": (lambda world: nano()(torch.zeros(1, 3, 64, 64, dtype=torch.long)), "x must|type"),
    "fuse-none": (lambda world: dgmn.fuse(None), "model must be a torch.nn.Module"),
    "fuse-class": (lambda world: dgmn.fuse(torch.nn.Linear), "model must be a torch.nn.Module"),
    "insert-none": (lambda world: dgmn.insert(None, "stages.3"), "network must be a torch.nn.Module"),
    "insert-nowhere": (insert("stage.3"), "places: 'stage.3' names no layer of this DGMN2, did you mean stages.3"),
    "insert-everywhere": (insert("*.*.*.*"), "where no such module can stand"),
    "insert-regex": (insert("[", "dgmn"), "places"),
    "insert-stars": (insert("*" * 5000 + "x"), "places"),
    "insert-number": (insert(3), "places must be the name of a layer"),
    "insert-set": (insert({"stages.3"}), "places must be the name of a layer"),
    "insert-module-none": (insert("stages.3", None), "module: no None"),
    "insert-gate-true": (insert("stages.3", gate=True), "gate must be a finite number"),
    "insert-gate-infinite": (insert("stages.3", gate=float("inf")), "gate must be a finite number"),
    "insert-size-text": (insert("stages.3", size="large"), "size must be the height and width"),
    "insert-size-float": (insert("stages.3", size=(64.0, 64.0)), "size must be a whole number"),
    "insert-rates-none": (insert("stages.3", sampling_rates=()), "sampling_rates must be whole numbers, at least one"),
    "insert-channels": (insert("stages.3", channels=3), "channels"),
    "places-text": (lambda world: dgmn.places("dgmn2_nano"), "network must be a torch.nn.Module"),
    "places-size": (lambda world: dgmn.places(nano(), size=(1, 0)), "size must be a whole number"),
}


def builder_calls() -> Iterator[tuple[str, Callable[[World], Any], str]]:
    builders: tuple[Any, ...] = (
        *(retinanet, mask_rcnn, deformable_detr, sparse_rcnn),
        *(semantic_fpn, setr_naive, setr_pup, setr_mla, dilated_fcn),
    )
    for builder in builders:
        detector = builder in builders[:4]
        wrong: dict[str, tuple[dict[str, Any], str]] = {
            "backbone-unknown": ({"backbone": "dgmn2_tny"}, "backbone: timm knows no 'dgmn2_tny', did you mean"),
            "backbone-empty": ({"backbone": ""}, "backbone"),
            "backbone-none": ({"backbone": None}, "backbone"),
            "backbone-args-text": ({"backbone_args": "x"}, "backbone_args must be a dict"),
            "backbone-argument": ({"backbone_args": {"zzz": 1}}, "zzz"),
            "backbone-insert-text": ({"backbone_args": {"insert": "stages.3"}}, "insert: got 'stages.3'; accepted"),
            "backbone-insert-nowhere": ({"backbone_args": {"insert": {"places": "x"}}}, "places: 'x' names no layer"),
            "classes-zero": ({"num_classes": 0}, "num_classes"),
            "classes-negative": ({"num_classes": -1}, "num_classes"),
            "classes-text": ({"num_classes": "ten"}, "num_classes"),
            "classes-none": ({"num_classes": None}, "num_classes"),
        }
        if detector:
            wrong |= {
                "min-size-zero": ({"min_size": 0}, "min_size"),
                "max-size-negative": ({"max_size": -1}, "max_size"),
                "detections-zero": ({"detections_per_img": 0}, "detections_per_img"),
            }
        for kind, (options, told) in wrong.items():
            given = {"backbone": "dgmn2_nano", "num_classes": 2, **options}
            yield f"{builder.__name__}-{kind}", lambda world, f=builder, o=given: f(**o), told


# -------------------------------------------------------------------------------------------- prediction, weights


def predictor(world: World, kind: str = "classifier") -> Predictor:
    return _loaded(str(world.checkpoint(kind)))


@cache
def _loaded(path: str) -> Predictor:
    return dgmn.load(path, device="cpu")


IMAGES: dict[str, tuple[Any, str]] = {
    "none": (None, "image must be a path"),
    "number": (3, "image must be a path"),
    "dict": ({"image": "x.png"}, "image must be a path"),
    "missing": ("x.png", r"x\.png"),
    "zero-byte": ("x\0.png", "image|null"),
    "empty-path": ("", "image: the path is empty"),
    "open-file": (BytesIO(b"x"), r"got BytesIO; give what its read\(\) returns"),
    "above-1": (torch.full((3, 8, 8), 1.0001), r"numbers from 1\.0001 to 1\.0001"),
    "address": ("https://example.org/x.png", r"example\.org/x\.png"),
    "empty-bytes": (b"", "not an image of a known format"),
    "channels-first": (np.zeros((3, 8, 8), np.uint8), r"an array must be \(H, W, 3\)"),
    "floats": (np.zeros((8, 8, 3)), r"an array must be \(H, W, 3\)"),
    "empty-array": (np.zeros((0, 8, 3), np.uint8), r"an array must be \(H, W, 3\)"),
    "no-axis": (np.array(3, np.uint8), r"an array must be \(H, W, 3\)"),
    "texts": (np.array([["a"]]), r"an array must be \(H, W, 3\)"),
    "objects": (np.array([[None]]), r"an array must be \(H, W, 3\)"),
    "huge-array": (np.broadcast_to(np.uint8(0), (20_000, 20_000, 3)), "at most 100,000,000 are accepted"),
    "batch": (torch.zeros(2, 3, 8, 8), r"a tensor must be \(3, H, W\)"),
    "nan-tensor": (torch.full((3, 8, 8), NAN), "numbers from nan to nan"),
    "normalised": (torch.full((3, 8, 8), -1.0), "numbers from -1 to -1"),
    "meta-tensor": (torch.zeros(3, 8, 8, device="meta"), "image"),
    "sparse-tensor": (torch.zeros(3, 8, 8).to_sparse(), "image"),
    "complex-tensor": (torch.zeros(3, 8, 8, dtype=torch.complex64), r"a tensor must be \(3, H, W\)"),
    "bool-tensor": (torch.zeros(3, 8, 8, dtype=torch.bool), r"a tensor must be \(3, H, W\)"),
    "pil-without-pixels": (Image.new("RGB", (0, 8)), "image"),
    "pil-nan": (Image.fromarray(np.full((4, 4), NAN, np.float32)), "grey values"),
    "closed-file": (open(__file__).close, "image must be a path"),  # noqa: SIM115 - closed at once
}
PREDICTION: Calls = {
    "top-zero": (lambda world: predictor(world).predict(NOISE, top=0), "top must be a whole number of at least 1"),
    "top-text": (lambda world: predictor(world).predict(NOISE, top="x"), "top"),
    "top-none": (lambda world: predictor(world).predict(NOISE, top=None), "top"),
    "top-half": (lambda world: predictor(world).predict(NOISE, top=1.5), "top"),
    "batch-negative": (
        lambda world: predictor(world).predict([NOISE], batch_size=-1),
        "batch_size must be a whole number of at least 1",
    ),
    "batch-text": (lambda world: predictor(world).predict([NOISE], batch_size="x"), "batch_size"),
    "batch-half": (lambda world: predictor(world).predict([NOISE], batch_size=1.5), "batch_size"),
    "option-unknown": (lambda world: predictor(world).predict(NOISE, zzz=1), "zzz"),
    "option-of-a-detector": (lambda world: predictor(world).predict(NOISE, score=0.5), "score"),
    "score-2": (lambda world: predictor(world, "retinanet").predict(NOISE, score=2), r"score must be in 0\.\.1"),
    "score-nan": (lambda world: predictor(world, "retinanet").predict(NOISE, score=NAN), r"score must be in 0\.\.1"),
    "score-text": (lambda world: predictor(world, "retinanet").predict(NOISE, score="x"), "score"),
    "score-none": (lambda world: predictor(world, "retinanet").predict(NOISE, score=None), "score"),
    "folder-empty": (lambda world: predictor(world).predict(world.here), "no images in this folder"),
    "list-of-none": (lambda world: list(predictor(world).predict([None])), "image must be a path"),
    "list-of-lists": (lambda world: list(predictor(world).predict([[NOISE]])), "image must be a path"),
    "point-outside": (lambda world: predictor(world).nodes(NOISE, (99, 1)), "at must lie in the image"),
    "point-nan": (lambda world: predictor(world).nodes(NOISE, (NAN, 1)), "at must lie in the image"),
    "point-text": (lambda world: predictor(world).nodes(NOISE, "middle"), "at must"),
    "point-number": (lambda world: predictor(world).nodes(NOISE, 3), "at must"),
    "point-three": (lambda world: predictor(world).nodes(NOISE, (1, 2, 3)), "at must"),
    "layer-unknown": (lambda world: predictor(world).nodes(NOISE).draw("nowhere"), "nowhere"),
    "scales-list": (
        lambda world: predictor(world, "segmenter").predict(NOISE, multi_scale=[0.5]),
        "multi_scale must be",
    ),
    "probabilities-text": (
        lambda world: predictor(world, "segmenter").predict(NOISE, probabilities="no"),
        "probabilities must be True or False",
    ),
    "load-none": (lambda world: dgmn.load(None), "source must be a file, .* got NoneType"),
    "load-number": (lambda world: dgmn.load(3), "source must be a file, .* got int"),
    "load-empty": (lambda world: dgmn.load(""), "source must be a file, .* got nothing"),
    "load-network-without-weights": (
        lambda world: dgmn.load(world.checkpoint("classifier"), model="dgmn2_nano"),
        "dgmn2_nano: a network without published weights",
    ),
    "load-missing": (lambda world: dgmn.load("x.ckpt"), r"x\.ckpt: no such file"),
    "load-zero-byte": (lambda world: dgmn.load("x\0.ckpt"), "null byte|no such file"),
    "load-long-name": (lambda world: dgmn.load("x" * 5000), "File name too long|no published model"),
    "load-unknown": (lambda world: dgmn.load("dgmn2_tny"), "did you mean dgmn2_tiny"),
    "load-empty-folder": (lambda world: dgmn.load(world.here), "not a run's folder"),
    "load-device": (lambda world: dgmn.load(world.checkpoint("classifier"), device="toaster"), "device toaster"),
    "load-device-none": (lambda world: dgmn.load(world.checkpoint("classifier"), device=None), "device"),
    "load-device-float": (lambda world: dgmn.load(world.checkpoint("classifier"), device=1.5), "device"),
    "load-model": (lambda world: dgmn.load(world.checkpoint("classifier"), model="x"), "no published model 'x'"),
    "load-recipe": (lambda world: dgmn.load(world.checkpoint("classifier"), recipe="x.yaml"), "no such recipe"),
    "checkpoint-none": (lambda world: read_checkpoint(None), "path|str, bytes or os.PathLike"),
    "checkpoint-missing": (lambda world: read_checkpoint("x.pth"), r"checkpoint x\.pth: no such file"),
    "checkpoint-a-dict": (lambda world: dgmn.load_checkpoint(nano(), {}), "path must be a path or .* got dict"),
    "checkpoint-model-none": (
        lambda world: dgmn.load_checkpoint(None, world.checkpoint("classifier")),
        "model must be",
    ),
    "checkpoint-of-other-classes": (
        lambda world: dgmn.load_checkpoint(nano(), world.checkpoint("classifier")),
        r"last\.ckpt: .*(head|classes)",
    ),
    "checkpoint-of-other-network": (
        lambda world: dgmn.load_checkpoint(torch.nn.Linear(2, 2), world.checkpoint("classifier")),
        r"last\.ckpt: ",
    ),
    "save-none": (lambda world: dgmn.save(None, world.here / "x"), "model: got a NoneType; accepted a predictor"),
    "save-a-class": (lambda world: dgmn.save(torch.nn.Linear, world.here / "x"), "model: got a type; accepted"),
    "save-nowhere": (lambda world: dgmn.save(nano(), None), "str, bytes or os.PathLike"),
    "save-over-a-file": (lambda world: dgmn.save(nano(), world.checkpoint("classifier")), "cannot be written"),
    "save-classes-number": (lambda world: dgmn.save(nano(), world.here / "x", classes=3), "classes: got 3; accepted"),
    "save-size-nan": (lambda world: dgmn.save(nano(), world.here / "x", image_size=NAN), "image_size: got nan; acc"),
    "push-classes-number": (lambda world: dgmn.push_to_hub(nano(), "me/x", classes=3), "classes: got 3; accepted"),
    "push-argument": (lambda world: dgmn.push_to_hub(nano(), "me/x", labels=["a"]), "labels"),
    "fetch-unknown": (lambda world: fetch("dgmn2_tny"), "did you mean dgmn2_tiny"),
    "find-unknown": (lambda world: find("dgmn2_tny"), "did you mean dgmn2_tiny"),
    "find-none": (lambda world: find(None), "name|no published model"),
    "classifier-none": (lambda world: classifier(None, 2), "model"),
    "classifier-one-class": (lambda world: classifier("dgmn2_nano", 1), "num_classes must be at least 2"),
}
NOISE = Image.effect_noise((40, 30), 60).convert("RGB")


def _image(value: Any) -> Callable[[World], Any]:
    return lambda world: predictor(world).predict(value)


CASES = [
    *(Case(f"op-{name}", call, told) for name, call, told in operator_calls()),
    *(Case(f"op-{name}", call, told) for name, (call, told) in OPTIONS.items()),
    *(Case(f"op-position_scores-{name}", call, told) for name, (call, told) in SCORES.items()),
    *(Case(f"layer-{name}", call, told) for name, (call, told) in LAYERS.items()),
    *(Case(f"network-{name}", call, told) for name, (call, told) in NETWORKS.items()),
    *(Case(f"builder-{name}", call, told) for name, call, told in builder_calls()),
    *(Case(f"image-{name}", _image(value), told) for name, (value, told) in IMAGES.items()),
    *(Case(f"call-{name}", call, told) for name, (call, told) in PREDICTION.items()),
]
