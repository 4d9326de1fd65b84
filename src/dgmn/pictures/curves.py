"""The chart of a training: its losses and metrics."""

from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

Curve = Sequence[tuple[float, float]]  # (epochs, value)

_COLORS = ("#1565c0", "#ef6c00", "#2e7d32", "#6a1b9a")
_SMOOTH = 30  # points over which the mean of a long curve is taken


def training_chart(
    losses: Mapping[str, Curve], metrics: Mapping[str, Curve], best: tuple[float, float] | None
) -> Image.Image:
    """Draws losses on the left and metrics on the right, over the epochs.

    Args:
        losses: curves by name; of a long one, its running mean is drawn over it.
        metrics: curves by name, the one that chooses the best checkpoint first.
        best: the point of the best checkpoint, which is marked.
    """
    figure = Figure(figsize=(11, 4), dpi=110, layout="constrained")
    for axis, title, curves in zip(figure.subplots(1, 2), ("loss", "metrics"), (losses, metrics), strict=True):
        for i, (name, curve) in enumerate(curves.items()):
            x, y = np.array(curve, float).reshape(-1, 2).T
            color, marker = _COLORS[i % len(_COLORS)], "o" if len(x) <= _SMOOTH else ""
            if len(x) > 2 * _SMOOTH and title == "loss":
                axis.plot(x, y, color=color, alpha=0.25, linewidth=0.8)
                mean = np.convolve(y, np.ones(_SMOOTH) / _SMOOTH, "valid")
                x, y = x[_SMOOTH - 1 :], mean
            axis.plot(x, y, color=color, marker=marker, markersize=3, linewidth=1.8 if i == 0 else 1.2, label=name)
        if title == "metrics" and best is not None:
            axis.plot(*best, marker="*", markersize=13, color="#c62828", linestyle="", label=f"best: {best[1]:.4f}")
        axis.set(title=title, xlabel="epochs")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if curves:
            axis.legend(frameon=False)
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    return Image.open(drawn).convert("RGB")
