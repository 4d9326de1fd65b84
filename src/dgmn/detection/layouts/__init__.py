"""How images and their objects lie on disk. A new format needs a file here and an entry in `LAYOUTS`."""

from dgmn.detection.layouts.coco import CocoFiles
from dgmn.detection.layouts.layout import Layout, Target

__all__ = ["LAYOUTS", "CocoFiles", "Layout", "Target"]

LAYOUTS: tuple[type[Layout], ...] = (CocoFiles,)
"""The known layouts; [`find_layout`][dgmn.layout.find_layout] takes the first that fits."""
