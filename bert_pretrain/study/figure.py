"""The figure of a study."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bert_pretrain.html_page import SERIES as COLORS
from bert_pretrain.report.plots import Band, draw_band
from bert_pretrain.study.curve import Curve


def draw_study(out_dir: Path, title: str, curves: dict[str, list[Curve]]) -> Figure:
    """Write ``study.png`` and ``study.svg``; return the figure.

    Left: mean loss of each arm over samples, in a band from lowest to highest seed. Right: the final losses.
    """
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for row, (arm, runs) in enumerate(curves.items()):
        color = COLORS[row % len(COLORS)]
        _draw_band(left, arm, runs, color)
        finals = [run.final for run in runs if np.isfinite(run.final)]
        right.plot(finals, [row] * len(finals), "o", color=color, alpha=0.6)
        if finals:
            right.plot(np.mean(finals), row, "|", color=color, markersize=18, markeredgewidth=2)
        diverged = len(runs) - len(finals)
        if diverged:
            right.annotate(f"{diverged} of {len(runs)} diverged", (1, row), (-4, 0), xycoords=("axes fraction", "data"),
                           textcoords="offset points", ha="right", va="center", color=color)  # fmt: skip
    left.set_xlabel("samples")
    left.xaxis.set_major_formatter("{x:,.0f}")
    left.set_ylabel("held-out MLM loss (nats)")
    left.legend(frameon=False, fontsize=8)
    right.set_yticks(range(len(curves)), [f"{arm}\nlr {runs[0].rate:g}" for arm, runs in curves.items()], fontsize=8)
    right.set_ylim(len(curves) - 0.5, -0.5)
    right.set_xlabel("held-out MLM loss after the last step: each seed, and the mean")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    return save(figure, out_dir)


def save(figure: Figure, out_dir: Path) -> Figure:
    """Write ``study.png`` and ``study.svg``."""
    for name in ("study.png", "study.svg"):
        figure.savefig(out_dir / name, dpi=150)
    return figure


def _draw_band(axes: Axes, arm: str, runs: list[Curve], color: str) -> None:
    """Mean and band up to the last evaluation that all seeds reached."""
    common = min(len(run.losses) for run in runs)
    if common:
        losses = np.array([run.losses[:common] for run in runs])
        samples = runs[0].samples[:common]
        axes.plot(samples, losses.mean(0), color=color, label=arm, linewidth=1.4)
        draw_band(axes, Band(samples, losses.min(0).tolist(), losses.max(0).tolist(), ""), color)
