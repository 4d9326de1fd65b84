"""The tables of the paper and of the authors' repository as one list of rows."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from dgmn_base.errors import InputError
from dgmn_base.paper.convolutional import CONVOLUTIONAL
from dgmn_base.paper.table import PaperTable, Row
from dgmn_base.paper.transformer import ARCHITECTURE, TRANSFORMER

TABLES: Mapping[int, PaperTable] = dict(sorted({**CONVOLUTIONAL, **TRANSFORMER}.items()))
"""The tables by their numbers in the paper. All scores are the paper's; we measured none."""


@dataclass(frozen=True)
class Entry:
    """A row of the list: its name there, and where it is in the paper."""

    name: str
    number: int
    table: PaperTable
    row: Row

    @property
    def builder(self) -> str:
        return self.row.builder or self.table.builder

    @property
    def backbone(self) -> str:
        return self.row.backbone or self.table.backbone

    @property
    def recipe(self) -> str:
        return self.row.recipe or self.table.recipe

    @property
    def task(self) -> str:
        return self.recipe.split("/")[1]

    @property
    def close(self) -> tuple[float | None, float | None]:
        return self.row.close or self.table.close

    @property
    def title(self) -> str:
        """The row's name in the paper, without the sign before what is added to the first row."""
        return self.row.name.strip().removeprefix("+ ")


def _name(number: int, row: Row) -> str:
    if row.published:
        return row.published
    text = (
        row.name.lower().strip().removeprefix("+ ").replace("w/ ", "").replace("r-cnn", "rcnn").replace("r-fcn", "rfcn")
    )
    text = re.sub(r"(?<=net|ext)-(?=\d)", "", re.sub(r"\+$", " plus", text).replace("*", " star "))
    return f"table{number}_" + re.sub(r"[^a-z0-9]+", "_", text).strip("_")


def entries_of(number: int) -> list[Entry]:
    """All rows of a table, also those that have no score."""
    return [Entry(_name(number, row), number, TABLES[number], row) for row in TABLES[number].rows]


ENTRIES: Mapping[str, Entry] = {
    entry.name: entry
    for number in TABLES
    for entry in entries_of(number)
    if any(score != "-" for score in entry.row.scores)
}
"""Every row that has a score, by its name. A published model has its name in the zoo."""


def find_rows(name: str) -> list[Entry]:
    """The row of this name; else all rows whose names begin with it, or of the table that it names.

    Raises:
        InputError (a ValueError): there is none; the message names similar ones.
    """
    if name in ENTRIES:
        return [ENTRIES[name]]
    asked = name.lower().replace("-", "_").replace(" ", "")
    if table := re.fullmatch(r"table(\d+)", asked):  # table1 is not the beginning of table10
        found = [e for e in ENTRIES.values() if e.number == int(table[1])]
    else:
        found = [e for e in ENTRIES.values() if asked and e.name.startswith(asked)]
    if not found:
        if table:
            numbers = sorted({entry.number for entry in ENTRIES.values()})
            more = "; Table 1 is the architecture: dgmn complexity --table 1" if table[1] == "1" else ""
            raise InputError(f"no row {name!r}: tables {numbers[0]} to {numbers[-1]} have rows{more}")
        near = difflib.get_close_matches(asked, ENTRIES, n=3, cutoff=0.5) if asked else []
        hint = f", did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"no row {name!r}{hint or ' in the tables'}; dgmn reproduce lists all")
    return found


__all__ = ["ARCHITECTURE", "ENTRIES", "TABLES", "Entry", "PaperTable", "Row", "entries_of", "find_rows"]
