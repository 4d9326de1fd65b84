"""Classes of a dataset, and masks: images whose pixels are class numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dgmn.errors import InputError
from dgmn.images import opened
from dgmn.pictures import distinct_colors
from dgmn.segmentation.losses import IGNORED
from dgmn_base.files import read_json, read_text

Color = tuple[int, int, int]

_STRETCHED = {"L;2": 85, "L;4": 17}
"""What Pillow multiplies greyscale values of 2 and 4 bits with."""

BACKGROUND = ("background", "_background_", "__background__")
"""Names, in small letters, of the class that is the rest of an image. It is black, and no overlay paints it."""


@dataclass(frozen=True)
class Classes:
    """What the pixels of masks mean.

    Attributes:
        names: names of the classes, in the order of the network's outputs.
        colors: colours of the classes in pictures.
        ids: value of each class in a mask.
        ignored: values in a mask for pixels without a label, besides 255.
        by_color: masks may be coloured: the colours of their pixels are those of the classes.
        ignored_colors: colours in such a mask for pixels without a label.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    ids: tuple[int, ...]
    ignored: tuple[int, ...] = ()
    by_color: bool = False
    ignored_colors: tuple[Color, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= 255:
            raise InputError(f"classes: 2 to 255 are accepted, got {len(self.names)}")
        if not len(self.names) == len(self.colors) == len(self.ids):
            raise InputError("classes: names, colors and ids must have the same length")
        twice = [name for name in self.names if self.names.count(name) > 1]
        if twice:
            raise InputError(f"classes: {twice[0]!r} is there twice")
        known = [*self.ids, *self.ignored]
        odd = [i for i in known if not 0 <= i <= 255 or (i == IGNORED and i in self.ids)] or [
            i for i in known if known.count(i) > 1
        ]
        if odd:
            raise InputError(f"classes: ids must be different and in 0..254, got {odd[0]}")
        shared = [color for color in self.colors if (*self.colors, *self.ignored_colors).count(color) > 1]
        if self.by_color and shared:
            names = [name for name, color in zip(self.names, self.colors, strict=True) if color == shared[0]]
            raise InputError(f"classes: the colour {shared[0]} of {' and '.join(names)} is there twice")

    def table(self) -> NDArray[np.int16]:
        """The class of each value of a mask: 255 for no label, -1 for any other value."""
        table = np.full(256, -1, np.int16)
        table[[IGNORED, *self.ignored]] = IGNORED
        table[list(self.ids)] = np.arange(len(self.ids))
        return table


def default_colors(names: Sequence[str]) -> tuple[Color, ...]:
    """Colours for classes that nobody has given colours: background is black, as in Pascal VOC's palette."""
    others = iter(distinct_colors(len(names)))
    return tuple((0, 0, 0) if name.lower() in BACKGROUND else next(others) for name in names)


def painted_colors(names: Sequence[str], colors: Sequence[Color]) -> tuple[Color | None, ...]:
    """The colours of classes in an overlay: None for background, whose pixels stay as they are."""
    return tuple(None if name.lower() in BACKGROUND else color for name, color in zip(names, colors, strict=True))


def named(
    names: Sequence[str],
    colors: Sequence[Color] | None = None,
    ids: Sequence[int] | None = None,
    ignored: Sequence[int] = (),
) -> Classes:
    """Classes whose value in masks is their index in the list, or that in `ids`."""
    values = range(len(names)) if ids is None else ids
    return Classes(tuple(names), tuple(colors or default_colors(names)), tuple(values), tuple(ignored))


def read_classes(path: Path) -> Classes:
    """Reads a file of classes.

    A `.txt` file holds one name per line; the first is 0 in masks. A `.json` file holds a list of names, or of objects
    with `name` and optionally `color` ([r, g, b]) and `id` (the value in masks). The list stands alone or under the key
    `classes`. A key `ignored` beside it may list values without a label. 255 never has a label.

    Raises:
        InputError: the file does not exist, or holds something else; the message says what.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; it must list the classes, one name per line (.txt), or as .json")
    if path.suffix != ".json":
        lines = [line.strip() for line in read_text(path).rstrip().splitlines()]
        if "" in lines:
            raise InputError(
                f"{path}: line {lines.index('') + 1} is empty; a class's number is the position of its line"
            )
        return _checked(path, lines, ())
    content = read_json(path)
    ignored: Any = ()
    if isinstance(content, dict):
        ignored, content = content.get("ignored", ()), content.get("classes")
    if not isinstance(content, list) or not content:
        raise InputError(f"{path}: expected a list of names, or of objects with name, color and id")
    return _checked(path, content, ignored)


def _checked(path: Path, entries: list[Any], ignored: Any) -> Classes:
    names: list[str] = []
    given_colors: list[Any] = []
    ids: list[int] = []
    for i, given in enumerate(entries):
        entry: Any = {"name": given} if isinstance(given, str) else given
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise InputError(f"{path}: class {i} has no name: {entry!r}")
        color = entry.get("color")
        if "color" in entry and (
            not isinstance(color, list | tuple)
            or len(color) != 3
            or not all(type(c) is int and 0 <= c <= 255 for c in color)
        ):
            raise InputError(f"{path}: the color of {entry['name']} must be [r, g, b] of 0..255, got {color!r}")
        number = entry.get("id", entry.get("train_id", i))
        if not isinstance(number, int) or isinstance(number, bool):
            raise InputError(f"{path}: the id of {entry['name']} must be a whole number, got {number!r}")
        names.append(entry["name"])
        given_colors.append(color)
        ids.append(number)
    if not isinstance(ignored, list | tuple) or not all(type(i) is int for i in ignored):
        raise InputError(f"{path}: ignored must be a list of whole numbers, got {ignored!r}")
    colors = [
        default if color is None else (color[0], color[1], color[2])
        for color, default in zip(given_colors, default_colors(names), strict=True)
    ]
    try:
        return Classes(tuple(names), tuple(colors), tuple(ids), tuple(ignored))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_mask(path: Path, classes: Classes, palette: bool = False) -> NDArray[np.uint8]:
    """Reads a mask as class numbers; 255 is no label.

    Args:
        path: a greyscale image, of any number of bits, whose values are the ids of the classes.
        classes: the classes that these ids belong to.
        palette: also accept images with a palette; their indices are the ids, and their colours mean nothing.

    Raises:
        InputError: the mask is missing, damaged, of another form, or holds a value that no class has; the message
            names the file.
    """
    try:
        with opened(path, str(path), "mask") as image:
            mode, form = image.mode, image.format
            tiles = getattr(image, "tile", None)  # how it is stored; only images from files have them
            stored = tiles[0][3] if tiles else None
            values = np.asarray(image)
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing mask") from error
    expected = "a mask is a greyscale image (PNG) whose values are class numbers"
    if form in ("JPEG", "MPO", "WEBP", "AVIF"):
        raise InputError(f"{path}: {form} does not keep the values of pixels; {expected}")
    if classes.by_color and (mode in ("RGB", "RGBA") or (mode == "P" and not palette)):
        return _by_color(path, classes)
    if mode == "P" and not palette:
        raise InputError(
            f"{path}: a mask with a palette. If its indices are the class numbers, as in PASCAL VOC, say so: "
            "--data.palette_masks true"
        )
    if isinstance(stored, str) and stored in _STRETCHED:  # tools that make PNG files small write so
        values = values // _STRETCHED[stored]
    is_wide = mode == "I" or mode.startswith("I;16")  # some tools write 16 bits, whatever the values are
    if mode not in ("1", "L", "P") and not is_wide:
        what = "colours" if mode in ("RGB", "RGBA") else f"pixels of mode {mode}"
        raise InputError(f"{path}: has {what}; {expected}")
    mapped = classes.table()[values.astype(np.uint8)]
    if is_wide:
        mapped[values != values.astype(np.uint8)] = -1
    if mapped.min(initial=0) < 0:
        odd = sorted(set(np.unique(values).tolist()) - set(np.flatnonzero(classes.table() >= 0).tolist()))
        accepted = sorted(classes.ids)
        spread = f"{accepted[0]}..{accepted[-1]}" if accepted == list(range(len(accepted))) else str(accepted)
        raise InputError(
            f"{path}: holds {', '.join(map(str, odd[:5]))}{' ...' if len(odd) > 5 else ''}, which no class has; "
            f"the {len(classes.ids)} classes are {spread}, 255 is no label"
        )
    return mapped.astype(np.uint8)


def packed(color: Sequence[int]) -> int:
    """A colour as one number, R + 256 G + 65536 B: COCO's id of a segment."""
    return color[0] + 256 * color[1] + 65536 * color[2]


def looked_up(values: NDArray[np.int32], classes: Mapping[int, int]) -> tuple[NDArray[np.uint8], list[int]]:
    """The class of each value, and the values that have none."""
    known = np.array(sorted(classes), np.int32)
    of_known = np.array([classes[value] for value in known.tolist()], np.uint8)
    places = np.searchsorted(known, values).clip(max=len(known) - 1)
    odd = values[known[places] != values]
    return of_known[places], np.unique(odd).tolist()


def read_colors(path: Path) -> NDArray[np.int32]:
    """The colours (H, W) in an image of masks, each as one number; it may have a palette. Errors as of `read_mask`."""
    try:
        with opened(path, str(path), "mask") as image:
            pixels = np.asarray(image.convert("RGB").convert("RGBX"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing mask") from error
    numbers: NDArray[np.int32] = pixels.view("<i4")[..., 0] & 0xFFFFFF
    return numbers


def _by_color(path: Path, classes: Classes) -> NDArray[np.uint8]:
    of_color = {packed(color): i for i, color in enumerate(classes.colors)}
    of_color |= dict.fromkeys(map(packed, classes.ignored_colors), IGNORED)
    labels, odd = looked_up(read_colors(path), of_color)
    if odd:
        told = ", ".join(str((code & 255, code >> 8 & 255, code >> 16)) for code in odd[:3])
        raise InputError(
            f"{path}: the colour {told}{' ...' if len(odd) > 3 else ''} is of no class in the list of colours"
        )
    return labels


def palette_colors(path: Path) -> dict[int, Color]:
    """The colours that the indices in a mask have in its palette; empty for a mask without a palette."""
    with opened(path, str(path), "mask") as image:
        palette = image.getpalette("RGB") if image.mode == "P" else None
        if palette is None:
            return {}
        used = np.unique(np.asarray(image)).tolist()
    colors = [(palette[i], palette[i + 1], palette[i + 2]) for i in range(0, len(palette) - 2, 3)]
    return {index: colors[index] for index in used if index < len(colors)}


class Palettes:
    """Compares the palettes of masks: an index with two colours probably means two classes."""

    def __init__(self) -> None:
        self._first: dict[int, tuple[Color, Path]] = {}

    def compare(self, path: Path) -> str | None:
        """How a mask's palette contradicts those of the masks before; None if it does not."""
        for index, color in palette_colors(path).items():
            before, where = self._first.setdefault(index, (color, path))
            if before != color and index != IGNORED:
                return f"{path}: {index} is {color} in its palette, but {before} in {where}: do they mean one class?"
        return None


def paint(labels: NDArray[np.uint8], colors: Sequence[Color]) -> Image.Image:
    """Labels as an image with a palette: its indices are the labels, its colours those of the classes; 255 is black."""
    image = Image.fromarray(labels)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)] = colors
    image.putpalette(palette.tobytes())
    return image
