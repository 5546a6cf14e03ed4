"""The figure of a study."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # runs have no display
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bert_pretrain.study.curve import Curve

COLORS = ("#4477aa", "#cc3311", "#228833", "#ee7733", "#aa3377", "#009988", "#555555", "#ccaa00")


def draw_study(out_dir: Path, title: str, curves: dict[str, list[Curve]]) -> None:
    """Left: mean loss of each arm over samples, in a band from lowest to highest seed. Right: the final losses."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained", width_ratios=(3, 2))
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
    save(figure, out_dir)


def save(figure: Figure, out_dir: Path) -> None:
    """Write ``study.png`` and ``study.svg``."""
    for name in ("study.png", "study.svg"):
        figure.savefig(out_dir / name, dpi=150)
    plt.close(figure)


def _draw_band(axes: Axes, arm: str, runs: list[Curve], color: str) -> None:
    """Mean and band up to the last evaluation that all seeds reached."""
    common = min(len(run.losses) for run in runs)
    if common:
        losses = np.array([run.losses[:common] for run in runs])
        samples = runs[0].samples[:common]
        axes.plot(samples, losses.mean(0), color=color, label=arm, linewidth=1.4)
        axes.fill_between(samples, losses.min(0), losses.max(0), color=color, alpha=0.18, linewidth=0)
