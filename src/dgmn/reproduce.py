"""The command `dgmn reproduce ROW --data FOLDER`: evaluates a row of the paper's tables."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dgmn.report import say
from dgmn.weights import fetch
from dgmn.weights.shared import read_weights
from dgmn_base.files import check_root
from dgmn_base.paper import Entry
from dgmn_base.paper.commands import AT_SCALES, scores
from dgmn_base.paper.listing import write_csv
from dgmn_base.terminal import counted, format_table

IMAGES = {"ImageNet-1k val": 50_000, "COCO val2017": 5_000, "Cityscapes val": 500}
"""How many images the scores of a dataset are for."""

PUBLISHED_TOLERANCE = 0.1
"""Points that published weights may differ by: the last printed digit, and decoders of images."""

TRAINED_TOLERANCE = 0.5
"""Points that a training of one's own may differ by: a usual difference between seeds, which was not measured here."""

_LOGGED = {
    "top-1": "val/top1",
    "box AP": "val/box_AP",
    "mask AP": "val/mask_AP",
    "mIoU": "val/miou",
    AT_SCALES: "val/miou",
}


def reproduce(entry: Entry, options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Evaluates a row and prints the measured score beside the published one.

    Args:
        entry: the row.
        options: those of the command: `ckpt_path`, `multi_scale` and `csv`.
        arguments: those of `dgmn validate`, from [`check_evaluation`][dgmn_base.paper.commands.check_evaluation].

    Returns:
        1 if a score differs by more than the tolerance, or is of other images than the published one; else 0.

    Raises:
        InputError (a ValueError): the weights do not fill the network, or the data is wrong.
        ConnectionError: the published weights cannot be fetched.
    """
    from dgmn.cli import evaluate

    arguments = list(arguments)
    check_root(Path(arguments[arguments.index("--data.root") + 1]))  # before anything is fetched
    place = arguments.index("--model.checkpoint") + 1
    weights = Path(arguments[place] or fetch(entry.row.published))
    # Only networks that were trained or saved here describe themselves.
    trained = read_weights(weights).description is not None
    tolerance = TRAINED_TOLERANCE if trained else PUBLISHED_TOLERANCE
    arguments[place] = str(weights)
    logged, images = evaluate(arguments)
    if not logged:  # another process reports
        return 0
    rows, near = [], True
    for metric, score in scores(entry, options.multi_scale).items():
        measured = 100 * logged[_LOGGED[metric]]
        difference = measured - float(score)
        near &= abs(difference) <= tolerance
        rows.append((metric, f"{measured:.2f}", score, f"{difference:+.2f}", f"{tolerance:g}"))
    print(f"\n{format_table((entry.name, 'measured', 'published', 'difference', 'tolerance'), rows)}")
    dataset = entry.table.dataset
    if images == IMAGES[dataset]:
        whose = "a training of your own; seeds differ, too" if trained else "the published weights"
        say(f"{'within' if near else 'outside'} the tolerance, in points, for {whose}")
    else:
        published = f"the published score of the {IMAGES[dataset]:,} of {dataset}"
        say(f"no verdict: this score is of {counted(images, 'image')}, {published}")
        near = False
    if options.csv:
        measured_scores = ", ".join(f"{metric} {value}" for metric, value, *_ in rows)
        columns = {"measured": measured_scores, "tolerance": f"{tolerance:g}", "weights": str(weights)}
        write_csv(Path(options.csv), [entry], {**columns, "images": str(images)})
    return 0 if near else 1
