"""The error that the command line shows as one line."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something that the user gave is wrong: the message names it and says what is accepted."""


def one_line(text: str) -> str:
    """A message as one line; the middle of a very long one, such as a path of 4000 characters, is left out."""
    line = "\\n".join(text.strip().splitlines())  # a file's name may hold the end of a line
    half = _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[:half]} ... {line[-half:]}"


_LONGEST = 2000


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
