"""Draws the charts of `dgmn bench`. matplotlib is imported only to draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from dgmn.bench.report import Row, short
from dgmn_base.files import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Ours are blue or teal, what we compare with has other colours.
_COLOURS = {
    "native": "#1f5fa8",
    "triton": "#2a9a9a",
    "reference": "#7fb0dd",
    "inductor": "#8fbf9f",
    "original": "#e08a3c",
    "fused": "#12396b",
}
_OURS, _OTHERS = "#1f5fa8", "#9a9a9a"
_NAMES = {"swin_tiny_patch4_window7_224": "swin_tiny", "deit_small_patch16_224": "deit_small"}
_BAR = 0.26  # inches


def _colour(contender: str) -> str:
    name, *variants = contender.split(":")
    for variant in variants:
        if variant in _COLOURS:
            return _COLOURS[variant]
    return _COLOURS.get(name, _OURS if name.startswith("dgmn") else _OTHERS)


def _label(contender: str) -> str:
    name, *variants = contender.split(":")
    return " ".join([_NAMES.get(name, name), *variants])


def draw_ops(rows: list[Row], hardware: str, stem: Path) -> list[Path]:
    """Draws one panel per mode: the speed relative to the original formulation, or the time if that did not run.

    The memory is below, if measured.
    """
    modes = list(dict.fromkeys(r.mode for r in rows))
    cases = list(dict.fromkeys(r.case for r in rows))
    contenders = list(dict.fromkeys(r.contender for r in rows))
    panels: list[tuple[str, str, Callable[[Row], float | None], Callable[[Row], str]]] = [
        (
            "speed",
            "times as fast as the original formulation (bar ends: ms)",
            lambda r: r.ratio,
            lambda r: short(r.time.median),
        )
    ]
    if all(r.ratio is None for r in rows):
        panels = [("time", "ms", lambda r: r.time.median, lambda r: short(r.time.median))]
    if any(r.peak_mb is not None for r in rows):
        panels.append(("peak memory", "MB on top of the inputs", lambda r: r.peak_mb, lambda r: short(r.peak_mb or 0)))
    height = len(panels) * (1.1 + _BAR * 0.8 * len(cases) * (len(contenders) + 1))
    figure, axes = _figure(len(panels), len(modes), 6.2, height)
    for line, (title, unit, value, text) in zip(axes, panels, strict=True):
        for axis, mode in zip(line, modes, strict=True):
            for i, contender in enumerate(contenders):
                bars = [(cases.index(r.case), r) for r in rows if r.mode == mode and r.contender == contender]
                step = 1 / (len(contenders) + 1)
                _bars(axis, [(case + (i + 0.5) * step, step, r) for case, r in bars], value, text, _label(contender))
            _finish(axis, f"{mode}: {title}", unit)
            axis.set_yticks([k + 0.5 * len(contenders) / (len(contenders) + 1) for k in range(len(cases))], cases)
            axis.set_ylim(len(cases) - 0.05, -0.15)
            if title == "speed":
                axis.axvline(1, color="#444444", linewidth=0.8)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(contenders), frameon=False)
    return _save(
        figure,
        "Sampled attention: batch x height x width x heads x channels of a head",
        hardware,
        stem,
    )


def draw_models(rows: list[Row], hardware: str, stem: Path) -> list[Path]:
    """Draws one picture per mode, one column per size: images per second, and below the memory, if measured."""
    paths = []
    for mode in dict.fromkeys(r.mode for r in rows):
        here = [r for r in rows if r.mode == mode]
        cases = list(dict.fromkeys(r.case for r in here))
        contenders = list(dict.fromkeys(r.contender for r in here))
        panels: list[tuple[str, Callable[[Row], float | None]]] = [("images per second", lambda r: r.images_per_s)]
        if any(r.peak_mb is not None for r in here):
            panels.append(("peak memory in MB, on top of weights and images", lambda r: r.peak_mb))
        height = len(panels) * (1.0 + _BAR * len(contenders)) + 0.5
        figure, axes = _figure(len(panels), len(cases), 4.3, height)
        for line, (unit, value) in zip(axes, panels, strict=True):
            for axis, case in zip(line, cases, strict=True):
                bars = [r for r in here if r.case == case]
                places = [(contenders.index(r.contender) + 0.0, 0.9, r) for r in bars]
                _bars(axis, places, value, _shortened(value), None)
                what = "logits" if case == "224x224" else "features"
                _finish(axis, f"{case}, {what}, batch {bars[0].batch}" if bars else case, unit)
                for missing in set(contenders) - {r.contender for r in bars}:
                    place = contenders.index(missing)
                    axis.annotate(
                        "not run",
                        (0, place),
                        xytext=(3, 0),
                        textcoords="offset points",
                        va="center",
                        fontsize=7.5,
                        color="#999999",
                    )
                first = axis is line[0]
                axis.set_yticks(range(len(contenders)), [_label(c) for c in contenders] if first else [])
                axis.set_ylim(len(contenders) - 0.4, -0.6)
        paths += _save(figure, f"Networks: {mode}", hardware, stem.with_name(f"{stem.name}_{mode}"))
    return paths


def draw_scaling(rows: list[Row], hardware: str, stem: Path) -> list[Path]:
    """Draws the time and memory per pixel against the number of pixels in the image."""
    panels: list[tuple[str, Callable[[Row], float | None]]] = [
        ("microseconds per pixel", lambda r: 1e3 * r.time.median / r.pixels)
    ]
    if any(r.peak_mb is not None for r in rows):
        panels.append(("bytes per pixel", lambda r: None if r.peak_mb is None else 1e6 * r.peak_mb / r.pixels))
    figure, axes = _figure(1, len(panels), 5.6, 4.2)
    cases = {r.pixels // r.batch: r.case for r in rows}
    for axis, (unit, value) in zip(axes[0], panels, strict=True):
        for contender in dict.fromkeys(r.contender for r in rows):
            points = [(r.pixels // r.batch, value(r)) for r in rows if r.contender == contender]
            known = [(x, y) for x, y in points if y is not None]
            if not known:
                continue
            style = "--" if contender.endswith(":compiled") else "-"
            axis.plot(*zip(*known, strict=True), style, marker="o", color=_colour(contender), label=_label(contender))
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(cases), list(cases.values()), rotation=35, ha="right", fontsize=8)
        axis.minorticks_off()
        axis.set_ylim(0, 1.08 * axis.get_ylim()[1])
        axis.set_title(unit, fontsize=10, loc="left")
        axis.set_xlabel("image (pixels, logarithmic)", fontsize=9)
        axis.grid(axis="y", color="#dddddd")
        _clean(axis)
    axes[0][0].legend(frameon=False, fontsize=9)
    return _save(figure, "Cost of one pixel: features, inference", hardware, stem)


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[list[Axes]]]:
    from matplotlib.figure import Figure

    # Not pyplot, which would look for a window system.
    figure = Figure(figsize=(width * columns + 0.8, height + 0.9), layout="constrained", dpi=130)
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, [list(line) for line in axes]


def _shortened(value: Callable[[Row], float | None]) -> Callable[[Row], str]:
    return lambda row: short(value(row) or 0)


def _bars(
    axis: Axes,
    places: Sequence[tuple[float, float, Row]],
    value: Callable[[Row], float | None],
    text: Callable[[Row], str],
    label: str | None,
) -> None:
    """Draws a bar at each (place, thickness), with its value as text at the end."""
    for y, thickness, row in places:
        number = value(row)
        if number is None:
            continue
        compiled = row.contender.endswith(":compiled")
        axis.barh(
            y,
            number,
            height=0.9 * thickness,
            color=_colour(row.contender),
            alpha=0.6 if compiled else 1,
            hatch="//" if compiled else None,
            edgecolor="white",
            linewidth=0,
            label=label,
        )
        axis.annotate(
            text(row),
            (number, y),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color="#333333",
        )
        label = None  # one entry in the legend


def _finish(axis: Axes, title: str, unit: str) -> None:
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel(unit, fontsize=9)
    axis.margins(x=0.14)
    axis.set_xlim(left=0)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="#e4e4e4")
    axis.set_axisbelow(True)
    _clean(axis)


def _clean(axis: Axes) -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.tick_params(labelsize=8.5)


def _save(figure: Figure, title: str, hardware: str, stem: Path) -> list[Path]:
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.supxlabel(hardware, x=0.01, ha="left", fontsize=8, color="#555555")
    path = stem.with_suffix(".png")
    drawn = BytesIO()
    figure.savefig(drawn)
    with writing(path) as file:
        file.write(drawn.getbuffer())
    return [path]
