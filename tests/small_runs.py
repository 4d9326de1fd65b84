"""Runs of a step or two that tests share, one for every kind of network."""

import functools
from pathlib import Path

import pytest

from dgmn_cli import run

_DETR = "{d_model: 32, encoder_layers: 1, decoder_layers: 2, num_queries: 10, encoder_ffn_dim: 32, decoder_ffn_dim: 32}"
# The recipe of every kind, and the options that make it small.
KINDS = {
    "classifier": ("classification/digits", {}),
    "semantic_fpn": ("segmentation/scenes", {"model_args": "{pyramid_channels: 16, channels: 16}"}),
    "setr_naive": ("segmentation/scenes", {"model_args": "{image_size: 64}"}),
    "setr_pup": ("segmentation/scenes", {"model_args": "{channels: 16}"}),
    "setr_mla": ("segmentation/scenes", {"model_args": "{channels: 16, image_size: 64}"}),
    "dilated_fcn": ("segmentation/scenes", {"backbone": "resnet10t", "model_args": "{channels: 16, module: dgmn}"}),
    "retinanet": ("detection/scenes_retinanet", {"model_args": "{min_size: 64, max_size: 96, channels: 16}"}),
    "mask_rcnn": (
        "detection/scenes_mask_rcnn",
        {"model_args": "{min_size: 64, max_size: 96, channels: 16, representation_size: 32}"},
    ),
    "deformable_detr": (
        "detection/scenes_deformable_detr",
        {"model_args": f"{{min_size: 64, max_size: 96, transformer_args: {_DETR}}}"},
    ),
    "sparse_rcnn": (
        "detection/scenes_sparse_rcnn",
        {"model_args": "{min_size: 64, max_size: 96, channels: 16, num_proposals: 10, num_stages: 2}"},
    ),
}


def options_of(kind: str, data: Path, folder: Path) -> list[str]:
    """The options of a run, of any command."""
    recipe, options = KINDS[kind]
    arguments = ["-c", f"recipes/{recipe}.yaml", "--data.root", str(data), "--trainer.default_root_dir", str(folder)]
    if kind != "classifier":
        arguments += ["--model.model", kind, "--data.epoch_steps", "1"]
    arguments += [part for name, value in options.items() for part in (f"--model.{name}", value)]
    return [*arguments, "--data.batch_size", "4", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]


def train(kind: str, data: Path, folder: Path, *more: str) -> Path:
    """Trains a run and returns its folder."""
    assert run(["fit", *options_of(kind, data, folder), *more]) == 0
    return folder


@pytest.fixture(scope="session")
def small_run(few_digits, few_scenes, few_coco_scenes, tmp_path_factory):
    """`small_run("setr_pup")`: the folder of a run, trained when it is first asked for."""

    @functools.cache
    def run_of(kind: str) -> Path:
        task = KINDS[kind][0].split("/")[0]
        data = {"classification": few_digits, "detection": few_coco_scenes, "segmentation": few_scenes}[task]
        more = ["--model.num_classes", "3", "--trainer.limit_train_batches", "1"] if kind == "classifier" else []
        return train(kind, data, tmp_path_factory.mktemp("runs") / kind, *more)

    return run_of
