"""Small trainings with seeds, beside other networks: `python benchmarks/trainings.py --data FOLDER`.

FOLDER holds `cifar10` (a folder per class), `cifar10_25k.npz`, `camvid` (in Cityscapes' layout), `bccd` and `nuclei`
(in COCO's). All networks of a study have the recipe of `dgmn fit` and the same numbers of epochs; what counts is the
metric of the last epoch, so that no epoch is chosen on the images that are counted. Every training adds a row to the
CSV; a stopped run goes on with what is missing. `--tables` writes the tables of docs/proof.md from the CSV, with the
times of `training_steps.py`; `--pictures` draws those of docs/detection.md and docs/resnets.md. `--sizes` evaluates
trainings on CamVid whose runs are kept at other sizes of the images, for another of those tables.
"""

import argparse
import csv
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import timm
import torch
import yaml
from PIL import Image

import dgmn
from dgmn.cli import evaluate
from dgmn.complexity import count
from dgmn.detection.builders import BUILDERS as DETECTORS
from dgmn.images import save_image, stacked
from dgmn.layers import DGMN2Attention
from dgmn.models.build import build_named
from dgmn.pictures import legend, side_by_side
from dgmn.segmentation.builders import BUILDERS as SEGMENTERS

from pages import (
    RESULTS,
    ROOT,
    append_row,
    facts,
    markdown,
    read_csv,
    row_facts,
    rows_of,
    spread,
    write_csv,
    write_table,
)

CSV, STEPS, PAGE = RESULTS / "trainings.csv", RESULTS / "training_steps_cpu.csv", ROOT / "docs/proof.md"
SIZES = RESULTS / "camvid_sizes_cpu.csv"
CELLS = ROOT / "docs/images/bccd_predictions.jpg"
STREETS = ROOT / "docs/images/camvid_modules.png"
OURS = "dgmn2_nano"
# Of about its size: MobileNetV3 (convolutions) and MobileViTv2 (attention). Of about its compute: MobileViTv2 and
# ConvNeXt. PVTv2 is larger.
PEERS = ("mobilenetv3_small_100", "mobilevitv2_050", "convnext_zepto_rms", "pvt_v2_b0")
WALKS = {"model.lr_multipliers": "{attn.offset: 10.0}"}
# How the images of CamVid, 360 x 480, are given to a network that was trained on crops of smaller ones.
GIVEN = {
    "whole, 360 x 480": [],
    "whole, resized to 252 x 336": ["--model.inference.fit", "[252, 336]"],
    "windows of 256 x 256": [f"--model.inference.{o}" for o in ("mode=slide", "crop=256", "stride=128")],
}
PRETRAINED = "pretrained"  # stands for the file of the study "pretraining"
ZERO_WALKS = "zero"  # stands for a file of random weights whose walks are zero


@dataclass(frozen=True)
class Study:
    """Networks that are trained alike.

    Attributes:
        title: what the table is called.
        recipe: of `dgmn fit`.
        data: folder of the data.
        metric: what counts, a share that is shown in percent.
        seeds: trainings of every network.
        size: height and width of the images whose operations are counted.
        options: what differs from the recipe.
        contenders: the options of every contender.
    """

    title: str
    recipe: str
    data: str
    metric: str
    seeds: int
    size: tuple[int, int]
    options: Mapping[str, str] = field(default_factory=dict)
    contenders: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def networks(option: str, *names: str) -> dict[str, dict[str, str]]:
    return {name: {option: name} for name in names}


def forms(option: str) -> dict[str, dict[str, str]]:
    """Our network with other walks."""
    return {
        "walks at 10 times the rate": {option: OURS, **WALKS},
        "walks from zero": {option: OURS, "model.checkpoint": ZERO_WALKS},
    }


def module(multiplier: bool = False, **arguments: object) -> dict[str, str]:
    """The DGMN module in the head of a dilated FCN; `sampling_rates` as in the paper's Table 2."""
    head = {"channels": 64, "module": "dgmn", "module_args": {"sampling_rates": [1, 6, 12, 24, 36], **arguments}}
    more = {"model.lr_multipliers": "{walks: 10.0}"} if multiplier else {}
    return {"model.model_args": json.dumps(head), **more}


def at_the_end(epochs: int) -> dict[str, str]:
    """Validates once, since only the last epoch counts."""
    return {"trainer.max_epochs": str(epochs), "trainer.check_val_every_n_epoch": str(epochs)}


_DETECTOR = {"model.num_classes": "3", "data.batch_size": "8", "model.optimizer.lr": "1.0e-3"}
_ALIGNED = "{pyramid_channels: 64, channels: 64, backbone_args: {rel_pos: aligned}}"
_SMALL = "{min_size: 320, max_size: 427, channels: 64}"
_LITTLE = "{min_size: 256, max_size: 342, channels: 64}"
_NUCLEI = {"model.model": "mask_rcnn", "data.masks": "true", "model.num_classes": "1"}
_NUCLEI |= {"data.batch_size": "4", "model.lr_batch": "4"}
STUDIES = {
    "pretraining": Study(
        "CIFAR-10, 20,000 images, 20 epochs: the weights for fine-tuning",
        *("classification/cifar10", "cifar10_25k", "val/top1"),
        *(1, (64, 64), {}, networks("model.model", OURS)),
    ),
    "cifar10": Study(
        "CIFAR-10, 5,000 images, 20 epochs at 64 x 64",
        *("classification/cifar10", "cifar10", "val/top1", 3, (64, 64), {}),
        {**networks("model.model", OURS, *PEERS), **forms("model.model")},
    ),
    "camvid": Study(
        "CamVid, 600 steps of 8 crops, Semantic FPN",
        *("segmentation/camvid", "camvid", "val/miou", 3, (360, 480), at_the_end(8)),
        {
            **networks("model.backbone", OURS, *PEERS),
            **forms("model.backbone"),
            "aligned positions": {"model.backbone": OURS, "model.model_args": _ALIGNED},
            "from CIFAR-10": {"model.backbone": OURS, "model.checkpoint": PRETRAINED},
        },
    ),
    "modules": Study(
        "CamVid, 600 steps of 8 crops, the modules of the first paper in a dilated ResNet-18",
        *("segmentation/camvid", "camvid", "val/miou", 2, (360, 480)),
        {"model.model": "dilated_fcn", "model.backbone": "resnet18", **at_the_end(8)},
        {
            "plain FCN": {"model.model_args": "{channels: 64}"},
            "DA": module(groups=0, dynamic_sampling=False),
            "DA+DW": module(dynamic_sampling=False),
            "DA+DW+DS": module(),
            "DA+DW+DS, walks at 10 times the rate": module(multiplier=True),
        },
    ),
    "bccd": Study(
        "BCCD, 292 images of blood cells, 16 epochs, RetinaNet",
        *("detection/finetune_coco_format", "bccd", "val/box_AP", 2, (320, 427)),
        {**_DETECTOR, "model.model_args": _SMALL, **at_the_end(16)},
        {
            **networks("model.backbone", OURS, *PEERS),
            **forms("model.backbone"),
        },
    ),
    "nuclei": Study(
        "Nuclei, 17 images of 256 x 256, 40 epochs, Mask R-CNN",
        *("detection/finetune_coco_format", "nuclei", "val/mask_AP", 2, (256, 256)),
        {**_DETECTOR, **_NUCLEI, "model.model_args": _LITTLE, **at_the_end(40)},
        {
            **networks("model.backbone", OURS, *PEERS),
            **forms("model.backbone"),
            "from CIFAR-10": {"model.backbone": OURS, "model.checkpoint": PRETRAINED},
        },
    ),
}


def unpacked(archive: Path, folder: Path) -> Path:
    """A folder per class from the archive of CIFAR-10; its test images are the validation's."""
    with np.load(archive) as parts:
        names = parts["class_names"]
        for split, here in (("train", "train"), ("test", "val")):
            data, ends, labels = parts[f"{split}_jpegs"], parts[f"{split}_offsets"], parts[f"{split}_labels"]
            for i, label in enumerate(labels):
                path = folder / here / str(names[label]) / f"{i:05d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data[ends[i] : ends[i + 1]].tobytes())
    return folder


def without_walks(seed: int, path: Path) -> Path:
    """Random weights of our network whose nodes start on the grid."""
    torch.manual_seed(seed)
    network = timm.create_model(OURS, num_classes=10)
    for part in network.modules():
        if isinstance(part, DGMN2Attention):
            torch.nn.init.zeros_(part.offset.weight)
    torch.save(network.state_dict(), path)
    return path


def arguments(
    study: Study, name: str, seed: int, data: Path, work: Path, run: Path, more: Mapping[str, str]
) -> list[str]:
    """The options of `dgmn fit` for one training."""
    given = {"seed_everything": str(seed), **study.options, **study.contenders[name]}
    if study.data == "cifar10_25k":
        folder = work / "cifar10_25k"
        given["data.root"] = str(folder if folder.exists() else unpacked(data / "cifar10_25k.npz", folder))
    else:
        given["data.root"] = str(data / study.data)
    if study.recipe.startswith("detection"):
        given |= {"data.train": "train2017", "data.val": "val2017"}
    if given.get("model.checkpoint") == PRETRAINED:
        given["model.checkpoint"] = str(work / "runs" / f"pretraining-{OURS}-0" / "checkpoints/last.ckpt")
    if given.get("model.checkpoint") == ZERO_WALKS:
        given["model.checkpoint"] = str(without_walks(seed, run.with_name(f"{run.name}.pth")))
    given |= {"trainer.default_root_dir": str(run), "trainer.enable_progress_bar": "false", **more}
    return ["-c", f"recipes/{study.recipe}.yaml", *(part for key, x in given.items() for part in (f"--{key}", x))]


def starts_from(key: tuple[str, str, int]) -> str:
    return STUDIES[key[0]].contenders[key[1]].get("model.checkpoint", "")


def trained(
    key: tuple[str, str, int], data: Path, work: Path, device: str, more: Mapping[str, str]
) -> dict[str, object]:
    """Runs `dgmn fit` and returns the row of the table."""
    of, name, seed = key
    study = STUDIES[of]
    run = work / "runs" / f"{of}-{name.replace(' ', '_')}-{seed}"
    shutil.rmtree(run, ignore_errors=True)
    start = time.monotonic()
    command = [sys.executable, "-m", "dgmn_cli", "fit", *arguments(study, name, seed, data, work, run, more)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{key}: {done.stdout[-1000:]}{done.stderr[-3000:]}")
    seconds = time.monotonic() - start
    with next(run.glob("logs/*/metrics.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    last = {column: row[column] for row in rows for column in row if row[column]}
    return {
        "study": of,
        "contender": name,
        "seed": seed,
        "metric": study.metric,
        "score": round(float(last[study.metric]), 5),
        "loss": round(float(last["train/loss_epoch"]), 4),
        "walks": " ".join(f"{float(x):.3f}" for column, x in sorted(last.items()) if column.startswith("walks/")),
        "steps": int(last["step"]) + 1,
        "seconds": round(seconds),
        **row_facts(device),
    }


def cost(study: Study, name: str) -> tuple[float, float]:
    """Parameters in millions and GMACs of a contender."""
    given = {**study.options, **study.contenders[name]}
    if study.recipe.startswith("classification"):
        network = timm.create_model(given["model.model"], num_classes=10)
    else:
        builders = DETECTORS if study.recipe.startswith("detection") else SEGMENTERS
        default = "retinanet" if builders is DETECTORS else "semantic_fpn"
        args = yaml.safe_load(given.get("model.model_args", "{pyramid_channels: 64, channels: 64}"))
        classes = int(given.get("model.num_classes", 11))
        network = build_named(builders, given.get("model.model", default), given["model.backbone"], classes, args)
    counted = count(network.eval(), study.size)
    return counted.params / 1e6, counted.macs / 1e9


def table(of: str, rows: list[dict[str, str]]) -> str:
    """Mean, and the lowest and the highest of the seeds, in percent; the loss of the last epoch, where it was kept."""
    study, cells = STUDIES[of], []
    kept = any(row["loss"] for row in rows if row["study"] == of)
    steps = step_times(of)
    for name in study.contenders:
        own = [row for row in rows if row["study"] == of and row["contender"] == name]
        if not own:
            continue
        scores = [100 * float(row["score"]) for row in own]
        walks = [[float(x) for x in row["walks"].split()] for row in own if row["walks"]]
        shown = " ".join(f"{statistics.mean(stage):.1f}" for stage in zip(*walks, strict=True))
        params, macs = cost(study, name)
        losses = [float(row["loss"]) for row in own if row["loss"]]
        loss = [f"{statistics.mean(losses):.3f}" if losses else ""] if kept else []
        step = [steps.get(name, "")] if steps else []
        cells.append([name, f"{params:.2f} M", f"{macs:.2f}", *step, str(len(own)), spread(scores), *loss, shown])
    title = f"{study.metric.split('/')[1]}, % (lowest to highest)"
    time, loss = ["ms a step"] if steps else [], ["training loss"] if kept else []
    header = ["network", "parameters", "GMACs", *time, "trainings", title, *loss, "walks, pixels of the map"]
    return f"**{study.title}**\n\n{markdown(header, cells)}" if cells else ""


def step_times(of: str) -> dict[str, str]:
    """Milliseconds of a training step of every network of a study, as `training_steps.py` measured them."""
    rows = read_csv(STEPS)[1] if STEPS.exists() else []
    return {row["contender"]: row["ms"] for row in rows if row["study"] == of}


def evaluate_sizes(data: Path, work: Path) -> None:
    """Evaluates the kept trainings of our network, and of the one that is ahead of it, on CamVid at several sizes."""
    study, rows = STUDIES["camvid"], []
    for name in (OURS, "mobilevitv2_050"):
        for seed in range(study.seeds):
            last = work / "runs" / f"camvid-{name}-{seed}" / "checkpoints/last.ckpt"
            command = ["-c", f"recipes/{study.recipe}.yaml", "--data.root", str(data / study.data)]
            command += ["--model.backbone", name, "--ckpt_path", str(last), "--trainer.enable_progress_bar", "false"]
            for given, options in GIVEN.items():
                score, _ = evaluate([*command, *options])
                row = {"contender": name, "seed": seed, "images": given, "miou": f"{score[study.metric]:.5f}"}
                rows.append(row)
                print(row, flush=True)
    write_csv(SIZES, facts(), list(rows[0]), rows)


def sizes_table() -> str:
    """Mean, and the lowest and the highest of the seeds, of the networks at several sizes of the images."""
    about, rows = read_csv(SIZES)
    cells = []
    for name in dict.fromkeys(row["contender"] for row in rows):
        own = [row for row in rows if row["contender"] == name]
        scores = [[100 * float(row["miou"]) for row in own if row["images"] == given] for given in GIVEN]
        cells.append([name, *map(spread, scores)])
    made = f"{about['processor']}; {about['torch']}; commit {about['commit']}; {about['date']}."
    title = "**CamVid, two of these networks, the images given to them in other ways: miou, % (lowest to highest)**"
    return f"{title}\n\n{markdown(['network', *GIVEN], cells)}\n{made}\n"


def tables(path: Path) -> str:
    """The tables of all studies that have begun."""
    rows = rows_of(path)
    made = {key: ", ".join(sorted({row[key] for row in rows})) for key in ("device", "torch", "timm", "commit", "date")}
    about = f"{made['device']}; {made['torch']}; timm {made['timm']}; commits {made['commit']}; {made['date']}."
    if STEPS.exists():
        timed, _ = read_csv(STEPS)
        about += f" Steps: {timed['processor']}, {timed['threads']}; {timed['torch']}; {timed['date']}."
    parts = {of: table(of, rows) for of in STUDIES}
    parts["camvid"] += "\n" + sizes_table()
    return "\n".join([*filter(None, parts.values()), about + "\n"])


def draw_cells(data: Path, work: Path) -> None:
    """What two detectors, trained with seed 1, find in three validation images of blood cells."""
    images, names = sorted((data / "bccd/val2017").glob("*.jpg"))[:3], (OURS, "pvt_v2_b0")
    found = [dgmn.load(work / "runs" / f"bccd-{name}-1").predict(images, score=0.4) for name in names]
    rows = [dict(zip(names, (result.draw() for result in row), strict=True)) for row in zip(*found, strict=True)]
    save_image(stacked([side_by_side(row, 480) for row in rows]), CELLS)


def draw_streets(data: Path, work: Path) -> None:
    """The classes that the modules of the first paper, trained with seed 1, give to the pixels of three frames."""
    frames = sorted((data / "camvid/leftImg8bit/val").glob("*/*"))
    names = [name for name in STUDIES["modules"].contenders if "rate" not in name]
    predictors = [dgmn.load(work / "runs" / f"modules-{name.replace(' ', '_')}-1") for name in names]
    rows = []
    for image in (frames[0], frames[len(frames) // 2], frames[-1]):
        labels = [predictor.predict(image).labels for predictor in predictors]
        painted = [Image.fromarray(np.array(predictors[0].painted_colors, np.uint8)[each]) for each in labels]
        rows.append(side_by_side(dict(zip(names, painted, strict=True)), 300))
    key = legend(predictors[0].names, predictors[0].painted_colors, rows[0].width)
    save_image(stacked([*rows, key]).quantize(256), STREETS)  # few colours: a small file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the datasets")
    parser.add_argument("--studies", nargs="+", default=list(STUDIES), choices=STUDIES)
    parser.add_argument("--contenders", nargs="+", help="only these")
    parser.add_argument("--epochs", type=int, help="another number of epochs, to try the script")
    parser.add_argument("--device", default="cpu", help="what the rows say; `dgmn fit` takes a GPU where there is one")
    parser.add_argument("--parallel", type=int, default=1, help="trainings at the same time")
    parser.add_argument("--workers", default="2", help="processes that read images, of every training")
    parser.add_argument("--work", type=Path, default=Path("runs/trainings"), help="where the runs lie")
    parser.add_argument("--out", type=Path, default=CSV)
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    parser.add_argument("--sizes", action="store_true", help="only evaluate the runs of --work at other sizes")
    parser.add_argument("--pictures", action="store_true", help="only draw the pictures, from the runs of --work")
    given = parser.parse_args()
    if given.tables:
        write_table(PAGE, Path(__file__).name, tables(given.out))
        return
    if given.data is None:
        parser.error("--data FOLDER is missing")
    known = {name for of in given.studies for name in STUDIES[of].contenders}
    if unknown := set(given.contenders or ()) - known:
        parser.error(f"--contenders: {', '.join(unknown)}: must be of {', '.join(known)}")
    work = given.work.resolve()
    if given.pictures:
        draw_cells(given.data, work)
        draw_streets(given.data, work)
        return
    if given.sizes:
        evaluate_sizes(given.data.resolve(), work)
        return
    (work / "runs").mkdir(parents=True, exist_ok=True)
    done = {(row["study"], row["contender"], int(row["seed"])) for row in rows_of(given.out)}
    wanted = [
        (of, name, seed)
        for of in given.studies
        for seed in range(STUDIES[of].seeds)
        for name in STUDIES[of].contenders
        if (of, name, seed) not in done and name in (given.contenders or [name])
    ]
    # The pretraining comes first, what starts from it last.
    wanted.sort(key=lambda key: (key[0] != "pretraining", starts_from(key) == PRETRAINED))
    with ThreadPoolExecutor(given.parallel) as pool:
        more = {"data.num_workers": given.workers, **(at_the_end(given.epochs) if given.epochs else {})}
        asked = (given.data.resolve(), work, given.device, more)
        for future in as_completed([pool.submit(trained, key, *asked) for key in wanted]):
            try:
                row = future.result()
            except RuntimeError as error:
                print(error, flush=True)
                continue
            append_row(given.out, row)
            print(f"{row['study']}, {row['contender']}, seed {row['seed']}: {100 * row['score']:.1f} %", flush=True)


if __name__ == "__main__":
    main()
