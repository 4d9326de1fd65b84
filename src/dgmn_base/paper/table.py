"""What a table of the paper and its rows are, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: name as in the paper.
        args: arguments of the network, added to the table's.
        scores: scores as printed in the paper.
        cost: the paper's parameters (M) and multiply-adds (G); what they count depends on the table.
        options: further options for the command that trains the row.
        backbone: backbone, if it is not the table's.
        builder: name of the network, if it is not the table's.
        recipe: recipe, if it is not the table's.
        published: name of the published model whose figures the row has, see `dgmn zoo`.
        missing: why the row has no recipe and no network here; "" if it has.
        close: how near our counts are to `cost`: in millions of parameters, and as a share of the multiply-adds. None
            instead of a number: they are not near. A test checks it.
    """

    name: str
    args: Mapping[str, Any]
    scores: tuple[str, ...]
    cost: tuple[float, float] | None = None
    options: str = ""
    backbone: str = ""
    builder: str = ""
    recipe: str = ""
    published: str = ""
    missing: str = ""
    close: tuple[float | None, float | None] | None = None


@dataclass(frozen=True)
class PaperTable:
    """One table.

    Attributes:
        title: what the table is about.
        dataset: the images that the scores are for.
        recipe: recipe that trains the rows, with each row's options.
        machine: options of the machine that the recipe is for.
        builder: name of the network.
        backbone: backbone of the rows that name none.
        size: height and width of the image for the counts.
        classes: number of classes of the network.
        metrics: the paper's score columns.
        rows: rows in the paper's order.
        notes: explanations for readers of the table.
        args: arguments of the network in all rows, instead of the recipe's; None: the recipe's.
        close: as in [`Row`][dgmn_base.paper.table.Row], for the rows that say nothing.
        server: whether a test server computed the scores, because the labels of the images are not public.
        added: whether the paper's costs are what a row adds to the first one.
    """

    title: str
    dataset: str
    recipe: str
    machine: str
    builder: str
    backbone: str
    size: tuple[int, int]
    classes: int
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    args: Mapping[str, Any] | None = None
    close: tuple[float | None, float | None] = (None, None)
    server: bool = False
    added: bool = False
