"""The figure of a study."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bert_pretrain.html_page import SERIES
from bert_pretrain.report.plots import Band, draw_band
from bert_pretrain.study.curve import Curve
from bert_pretrain.study.statistics import interval

_MARKERS = "os^DvPX*<>"
_LINES = ("-", "--", "-.", (0, (8, 2)), (0, (6, 1, 1, 1, 1, 1)), (0, (3, 3)), (0, (12, 2, 2, 2)), (0, (2, 1)))
_DIRECT = 4
"""Up to so many arms are labelled at the end of their lines; more have a legend."""


def style(row: int) -> dict[str, Any]:
    """Colour, marker and kind of line of an arm: the marker alone tells it from the others, also in grey."""
    found = {"color": SERIES, "marker": _MARKERS, "linestyle": _LINES}
    return {name: values[row % len(values)] for name, values in found.items()}


def draw_study(out_dir: Path, title: str, curves: dict[str, list[Curve]]) -> Figure:
    """Write ``study.png`` and ``study.svg``; return the figure.

    Left: mean loss of each arm over samples, in a band from lowest to highest seed. Right: the final losses,
    and their means with 95 % intervals.
    """
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for row, (arm, runs) in enumerate(curves.items()):
        look = style(row)
        _draw_band(left, arm, runs, look)
        finals = [run.final for run in runs if np.isfinite(run.final)]
        dots = look | {"linestyle": ""}
        right.plot(finals, [row + 0.15] * len(finals), alpha=0.6, markersize=5, **dots)
        if finals:
            mean, low, high = interval(finals)
            ends = [[mean - low], [high - mean]]
            right.errorbar([mean], [row - 0.15], xerr=ends, capsize=4, markersize=8, markerfacecolor="white", **dots)
        diverged = len(runs) - len(finals)
        if diverged:
            right.annotate(f"{diverged} of {len(runs)} diverged", (1, row), (-4, 0), xycoords=("axes fraction", "data"),
                           textcoords="offset points", ha="right", va="center", color=look["color"])  # fmt: skip
    left.set_xlabel("samples")
    left.xaxis.set_major_formatter("{x:,.0f}")
    left.set_ylabel("held-out MLM loss (nats)")
    if len(curves) > _DIRECT:
        left.legend(frameon=False, fontsize=8, handlelength=4)
    else:
        _label_ends(left)
    right.set_yticks(range(len(curves)), [f"{arm}\nlr {runs[0].rate:g}" for arm, runs in curves.items()], fontsize=8)
    right.set_ylim(len(curves) - 0.5, -0.5)
    right.set_xlabel("last held-out MLM loss: seeds; mean, 95 % interval")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    return save(figure, out_dir)


def save(figure: Figure, out_dir: Path) -> Figure:
    """Write ``study.png`` and ``study.svg``."""
    figure.savefig(out_dir / "study.png", dpi=150)
    with matplotlib.rc_context({"svg.hashsalt": "study", "svg.fonttype": "none"}):  # the same file each time; text
        figure.savefig(out_dir / "study.svg", metadata={"Date": None})
    return figure


def _draw_band(axes: Axes, arm: str, runs: list[Curve], look: dict[str, Any]) -> None:
    """Mean and band up to the last evaluation that all seeds reached."""
    common = min(len(run.losses) for run in runs)
    if common:
        losses = np.array([run.losses[:common] for run in runs])
        samples = runs[0].samples[:common]
        every = max(1, common // 6)
        axes.plot(samples, losses.mean(0), label=arm, linewidth=1.4, markersize=4, markevery=every, **look)
        draw_band(axes, Band(samples, losses.min(0).tolist(), losses.max(0).tolist(), ""), look["color"])


def _label_ends(axes: Axes) -> None:
    """Write each line's label beside the axes at its last point, at least a line of text below the one above."""
    ends = [(np.asarray(line.get_ydata())[-1:].tolist(), line) for line in axes.lines]
    lines = sorted(((end[0], line) for end, line in ends if end), key=lambda pair: -pair[0])
    low, high = axes.get_ylim()
    text_height = 0.05 * (high - low)
    heights: list[float] = []
    for end, _ in lines:
        heights.append(min([end, *(height - text_height for height in heights[-1:])]))
    up = max(0.0, low + text_height / 2 - min(heights, default=low + text_height))  # none below the axes
    at: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "color": "black", "clip_on": False}
    for (_, line), height in zip(lines, heights, strict=True):
        at["color"] = line.get_color()
        axes.plot([1.02], [height + up], marker=line.get_marker(), markersize=4, **at)
        axes.text(1.04, height + up, str(line.get_label()), va="center", fontsize=8, **at)
    axes.set_ylim(low, high)
