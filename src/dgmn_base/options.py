"""Finds mistakes in the options of `dgmn fit`, `validate`, `test` and `validate-data` without heavy imports.

It reads the known options from the source code. The real parser finds all other mistakes.
"""

import ast
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dgmn_base.errors import InputError, did_you_mean
from dgmn_base.files import check_folder, check_root
from dgmn_base.recipes import package_folder, read_recipe, with_recipes
from dgmn_base.runs import checkpoint_of

# Options of `dgmn predict` that have a meaning for one task only.
_OF_TASK = {
    "top": "classification",
    "score": "detection",
    "multi_scale": "segmentation",
    "submission": "segmentation",
}
_TOP = (
    "config",
    "ckpt_path",
    "data",
    "model",
    "print_config",
    "seed_everything",
    "trainer",
    "trust-code",
    "help",
    "help-all",
    "c",
)
_OF_CLASSES = ("class_path", "init_args", "dict_kwargs", "help")  # what jsonargparse accepts for any class


def is_given(options: Namespace, name: str) -> bool:
    """Whether the user gave an option of the command line; 0 counts as given."""
    value = getattr(options, name)
    return value is not None and value is not False


def check_task(options: Namespace, task: str) -> None:
    """Checks that the options of `dgmn predict` fit the task of the model.

    Raises:
        InputError: the user gave an option of another task.
    """
    if task == "classification" and is_given(options, "labels"):
        raise InputError("--labels is for segmentation and detection, this model is for classification")
    for option, its_task in _OF_TASK.items():
        if task != its_task and is_given(options, option):
            raise InputError(f"--{option} is for {its_task}, this model is for {task}")


def checked_arguments(command: str, arguments: Sequence[str]) -> list[str]:
    """Checks the arguments of a training command, and replaces the name of every recipe by its path.

    Args:
        command: "fit", "validate", "test" or "validate-data".
        arguments: what follows the command on the command line.

    Raises:
        InputError: a recipe, checkpoint, folder or option does not exist, or a new run would overwrite an existing one.
    """
    arguments = with_recipes(arguments)
    given = dict(_options(arguments))
    recipe = _merged(value for name, value in _options(arguments) if name in ("c", "config"))
    for name in given:
        _check_option(name, _class_of("data", given, recipe), _class_of("model", given, recipe))
    if "print_config" in given or any(name.endswith("help") for name in given):
        return arguments
    if command != "validate-data":
        root = given.get("trainer.default_root_dir") or _value(recipe, "trainer", "default_root_dir") or "runs/unnamed"
        check_folder(Path(str(root)), f"--trainer.default_root_dir {root}")
        checkpoint_of(command, given.get("ckpt_path"), Path(str(root)))
    start = given.get("model.checkpoint") or _value(recipe, "model", "init_args", "checkpoint")
    if command == "fit" and "ckpt_path" not in given and start not in (None, "null") and not Path(str(start)).exists():
        raise InputError(f"--model.checkpoint {start}: no such file")
    folder = given.get("data.root", _value(recipe, "data", "init_args", "root"))
    ours = _class_of("data", given, recipe).startswith("dgmn.")
    # A file may be a list of images; data that takes none says so.
    if ours and isinstance(folder, str) and folder != "null" and not Path(folder).is_file():
        check_root(Path(folder))
    return arguments


def trusted_packages(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The packages that `--trust-code` names, and all other arguments.

    Raises:
        InputError: the option has no value.
    """
    trusted: list[str] = []
    others = []
    parts = iter(arguments)
    for part in parts:
        name, equals, value = part.partition("=")
        if name != "--trust-code":
            others.append(part)
            continue
        package = value if equals else next(parts, "")
        if not package:
            raise InputError("--trust-code: give the name of a package")
        trusted.append(package)
    return trusted, others


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Name and value of every option, in order; if a name comes twice, the later one counts."""
    for i, argument in enumerate(arguments):
        if not argument.startswith("-") or _is_number(argument):
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        following = arguments[i + 1] if i + 1 < len(arguments) else None
        yield name.removesuffix("+"), value if equals else following


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _merged(recipes: Iterator[str | None]) -> dict[str, Any]:
    """The content of all recipes; values of a later recipe replace those of an earlier one."""
    merged: dict[str, Any] = {}
    for recipe in recipes:
        merged = _over(merged, read_recipe(recipe or ""))
    return merged


def _over(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    merged = {**old, **new}
    for name in old.keys() & new.keys():
        if isinstance(old[name], dict) and isinstance(new[name], dict):
            merged[name] = _over(old[name], new[name])
    return merged


def _value(recipe: Mapping[str, Any], *path: str) -> Any:
    found: Any = recipe
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _class_of(section: str, given: Mapping[str, str | None], recipe: Mapping[str, Any]) -> str:
    """The class path of a section; "" if it is unknown."""
    named = given.get(section) or given.get(f"{section}.class_path") or _value(recipe, section, "class_path")
    return named if isinstance(named, str) else ""


def _check_option(option: str, data: str, model: str) -> None:
    section, *names = option.split(".")
    if section not in _TOP:
        raise InputError(f"--{option}: no such option{did_you_mean(section, _TOP, before='--')}")
    if section == "trainer":
        classes: Mapping[str, Any] = {"Trainer": _trainer()}
        start = "Trainer"
    elif section in ("data", "model"):
        start = {"data": data, "model": model}[section]
        classes = _classes(start)
        start = start.rpartition(".")[2]
    else:
        return
    names = [name for name in names if name != "init_args"]
    path = section
    known = classes.get(start)
    for name in names:
        if known is None or name in _OF_CLASSES:
            return
        if name not in known:
            hint = did_you_mean(name, known, "; --help-all explains every option", f"--{path}.")
            raise InputError(f"--{option}: no such option{hint}")
        path += f".{name}"
        known = classes.get(known[name])


@cache
def _classes(class_path: str) -> dict[str, dict[str, str]]:
    """All classes in the folder of a class of ours, with their arguments and types; {} for other packages' classes."""
    folder = package_folder() / "/".join(class_path.split(".")[1:2])
    if not class_path.startswith("dgmn.") or not folder.is_dir():
        return {}
    found = {}
    for file in sorted(folder.glob("*.py")):
        for node in _parsed(file):
            if isinstance(node, ast.ClassDef):
                found[node.name] = _arguments(node)
    return {name: arguments for name, arguments in found.items() if arguments}


@cache
def _trainer() -> dict[str, str] | None:
    places = (Path(folder) / "lightning/pytorch/trainer/trainer.py" for folder in sys.path)
    file = next((place for place in places if place.is_file()), None)
    body = [] if file is None else _parsed(file)
    return next((_arguments(node) for node in body if isinstance(node, ast.ClassDef) and node.name == "Trainer"), None)


def _parsed(file: Path) -> list[ast.stmt]:
    return ast.parse(file.read_text(encoding="utf-8")).body


def _arguments(node: ast.ClassDef) -> dict[str, str]:
    """Arguments of a class's constructor, or fields of a dataclass, with their types."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            arguments = [*part.args.args[1:], *part.args.kwonlyargs]
            return {argument.arg: ast.unparse(argument.annotation or ast.Name("")) for argument in arguments}
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        fields = (part for part in node.body if isinstance(part, ast.AnnAssign))
        return {ast.unparse(field.target): ast.unparse(field.annotation) for field in fields}
    return {}
