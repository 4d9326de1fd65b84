"""What `dgmn predict` reads, under which names, and what it writes for each; without torch."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from dgmn_base.errors import InputError
from dgmn_base.files import EXTENSIONS, VIDEOS, check_file, find_images
from dgmn_base.terminal import counted

STANDARD_INPUT = "-"
_MOST_BYTES = 2**29  # of standard input: a picture with the most pixels that are accepted is smaller


@dataclass(frozen=True, eq=False)
class Input:
    """An image or video to predict.

    Attributes:
        path: its path.
        name: its name in results: the path as it was given, or from `--root`.
        output: the beginning of the names of files that are written for it, with folders, without an extension.
        content: the image itself, if it came from standard input.
    """

    path: Path
    name: str
    output: Path
    content: bytes | None = None

    @property
    def is_video(self) -> bool:
        return self.content is None and self.path.suffix.lower() in VIDEOS


def find_inputs(
    sources: Sequence[str], root: str | None, written: Sequence[Path], tell: Callable[[str], None], frames: str = ""
) -> list[Input]:
    """What files, folders, globs and `-`, standard input, stand for.

    Folders are mirrored: the names of outputs are paths from `root`, or else from the folder that all sources share.

    Args:
        sources: what the user gave.
        root: the folder that names start from.
        written: folders that results are written to; what lies there is no input, if it is below a folder that is.
        tell: gets a line for everything that is left out.
        frames: why frames of videos cannot be predicted; "" if they can.

    Raises:
        InputError: a source stands for no image, or an image is not below `root`; the message names it.
        OSError: a folder cannot be read.
    """
    if root is not None and not Path(root).is_dir():
        raise InputError(f"--root {root}: there is no such folder")
    given = [source for source in sources if source != STANDARD_INPUT]
    left_out: list[Path] = []
    paths = find_images(given, EXTENSIONS | VIDEOS, left_out)
    for path in left_out:
        try:
            check_file(path)
            tell(f"{path}: {path.suffix} is not read, save it as JPEG or PNG")
        except (InputError, OSError) as error:
            tell(str(error) if isinstance(error, InputError) else f"{path}: {error.strerror}")
    paths = _without(paths, _inside(given, written), tell)
    named = set(map(Path, given))
    frames = frames or ("" if find_spec("av") else "videos need PyAV: pip install 'dgmn[video]'")
    for path in [path for path in paths if frames and path.suffix.lower() in VIDEOS]:
        if path in named:
            raise InputError(f"{path}: {frames}")
        tell(f"{path}: {frames}")
    paths = [path for path in paths if not frames or path.suffix.lower() not in VIDEOS]
    if given and not paths:
        raise InputError(f"{given[0]}: no images are left")
    above = os.path.abspath(root) if root is not None else _shared(given, paths)
    inputs = [_input(path, above, root) for path in paths]
    if STANDARD_INPUT in sources:
        inputs.append(Input(Path(STANDARD_INPUT), "stdin", Path("stdin"), _read_input()))
    return _each_its_own(inputs)


def _inside(sources: Sequence[str], written: Sequence[Path]) -> list[str]:
    """The folders of results that lie below a folder of images."""
    folders = [os.path.realpath(source) for source in sources if os.path.isdir(source)]
    places = map(os.path.realpath, written)
    return [place for place in places if any(place.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)]


def _without(paths: list[Path], folders: Sequence[str], tell: Callable[[str], None]) -> list[Path]:
    for folder in folders:
        kept = [path for path in paths if not os.path.realpath(path).startswith(folder + os.sep)]
        if len(kept) < len(paths):
            images = counted(len(paths) - len(kept), "image")
            tell(f"{folder}: {images} there, because results are written to this folder")
        paths = kept
    return paths


def _shared(sources: Sequence[str], paths: Sequence[Path]) -> str:
    """The folder that all sources lie in; a folder that was given is one of them itself."""
    folders = [os.path.abspath(source) for source in sources if os.path.isdir(source)]
    alone = [path for path in map(os.path.abspath, paths) if not any(_is_below(path, folder) for folder in folders)]
    try:
        return os.path.commonpath([*folders, *map(os.path.dirname, alone)]) if paths else ""
    except ValueError:  # drives of Windows
        raise InputError("the images are on several drives: give those of one drive at a time") from None


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def _input(path: Path, above: str, root: str | None) -> Input:
    place = os.path.abspath(path)
    if not _is_below(place, above):
        raise InputError(f"--root {root}: {path} is not in this folder")
    below = Path(place).relative_to(above)
    return Input(path, os.fspath(path) if root is None else below.as_posix(), below)


def _each_its_own(inputs: Sequence[Input]) -> list[Input]:
    """The inputs with outputs that differ: a.jpg and a.png in one folder keep their extensions.

    Names that differ in capitals only are alike on some disks.
    """
    plain = [_without_extension(each.output) for each in inputs]
    stems = [str(output).casefold() for output in plain]
    counts = Counter(stems)
    taken: set[str] = set()
    found = []
    for each, stem, short in zip(inputs, stems, plain, strict=True):
        output = each.output if counts[stem] > 1 else short
        output = output.with_name(_shortened(output.name))
        while str(output).casefold() in taken:
            output = output.with_name(output.name + "_")
        taken.add(str(output).casefold())
        found.append(Input(each.path, each.name, output, each.content))
    return found


def _without_extension(path: Path) -> Path:
    return path if path.stem in (".", "..") else path.with_suffix("")


def _shortened(name: str) -> str:
    """A name of at most 200 bytes: with what the files of results add, a longer one can be too long for the disk."""
    return os.fsdecode(os.fsencode(name)[:200])


def _read_input() -> bytes:
    """Reads an image from standard input.

    Raises:
        InputError: nothing comes from there, or too much.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("-: nothing comes from standard input; for instance: cat photo.jpg | dgmn predict -")
    content = sys.stdin.buffer.read(_MOST_BYTES + 1)
    if not content:
        raise InputError("-: standard input is empty, an image is needed")
    if len(content) > _MOST_BYTES:
        raise InputError(f"-: more than {_MOST_BYTES:,} bytes from standard input")
    return content
