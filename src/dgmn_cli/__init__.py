"""The `dgmn` command. It answers help and simple mistakes at once, before it imports anything heavy.

It is outside the package `dgmn`, because importing anything from `dgmn` imports torch and timm first.
"""

import os
import signal
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from itertools import pairwise

from dgmn_base.errors import InputError, did_you_mean, one_line
from dgmn_cli.networks import app_command, export_command, predict_command
from dgmn_cli.tools import (
    bench_command,
    complexity_command,
    convert_data_command,
    doctor_command,
    quickstart_command,
    reproduce_command,
    validate_data_command,
    zoo_command,
)

HELP = """\
dgmn: dynamic graph message passing networks for classification, detection and segmentation

  dgmn quickstart                       train a small classifier on handwritten digits, 2 minutes on a CPU
  dgmn quickstart --task detection      train a small detector (--task segmentation: a small segmenter)
  dgmn fit      -c RECIPE [options]     train
  dgmn validate -c RECIPE [options]     evaluate on the validation set
  dgmn test     -c RECIPE [options]     evaluate on the test set
  dgmn predict  IMAGES --ckpt_path CKPT find the class, the objects or the class of every pixel in images
  dgmn app      [CKPT|NAME ...]         show predictions and the nodes behind them in the browser, on this machine
  dgmn export   CKPT --out FILE.onnx    write a network for onnxruntime, or compiled (.pt2), and check it
  dgmn validate-data -c RECIPE          find mistakes in a dataset before you train on it
  dgmn convert-data FOLDER --out NEW    write a detection dataset of YOLO, VOC, Roboflow or LabelMe as COCO's
  dgmn zoo      [download NAME|verify]  list, fetch or check the published models
  dgmn complexity [MODEL ...]           count parameters and multiply-adds, beside the paper's
  dgmn reproduce [ROW]                  list the papers' results and how to get each, or evaluate one
  dgmn doctor                           show what this machine is and what runs on it, for reports about problems
  dgmn bench ops|models [options]       measure time and memory of operators, or of networks beside timm's

Every command has its own help: dgmn fit --help.
Start with: dgmn quickstart
"""

RUN_HELP = """\
usage: dgmn {command} -c RECIPE [options]

{purpose}

A recipe is a YAML file with the data, the network and the training. These come with dgmn:
{recipes}

Often changed:
  --data.root FOLDER                your images; classification: FOLDER/train/<class>/*.jpg, FOLDER/val/<class>/*.jpg;
                                    detection: FOLDER/train/*.jpg, FOLDER/annotations/instances_train.json, the same
                                    for val, or the layout of YOLO, Pascal VOC, Roboflow or LabelMe;
                                    segmentation: FOLDER/images/train/*.jpg, FOLDER/masks/train/*.png, the same for
                                    val, and FOLDER/classes.txt
  --model.num_classes N             the number of classes in your data
  --model.model NAME                classification: dgmn2_nano, _tiny, _small, _medium, _large, or any timm network;
                                    detection: retinanet, mask_rcnn (with --data.masks true), deformable_detr,
                                    deformable_detr_refine_two_stage, sparse_rcnn;
                                    segmentation: semantic_fpn, setr_naive, setr_pup, setr_mla, dilated_fcn
  --model.backbone NAME             detection and segmentation: dgmn2_tiny and so on, or any timm network with four maps
  --model.checkpoint FILE|RUN       weights to start from: official or own, or a run's folder
  --data.batch_size N               images per device in a training step
  --trainer.max_epochs N            how long to train
  --trainer.devices N               number of GPUs; see also --trainer.accelerator cpu, --trainer.precision bf16-mixed
  --trainer.default_root_dir FOLDER where to write the run
  --ckpt_path last|best|FILE|RUN    {ckpt_path}
  --trust-code PACKAGE              let the recipe name classes of this package, beside those of dgmn, lightning, timm,
                                    torch and torchvision

Example:
  {example}

--print_config shows the whole configuration, --help-all explains every option.
"""

_PURPOSES = {
    "fit": (
        "Trains a network and keeps checkpoints, metrics and the configuration in one folder.",
        "continue a run from its checkpoint",
        "dgmn fit -c recipes/classification/finetune.yaml --data.root photos --model.num_classes 5",
    ),
    "validate": (
        "Evaluates a checkpoint on the validation set.",
        "the checkpoint to evaluate",
        "dgmn validate -c recipes/classification/finetune.yaml --data.root photos --model.num_classes 5 "
        "--ckpt_path best",
    ),
    "test": (
        "Evaluates a checkpoint on the test set, or on the validation set if there is no test set.",
        "the checkpoint to evaluate",
        "dgmn test -c recipes/classification/finetune.yaml --data.root photos --model.num_classes 5 --ckpt_path best",
    ),
}


def main() -> None:
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command. A mistake of the user prints one line and gives exit code 2; a bug keeps its traceback."""
    arguments = list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A name that the terminal cannot show, or that is not UTF-8, must not end the command.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _dispatch(arguments)
        print(end="", flush=True)  # here an error of the output, such as a full disk, is still reported
        return code
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the process at once, without a traceback
        print("\ndgmn: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 141  # the exit code of a process that SIGPIPE ends
        if isinstance(error, BrokenPipeError) or not isinstance(error, InputError | OSError):
            raise
        print(f"dgmn: error: {one_line(_message(error))}", file=sys.stderr)
        _drop_unwritten()
        return 2


def _nobody_reads() -> bool:
    """Whether the reader of our output is gone, like `head` after ten lines. If so, drops the rest of the output.

    If not, another pipe broke, for instance the one to a process that loads images.
    """
    return isinstance(_drop_unwritten(end="\n"), BrokenPipeError)


def _drop_unwritten(end: str = "") -> OSError | None:
    """Drops output that cannot be written, because Python would end with another error about it; returns the error."""
    try:
        print(end=end, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def _message(error: Exception) -> str:
    """The message of an error, without the traceback that a data loading process puts into it."""
    text = str(error).strip()
    return text.splitlines()[-1].partition(": ")[2] if "Original Traceback" in text else text


def _dispatch(arguments: list[str]) -> int:
    _check_empty(arguments)
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if command == "--version":
        from importlib.metadata import version

        print(f"dgmn {version('dgmn')}")
        return 0
    if command in _PURPOSES:
        return _run_training(command, arguments[1:])
    if command not in _COMMANDS:
        known = [*_PURPOSES, *_COMMANDS]
        hint = f", did you mean {_SYNONYMS[command]}?" if command in _SYNONYMS else ""
        raise InputError(f"no command {command!r}" + (hint or did_you_mean(command, known, f": {', '.join(known)}")))
    return _COMMANDS[command](arguments[1:])


def _check_empty(arguments: Sequence[str]) -> None:
    """Refuses empty values: as a path they would mean the current folder, and often a shell's variable is not set.

    Raises:
        InputError: there is one. Arguments of networks may be empty.
    """
    for before, argument in pairwise(arguments):
        name, equals, value = argument.partition("=") if argument.startswith("--") else (before, "=", argument)
        if equals and not value and "_args" not in name:
            place = name if name.startswith("-") else f"after {name!r}"
            raise InputError(f"{place}: an empty value; is a variable of the shell not set?")


def _run_training(command: str, arguments: list[str]) -> int:
    if not arguments or "-h" in arguments or "--help" in arguments:
        purpose, ckpt_path, example = _PURPOSES[command]
        from dgmn_base.recipes import recipe_names

        recipes = "\n".join(f"  {name}" for name in recipe_names())
        print(
            RUN_HELP.format(command=command, purpose=purpose, recipes=recipes, ckpt_path=ckpt_path, example=example),
            end="",
        )
        return 0
    if not any(a.startswith(("-c", "--config", "--help-all")) for a in arguments):
        raise InputError(f"give a recipe: dgmn {command} -c RECIPE; dgmn {command} --help lists them")
    from dgmn_base.options import checked_arguments

    arguments = checked_arguments(command, arguments)
    from dgmn.cli import run_training

    return run_training(command, ["--help" if a == "--help-all" else a for a in arguments])


_SYNONYMS = {
    "train": "fit",
    "eval": "validate",
    "evaluate": "validate",
    "download": "zoo",
    "flops": "complexity",
    "benchmark": "bench",
    "convert": "convert-data",
}
_COMMANDS = {
    "predict": predict_command,
    "app": app_command,
    "export": export_command,
    "validate-data": validate_data_command,
    "convert-data": convert_data_command,
    "zoo": zoo_command,
    "complexity": complexity_command,
    "reproduce": reproduce_command,
    "bench": bench_command,
    "doctor": doctor_command,
    "quickstart": quickstart_command,
}
