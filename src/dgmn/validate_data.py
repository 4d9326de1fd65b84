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

_SHOWN = 30  # problems that are printed


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
    if not report.problems:
        print("\nno mistakes found")
        return 0
    print(f"\n{counted(len(report.problems), 'problem')}:")
    print("\n".join(f"  {one_line(problem)}" for problem in report.problems[:_SHOWN]))
    if len(report.problems) > _SHOWN:
        print(f"  and {len(report.problems) - _SHOWN} more")
    return 1
