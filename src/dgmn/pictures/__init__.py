"""Drawing: images, labels, predictions, sampled nodes."""

from dgmn.pictures.drawing import (
    boxed,
    captioned,
    comparison,
    contact_sheet,
    inscribed,
    legend,
    overlay,
    prediction_grid,
    side_by_side,
)
from dgmn.pictures.nodes import node_picture
from dgmn.pictures.palette import distinct_colors
from dgmn.pictures.sheets import heat_sheet, node_sheet

__all__ = [
    "boxed",
    "captioned",
    "comparison",
    "contact_sheet",
    "distinct_colors",
    "heat_sheet",
    "inscribed",
    "legend",
    "node_picture",
    "node_sheet",
    "overlay",
    "prediction_grid",
    "side_by_side",
]
