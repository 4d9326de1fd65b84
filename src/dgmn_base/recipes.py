"""Recipes: the YAML files that come with dgmn, and the user's own."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from dgmn_base.errors import InputError


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
