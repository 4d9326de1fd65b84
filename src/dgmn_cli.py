"""The `dgmn` command. It answers help and simple mistakes at once, before it imports anything heavy.

It is outside the package `dgmn`, because importing anything from `dgmn` imports torch and timm first.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

from dgmn_base.arguments import Parser, names, place, point, positive, shapes, share, sizes
from dgmn_base.errors import InputError, did_you_mean, one_line

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
  dgmn zoo      [download NAME|verify]  list, fetch or check the published models
  dgmn complexity [MODEL ...]           count parameters and multiply-adds, beside the paper's
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
                                    for val;
                                    segmentation: FOLDER/images/train/*.jpg, FOLDER/masks/train/*.png, the same for
                                    val, and FOLDER/classes.txt
  --model.num_classes N             the number of classes in your data
  --model.model NAME                classification: dgmn2_nano, _tiny, _small, _medium, _large, or any timm network;
                                    detection: retinanet, mask_rcnn (with --data.masks true), deformable_detr,
                                    deformable_detr_refine_two_stage, sparse_rcnn;
                                    segmentation: semantic_fpn, setr_naive, setr_pup, setr_mla, dilated_fcn
  --model.backbone NAME             detection and segmentation: dgmn2_tiny and so on, or any timm network with four maps
  --model.checkpoint FILE           weights to start from (official or own)
  --data.batch_size N               images per device in a training step
  --trainer.max_epochs N            how long to train
  --trainer.devices N               number of GPUs; see also --trainer.accelerator cpu, --trainer.precision bf16-mixed
  --trainer.default_root_dir FOLDER where to write the run
  --ckpt_path last|best|FILE        {ckpt_path}
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


def _predict(arguments: list[str]) -> int:
    parser = Parser(
        "dgmn predict",
        description="Finds the class, the objects or the class of every pixel in images.",
        epilog="Example: dgmn predict photos/*.jpg --ckpt_path runs/finetune/checkpoints/best.ckpt --pictures out",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or globs")
    parser.add_argument(
        "--ckpt_path", metavar="FILE", help="checkpoint of a run, hf-hub:OWNER/NAME, or official weights with --model"
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="a published model, such as dgmn2_tiny (see dgmn zoo); retinanet means the smallest RetinaNet, and so on",
    )
    parser.add_argument(
        "-c", "--config", metavar="RECIPE", help="recipe of the network, such as a run's logs/version_N/config.yaml"
    )
    _add_trust(parser)
    parser.add_argument("--top", type=positive, metavar="K", help="classification: number of classes (default 5)")
    parser.add_argument("--score", type=share, metavar="P", help="detection: lowest score of an object (default 0.3)")
    parser.add_argument(
        "--json", type=place, metavar="FILE", help="write all results to FILE; detections as COCO has them"
    )
    parser.add_argument("--pictures", type=place, metavar="FOLDER", help="write every image with its results to FOLDER")
    parser.add_argument(
        "--nodes", type=place, metavar="FOLDER", help="write every image with the nodes sampled for a point to FOLDER"
    )
    parser.add_argument(
        "--at",
        type=point,
        action="append",
        metavar="X,Y",
        help="with --nodes: the point, in pixels of the image; can be repeated (default: the middle)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--layer", metavar="NAME", help="with --nodes: the layer that samples (default: the last)")
    which.add_argument(
        "--layers",
        choices=("all", "stages"),
        help="with --nodes: draw all layers, or the last one of every stage, with a panel for every head or rate",
    )
    parser.add_argument("--arrows", action="store_true", help="with --nodes: draw how far each node walks")
    parser.add_argument(
        "--density", action="store_true", help="with --nodes: also draw where all positions of the layers look"
    )
    parser.add_argument(
        "--labels", type=place, metavar="FOLDER", help="segmentation: write the class of every pixel as PNG"
    )
    parser.add_argument(
        "--submission", type=place, metavar="FOLDER", help="segmentation: write files for Cityscapes' test server"
    )
    parser.add_argument(
        "--multi_scale",
        action="store_true",
        help="segmentation: average over six scales and their mirror images, as in the paper",
    )
    parser.add_argument(
        "--batch_size", type=positive, metavar="N", help="images at a time (default: classification 16, others 1)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda or mps; default: the fastest available")
    options = parser.parse_args(arguments)
    for name in ("at", "layer", "layers", "arrows", "density"):
        if getattr(options, name) and not options.nodes:
            parser.error(f"--{name} is for --nodes FOLDER")
    _check_predict(options)
    from dgmn.predict import predict

    return predict(options)


def _check_predict(options: argparse.Namespace) -> None:
    """Finds the images, and checks the options as far as that needs no network.

    Raises:
        InputError: an option or image is wrong; the message names it.
    """
    from dgmn_base.files import check_folder, find_images
    from dgmn_base.options import check_task
    from dgmn_base.recipes import find_recipe
    from dgmn_base.zoo import find

    options.images = find_images(options.images)
    if not (options.ckpt_path or options.model):
        raise InputError("give --ckpt_path FILE, a checkpoint of a run, or --model NAME, a published model")
    checkpoint = None if (options.ckpt_path or "").startswith("hf-hub:") else options.ckpt_path
    if checkpoint and not Path(checkpoint).exists():
        raise InputError(f"--ckpt_path {checkpoint}: no such file")
    if options.model:
        check_task(options, find(options.model).task)
    if options.config:
        options.config = find_recipe(options.config)
    if options.json and Path(options.json).is_dir():
        raise InputError(f"--json {options.json}: this is a folder, give a file")
    if options.json:
        check_folder(Path(options.json).parent, f"--json {options.json}")
    if options.json and Path(options.json).is_file():
        inputs = [*options.images, *filter(None, (checkpoint, options.config))]
        if any(os.path.samefile(options.json, path) for path in inputs):
            raise InputError(f"--json {options.json}: this file is read, give another one to write")
    for name in ("pictures", "nodes", "labels", "submission"):
        folder = getattr(options, name)
        if folder:
            check_folder(Path(folder), f"--{name} {folder}")


def _export(arguments: list[str]) -> int:
    parser = Parser(
        "dgmn export",
        usage="dgmn export SOURCE --out FILE.onnx [options]",
        description="Writes a trained network as a file that onnxruntime runs without PyTorch, or as a package of "
        "machine code that PyTorch runs without dgmn, and compares it with PyTorch before it keeps the file.",
        epilog="Example: dgmn export runs/finetune --out model.onnx",
    )
    parser.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="checkpoint of a run, a run's folder, a published model's name, or hf-hub:OWNER/NAME",
    )
    parser.add_argument("--model", metavar="NAME", help="the published model that SOURCE, official weights, is of")
    parser.add_argument(
        "--out", type=place, required=True, metavar="FILE", help="the file to write, ending with .onnx or .pt2"
    )
    parser.add_argument("-c", "--config", metavar="RECIPE", help="recipe of the network, as for dgmn predict")
    _add_trust(parser)
    parser.add_argument(
        "--size",
        type=positive,
        nargs="+",
        metavar="N",
        help="side of the example, or its height and width (default: what the network predicts at)",
    )
    parser.add_argument("--fixed", action="store_true", help="take images of the example's size only")
    parser.add_argument(
        "--no-grid-sample",
        dest="grid_sample",
        action="store_false",
        help="sample nodes by gathering pixels, for runtimes without GridSample",
    )
    parser.add_argument(
        "--kernel",
        action="store_true",
        help="run the CPU kernels in onnxruntime, faster than standard operators; only onnxruntime with dgmn's library "
        "reads the file",
    )
    parser.add_argument(
        "--image", metavar="FILE", help="a photograph for the comparison (default: one with digits painted on it)"
    )
    parser.add_argument(
        "--int8", action="store_true", help="with .onnx: quantise the wide layers to 8 bits; needs --calibrate"
    )
    parser.add_argument(
        "--calibrate",
        metavar="FOLDER",
        help="with --int8: images like those that the file will get; with labels, in folders of classes or as datasets "
        "of dgmn fit, its top-1 or mIoU is compared",
    )
    parser.add_argument("--licence", metavar="NAME", help="licence of the weights, for the metadata, for instance MIT")
    options = parser.parse_args(arguments)
    if not (options.source or options.model):
        raise InputError("give SOURCE, a checkpoint or a run's folder, or --model NAME, a published model")
    if len(options.size or ()) > 2:
        parser.error("--size takes one number or two")
    if options.kernel and not options.grid_sample:
        raise InputError("--kernel samples nodes by itself: leave out --no-grid-sample")
    if Path(options.out).suffix not in (".onnx", ".pt2"):
        raise InputError(f"--out {options.out}: accepted a file that ends with .onnx or .pt2")
    if options.int8 != bool(options.calibrate):
        raise InputError("--int8 and --calibrate FOLDER need each other")
    if options.calibrate and not Path(options.calibrate).is_dir():
        raise InputError(f"--calibrate {options.calibrate}: there is no such folder")
    if options.config:
        from dgmn_base.recipes import find_recipe

        options.config = find_recipe(options.config)
    from dgmn.exporting.command import run_export

    return run_export(options)


def _app(arguments: list[str]) -> int:
    parser = Parser(
        "dgmn app",
        usage="dgmn app [CKPT|NAME ...] [options]",
        description="Shows a page in the browser: predictions of images, and the nodes that the networks sample for "
        "the points that you click. Everything stays on this machine.",
        epilog="Example: dgmn app runs/finetune model.onnx dgmn2_tiny",
    )
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="CKPT|NAME",
        help="checkpoints, runs' folders, ONNX files, or names of published models (default: the quickstarts in runs/)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)"
    )
    parser.add_argument("--port", type=positive, metavar="N", help="default: the first free one from 7860")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--device", default="auto", help="cpu, cuda or mps; default: the fastest available")
    options = parser.parse_args(arguments)
    from dgmn_base.zoo import find

    for source in options.sources:
        if not Path(source).exists():
            if Path(source).suffix or len(Path(source).parts) > 1:
                raise InputError(f"{source}: no such file")
            find(source)
    from dgmn.app.command import run_app

    return run_app(options)


def _validate_data(arguments: list[str]) -> int:
    parser = Parser(
        "dgmn validate-data",
        usage="dgmn validate-data -c RECIPE [--data.root FOLDER ...] [--picture FILE]",
        description="Checks a whole dataset before you train on it: names every file with a mistake, counts what the "
        "dataset holds, and draws samples with their annotations. Exit code 1 if there is a mistake.",
        epilog="Example: dgmn validate-data -c recipes/segmentation/finetune_folder.yaml --data.root photos",
    )
    parser.add_argument("-c", "--config", action="append", metavar="RECIPE", help="recipe of the data, as for dgmn fit")
    _add_trust(parser)
    parser.add_argument(
        "--picture", type=place, default="data.jpg", metavar="FILE", help="the drawn samples (default data.jpg)"
    )
    options, overrides = parser.parse_known_args(arguments)
    others = [o for o in overrides if o.startswith("-") and not o.startswith("--data.")]
    if others or not options.config:
        parser.error(f"takes only --data options, got {others[0]}" if others else "give a recipe: -c RECIPE")
    from dgmn_base.options import checked_arguments

    recipes = [part for recipe in options.config for part in ("-c", recipe)]
    checked_arguments("validate-data", [*recipes, *overrides])
    from dgmn.validate_data import validate_data

    return validate_data(options, overrides)


def _zoo(arguments: list[str]) -> int:
    parser = Parser(
        "dgmn zoo",
        description="Lists the published models, fetches one (dgmn zoo download dgmn2_tiny), or checks those that were "
        "fetched (dgmn zoo verify). dgmn predict --model NAME and pretrained=True fetch what is missing by themselves.",
        epilog="Fetched weights are kept in the folder DGMN_HOME, else in XDG_CACHE_HOME/dgmn, else in ~/.cache/dgmn.",
    )
    parser.add_argument("--task", choices=("classification", "detection", "segmentation"), help="only for this task")
    commands = parser.add_subparsers(dest="command", metavar="download, verify")
    fetch = commands.add_parser("download", description="Fetches, verifies and converts a published model.")
    fetch.add_argument("name", metavar="NAME", help="name that dgmn zoo lists")
    fetch.add_argument("--file", help="convert this file instead of downloading one")
    check = commands.add_parser(
        "verify",
        description="Checks that the fetched models can be read, are as they were written, and fill their networks. "
        "Exit code 1 if one is bad.",
    )
    check.add_argument("names", nargs="*", metavar="NAME", help="name that dgmn zoo lists (default: all fetched ones)")
    options = parser.parse_args(arguments)
    from dgmn_base.zoo import find, print_zoo

    if options.command == "verify":
        for name in options.names:
            find(name)
        from dgmn.zoo import verify

        return verify(options.names)
    if options.command != "download":
        print_zoo(options.task)
        return 0
    find(options.name)
    if options.file and not Path(options.file).is_file():
        raise InputError(f"--file {options.file}: no such file")
    from dgmn.zoo import fetch_model

    return fetch_model(options.name, options.file)


def _complexity(arguments: list[str]) -> int:
    parser = Parser(
        "dgmn complexity", description="Counts parameters and multiply-adds (GMACs) of networks, beside the paper's."
    )
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="timm's names, or dgmn zoo's names of detectors and segmenters; default: all of ours for --task",
    )
    parser.add_argument(
        "--size",
        type=positive,
        nargs="+",
        metavar="N",
        help="side of the image, or its height and width; default 224, detectors 800 1280, segmenters 768",
    )
    parser.add_argument(
        "--task",
        choices=("classification", "detection", "segmentation"),
        default="classification",
        help="task of the default models (default classification)",
    )
    parser.add_argument(
        "--table",
        type=int,
        choices=(2, 3, 4, 5, 13, 14, 15, 16, 17),
        help="count all rows of one of the paper's tables on convolutional networks, and show how to train each",
    )
    options = parser.parse_args(arguments)
    if len(options.size or ()) > 2:
        parser.error("--size takes one number or two")
    if options.table is not None:
        if options.models or options.size or options.task != "classification":
            parser.error("--table has its own networks and sizes: give no MODEL, --size or --task")
        from dgmn.paper_tables import show_table

        return show_table(options)
    from dgmn.complexity import complexity

    return complexity(options)


def _bench(arguments: list[str]) -> int:
    parser = Parser("dgmn bench", description="Measures time and memory on this machine.")
    commands = parser.add_subparsers(dest="command", metavar="ops|models", required=True)
    ops = commands.add_parser(
        "ops",
        help="sampled attention alone, on every backend",
        usage="dgmn bench ops [options]",
        description="Times sampled attention: every backend that runs here, Inductor, and the original formulation, "
        "which keeps all sampled nodes in memory.",
    )
    ops.add_argument(
        "--shapes",
        type=shapes,
        metavar="A,B",
        help="shapes BxHxWxHEADSxD, separated by commas; default: those of dgmn2_small",
    )
    ops.add_argument(
        "--contenders", type=names, metavar="A,B", help="only these: names of backends, original, inductor"
    )
    models = commands.add_parser(
        "models",
        help="whole networks, beside timm's",
        usage="dgmn bench models [options]",
        description="Times whole networks: dgmn2_small beside its original formulation and timm's networks; "
        "classification at 224x224, features at other sizes.",
        epilog="Example: dgmn bench models --models dgmn2_tiny,dgmn2_tiny:original,resnet50 --sizes 224 --mode train",
    )
    models.add_argument(
        "--models",
        type=names,
        metavar="A,B",
        help="timm's names; add :original or :fused to dgmn2 networks, :compiled to any network",
    )
    models.add_argument("--sizes", type=sizes, metavar="A,B", help="224 or 512x1024 (height x width), with commas")
    models.add_argument("--mode", choices=("inference", "train", "both"), default="both", help="default both")
    models.add_argument("--batch", type=positive, metavar="N", help="images per batch; default 4 at 224x224, else 1")
    models.add_argument("--compile", action="store_true", help="also measure every network under torch.compile")
    models.add_argument("--scaling", action="store_true", help="measure cost per pixel against image size")
    for command in (ops, models):
        command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default cpu")
        command.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default float32")
        command.add_argument("--threads", type=positive, metavar="N", help="CPU threads; default: PyTorch's choice")
        command.add_argument("--rounds", type=positive, metavar="N", help="timings of each; default ops 30, models 10")
        command.add_argument("--quick", action="store_true", help="small sizes and 3 rounds, to see that it works")
        command.add_argument("--no-memory", dest="memory", action="store_false", help="leave out the peak memory")
        command.add_argument("--out", type=place, default="runs/bench", metavar="FOLDER", help="default runs/bench")
    if not arguments:
        arguments = ["--help"]
    options = parser.parse_args(arguments)
    if options.command == "ops":
        from dgmn.bench.ops import bench_ops

        return bench_ops(options)
    from dgmn.bench.models import bench_models

    return bench_models(options)


def _doctor(arguments: list[str]) -> int:
    parser = Parser(
        "dgmn doctor",
        description="Shows versions, processors, the backends that run here, their largest errors beside plain "
        "PyTorch, a speed, and what is not installed. Exit code 1 if a backend computes something wrong.",
    )
    options = parser.parse_args(arguments)
    from dgmn.doctor import doctor

    return doctor(options)


def _quickstart(arguments: list[str]) -> int:
    parser = Parser(
        "dgmn quickstart",
        description="Trains dgmn2_nano on handwritten digits, or on scenes made of them, tests it and draws "
        "predictions: 2 to 4 minutes on a CPU.",
    )
    parser.add_argument(
        "--task",
        choices=("classification", "detection", "segmentation"),
        default="classification",
        help="default classification",
    )
    parser.add_argument(
        "--model",
        choices=("mask_rcnn", "retinanet", "deformable_detr", "sparse_rcnn"),
        help="detection: the detector (default mask_rcnn)",
    )
    parser.add_argument(
        "--output", type=place, metavar="FOLDER", help="where to write (default runs/quickstart[_TASK])"
    )
    options = parser.parse_args(arguments)
    if options.model and options.task != "detection":
        parser.error(f"--model is for --task detection, got --task {options.task}")
    options.output = options.output or {"classification": "runs/quickstart"}.get(
        options.task, f"runs/quickstart_{options.task}"
    )
    from dgmn.quickstart import quickstart

    return quickstart(options)


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-code",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="let the recipe name classes of this package, too; can be repeated",
    )


_SYNONYMS = {
    "train": "fit",
    "eval": "validate",
    "evaluate": "validate",
    "download": "zoo",
    "flops": "complexity",
    "benchmark": "bench",
}
_COMMANDS = {
    "predict": _predict,
    "app": _app,
    "export": _export,
    "validate-data": _validate_data,
    "zoo": _zoo,
    "complexity": _complexity,
    "bench": _bench,
    "doctor": _doctor,
    "quickstart": _quickstart,
}

if __name__ == "__main__":
    main()
