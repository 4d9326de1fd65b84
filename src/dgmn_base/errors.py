"""The error that the command line shows as one line."""

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


class InputError(ValueError):
    """Something that the user gave is wrong: the message names it and says what is accepted."""


def check_number(name: str, number: Any, at_least: int = 1) -> None:
    """Checks that `number` is a whole number of at least `at_least`.

    Raises:
        InputError: it is not.
    """
    if isinstance(number, bool) or not isinstance(number, Integral) or not int(number) >= at_least:
        wanted = "whole numbers" if name.endswith("rates") else "a whole number"
        raise InputError(f"{name} must be {wanted} of at least {at_least}, got {number!r}")


def check_share(name: str, number: Any) -> None:
    """Checks that `number` is in 0..1.

    Raises:
        InputError: it is not.
    """
    if not isinstance(number, Real) or not 0 <= float(number) <= 1:
        raise InputError(f"{name} must be in 0..1, got {number!r}")


def check_flag(name: str, value: Any) -> None:
    """Checks that `value` is true or false: a text such as "false" would count as true.

    Raises:
        InputError: it is neither.
    """
    if not isinstance(value, bool):
        raise InputError(f"{name} must be True or False, got {value!r}")


def check_finite(name: str, number: Any) -> None:
    """Checks that `number` is a finite number.

    Raises:
        InputError: it is not.
    """
    if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number):
        raise InputError(f"{name} must be a finite number, got {number!r}")


def one_line(text: str) -> str:
    """A message as one line; the middle of a very long one, such as a path of 4000 characters, is left out."""
    line = "\\n".join(text.strip().splitlines())  # a file's name may hold the end of a line
    half = _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[:half]} ... {line[-half:]}"


_LONGEST = 2000


def first_line(error: BaseException) -> str:
    """What an error says first, or the name of its type where it says nothing."""
    return str(error).strip().partition("\n")[0].strip()[:200] or type(error).__name__


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", before: str = "") -> str:
    """The end of a message about an unknown name: `, did you mean fit?`, or `otherwise` if no known one is near.

    Args:
        name: the unknown name, as the user gave it.
        known: names that are accepted.
        otherwise: the end of the message if no known name is near.
        before: what the user writes before such a name, for instance `--`.
    """
    near = difflib.get_close_matches(name, list(known), n=2, cutoff=0.7)
    return f", did you mean {' or '.join(before + each for each in near)}?" if near else otherwise
