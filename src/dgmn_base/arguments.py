"""How the commands read their options: mistakes are told in one line."""

import argparse
import re
from typing import Any, NoReturn

from typing_extensions import override

from dgmn_base.errors import did_you_mean, one_line

STDOUT = "/dev/stdout"
"""What a user gives to get a file on the standard output; then nothing else is printed there."""


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, and suggests a similar option."""

    @override
    def error(self, message: str) -> NoReturn:
        wrong = message.partition("unrecognized arguments: ")[2].split(" ")[0]
        if wrong.startswith("--"):
            message = f"{wrong}: no such option{did_you_mean(wrong, self._option_string_actions)}"
        self.exit(2, f"dgmn: error: {one_line(message)} ({self.prog} --help explains all options)\n")


def add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-code",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="let the recipe name classes of this package, too; can be repeated",
    )


def positive(text: str) -> int:
    number = _whole(text)
    if not number:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1 and below 1,000,000, got {text!r}")
    return number


def port(text: str) -> int:
    number = _whole(text)
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"must be a port from 1 to 65535, got {text!r}")
    return number


def _whole(text: str) -> int:
    """The whole number from 1 to 999,999 that a text is; 0 for any other text."""
    return int(text) if re.fullmatch(r"0*[1-9][0-9]{0,5}", text) else 0


def place(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must be the name of a file or folder, got an empty text")
    if text == "-":
        raise argparse.ArgumentTypeError(f"must be the name of a file or folder, got '-'; {STDOUT} is standard output")
    return text


def share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return share


def point(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be two numbers separated by a comma, X,Y, got {text!r}") from None
    return x, y


def names(text: str) -> list[str]:
    found = list(dict.fromkeys(name for name in text.split(",") if name))
    if not found:
        raise argparse.ArgumentTypeError(f"must name something, separated by commas, got {text!r}")
    return found


def insertion(text: str) -> Any:
    """What `dgmn.insert` gets: a text is the places, separated by commas; in brackets it is YAML, as in recipes."""
    if not text.startswith(("{", "[")):
        return {"places": names(text)}
    import yaml

    from dgmn_base.recipes import check_size

    try:
        check_size(text)
        return yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise argparse.ArgumentTypeError(f"must be places or YAML with places in it, got {text!r} ({reason})") from None


def sizes(text: str) -> list[tuple[int, int]]:
    sizes = [_numbers(part, (1, 2), "224 or 512x1024") for part in names(text)]
    return [(size[0], size[-1]) for size in sizes]


def shapes(text: str) -> list[str]:
    for part in names(text):
        _numbers(part, (5,), "BxHxWxHEADSxD, for instance 4x56x56x1x64")
    return names(text)


def _numbers(text: str, count: tuple[int, ...], form: str) -> list[int]:
    numbers = [_whole(part) for part in text.split("x")]
    if len(numbers) not in count or not all(numbers):
        raise argparse.ArgumentTypeError(f"must be {form}, got {text!r}")
    return numbers
