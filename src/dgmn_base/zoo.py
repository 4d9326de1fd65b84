"""The published models, one row of zoo.csv each. Their metrics are what the papers' authors report."""

import csv
from dataclasses import dataclass
from pathlib import Path

from dgmn_base.errors import InputError, did_you_mean
from dgmn_base.terminal import format_table


@dataclass(frozen=True)
class ZooModel:
    """A published model.

    Attributes:
        name: the name that `dgmn zoo download` takes.
        task: "classification", "detection" or "segmentation".
        method: name of the method, as the paper writes it.
        backbone: name for `timm.create_model`.
        dataset: the dataset that the metrics are for.
        schedule: length of the training.
        metrics: as published: top1 and AP in percent, mIoU in percent (also multi-scale with flip), parameters in
            millions, GMACs (at 224 x 224, detectors at 800 x 1280, Sparse R-CNN at 608 x 1024, segmenters at
            768 x 768).
        file_id: id of the file on Google Drive.
    """

    name: str
    task: str
    method: str
    backbone: str
    dataset: str
    schedule: str
    metrics: dict[str, float]
    file_id: str

    @property
    def builder(self) -> str:
        """The network's name in its task's module, for instance `semantic_fpn`."""
        return self.name.removesuffix(f"_{self.backbone}")

    @property
    def url(self) -> str:
        return f"https://drive.google.com/file/d/{self.file_id}/view"


_TEXTS = ("name", "task", "method", "backbone", "dataset", "schedule", "file_id")


def _rows() -> tuple[ZooModel, ...]:
    with Path(__file__).with_name("zoo.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return tuple(
        ZooModel(
            **{name: row[name] for name in _TEXTS},
            metrics={name: float(value) for name, value in row.items() if name not in _TEXTS and value},
        )
        for row in rows
    )


ZOO = _rows()


def find(name: str, task: str | None = None) -> ZooModel:
    """The row of this name; a network's name alone, for instance "retinanet", means its smallest model.

    Raises:
        InputError (a ValueError): there is no such row (the message suggests similar names), or it has another task.
    """
    if not isinstance(name, str):
        raise InputError(f"name must be that of a published model, got {name!r}")
    for model in ZOO:
        if name in (model.name, model.builder):
            if task not in (None, model.task):
                raise InputError(
                    f"{name} is a model for {model.task}; dgmn zoo --task {task} lists the models for {task}"
                )
            return model
    names = [model.name for model in ZOO]
    hint = did_you_mean(name.lower().replace("-", "_"), names, "; `dgmn zoo` lists them")
    raise InputError(f"no published model {name!r}{hint}")


_METRICS = {
    "classification": ("top1",),
    "detection": ("box_ap", "mask_ap"),
    "segmentation": ("miou", "miou_ms_flip"),
}


def print_zoo(only: str | None = None) -> None:
    """Prints all rows, or those of one task."""
    for task, metrics in _METRICS.items():
        if only in (None, task):
            rows = [
                (m.name, m.method, m.dataset, m.schedule, *(m.metrics.get(metric, "-") for metric in metrics))
                for m in ZOO
                if m.task == task
            ]
            print(format_table(("name", "method", "dataset", "schedule", *metrics), rows), end="\n\n")
    print(
        "The metrics are those of the original repository, not measured here. The paper has the same, except for a box"
    )
    print("AP of 40.1 for mask_rcnn_dgmn2_tiny.")
    print("Fetch one: dgmn zoo download NAME. Check those that were fetched: dgmn zoo verify")
