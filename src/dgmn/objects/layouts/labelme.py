"""LabelMe's JSON files beside the images."""

from pathlib import Path
from typing import Any

from typing_extensions import override

from dgmn.errors import InputError
from dgmn.objects.layouts.described import Labels, Thing, around
from dgmn.objects.layouts.marked import MarkedLayout
from dgmn_base.files import folders_in, is_hidden, read_json

_PEEK = 4096  # bytes; a file begins with its version, its shapes, or with its image
_FIRST = (b'"shapes"', b'"imageData"', b'"imagePath"', b'"imageHeight"')


class LabelMe(MarkedLayout):
    """LabelMe: `train/*.jpg` with `train/*.json` beside them, or all in the dataset's folder.

    Polygons and rectangles are objects. Those of a label that have the same `group_id` are one, as in LabelMe's own
    conversion to COCO. A rectangle is a box without a mask.
    """

    name = "labelme"
    title = "LabelMe"
    files_told = "train/*.json of LabelMe beside the images"
    suffix = ".json"

    @staticmethod
    @override
    def fits(root: Path) -> bool:
        return any(map(_is_labelme, (root, *(root / name for name in folders_in(root)))))

    @override
    def splits(self) -> list[str]:
        return [part for part in super().splits() if _is_labelme(self.folder(part))]

    @override
    def parsed(self, file: Path) -> Labels:
        try:
            content = read_json(file)
        except InputError as error:
            return Labels(problems=[str(error)])
        except OSError as error:
            return Labels(problems=[f"{file}: cannot be read: {error.strerror}"])
        shapes = content.get("shapes") if isinstance(content, dict) else None
        if not isinstance(shapes, list):
            return Labels(problems=[f"{file}: not LabelMe's JSON: it needs a list of shapes"])
        height, width, image = (content.get(name) for name in ("imageHeight", "imageWidth", "imagePath"))
        known = type(height) is type(width) is int and height > 0 and width > 0
        labels = Labels(size=(height, width) if known else None, image=image if isinstance(image, str) else None)
        groups: dict[object, Thing] = {}
        for i, shape in enumerate(shapes):
            thing = _thing(shape, f"{file}: shapes[{i}]")
            if isinstance(thing, str):
                labels.problems.append(thing)
                continue
            group = shape.get("group_id")
            # A number or a text; whatever else is there joins nothing.
            other = groups.setdefault((thing.category, repr(group)) if isinstance(group, int | str) else i, thing)
            if other is not thing:
                corners = [(x, y, x + width, y + height) for x, y, width, height in (other.box, thing.box)]
                other.parts = [*(other.parts or _shapes(other)), *_shapes(thing)]
                other.box = around([[value for corner in corners for value in corner]])
                # If a part has no outline, the object has none.
                other.polygons = other.polygons + thing.polygons if other.polygons and thing.polygons else []
        labels.objects += groups.values()
        return labels


def _shapes(thing: Thing) -> list[list[float]]:
    """The polygons of a single shape."""
    x, y, width, height = thing.box
    return thing.polygons or [[x, y, x + width, y, x + width, y + height, x, y + height]]


def _thing(shape: Any, where: str) -> Thing | str:
    """The object of a shape, or a message about what is wrong with it."""
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not shape["label"].strip():
        return f"{where} needs a label as text"
    points, kind = shape.get("points"), shape.get("shape_type") or "polygon"  # early versions had polygons only
    if kind not in ("polygon", "rectangle"):
        return f"{where}: a {kind!r} is no object with a box: draw a rectangle or a polygon"
    if not isinstance(points, list) or not all(map(_is_point, points)):
        return f"{where}: points must be a list of [x, y] in pixels"
    if len(points) not in (2, 4) if kind == "rectangle" else len(points) < 3:
        needed = "two corners" if kind == "rectangle" else "three points or more"
        return f"{where}: a {kind} needs {needed}, got {len(points)} points"
    outline = [float(value) for point in points for value in point]
    return Thing(where, shape["label"].strip(), around([outline]), [outline] if kind == "polygon" else [])


def _is_point(point: Any) -> bool:
    # Larger numbers are mistakes. The comparison is also false for infinity and NaN.
    return (
        isinstance(point, list)
        and len(point) == 2
        and all(isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e9 for x in point)
    )


def _is_labelme(folder: Path) -> bool:
    """Whether the first JSON file of a folder is LabelMe's. COCO's can be large, so only its beginning is read."""
    file = min((file for file in folder.glob("*.json") if file.is_file() and not is_hidden(file.name)), default=None)
    if file is None:
        return False
    with file.open("rb") as source:
        start = source.read(_PEEK)
    return any(name in start for name in _FIRST)
