"""`dgmn predict`: what a trained or published model sees in images."""

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from dgmn.errors import InputError
from dgmn.training.images import find_images
from dgmn.weights import find, read_checkpoint


def predict(options: argparse.Namespace) -> int:
    paths = find_images(options.images)
    task, description = _model(options)
    for option, its_task in _OF_TASK.items():
        given = getattr(options, option)
        if task != its_task and given is not None and given is not False:  # a score of 0 is given
            raise InputError(f"--{option} is for {its_task}, this model is for {task}")
    # Each brings the packages of its task only.
    import_module(f"dgmn.predict.{task}").run(options, paths, description, _device(options.device))
    return 0


# Options without a default that mean something for one task only.
_OF_TASK = {
    "labels": "segmentation",
    "submission": "segmentation",
    "multi_scale": "segmentation",
    "top": "classification",
    "score": "detection",
}


def _model(options: argparse.Namespace) -> tuple[str, dict[str, Any] | None]:
    """The task, and what the checkpoint or recipe says of the network; None for a published model."""
    checkpoint = Path(options.ckpt_path) if options.ckpt_path else None
    if checkpoint is not None and not checkpoint.is_file():
        raise InputError(f"--ckpt_path {checkpoint}: no such file")
    if options.model:
        return find(options.model).task, None
    if checkpoint is None:
        raise InputError("give --ckpt_path FILE, a checkpoint of a run, or --model NAME, a published model")
    description = _from_recipe(options.config) if options.config else read_checkpoint(checkpoint).description
    if description is None:
        raise InputError(
            f"--ckpt_path {checkpoint} does not say what network it is for: give --model dgmn2_tiny, "
            "if it is a published one, or the recipe that it was trained with as -c"
        )
    return description["task"], description


def _from_recipe(recipe: str) -> dict[str, Any]:
    from dgmn.cli import describe_recipe

    return describe_recipe(recipe)


def _device(name: str) -> torch.device:
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not available here ({str(error).splitlines()[0]})") from error
    return torch.device(name)
