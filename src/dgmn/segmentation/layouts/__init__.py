"""How images and masks lie on disk. A new format needs a file here and an entry in `LAYOUTS`."""

from dgmn.segmentation.layouts.ade20k import Ade20k
from dgmn.segmentation.layouts.cityscapes import Cityscapes
from dgmn.segmentation.layouts.coco_png import Panoptic, Stuff
from dgmn.segmentation.layouts.folders import MaskFolders, RoboflowMasks, SegNet
from dgmn.segmentation.layouts.layout import Layout, Sample
from dgmn.segmentation.layouts.outlines import CocoOutlines, LabelMeOutlines, RoboflowOutlines, YoloOutlines
from dgmn.segmentation.layouts.voc import Voc

__all__ = ["LAYOUTS", "Cityscapes", "Layout", "MaskFolders", "Sample"]

LAYOUTS: tuple[type[Layout], ...] = (
    *(MaskFolders, SegNet, RoboflowMasks, Cityscapes, Ade20k, Voc, Panoptic, Stuff),
    *(CocoOutlines, YoloOutlines, RoboflowOutlines, LabelMeOutlines),
)
"""The known layouts. If an option is given and none fits, the first that has the option says what is missing."""
