"""What a recipe may name. A recipe is data: reading it runs no code that its author chose."""

import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader, set_parsing_settings
from jsonargparse._common import parsing_settings

from dgmn.errors import InputError
from dgmn_base.recipes import check_size

PACKAGES = ("dgmn", "lightning", "timm", "torch", "torchvision")
"""A recipe may name the classes of these packages."""

# Functions that read an image. A run's own config.yaml names the one of its dataset.
_READERS = "torchvision.datasets.folder"


@contextmanager
def only_classes(trusted: Sequence[str] = ()) -> Iterator[None]:
    """Lets the parser of recipes and options import nothing but classes of [`PACKAGES`] and of trusted packages.

    The parser itself checks that a class fits the type of its place, and where the class is really defined. It would
    take functions, too, at the places for anything that can be called.

    Args:
        trusted: names of more packages, which the user trusts.

    Raises:
        InputError: a trusted package has no valid name, or comes with Python.
    """
    for name in trusted:
        if not name.isidentifier() or name in sys.stdlib_module_names or name in ("builtins", "jsonargparse"):
            raise InputError(f"--trust-code {name}: give the name of a package that is not a part of Python")
    packages = (*PACKAGES, *trusted)
    load = get_loader("yaml")
    before = dict(parsing_settings)

    def checked(text: str) -> Any:
        check_size(text)
        content = load(text)
        _refuse_functions(content, packages)
        return content

    set_parsing_settings(
        import_path_denylist=["*"], import_path_allowlist=list(packages), instantiate_subclass_spec_in_any=False
    )
    set_loader("yaml", checked, (yaml.YAMLError,))
    try:
        yield
    finally:
        set_loader("yaml", load, (yaml.YAMLError,))
        parsing_settings.update(before)


def _refuse_functions(content: Any, packages: Sequence[str], place: str = "") -> None:
    if isinstance(content, dict | list):
        for name, value in content.items() if isinstance(content, dict) else enumerate(content):
            _refuse_functions(value, packages, f"{place}.{name}".removeprefix("."))
    elif isinstance(content, str) and content.partition(".")[0] in packages:
        if any(part.startswith("_") for part in content.split(".")):  # importing such a module may run a program
            raise InputError(f"{place}: {content} {_FUNCTION}".removeprefix(": "))
        try:
            found = pkgutil.resolve_name(content)
        except (AttributeError, ImportError, ValueError):  # not the path of anything
            return
        if callable(found) and not inspect.isclass(found) and getattr(found, "__module__", "") != _READERS:
            raise InputError(f"{place}: {content} {_FUNCTION}".removeprefix(": "))


_FUNCTION = "is refused: a class is accepted, never a function"
# What the parser says of something that may not be named, and how we say it.
_REFUSALS = {
    rf"((?:[\w.]+: )?\S+ {_FUNCTION})": "{0}",
    r"Importing '([^']+)' is not allowed": "{0} is refused: classes of " + ", ".join(PACKAGES) + " are accepted",
    r"Expected '([^']+)' to be a (?:subclass of|function that returns) <class '(\w+)'>": "{0} is refused: "
    "a subclass of {1} is accepted",
    r"Import path (\S+) does not correspond to a subclass of (\w+)": "{0} is refused: a subclass of {1} is accepted",
    r"does not correspond to a subclass of (\w+)(?:.|\n)*Given value: (\S+)": "{1} is refused: a subclass of {0} is "
    "accepted",
}


def causes(error: BaseException) -> list[BaseException]:
    """An error, what caused it, and so on. Some chains of the parser's errors form a circle."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def explained(error: Exception) -> InputError | None:
    """Says where a recipe or an option names something that it may not name; None if the error is another one."""
    texts = [str(each) for each in causes(error)]
    for pattern, message in _REFUSALS.items():
        found = next(filter(None, (re.search(pattern, text) for text in texts)), None)
        if found is not None:
            names = re.findall(r'(?:Parser key "|--)([\w.]+)', texts[0])
            root = found[1].partition(".")[0]
            outside = "Importing" in pattern and root not in sys.stdlib_module_names
            hint = f"; if you trust the code of {root}, add --trust-code {root}" if outside else ""
            place = ".".join(dict.fromkeys(names))
            return InputError(f"{place}: {message.format(*found.groups())}{hint}".removeprefix(": "))
    return None
