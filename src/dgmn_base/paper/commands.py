"""The commands that train and evaluate a row of the paper's tables."""

import json
import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from dgmn_base.errors import InputError
from dgmn_base.files import check_output
from dgmn_base.options import checked_arguments
from dgmn_base.paper import Entry
from dgmn_base.runs import checkpoint_in

FOLDERS = {"classification": "imagenet", "detection": "coco", "segmentation": "cityscapes"}
"""The folder of a task's dataset in commands for readers."""

MULTI_SCALE = ["--model.inference.scales", "[0.5, 0.75, 1.0, 1.25, 1.5, 1.75]", "--model.inference.flip", "true"]

AT_SCALES = "mIoU ms+flip"
"""The metric that these give."""

_PHASES = 3  # of the training for the test server of Cityscapes, Table 12


def options_of(entry: Entry) -> str:
    """The options with which the recipe trains this row's network."""
    return shlex.join(_options(entry, pretrained=True))


def training(entry: Entry) -> list[str]:
    """The commands that train a row, one after the other; none if there is no recipe."""
    if entry.row.missing:
        return []
    folder = f"runs/{entry.name}"
    start = ["dgmn", "fit", "-c", entry.recipe]
    machine = ["--data.root", FOLDERS[entry.task], *shlex.split(entry.table.machine), "--trainer.default_root_dir"]
    if entry.number != 12:
        return [shlex.join([*start, *_options(entry, pretrained=True), *machine, folder])]
    commands = []
    for phase in range(1, _PHASES + 1):
        begin = [] if phase == 1 else ["--model.checkpoint", f"{folder}_{phase - 1}/checkpoints/last.ckpt"]
        options = [*_options(entry, pretrained=phase == 1), *begin, *machine, f"{folder}_{phase}"]
        commands.append(shlex.join([*start, "-c", f"recipes/segmentation/cityscapes_test_{phase}.yaml", *options]))
    return commands


def evaluation(entry: Entry, data: str, weights: str, multi_scale: bool = False) -> list[str]:
    """The arguments of `dgmn validate` that evaluate a row's network with these weights, official or own."""
    arguments = ["-c", entry.recipe, *_options(entry, pretrained=False), "--data.root", data]
    return [*arguments, "--model.checkpoint", weights, *(MULTI_SCALE if multi_scale else [])]


def evaluating(entry: Entry) -> list[str]:
    """The commands that evaluate a row, for readers; none if there is no recipe."""
    if entry.row.missing:
        return []
    folder = FOLDERS[entry.task]
    last = f"runs/{entry.name}{f'_{_PHASES}' if entry.number == 12 else ''}/checkpoints/last.ckpt"
    if not entry.table.server:
        weights = "FILE" if entry.row.published else last
        return [
            shlex.join(["dgmn", "validate", *evaluation(entry, folder, weights, multi_scale)])
            for multi_scale in (False, True)
            if scores(entry, multi_scale)
        ]
    if entry.task == "segmentation":
        images = f"{folder}/leftImg8bit/test"
        return [
            shlex.join(["dgmn", "predict", images, "--ckpt_path", last, "--multi_scale", "--submission", "results"])
        ]
    places = {"test": "test-dev2017", "annotations": "annotations/image_info_{split}.json", "images": "test2017"}
    options = [part for name, value in places.items() for part in (f"--data.{name}", value)]
    return [shlex.join(["dgmn", "test", *evaluation(entry, folder, last), *options])]


def scores(entry: Entry, multi_scale: bool) -> dict[str, str]:
    """The published scores of a row, by metric: those at several scales, or those at one."""
    pairs = zip(entry.table.metrics, entry.row.scores, strict=True)
    return {metric: score for metric, score in pairs if score != "-" and (metric == AT_SCALES) == multi_scale}


def check_evaluation(entry: Entry, options: Namespace, overrides: Sequence[str]) -> list[str]:
    """The arguments of `dgmn validate` with which `dgmn reproduce` evaluates a row, found without torch.

    Args:
        entry: the row.
        options: those of `dgmn reproduce`: `data`, `ckpt_path` (a file or a run's folder; None: the published weights,
            whose file is not known yet, and --model.checkpoint is empty), `multi_scale` and `csv`.
        overrides: more options of `dgmn validate`.

    Raises:
        InputError (a ValueError): the row cannot be evaluated so, or an option is wrong.
    """
    if entry.row.missing:
        raise InputError(f"{entry.name} cannot be evaluated: {entry.row.missing}")
    if entry.table.server:
        raise InputError(f"{entry.name}: only the test server has the labels; for it: {evaluating(entry)[0]}")
    if not scores(entry, options.multi_scale):
        raise InputError(
            f"--multi_scale: {entry.name} has no score at several scales"
            if options.multi_scale
            else f"{entry.name} has a score at several scales only: give --multi_scale"
        )
    if options.ckpt_path is None and not entry.row.published:
        raise InputError(f"{entry.name} has no published weights: give --ckpt_path FILE, of your own training")
    weights = None
    if options.ckpt_path is not None:
        given = Path(options.ckpt_path)
        weights = checkpoint_in(given) if given.is_dir() else given
        if weights is None:
            raise InputError(f"--ckpt_path {given}: not a run's folder: it has no checkpoints/best.ckpt")
        if not weights.is_file():
            raise InputError(f"--ckpt_path {given}: no such file")
    if options.csv:
        check_output(Path(options.csv), f"--csv {options.csv}")
    arguments = evaluation(entry, options.data, str(weights or ""), options.multi_scale)
    # In float32, whatever the training had: half precision differs from machine to machine.
    fixed = ["--trainer.default_root_dir", f"runs/reproduce/{entry.name}", "--trainer.precision", "32-true"]
    return checked_arguments("validate", [*arguments, *fixed, *overrides])


def _options(entry: Entry, pretrained: bool) -> Sequence[str]:
    if entry.task == "classification":  # is trained from scratch
        network = ["--model.model", entry.backbone]
    else:
        network = ["--model.backbone", entry.backbone]
        if entry.table.args is not None:
            args = {**entry.table.args, **entry.row.args, "pretrained": pretrained}
            network += ["--model.model_args", json.dumps(args)]
        elif pretrained:
            network += ["--model.model_args.pretrained", "true"]
    return [*network, *shlex.split(entry.row.options)]
