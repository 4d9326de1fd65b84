"""Counts the costs of the rows of the paper's tables, beside the paper's."""

import argparse
import textwrap
from collections.abc import Mapping
from typing import Any

import timm
import torch

from dgmn.classification.builders import classifier
from dgmn.complexity import count
from dgmn.detection.builders import BUILDERS as DETECTORS
from dgmn.errors import InputError
from dgmn.models.build import build_named
from dgmn.segmentation.builders import BUILDERS as SEGMENTERS
from dgmn_base.paper import ARCHITECTURE, TABLES, Entry, entries_of
from dgmn_base.paper.commands import options_of
from dgmn_base.terminal import format_table

_NOTE = (
    "Scores are the paper's; we measured none. GMACs are billions of multiply-adds of convolutions and matrix products "
    "(the paper calls them FLOPs), with the position term of DGMN2 as the original code computes it; bilinear sampling "
    "and norms are not counted."
)


def show_table(options: argparse.Namespace) -> int:
    """Prints each row's parameters and multiply-adds beside the paper's, and how to train the row."""
    number: int = options.table
    if number == 1:
        return _show_architecture()
    table, entries = TABLES[number], entries_of(number)
    told = any(entry.row.cost for entry in entries)
    rows: list[tuple[str, ...]] = []
    first = (0.0, 0.0)
    for entry in entries:
        try:
            cost = None if entry.row.missing else count_row(entry)
        except InputError as error:  # a package that it needs is not installed
            print(f"not counted: {entry.title}: {error}")
            cost = None
        sign = "+" if first[0] else ""
        own = [f"{value - base:{sign}.2f}" for value, base in zip(cost, first, strict=True)] if cost else ["-", "-"]
        paper = [f"{value:{sign}g}" for value in entry.row.cost] if entry.row.cost else ["", ""]
        pairs = [text for pair in zip(own, paper, strict=True) for text in pair] if told else own
        rows.append((entry.row.name, *pairs, *entry.row.scores))
        if table.added and cost and not first[0]:
            first = cost
    height, width = table.size
    print(f"Table {number}. {table.title}\nOne image of {height} x {width}, {table.classes} classes\n")
    costs = ("params (M)", "paper's", "GMACs", "paper's") if told else ("params (M)", "GMACs")
    print(format_table(("row", *costs, *(f"paper's {name}" for name in table.metrics)), rows))
    sign_note = ("A number with a sign is what a row adds to the first row.",) if table.added else ()
    for note in (*sign_note, _NOTE, *table.notes):
        print(f"\n{textwrap.fill(note, 118)}")
    print("\nTo train a row: dgmn reproduce ROW. Its options of the network:")
    for entry in entries:
        if not entry.row.missing:
            print(f"  {entry.name or entry.title}\n    {options_of(entry)}")
    return 0


def count_row(entry: Entry) -> tuple[float, float]:
    """Trained parameters in millions, and multiply-adds in billions, of a row's whole network.

    Raises:
        InputError (a ValueError): the network needs a package that is not installed.
    """
    builders: Mapping[str, Any] = {**SEGMENTERS, **DETECTORS}
    with torch.device("meta"):  # counting needs only shapes
        if entry.builder == "classifier":
            network = classifier(entry.backbone, entry.table.classes)
        else:
            args = {**(entry.table.args or {}), **entry.row.args}
            network = build_named(builders, entry.builder, entry.backbone, entry.table.classes, args)
        cost = count(network, entry.table.size)
    return cost.trained_params / 1e6, cost.original_macs / 1e9


def architecture(name: str) -> tuple[tuple[int, int, int, int], ...]:
    """Channels, heads, expansion and number of layers of the four stages of a DGMN2, read from the network."""
    with torch.device("meta"):
        model: Any = timm.create_model(name)
    stages = []
    for stage in model.stages:
        block = stage.blocks[0]
        channels, hidden = block.mlp.fc1.in_features, block.mlp.fc1.out_features
        stages.append((channels, block.attn.num_heads, hidden // channels, len(stage.blocks)))
    return tuple(stages)


def _show_architecture() -> int:
    print("Table 1. The architecture of DGMN2, read from the built networks\n")
    header = ("network", "stage", "channels", "heads", "expansion", "layers", "as in the paper")
    rows = []
    for name, paper in ARCHITECTURE.items():
        for i, (own, told) in enumerate(zip(architecture(name), paper, strict=True), 1):
            rows.append((name, i, *own, "yes" if own == told else f"no: {told}"))
    print(format_table(header, rows))
    print("\nTheir parameters and multiply-adds: dgmn complexity --table 6")
    return 0
