"""The command `dgmn validate-data`: finds mistakes in a dataset before a long training."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dgmn.cli import make_data
from dgmn.errors import InputError
from dgmn.images import save_image, stacked
from dgmn.pictures import contact_sheet
from dgmn.training.data import ImageData
from dgmn_base.errors import one_line
from dgmn_base.terminal import Progress, counted, format_table

_SHOWN = 30  # problems, and notes, that are printed


def validate_data(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    data = make_data(options.config, overrides, options.trust_code)
    if not isinstance(data, ImageData):
        raise InputError(
            f"-c {options.config[0]}: {type(data).__name__} is not a data module of dgmn, so it cannot be checked"
        )
    shown = Progress()
    report = data.validate(lambda split, total, done: shown.show(done, total, f"{split} images"))
    if report.told:
        print(report.told)
    if report.rows:
        print(format_table(report.header, report.rows))
    if report.samples and options.picture:
        picture = Path(options.picture)
        sheet = contact_sheet(report.samples)
        save_image(stacked([sheet, report.legend(sheet.width)]) if report.legend else sheet, picture)
        print(f"\nsamples: {picture}")
    _print("note", report.notes)
    _print("problem", report.problems)
    if report.problems:
        return 1
    print("\nno mistakes found")
    return 0


def _print(what: str, lines: Sequence[str]) -> None:
    if lines:
        print(f"\n{counted(len(lines), what)}:")
        print("\n".join(f"  {one_line(line)}" for line in lines[:_SHOWN]))
    if len(lines) > _SHOWN:
        print(f"  and {len(lines) - _SHOWN} more")
