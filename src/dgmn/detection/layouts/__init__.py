"""How images and their objects lie on disk. A new format is a file here, and its place in `LAYOUTS`."""

from dgmn.detection.layouts.coco import CocoFiles
from dgmn.detection.layouts.layout import Layout, Target

__all__ = ["LAYOUTS", "CocoFiles", "Layout", "Target"]

LAYOUTS: tuple[type[Layout], ...] = (CocoFiles,)
"""See [`find_layout`][dgmn.layout.find_layout]."""
