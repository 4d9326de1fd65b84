"""The error that the command line shows as one line."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something that the user gave is wrong: the message names it and says what is accepted."""


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", before: str = "") -> str:
    """The end of a message about an unknown name: `, did you mean fit?`, or `otherwise` if no known one is near.

    Args:
        name: as it was given.
        known: names that are accepted.
        otherwise: the end if none of them is near.
        before: what stands before a name where it is used.
    """
    near = difflib.get_close_matches(name, list(known), n=2, cutoff=0.7)
    return f", did you mean {' or '.join(before + each for each in near)}?" if near else otherwise
