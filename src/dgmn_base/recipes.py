"""Recipes: the YAML files that come with dgmn, and the user's own."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgmn_base.errors import InputError

# Far above any recipe. YAML's aliases make gigabytes of a few lines.
_LARGEST = 2**20
_DEEPEST = 50
_SECTIONS = {"model", "data", "trainer", "seed_everything", "ckpt_path"}
_MOST_VALUES = 100_000


def package_folder() -> Path:
    """The folder of the package `dgmn`, which is next to this package."""
    return Path(__file__).parent.parent / "dgmn"


def recipe_names() -> list[str]:
    """The recipes that come with dgmn, as -c takes them."""
    package = package_folder()
    return sorted(path.relative_to(package).as_posix() for path in package.glob("recipes/**/*.yaml"))


def find_recipe(name: str) -> Path:
    """Finds a recipe: the user's file, or a recipe that comes with dgmn.

    Raises:
        InputError: there is no such recipe; the message suggests similar names, or lists all.
    """
    package = package_folder()
    for path in (Path(name), package / name, package / "recipes" / name):
        if path.is_file():
            return path
    names = recipe_names()
    stems = difflib.get_close_matches(Path(name).stem, [Path(known).stem for known in names], n=2, cutoff=0.6)
    near = " or ".join(known for known in names if Path(known).stem in stems)
    hint = f", did you mean {near}?" if near else f"; dgmn comes with {', '.join(names)}"
    raise InputError(f"-c {name}: no such recipe{hint}")


def with_recipes(arguments: Sequence[str]) -> list[str]:
    """Replaces the name in every `-c NAME` by its path; see [`find_recipe`][dgmn_base.recipes.find_recipe]."""
    resolved = []
    for i, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        if flag in ("-c", "--config") and value:
            argument = f"{flag}={find_recipe(value)}"
        elif i > 0 and arguments[i - 1] in ("-c", "--config"):
            argument = str(find_recipe(argument))
        resolved.append(argument)
    return resolved


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The content of a recipe.

    Raises:
        InputError: the file cannot be read, is no YAML, has no sections, or is too large or too deep for a recipe.
    """
    import yaml

    try:
        with Path(path).open("rb") as file:
            text = file.read(_LARGEST + 1).decode()
        check_size(text)
        content = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"-c {path}: {' '.join(str(error).split())}") from error
    if (
        not isinstance(content, dict)
        or not all(isinstance(name, str) for name in content)
        or not {name.partition(".")[0] for name in content} & _SECTIONS
    ):
        raise InputError(f"-c {path}: a recipe has sections such as model and data, got {_shown(content)}")
    if not isinstance(content.get("trainer"), dict | str | None):  # a text names a file that is included
        raise InputError(f"-c {path}: trainer must be a section with options, got {_shown(content['trainer'])}")
    return content


def check_size(text: str, what: str = "a recipe") -> None:
    """Checks the size of a text in YAML or JSON, how deep it is nested, and how much its aliases repeat.

    Args:
        text: the text.
        what: what it is, in messages.

    Raises:
        InputError: it is too large or too deep for a recipe.
        yaml.YAMLError: it is no YAML.
    """
    import yaml

    if len(text) > _LARGEST:
        raise InputError(f"{what} has at most {_LARGEST} characters, this one has more")
    too_deep = f"{what} is nested at most {_DEEPEST} deep, this one is deeper"
    sizes: dict[str, int] = {}  # of the values that aliases repeat
    around: list[tuple[str | None, int]] = []  # anchor and size of every value that is not complete yet
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            anchor, size = getattr(event, "anchor", None), 1
            if isinstance(event, yaml.CollectionStartEvent):
                around.append((anchor, size))
                if len(around) > _DEEPEST:
                    raise InputError(too_deep)
                continue
            if isinstance(event, yaml.CollectionEndEvent):
                anchor, size = around.pop()
            elif isinstance(event, yaml.AliasEvent):
                anchor, size = None, sizes.get(anchor or "", _MOST_VALUES)  # an unknown size: the value repeats itself
            if anchor is not None:
                sizes[anchor] = size
            if around:
                size += around[-1][1]
                around[-1] = (around[-1][0], size)
            if size > _MOST_VALUES:
                raise InputError(f"{what} has at most {_MOST_VALUES} values, this one has more or repeats itself")
    except yaml.YAMLError as error:
        if "maximum nesting depth" in str(error):
            raise InputError(too_deep) from error
        raise


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
