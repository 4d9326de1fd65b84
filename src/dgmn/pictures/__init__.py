"""Drawing: images, labels, predictions, sampled nodes."""

from dgmn.pictures.drawing import (
    boxed,
    captioned,
    comparison,
    contact_sheet,
    distinct_colors,
    legend,
    overlay,
    prediction_grid,
)
from dgmn.pictures.nodes import node_picture

__all__ = [
    "boxed",
    "captioned",
    "comparison",
    "contact_sheet",
    "distinct_colors",
    "legend",
    "node_picture",
    "overlay",
    "prediction_grid",
]
