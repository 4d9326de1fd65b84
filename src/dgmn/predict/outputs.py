"""What the predictions of all tasks write."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgmn.errors import InputError


def checked_folders(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Path]:
    """The folders that were asked for, made; and a file for JSON can be written: before the first hour.

    Raises:
        InputError: a file is where a folder is needed, or the other way round.
    """
    if options.json and Path(options.json).is_dir():
        raise InputError(f"--json {options.json}: a folder, a file is needed")
    folders = {name: Path(getattr(options, name)) for name in names if getattr(options, name)}
    for name, folder in folders.items():
        if folder.is_file():
            raise InputError(f"--{name} {folder}: a file, a folder is needed")
        folder.mkdir(parents=True, exist_ok=True)
    return folders


def write_json(content: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
