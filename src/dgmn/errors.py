"""The error that the command line shows as one line, and helpers that raise it."""

from dgmn_base.errors import (
    InputError,
    check_finite,
    check_flag,
    check_number,
    check_share,
    did_you_mean,
    first_line,
)

__all__ = ["InputError", "check_finite", "check_flag", "check_number", "check_share", "did_you_mean", "first_line"]
