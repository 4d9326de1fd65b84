"""One page about a training, in its folder: what was run, what came out, and where to go next."""

import csv
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgmn.images import save_image
from dgmn.report import say
from dgmn_base.files import writing
from dgmn_base.terminal import counted, duration

Point = tuple[int, int, float]  # step, epoch, value
Table = tuple[Sequence[str], Sequence[Sequence[object]]]

_METRICS = 3  # in the chart
_EPOCH_LOSS = "train/loss_epoch"


@dataclass
class Facts:
    """What the page says beyond the logged numbers.

    Attributes:
        title: its title.
        command: arguments of `dgmn`, the first of them is "fit".
        facts: lines about data, network and training, as names and texts.
        monitor: the metric that chooses the best checkpoint, and "max" or "min".
        best: the best value of it.
        tables: tables of an evaluation.
        tables_epoch: the epoch of that evaluation, counted from 0.
        logs: the folder of this training's own logs; earlier parts of the run have others.
    """

    title: str
    command: Sequence[str]
    facts: Sequence[tuple[str, str]]
    monitor: tuple[str, str]
    best: float | None
    tables: Sequence[Table] = ()
    tables_epoch: int = 0
    logs: Path | None = None


def facts_of(
    trainer: Any, best: Any, tables: Any, command: Sequence[str], network: str, seconds: float, logs: Path | None
) -> Facts:
    """What is to be said about a training that has just ended.

    Args:
        trainer: Lightning's trainer, with the task and its data.
        best: the best value of the task's metric; None if there was no evaluation.
        tables: the callback `BestTables` of this training.
        command: arguments of `dgmn`.
        network: the network in words.
        seconds: how long it took.
        logs: the folder of its logs.
    """
    task, data = trainer.lightning_module, trainer.datamodule
    images = f"{data.training_images} training and {counted(data.validation_images, 'validation image')}"
    classes = counted(task.network_args["num_classes"], "class")
    root = getattr(data, "root", None)
    done, most = trainer.current_epoch, trainer.max_epochs or -1
    epochs = counted(done, "epoch") if most < 0 else f"{done} of {counted(most, 'epoch')}"
    where = f"within epoch {tables.first + 1}" if tables.seen else f"after epoch {tables.first}"
    part = f"; continued {where} from {trainer.ckpt_path}, this part" if tables.first or tables.seen else "; it"
    facts = [
        ("Network", f"{task.network_args['model']}, a {network}"),
        ("Weights at the start", task.start or "random"),
        ("Not trained", ", ".join(task.frozen)),
        ("Data", f"{images} of {classes}{f', in {root}' if root else ''}"),
        ("Training", f"{epochs}, {counted(trainer.global_step, 'step')}{part} took {duration(seconds)}"),
    ]
    return Facts(
        f"{Path(trainer.default_root_dir).name}: {task.name}",
        command,
        [(name, text) for name, text in facts if text],
        task.monitor,
        None if best is None else float(best),
        tables.tables,
        tables.epoch,
        logs,
    )


def write_summary(root: Path, facts: Facts) -> Path:
    """Writes `summary.md` and `chart.png` into a run's folder.

    A chart that cannot be drawn is left out, and the reason is printed.

    Returns:
        The page.
    """
    curves = read_curves(root, facts.logs)
    values = curves.get(facts.monitor[0], [])
    choose = max if facts.monitor[1] == "max" else min
    best = choose((p for p in values if not math.isnan(p[2])), key=lambda point: point[2], default=None)
    try:
        chart = _chart(root, curves, facts.monitor[0], best)
    except Exception as error:  # the training is done; no drawing may make it fail
        say(f"no chart of the training: {error}")
        chart = None
    parts = [f"# {_text(facts.title)}", _code([["dgmn", *facts.command]])]
    parts.append("\n".join(f"* **{name}:** {_text(text)}" for name, text in facts.facts))
    parts.append("## Result")
    if best is not None:
        parts.append(_results(curves, facts.monitor[0], best))
    elif facts.best is not None:
        parts.append(f"Best {facts.monitor[0]}: {facts.best:.4f}, in `checkpoints/best.ckpt`.")
    if chart is not None:
        parts.append(f"![Losses and metrics]({chart.name})")
    pictures = {int(path.stem.split("_")[1]): path.name for path in root.glob("pictures/epoch_[0-9]*.jpg")}
    if pictures:
        epoch = best[1] if best is not None and best[1] in pictures else max(pictures)
        parts.append(f"Predictions on validation images after epoch {epoch + 1} ([all epochs](pictures)):")
        parts.append(f"![Predictions](pictures/{pictures[epoch]})")
    for number, (header, rows) in enumerate(facts.tables):
        if number == 0:
            parts.append(f"On the validation images after epoch {facts.tables_epoch + 1}:")
        parts.append(_table(header, rows))
    parts += ["## Where to go next", *_next(root, facts)]
    page = root / "summary.md"
    with writing(page) as file:
        file.write(("\n\n".join(parts) + "\n").encode())
    return page


def read_curves(root: Path, last: Path | None) -> dict[str, list[Point]]:
    """The logged numbers of a run's trainings.

    Args:
        root: the run's folder.
        last: the logs of its last training; a run that was continued has earlier ones.
    """
    curves: dict[str, list[Point]] = {}
    files = root.glob("logs/version_*/metrics.csv")
    for file in sorted(files, key=lambda path: int(re.sub(r"\D", "", path.parent.name) or 0)):
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        points = [
            (name, (int(row["step"]), int(row["epoch"]), float(text)))
            for row in rows
            for name, text in row.items()
            if name and name.startswith(("train/", "val/")) and text
        ]
        trained = any(name.startswith("train/") for name, _ in points)
        if not points or not (trained or (last is not None and file.parent.resolve() == last.resolve())):
            continue  # of an evaluation
        first = min(point[0] for _, point in points)
        for name, known in curves.items():  # a part that was cut off is done again
            curves[name] = [point for point in known if point[0] < first]
        for name, point in points:
            curves.setdefault(name, []).append(point)
    return curves


def _chart(root: Path, curves: Mapping[str, list[Point]], metric: str, best: Point | None) -> Path | None:
    if not curves:
        return None
    from dgmn.pictures.curves import training_chart  # matplotlib takes a second

    # Numbers within an epoch, and of one that was cut off, come before its last step.
    per_epoch = max((step + 1) / (epoch + 1) for points in curves.values() for step, epoch, _ in points)
    over_epochs = {n: [((step + 1) / per_epoch, value) for step, _, value in points] for n, points in curves.items()}
    # Of a training with few steps an epoch, few or none are logged.
    trained = max(("train/loss", _EPOCH_LOSS), key=lambda name: len(curves.get(name, ())))
    losses = {name: over_epochs[name] for name in (trained, "val/loss") if name in over_epochs}
    others = [name for name in sorted(curves) if name.startswith("val/") and name not in (metric, "val/loss")]
    chosen = [name for name in (metric, *others) if name in curves][:_METRICS]
    mark = None if best is None else ((best[0] + 1) / per_epoch, best[2])
    path = root / "chart.png"
    save_image(training_chart(losses, {name: over_epochs[name] for name in chosen}, mark), path)
    return path


def _results(curves: Mapping[str, list[Point]], metric: str, best: Point) -> str:
    """The metrics of the best evaluation and of the last."""
    others = (name for name in curves if name != metric and (name.startswith("val/") or name == _EPOCH_LOSS))
    last = curves[metric][-1]
    rows = []
    for name in (metric, *sorted(others)):
        place = 1 if name == _EPOCH_LOSS else 0  # an epoch has one mean loss, and maybe several evaluations
        known = {point[place]: point[2] for point in curves[name]}
        found = (known.get(point[place]) for point in (best, last))
        rows.append((name, *("-" if value is None else f"{value:.4f}" for value in found)))
    header = ("", f"best: epoch {best[1] + 1}", f"last: epoch {last[1] + 1}")
    kept = ("in", "`checkpoints/best.ckpt`", "`checkpoints/last.ckpt`")
    return _table(header, rows, raw=[kept])


def _next(root: Path, facts: Facts) -> list[str]:
    best = str(root / "checkpoints" / "best.ckpt")
    arguments = _without(facts.command[1:], "--ckpt_path")
    test = ["dgmn", "test", *arguments, "--ckpt_path", "best"]
    return [
        "Predict your own images, and look at them:",
        _code([["dgmn", "predict", "IMAGES", "--ckpt_path", best, "--pictures", str(root / "predictions")]]),
        "Evaluate on the test images, or the validation images if there are none:",
        _code([test]),
        "Try it in the browser, and see where the network looks (needs the extra `app`):",
        _code([["dgmn", "app", best]]),
        "Export it (needs the extra `export`):",
        _code([["dgmn", "export", best, "--out", str(root / "model.onnx")]]),
    ]


def _without(arguments: Sequence[str], option: str) -> list[str]:
    """Arguments without an option and its value."""
    left: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and argument != option and not argument.startswith(f"{option}="):
            left.append(argument)
        skip = argument == option
    return left


def _code(commands: Sequence[Sequence[str]]) -> str:
    lines = "\n".join(shlex.join(command) for command in commands)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", lines)), default=0))
    return f"{fence}bash\n{lines}\n{fence}"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]], raw: Sequence[Sequence[str]] = ()) -> str:
    lines = [[_text(cell) for cell in header], ["---"] * len(header), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*lines, *raw])


def _text(value: Any) -> str:
    """A text as Markdown: class names and paths are anything."""
    return re.sub(r"([\\`*_<>\[\]|])", r"\\\1", " ".join(str(value).split()))
