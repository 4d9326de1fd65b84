"""How images and their objects lie on disk. A new format needs a file here and an entry in `LAYOUTS`."""

from dgmn.objects.layouts.coco import CocoFiles
from dgmn.objects.layouts.divided import Divided, parts_of
from dgmn.objects.layouts.labelme import LabelMe
from dgmn.objects.layouts.layout import Layout, Target
from dgmn.objects.layouts.roboflow import Roboflow
from dgmn.objects.layouts.voc import Voc
from dgmn.objects.layouts.yolo import Yolo

__all__ = ["LAYOUTS", "CocoFiles", "Divided", "LabelMe", "Layout", "Roboflow", "Target", "Yolo", "parts_of"]

LAYOUTS: tuple[type[Layout], ...] = (CocoFiles, Yolo, Voc, Roboflow, LabelMe)
"""The known layouts."""
