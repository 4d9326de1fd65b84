"""How images and masks lie on disk. A new format is a file here, and its place in `LAYOUTS`."""

from dgmn.segmentation.layouts.cityscapes import Cityscapes
from dgmn.segmentation.layouts.folders import MaskFolders
from dgmn.segmentation.layouts.layout import Layout, Sample

__all__ = ["LAYOUTS", "Cityscapes", "Layout", "MaskFolders", "Sample"]

LAYOUTS: tuple[type[Layout], ...] = (Cityscapes, MaskFolders)
"""See [`find_layout`][dgmn.layout.find_layout]."""
