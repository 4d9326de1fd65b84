"""Writes docs/reproduce.md, the page of every result in the paper's tables.

    uv run python docs/scripts/reproduce.py

A test compares the committed page with what this makes.
"""

from collections import defaultdict
from pathlib import Path

from dgmn_base.paper import ENTRIES, TABLES, Entry
from dgmn_base.paper.commands import evaluating, training
from dgmn_base.paper.evidence import not_verified, verified
from dgmn_base.paper.listing import cost_of

PAGE = Path(__file__).parents[1] / "reproduce.md"

INTRODUCTION = """\
# Every result of the papers

`docs/scripts/reproduce.py` makes this page of the list that `dgmn reproduce` shows. It has {rows} rows: every row of
Tables 2 to 17 of the paper, among them the {published} published models of the authors' repository. {recipes} have a
recipe here. Scores and costs are the paper's. **No score was measured here:** that needs the datasets, and the
published weights or weeks of GPUs.

<!-- not run: needs COCO; tests/test_reproduce.py runs such commands -->
```bash
dgmn reproduce                            # the whole list; --csv FILE writes it
dgmn reproduce table7                     # the rows of one table
dgmn reproduce retinanet_dgmn2_small      # one row: its commands, what was verified, what was not
dgmn reproduce retinanet_dgmn2_small --data coco      # evaluates it: measured beside published
dgmn reproduce table3_dgmn_c5 --data coco --ckpt_path runs/table3_dgmn_c5/checkpoints/last.ckpt
dgmn complexity --table 7                 # counts parameters and GMACs of the rows, beside the paper's
```

With `--data`, `dgmn validate` evaluates the row's network in float32, with the published weights (fetched at the first
use) or those of `--ckpt_path`, published or your own. `--multi_scale` takes the score at several scales and mirrored.
More options, for instance `--trainer.devices 1`, go to `dgmn validate`; its logs go to `runs/reproduce/ROW`. The exit
code is 1 if a score differs by more than the tolerance: 0.1 points with published weights, for the last printed digit
and for decoders of images; 0.5 points with a training of your own, for its seed. Both are our judgement; neither was
measured. If other images were evaluated than the published score is of, there is no verdict, and the exit code is 1,
too. AP50, AP75 and the APs of sizes are not listed.

In the commands, FILE is what `dgmn zoo download ROW` prints. What was verified names the test that shows it. Equal
outputs mean: the same weights, which are not the published ones, and the same images give the numbers of the original
code. Table 1 is the architecture: `dgmn complexity --table 1` compares it with the built networks.
"""


def page() -> str:
    entries = list(ENTRIES.values())
    counts = {
        "rows": len(entries),
        "published": sum(bool(entry.row.published) for entry in entries),
        "recipes": sum(not entry.row.missing for entry in entries),
    }
    parts = [INTRODUCTION.format(**counts)]
    for number in TABLES:
        parts.append(_section([entry for entry in entries if entry.number == number]))
    return "\n".join(parts)


def _section(entries: list[Entry]) -> str:
    table = entries[0].table
    lines = [f"## Table {entries[0].number}: {table.title}", ""]
    lines += [f"| row | in the paper | {' | '.join(table.metrics)} | cost in the paper |"]
    lines += ["| --- " * (len(table.metrics) + 3) + "|"]
    for entry in entries:
        lines.append(f"| `{entry.name}` | {entry.title} | {' | '.join(entry.row.scores)} | {cost_of(entry)} |")
    lines += ["", f"Scores are for {table.dataset}.", *table.notes, ""]
    lines += _claims("Verified here", entries, {entry.name: verified(entry) for entry in entries})
    lines += _claims(
        "Not verified", entries, {entry.name: [(what, "") for what in not_verified(entry)] for entry in entries}
    )
    commands = [line for entry in entries for line in _commands(entry)]
    if commands:
        lines += ["<!-- not run: needs the papers' datasets -->", "```bash", *commands, "```", ""]
    return "\n".join(lines)


def _claims(title: str, entries: list[Entry], claims: dict[str, list[tuple[str, str]]]) -> list[str]:
    """A list of claims, each with the rows that it is about."""
    rows = defaultdict(list)
    for name, about in claims.items():
        for claim in about:
            rows[claim].append(name)
    if not rows:
        return []
    runnable = [entry.name for entry in entries if not entry.row.missing]
    lines = []
    for (what, test), names in rows.items():
        whose = "all rows" if len(names) == len(entries) else ", ".join(f"`{name}`" for name in names)
        if names == runnable and len(names) < len(entries):
            whose = "all rows with a recipe"
        lines.append(f"* {what}{f' (`{test}`)' if test else ''}: {whose}")
    return [f"{title}:", "", *lines, ""]


def _commands(entry: Entry) -> list[str]:
    return [f"# {entry.name}", *training(entry), *evaluating(entry)] if not entry.row.missing else []


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
