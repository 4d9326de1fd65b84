"""How images and their objects lie on disk. A new format needs a file here and an entry in `LAYOUTS`."""

from pathlib import Path

from dgmn.detection.layouts.coco import CocoFiles
from dgmn.detection.layouts.labelme import LabelMe
from dgmn.detection.layouts.layout import Layout, Target
from dgmn.detection.layouts.roboflow import Roboflow
from dgmn.detection.layouts.voc import Voc
from dgmn.detection.layouts.yolo import Yolo
from dgmn.errors import InputError
from dgmn_base.errors import did_you_mean
from dgmn_base.files import check_root, listing

__all__ = ["LAYOUTS", "CocoFiles", "Layout", "Target", "find_layout"]

LAYOUTS: tuple[type[Layout], ...] = (CocoFiles, Yolo, Voc, Roboflow, LabelMe)
"""The known layouts."""


def find_layout(root: Path, name: str | None, images: str | None = None, annotations: str | None = None) -> Layout:
    """Finds the layout of a folder.

    Args:
        root: the folder.
        name: name of the layout; None looks into the folder.
        images: where COCO's images are. Like `annotations`, it says that the layout is COCO's.
        annotations: where COCO's annotations are.

    Raises:
        InputError: there is no such folder or layout, none fits the folder, or several do.
    """
    check_root(root)
    places = {key: value for key, value in (("images", images), ("annotations", annotations)) if value is not None}
    known = {layout.name: layout for layout in LAYOUTS}
    if name is not None and name not in known:
        hint = did_you_mean(name, known, f"; there are {', '.join(known)}")
        raise InputError(f"data.layout {name!r}: no such layout{hint}")
    if places and name not in (None, "coco"):
        raise InputError(f"data.{next(iter(places))} is for the layout coco, data.layout is {name}")
    if places or name == "coco":
        return CocoFiles(root, **places)
    if name is not None:
        return known[name](root)
    fitting = [layout for layout in LAYOUTS if layout.fits(root)]
    if len(fitting) > 1:
        what = " or ".join(f"{layout.title} ({layout.files_told})" for layout in fitting)
        choice = " or ".join(f"--data.layout {layout.name}" for layout in fitting)
        raise InputError(f"data.root {root}: it could be {what}: choose with {choice}")
    if not fitting:
        what = "; ".join(f"{layout.title}: {layout.files_told}" for layout in LAYOUTS)
        raise InputError(f"data.root {root}: no known layout ({what}); {listing(root)}")
    return fitting[0](root)
