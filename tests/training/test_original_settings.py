"""Trainings start and go as the original's: initial weights, weight decay, schedules, recipes."""

from pathlib import Path

import lightning as L
import pytest
import timm
import torch
import yaml
from timm.scheduler import CosineLRScheduler
from torch import nn

from dgmn.classification import ClassificationTask
from dgmn.detection import mask_rcnn, retinanet, sparse_rcnn
from dgmn.errors import InputError
from dgmn.segmentation import SegmentationTask, semantic_fpn, setr_mla
from dgmn.training import WarmupCosine
from dgmn_base.recipes import find_recipe


def deviation(tensor):
    return float(tensor.detach().std())


def uniform(module, bound):
    """Whether weights fill the interval of this bound evenly."""
    weight = module.weight.detach()
    assert float(weight.abs().max()) <= bound * (1 + 1e-6)
    assert float(weight.abs().max()) > 0.98 * bound
    return deviation(weight) == pytest.approx(bound / 3**0.5, rel=0.05)


def xavier(module):
    receptive = module.weight[0, 0].numel() if module.weight.dim() == 4 else 1
    return uniform(module, (6 / (receptive * (module.weight.shape[0] + module.weight.shape[1]))) ** 0.5)


def test_weights_of_dgmn2():
    model = timm.create_model("dgmn2_tiny")
    for stage, heads, channels in zip(model.stages, (1, 2, 5, 8), (64, 128, 320, 512), strict=True):
        attention = stage.blocks[0].attn
        for linear in (attention.qkv, attention.proj, attention.offset, stage.blocks[0].mlp.fc1):
            assert deviation(linear.weight) == pytest.approx(0.02, rel=0.1)
            assert not linear.bias.any()
        for table in (attention.rel_pos.rel_height, attention.rel_pos.rel_width):
            assert deviation(table) == pytest.approx((channels / heads) ** -0.5, rel=0.15)
    assert deviation(model.head.weight) == pytest.approx(0.02, rel=0.05)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 6
    for convolution in convolutions:  # PyTorch's default
        assert uniform(convolution, convolution.weight[0].numel() ** -0.5)


def test_weights_of_segmentation_heads():
    for model in (semantic_fpn("dgmn2_nano", 19), setr_mla("dgmn2_nano", 19)):
        assert deviation(model.head.classifier.weight) == pytest.approx(0.01, rel=0.05)
        assert not model.head.classifier.bias.any()
    pyramid = semantic_fpn("dgmn2_nano").head.pyramid
    assert all(xavier(block[0]) for blocks in (pyramid.inner_blocks, pyramid.layer_blocks) for block in blocks)


def test_weights_of_the_levels_of_semantic_fpn():
    for level in semantic_fpn("dgmn2_nano").head.levels:
        weight = level[0][0].weight
        assert deviation(weight) == pytest.approx((2 / (9 * weight.shape[0])) ** 0.5, rel=0.05)


def test_weights_of_detectors():
    for model in (retinanet("dgmn2_nano"), mask_rcnn("dgmn2_nano")):
        pyramid = model.backbone.fpn
        assert all(xavier(block[0]) for blocks in (pyramid.inner_blocks, pyramid.layer_blocks) for block in blocks)
    for hidden in (model.roi_heads.box_head.fc6, model.roi_heads.box_head.fc7):
        assert xavier(hidden)
        assert not hidden.bias.any()
    extra = retinanet("dgmn2_nano").backbone.fpn.extra_blocks
    assert all(xavier(module) for module in (extra.p6, extra.p7))
    # detectron2 starts its pyramid in another way.
    inner = sparse_rcnn("dgmn2_nano").backbone.fpn.inner_blocks[0][0]
    assert uniform(inner, (3 / inner.weight.shape[1]) ** 0.5)


@pytest.mark.parametrize("everything", [False, True])
def test_what_is_decayed(everything):
    task = SegmentationTask("semantic_fpn", "dgmn2_nano", 3, decay_norms_and_biases=everything, lr_batch=None)
    task.trainer = L.Trainer(max_steps=10, logger=False)
    groups = task.configure_optimizers()["optimizer"].param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in task.model.named_parameters():
        assert (id(parameter) in decayed) == (everything or parameter.dim() > 1), name
    assert sum(len(group["params"]) for group in groups) == len(list(task.model.parameters()))


def factors(steps, **options):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = WarmupCosine(optimizer, steps, **options)
    out = []
    for _ in range(steps):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return out


def test_the_cosine_of_the_imagenet_recipe_is_timms():
    recipe = yaml.safe_load(find_recipe("recipes/classification/imagenet_300e.yaml").read_text())
    options = recipe["model"]["init_args"]["schedule"]["init_args"]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    original = CosineLRScheduler(optimizer, t_initial=300, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6)
    got = factors(1500, **options)
    for epoch in range(300):
        rate = optimizer.param_groups[0]["lr"]
        assert [1e-3 * factor for factor in got[5 * epoch : 5 * epoch + 5]] == pytest.approx([rate] * 5, rel=1e-6)
        original.step(epoch)  # as the original's main.py does it, with the number of the epoch that is over


def test_the_cosine_after_and_inside_of_its_warmup():
    after, inside = factors(10, warmup=0.2), factors(10, warmup=0.2, warmup_prefix=False)
    assert after[:2] == inside[:2] == pytest.approx([0.001, 0.5005])
    assert after[2] == 1.0
    assert inside[2] == pytest.approx(0.01 + 0.99 * 0.5 * (1 + 0.8090169943749475))  # cos(0.2 pi)
    assert factors(4, updates=2) == pytest.approx([1.0, 1.0, 0.505, 0.505])
    for options, message in (({"updates": 0}, "updates must be at least 1"), ({"end": -0.1}, "end is a share")):
        with pytest.raises(InputError, match=message):
            factors(4, **options)


MMDET = {"recipes/detection/retinanet_coco_1x.yaml", "recipes/detection/mask_rcnn_coco_1x.yaml"}
DETR = {
    "recipes/detection/deformable_detr_coco_50e.yaml",
    "recipes/detection/deformable_detr_refine_two_stage_coco_50e.yaml",
}
SPARSE = {"recipes/detection/sparse_rcnn_coco_3x.yaml"}
MMSEG = {
    f"recipes/segmentation/{name}_cityscapes_40k.yaml"
    for name in ("semantic_fpn", "setr_naive", "setr_pup", "setr_mla")
}


@pytest.mark.parametrize("name", sorted(MMDET | DETR | SPARSE | MMSEG))
def test_recipes_of_the_second_paper(name):
    recipe = yaml.safe_load(find_recipe(name).read_text())
    model, data = recipe["model"]["init_args"], recipe["data"]["init_args"]
    assert model["decay_norms_and_biases"] is True
    if name in MMSEG:
        return
    assert model["lr_batch"] == 16
    assert data.get("leave_out_empty", False) is (name in MMDET | SPARSE)
    assert data.get("group_by_aspect", True) is (name not in DETR)
    assert data.get("crop", 0.0) == (0.5 if name in DETR | SPARSE else 0.0)
    if name in DETR:
        assert model["optimizer"]["init_args"]["lr"] == 2e-4


def test_imagenet_spares_norms_and_biases():
    recipe = yaml.safe_load(find_recipe("recipes/classification/imagenet_300e.yaml").read_text())
    assert "decay_norms_and_biases" not in recipe["model"]["init_args"]
    assert ClassificationTask("dgmn2_nano").decay_norms_and_biases is False


@pytest.mark.parametrize(("name", "batch", "rate"), [("r50", 16, 0.02), ("x101", 8, 0.01)])
def test_recipes_of_the_first_papers_mask_rcnn(name, batch, rate):
    recipe = yaml.safe_load(find_recipe(f"recipes/detection/mask_rcnn_{name}_dgmn_coco_1x.yaml").read_text())
    model, data = recipe["model"]["init_args"], recipe["data"]["init_args"]
    assert (model["lr_batch"], model["optimizer"]["init_args"]["lr"]) == (batch, rate)
    assert recipe["trainer"]["max_epochs"] * data["epoch_steps"] * batch == 90_000 * 16
    given = {key: model["model_args"][key] for key in ("training_proposals", "box_beta", "sampling_ratio")}
    assert given == {"training_proposals": 2000, "box_beta": 1.0, "sampling_ratio": 2}
    assert model["model_args"]["rpn_beta"] == pytest.approx(1 / 9, rel=1e-5)
    assert model["lr_multipliers"] == {"bias": 2.0}
    assert model["schedule"]["init_args"]["start"] == 0.3
    assert Path(recipe["trainer"]["default_root_dir"]).name.startswith(f"mask_rcnn_{name}")
