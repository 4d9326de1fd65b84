"""Finding the files and folders that a user names."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from dgmn_base.errors import InputError

EXTENSIONS = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))


def find_images(sources: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The images that files, folders (with all subfolders) and globs stand for, in order, each once.

    Raises:
        InputError: one of `sources` stands for no image; the message names it.
    """
    found: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            images = sorted(p for p in path.rglob("*") if is_image(p) and not is_hidden(p.relative_to(path)))
            if not images:
                raise InputError(f"{path}: no images in this folder ({', '.join(sorted(EXTENSIONS))})")
        elif path.is_file():
            images = [path]
        else:
            images = sorted(p for p in map(Path, glob.glob(str(source), recursive=True)) if p.is_file())
            if not images:
                raise InputError(f"{source}: no such file, folder or glob")
        found.extend(images)
    return list(dict.fromkeys(found))


def is_image(path: Path) -> bool:
    """Whether a file has the extension of an image."""
    return path.suffix.lower() in EXTENSIONS and path.is_file()


def is_hidden(path: Path) -> bool:
    """Whether a relative path has a hidden part: file managers and notebooks leave such files beside images."""
    return any(part.startswith(".") for part in path.parts)


def check_root(root: Path) -> None:
    """Checks that the folder of the data exists.

    Raises:
        InputError: there is no such folder.
    """
    if not root.is_dir():
        raise InputError(f"data.root {root}: there is no such folder")


def listing(folder: Path) -> str:
    """What is in a folder, for messages."""
    names = sorted(path.name for path in folder.iterdir())
    return f"found {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" if names else "it is empty"
