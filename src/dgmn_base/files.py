"""Finding the files and folders that a user names, and writing files that are whole or absent."""

import errno
import glob
import json
import os
import secrets
import shutil
import stat
import sys
import time
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from dgmn_base.errors import InputError

_LARGEST = 2**26  # bytes of a file of labels, or of a list of images
_DAY = 86_400  # seconds
_STREAMS = {"/dev/stdout": 1, "/dev/stderr": 2}

EXTENSIONS = frozenset(
    (
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".mpo",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    )
)
UNREAD = frozenset((".arw", ".cr2", ".dng", ".exr", ".heic", ".heif", ".jp2", ".jxl", ".nef", ".psd"))
"""Images that are not read."""
VIDEOS = frozenset((".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm", ".wmv"))


def find_images(
    sources: Sequence[str | os.PathLike[str]],
    extensions: Collection[str] = EXTENSIONS,
    left_out: list[Path] | None = None,
) -> list[Path]:
    """The images that files, folders (with all subfolders) and globs stand for, in order, each once.

    Args:
        sources: the files, folders and globs.
        extensions: what counts as an image in a folder.
        left_out: a list that gets what is named like an image in a folder, but is a pipe, for instance.

    Raises:
        InputError: one of `sources` stands for no image; the message names it.
        OSError: a folder cannot be read.
    """
    found: list[Path] = []
    for source in sources:
        path = Path(source)
        if not os.fspath(source):  # `Path` takes it for the current folder
            raise InputError("image: the path is empty")
        if path.is_dir():
            images = files_in(path, extensions, left_out)
            if not images:
                raise InputError(f"{path}: no images in this folder ({', '.join(sorted(extensions))})")
        elif path.exists():
            check_file(path)
            images = [path]
        else:
            images = sorted(p for p in map(Path, glob.glob(str(source), recursive=True)) if p.is_file())
            if not images:
                raise InputError(f"{source}: no such file, folder or glob")
        found.extend(images)
    return list(dict.fromkeys(found))


def images_in(folder: Path) -> list[Path]:
    """The images in a folder and its subfolders; otherwise as `files_in`."""
    return files_in(folder, EXTENSIONS)


def files_in(folder: Path, extensions: Collection[str], left_out: list[Path] | None = None) -> list[Path]:
    """The files with these extensions in a folder and its subfolders, sorted; none if there is no such folder.

    Hidden files and folders are left out: file managers and notebooks leave them beside images. Links to folders are
    followed, but each folder is read once, so a link to a folder above it does no harm.

    Args:
        folder: the folder.
        extensions: the extensions, in small letters.
        left_out: a list that gets what has such an extension and is no file: a pipe, a broken link and so on; and, if
            images are asked for, images of formats that are not read. Without it, a warning tells how many.

    Raises:
        OSError: a folder cannot be read; it names the folder.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    found: list[Path] = []
    unread: list[Path] = []
    no_files: list[Path] = []
    read: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        here = os.stat(place)
        if (here.st_dev, here.st_ino) in read:
            folders.clear()
            continue
        read.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for path in (Path(place, name) for name in sorted(names) if not is_hidden(name)):
            if path.suffix.lower() in extensions:
                (found if path.is_file() else no_files).append(path)
            elif path.suffix.lower() in UNREAD and EXTENSIONS.issubset(extensions):
                unread.append(path)
    if left_out is not None:
        left_out += [*no_files, *unread]
        return sorted(found)
    if unread:
        kinds = ", ".join(sorted({path.suffix.lower() for path in unread}))
        warnings.warn(f"{folder}: {len(unread)} images are left out, for {kinds} is not read", stacklevel=3)
    if no_files:
        what = f"{len(no_files)} broken links, pipes or folders are left out, such as {no_files[0].name}"
        warnings.warn(f"{folder}: {what}", stacklevel=3)
    return sorted(found)


def folders_in(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted, without hidden ones.

    Raises:
        OSError: the folder cannot be read.
    """
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def is_image(path: Path) -> bool:
    """Whether a file has the extension of an image."""
    return path.suffix.lower() in EXTENSIONS and path.is_file()


def is_file(path: Path) -> bool:
    """Whether there is such a file; false also for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
            raise
        return False


def is_hidden(name: str) -> bool:
    """Whether a name is that of a hidden file or folder."""
    return name.startswith(".")


def check_file(path: str | os.PathLike[str]) -> None:
    """Checks that a path is a file; opening a pipe would wait for its writer, and a device may have no end.

    Raises:
        InputError: it is something else; the message names it.
        OSError: there is nothing, or it cannot be looked at.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise InputError(f"{os.fspath(path)}: {kinds.get(stat.S_IFMT(mode), 'a device')}, a file is needed")


def check_folder(folder: Path, argument: str, given: Path | None = None) -> None:
    """Checks, without making it, that a folder exists or can be made; `given` is what the user gave, if not the folder.

    Raises:
        InputError: a part of its path is a file, or nothing can be written there; the message begins with `argument`.
    """
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise InputError(f"{argument}: {'this' if place == (given or folder) else place} is a file, give a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{argument}: nothing can be written in {place}")


def check_output(file: Path, argument: str) -> None:
    """Checks, without making it, that a file can be written. Devices and pipes may lie in folders that are closed.

    Raises:
        InputError: it is a folder, or nothing can be written in its folder; the message begins with `argument`.
    """
    if file.is_dir():
        raise InputError(f"{argument}: this is a folder, give a file")
    if file.is_file() or not file.exists():
        check_folder(file.parent, argument, file)


def read_json(path: Path) -> Any:
    """The content of a file in JSON.

    Raises:
        InputError: it holds something else; the message names it.
        OSError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))  # Windows' editors put a mark first
    except (RecursionError, ValueError) as error:
        what = "it is empty" if path.stat().st_size == 0 else str(error)
        raise InputError(f"{path}: not JSON ({what})") from error


def read_bytes(file: Path, most: int = _LARGEST) -> bytes:
    """The content of a file.

    Raises:
        InputError: it cannot be read, or has more than `most` bytes; the message names it.
    """
    try:
        check_file(file)
        with file.open("rb") as source:
            content = source.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in its name; or an InputError
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > most:
        raise InputError(f"{file}: more than {most:,} bytes")
    return content


def read_text(file: Path, most: int = _LARGEST, errors: str = "strict") -> str:
    """The content of a file in UTF-8; otherwise as `read_bytes`."""
    try:
        return read_bytes(file, most).decode("utf-8-sig", errors)  # Windows' editors put a mark first
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not text in UTF-8 ({error.reason} at byte {error.start})") from error


def numbered_lines(file: Path) -> list[tuple[int, str]]:
    """The lines of a text that are not empty, without space around them, each with its number from 1."""
    lines = enumerate(read_text(file).split("\n"), 1)  # not splitlines: it also splits at a form feed and others
    return [(i, stripped) for i, line in lines if (stripped := line.strip())]


def check_root(root: Path) -> None:
    """Checks that the folder of the data exists.

    Raises:
        InputError: there is no such folder.
    """
    if root.is_file():
        raise InputError(f"data.root {root}: is a file; give the folder that it lies in")
    if not root.is_dir():
        raise InputError(f"data.root {root}: there is no such folder")


def listing(folder: Path) -> str:
    """What is in a folder, for messages."""
    names = sorted(path.name for path in folder.iterdir())
    return f"found {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" if names else "it is empty"


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of `path` when the block ends; after an error, `path` is as it was before.

    Missing folders are made. A device or pipe, such as /dev/stdout, is written directly.

    Raises:
        InputError: the file cannot be written, for instance because the disk is full; the message names it.
    """
    with _named(path):
        if os.fspath(path) in _STREAMS:  # opened by its name, a file that it goes to would lose what is there
            sys.stdout.flush()
            with os.fdopen(os.dup(_STREAMS[os.fspath(path)]), "wb") as file:
                yield file
            return
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
            return
        target = Path(os.path.realpath(path))  # a link stays a link
        target.parent.mkdir(parents=True, exist_ok=True)
        new, partial = _fresh(target)
        try:
            with new:
                yield new
                new.flush()
                os.fsync(new.fileno())  # otherwise a crash of the machine could leave an empty file
            os.replace(partial, target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _fresh(target: Path) -> tuple[BinaryIO, Path]:
    """A new file beside the target. Another process may be writing the same target, or may have died at it."""
    partial = target.with_name(f".{target.name}.partial")
    with suppress(FileNotFoundError):
        if time.time() - partial.stat().st_mtime > _DAY:
            partial.unlink()
    if partial.exists():
        partial = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.partial")
    try:
        return partial.open("xb"), partial
    except FileExistsError:  # another process was faster
        return _fresh(target)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Gives a new folder that becomes `path` when the block ends; after an error there is no `path`.

    Raises:
        InputError: it cannot be written, for instance because the disk is full; the message names it.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with _named(path):
        try:
            partial.mkdir(parents=True)
            yield partial
            os.replace(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Names the file in errors of the system about it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):  # torch.save raises its own error after it
            cause = cause.__cause__ or cause.__context__
        if cause is None or isinstance(cause, BrokenPipeError):
            raise
        raise InputError(f"{path}: cannot be written: {cause.strerror or cause}") from error
