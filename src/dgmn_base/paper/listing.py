"""Shows rows of the paper's tables in the terminal, and writes them as CSV."""

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from dgmn_base.files import writing
from dgmn_base.paper import Entry
from dgmn_base.paper.commands import evaluating, training
from dgmn_base.paper.evidence import not_verified, verified
from dgmn_base.terminal import format_table

_SCORES = {
    "top-1": "top1",
    "box AP": "box_ap",
    "mask AP": "mask_ap",
    "mIoU": "miou",
    "mIoU ms+flip": "miou_ms_flip",
}  # columns of the file


def show(entries: Sequence[Entry]) -> None:
    """Prints several rows as a table, a single one with its commands and with what was verified."""
    if len(entries) == 1:
        _show_one(entries[0])
        return
    header = ("row", "table", "in the paper", "published", "weights", "recipe")
    rows = [
        (
            entry.name,
            entry.number,
            entry.title,
            scores_of(entry),
            "published" if entry.row.published else "-",
            "no recipe" if entry.row.missing else "yes",
        )
        for entry in entries
    ]
    print(format_table(header, rows))
    print(
        "\nThe scores are the paper's and the repository's; none was measured here. dgmn reproduce ROW shows the\n"
        "commands of a row and what was verified, dgmn reproduce ROW --data FOLDER evaluates it, and\n"
        "dgmn complexity --table N counts parameters and multiply-adds."
    )


def scores_of(entry: Entry) -> str:
    """The published scores of a row."""
    pairs = zip(entry.table.metrics, entry.row.scores, strict=True)
    return ", ".join(f"{metric} {score}" for metric, score in pairs if score != "-")


def cost_of(entry: Entry) -> str:
    """The paper's cost of a row; "" if it gives none."""
    if entry.row.cost is None:
        return ""
    params, macs = entry.row.cost
    sign = "+" if entry.table.added else ""
    return f"{sign}{params:g} M parameters, {sign}{macs:g} GMACs"


def _show_one(entry: Entry) -> None:
    cost = cost_of(entry)
    print(f"{entry.name}: Table {entry.number}, {entry.title}\n")
    parts: list[tuple[str, list[str]]] = [
        ("published", [f"{scores_of(entry)} on {entry.table.dataset}{f'; {cost}' if cost else ''}"]),
        ("train", training(entry)),
    ]
    if entry.row.published:
        parts.append(("weights", [f"dgmn zoo download {entry.row.published}    # prints FILE"]))
    parts.append(("evaluate", evaluating(entry)))
    if not (entry.row.missing or entry.table.server):
        parts.append(("or", [_compared(entry)]))
    parts.append(("verified", [f"{what}: {test}" for what, test in verified(entry)]))
    parts.append(("not", not_verified(entry)))
    parts.append(("notes", [textwrap.fill(note, 106, subsequent_indent=" " * 12) for note in entry.table.notes]))
    for title, lines in parts:
        for line in lines:
            print(f"{title:<11} {line}")
            title = ""


def _compared(entry: Entry) -> str:
    weights = "" if entry.row.published else " --ckpt_path FILE"
    return f"dgmn reproduce {entry.name} --data FOLDER{weights}    # compares with the published score"


def write_csv(path: Path, entries: Sequence[Entry], measured: Mapping[str, str] | None = None) -> None:
    """Writes rows to a file, with everything that is known of each.

    Args:
        path: the file.
        entries: the rows.
        measured: more columns for all rows: what was measured.

    Raises:
        InputError (a ValueError): the file cannot be written.
    """
    lines = [{**_values(entry), **(measured or {})} for entry in entries]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    with writing(path) as file:
        file.write(text.getvalue().encode())


def _values(entry: Entry) -> dict[str, str]:
    scores = dict(zip(entry.table.metrics, entry.row.scores, strict=True))
    params, macs = (f"{value:g}" for value in entry.row.cost) if entry.row.cost else ("", "")
    return {
        "row": entry.name,
        "table": str(entry.number),
        "in_the_paper": entry.title,
        "dataset": entry.table.dataset,
        **{column: scores.get(metric, "").replace("-", "") for metric, column in _SCORES.items()},
        "paper_params_m": params,
        "paper_gmacs": macs,
        "published_weights": entry.row.published,
        "train": " && ".join(training(entry)),
        "evaluate": " && ".join(evaluating(entry)),
        "verified": "; ".join(f"{what} ({test})" for what, test in verified(entry)),
        "not_verified": "; ".join(not_verified(entry)),
    }
