"""How images and masks lie on disk. A new format needs a file here and a place in `LAYOUTS`."""

from dgmn.segmentation.layouts.cityscapes import Cityscapes
from dgmn.segmentation.layouts.folders import MaskFolders
from dgmn.segmentation.layouts.layout import Layout, Sample

__all__ = ["LAYOUTS", "Cityscapes", "Layout", "MaskFolders", "Sample"]

LAYOUTS: tuple[type[Layout], ...] = (Cityscapes, MaskFolders)
"""All layouts, in the order in which [`find_layout`][dgmn.layout.find_layout] tries them."""
