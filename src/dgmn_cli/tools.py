"""The options of the other commands, and the mistakes in them that can be told without torch."""

import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from dgmn_base.arguments import STDOUT, Parser, add_trust, insertion, names, place, positive, shapes, sizes
from dgmn_base.errors import InputError
from dgmn_base.terminal import counted


def validate_data_command(arguments: list[str]) -> int:
    parser = Parser(
        "dgmn validate-data",
        usage="dgmn validate-data -c RECIPE [--data.root FOLDER ...] [--picture FILE]",
        description="Checks a whole dataset before you train on it: names every file with a mistake, counts what the "
        "dataset holds, and draws samples with their annotations if you like. Exit code 1 if there is a mistake.",
        epilog="Example: dgmn validate-data -c recipes/segmentation/finetune_folder.yaml --data.root photos",
    )
    parser.add_argument("-c", "--config", action="append", metavar="RECIPE", help="recipe of the data, as for dgmn fit")
    add_trust(parser)
    parser.add_argument("--picture", type=place, metavar="FILE", help="draw samples with their annotations to FILE")
    options, overrides = parser.parse_known_args(arguments)
    others = [o for o in overrides if o.startswith("-") and not o.startswith("--data.")]
    if others or not options.config:
        parser.error(f"takes only --data options, got {others[0]}" if others else "give a recipe: -c RECIPE")
    from dgmn_base.options import checked_arguments

    recipes = [part for recipe in options.config for part in ("-c", recipe)]
    checked_arguments("validate-data", [*recipes, *overrides])
    from dgmn.validate_data import validate_data

    return validate_data(options, overrides)


def convert_data_command(arguments: list[str]) -> int:
    parser = Parser(
        "dgmn convert-data",
        usage="dgmn convert-data FOLDER --to coco --out FOLDER",
        description="Writes a detection dataset of YOLO, Pascal VOC, Roboflow or LabelMe in COCO's layout: "
        "images and annotations/instances_*.json. Training takes all these layouts as they are.",
        epilog="Example: dgmn convert-data photos --to coco --out photos_coco",
    )
    parser.add_argument("folder", type=place, metavar="FOLDER", help="the dataset")
    parser.add_argument("--to", choices=("coco",), default="coco", help="the layout to write (default coco)")
    parser.add_argument("--out", type=place, required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument(
        "--layout", metavar="NAME", help="its layout: yolo, voc, roboflow or labelme (default: look into the folder)"
    )
    parser.add_argument("--link", action="store_true", help="link to the images instead of copying them")
    options = parser.parse_args(arguments)
    if not Path(options.folder).is_dir():
        raise InputError(f"{options.folder}: there is no such folder")
    from dgmn.convert_data import convert_data

    return convert_data(options)


def zoo_command(arguments: list[str]) -> int:
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


def complexity_command(arguments: list[str]) -> int:
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
        "--insert",
        type=insertion,
        metavar="PLACES|YAML",
        help="also count every MODEL with modules inserted, as dgmn.insert does it: names or globs of layers, or "
        "'{places: layer4.*.act2, module: non_local}'",
    )
    parser.add_argument(
        "--table",
        type=int,
        choices=range(1, 18),
        metavar="N",
        help="count all rows of the paper's Table N, 1 to 17, and show the options that train each",
    )
    if sum(argument.partition("=")[0] == "--table" for argument in arguments) > 1:
        parser.error("--table takes one number: count one table at a time")
    options = parser.parse_args(arguments)
    if len(options.size or ()) > 2:
        parser.error("--size takes one number or two")
    if options.table is not None:
        if options.models or options.size or options.insert or options.task != "classification":
            parser.error("--table has its own networks and sizes: give no MODEL, --size, --insert or --task")
        from dgmn.paper_tables import show_table

        return show_table(options)
    if options.insert is not None and not options.models:
        parser.error("--insert needs a MODEL: the names of layers are its own")
    from dgmn.complexity import complexity

    return complexity(options)


def reproduce_command(arguments: list[str]) -> int:
    parser = Parser(
        "dgmn reproduce",
        usage="dgmn reproduce [ROW] [--csv FILE] [--data FOLDER [--ckpt_path FILE] [--multi_scale] [options]]",
        description="Lists the results of the paper's tables and of the authors' repository: how to train and evaluate "
        "each, what was verified here and what was not. With --data, evaluates one and shows the measured score beside "
        "the published one; exit code 1 if they differ by more than the tolerance.",
        epilog="Example: dgmn reproduce retinanet_dgmn2_tiny --data coco. More options, for instance "
        "--trainer.devices 1, go to dgmn validate.",
    )
    parser.add_argument(
        "row", nargs="?", metavar="ROW", help="a row, the beginning of rows' names, or a table (table7); default: all"
    )
    parser.add_argument("--csv", type=place, metavar="FILE", help="write the rows to this file, too")
    parser.add_argument("--data", type=place, metavar="FOLDER", help="ImageNet, COCO or Cityscapes: evaluate ROW on it")
    parser.add_argument(
        "--ckpt_path",
        metavar="FILE",
        help="weights, published or of your run, or its folder (default: the published ones are fetched)",
    )
    parser.add_argument(
        "--multi_scale", action="store_true", help="segmentation: at several scales and mirrored, for that score"
    )
    options, overrides = parser.parse_known_args(arguments)
    if any(name.partition("=")[0] == "--table" for name in overrides):
        raise InputError("--table: write it as one word, for instance dgmn reproduce table7")
    from dgmn_base.paper import ENTRIES, find_rows
    from dgmn_base.paper.listing import show, write_csv

    entries = list(ENTRIES.values()) if options.row is None else find_rows(options.row)
    if options.data is None:
        others = [*overrides, *(name for name in ("--ckpt_path", "--multi_scale") if getattr(options, name[2:]))]
        if others:
            given = others[0].partition("=")[0]
            if not given.startswith("-"):
                raise InputError(f"{given}: give one row, the beginning of rows' names, or a table")
            raise InputError(f"{given}: only for an evaluation: dgmn reproduce ROW --data FOLDER")
        if options.csv != STDOUT:
            show(entries)
        if options.csv:
            write_csv(Path(options.csv), entries)
        if options.csv and options.csv != STDOUT:
            print(f"\n{options.csv}: {counted(len(entries), 'row')}")
        return 0
    if options.row is None or len(entries) > 1:
        some = ", ".join(entry.name for entry in entries[:3])
        raise InputError(f"--data evaluates one row: give its whole name, for instance one of {some}")
    from dgmn_base.paper.commands import check_evaluation

    arguments = check_evaluation(entries[0], options, overrides)
    from dgmn.reproduce import reproduce

    with redirect_stdout(sys.stderr) if options.csv == STDOUT else nullcontext():  # whose reader gets CSV only
        return reproduce(entries[0], options, arguments)


def bench_command(arguments: list[str]) -> int:
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
    models.add_argument("--mode", choices=("inference", "train", "both"), help="default both")
    models.add_argument("--batch", type=positive, metavar="N", help="images per batch; default 4 at 224x224, else 1")
    models.add_argument("--compile", action="store_true", help="also measure every network under torch.compile")
    models.add_argument("--scaling", action="store_true", help="inference: measure cost per pixel against image size")
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


def doctor_command(arguments: list[str]) -> int:
    parser = Parser(
        "dgmn doctor",
        description="Shows versions, processors, the backends that run here, their largest errors beside plain "
        "PyTorch, a speed, and what is not installed. Exit code 1 if a backend computes something wrong.",
    )
    options = parser.parse_args(arguments)
    from dgmn.doctor import doctor

    return doctor(options)


def quickstart_command(arguments: list[str]) -> int:
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
