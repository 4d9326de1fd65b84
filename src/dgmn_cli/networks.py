"""The options of the commands that use a trained network, and the mistakes in them that can be told without torch."""

import argparse
import os
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from dgmn_base.arguments import STDOUT, Parser, add_trust, place, point, port, positive, share
from dgmn_base.errors import InputError, one_line


def predict_command(arguments: list[str]) -> int:
    parser = Parser(
        "dgmn predict",
        description="Finds the class, the objects or the class of every pixel in images and videos.",
        epilog="Example: dgmn predict photos/*.jpg --ckpt_path runs/finetune/checkpoints/best.ckpt --pictures out",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or globs; - is standard input")
    parser.add_argument(
        "--ckpt_path",
        metavar="FILE",
        help="a run's folder or checkpoint, an ONNX file, hf-hub:OWNER/NAME, or official weights with --model",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="a published model, such as dgmn2_tiny (see dgmn zoo); retinanet means the smallest RetinaNet, and so on",
    )
    parser.add_argument(
        "-c", "--config", metavar="RECIPE", help="recipe of the network, such as a run's logs/version_N/config.yaml"
    )
    add_trust(parser)
    parser.add_argument("--top", type=positive, metavar="K", help="classification: number of classes (default 5)")
    parser.add_argument("--score", type=share, metavar="P", help="detection: lowest score of an object (default 0.3)")
    parser.add_argument(
        "--json", type=place, metavar="FILE", help="write all results to FILE; detections as COCO has them"
    )
    parser.add_argument(
        "--root", type=place, metavar="FOLDER", help="names in --json and of written files start from FOLDER"
    )
    parser.add_argument(
        "--pictures", type=place, metavar="FOLDER", help="write every image or video with its results to FOLDER"
    )
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
        "--labels",
        type=place,
        metavar="FOLDER",
        help="write labels for annotation: segmentation, the class of every pixel as PNG; detection, boxes as YOLO's "
        "text files; both with classes.txt",
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

    with redirect_stdout(sys.stderr) if options.json == STDOUT else nullcontext():  # whose reader gets JSON only
        return predict(options)


def _check_predict(options: argparse.Namespace) -> None:
    """Finds the images, and checks the options as far as that needs no network.

    Raises:
        InputError: an option or image is wrong; the message names it.
    """
    from dgmn_base.files import check_folder, check_output
    from dgmn_base.inputs import find_inputs
    from dgmn_base.options import check_task
    from dgmn_base.recipes import find_recipe
    from dgmn_base.zoo import find

    folders = {name: Path(getattr(options, name)) for name in _FOLDERS if getattr(options, name)}
    for_images = next((f"--{name} is for images" for name in ("nodes", "labels", "submission") if name in folders), "")
    options.inputs = find_inputs(options.images, options.root, list(folders.values()), _left_out, for_images)
    if not (options.ckpt_path or options.model):
        raise InputError("give --ckpt_path FILE, a run's folder or checkpoint, or --model NAME, a published model")
    checkpoint = None if (options.ckpt_path or "").startswith("hf-hub:") else options.ckpt_path
    if checkpoint and not Path(checkpoint).exists():
        raise InputError(f"--ckpt_path {checkpoint}: no such file or folder")
    if options.model:
        check_task(options, find(options.model).task)
    if options.config:
        options.config = find_recipe(options.config)
    if options.json:
        check_output(Path(options.json), f"--json {options.json}")
        images = [each.path for each in options.inputs if each.content is None]
        inputs = [*images, *filter(None, (checkpoint, options.config))]
        if Path(options.json).is_file() and any(os.path.samefile(options.json, path) for path in inputs):
            raise InputError(f"--json {options.json}: this file is read, give another one to write")
    for name, folder in folders.items():
        check_folder(folder, f"--{name} {folder}")
    if "labels" in folders:
        for each in options.inputs:
            for extension in (".png", ".txt"):
                file = folders["labels"] / f"{each.output}{extension}"
                if os.path.lexists(file):
                    raise InputError(f"--labels {folders['labels']}: {file} is there already, give a new folder")


_FOLDERS = ("pictures", "nodes", "labels", "submission")


def _left_out(what: str) -> None:
    print(f"left out: {one_line(what)}", file=sys.stderr, flush=True)


def export_command(arguments: list[str]) -> int:
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
    add_trust(parser)
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


def app_command(arguments: list[str]) -> int:
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
        help="checkpoints, runs' folders, ONNX files, or names of published models (default: those in runs/)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)"
    )
    parser.add_argument("--port", type=port, metavar="N", help="default: the first free one from 7860")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--device", default="auto", help="cpu, cuda or mps; default: the fastest available")
    options = parser.parse_args(arguments)
    from dgmn_base.zoo import find

    for source in options.sources:
        if not Path(source).exists():
            if Path(source).suffix or len(Path(source).parts) > 1:
                raise InputError(f"{source}: no such file")
            find(source)
    print("dgmn app: loading ...", file=sys.stderr, flush=True)  # importing what it needs takes seconds
    from dgmn.app.command import run_app

    return run_app(options)
