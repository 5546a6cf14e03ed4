"""The figure of ``batch_scaling``: steps to the target over batch size, and samples over the baseline's."""

import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bert_pretrain.study.batch_scaling import Cell
from bert_pretrain.study.critical_batch import CriticalBatch
from bert_pretrain.study.figure import save, style
from bert_pretrain.study.options import TargetConfig
from bert_pretrain.study.statistics import Difference

_BELOW = (
    "bars: range of the seeds; hollow: some failed; dotted: perfect scaling\n"
    "below: critical batch sizes, 95 % intervals"
)


def draw_scaling(
    out_dir: Path,
    title: str,
    target: TargetConfig,
    steps: dict[Cell, dict[int, float]],
    fits: dict[str, CriticalBatch | None],
    ratios: dict[Cell, tuple[Difference, float]],
    failed: Collection[Cell] = (),
) -> Figure:
    """Write ``study.png`` and ``study.svg``; return the figure.

    Left: steps over batch, both logarithmic: the seeds' geometric mean, from lowest to highest; the fitted curve; its
    line of perfect scaling (dotted); the critical batch size with its interval on the axis. Where runs ``failed``, the
    mean of the others is hollow. Right: samples over the baseline's at the same batch size, with 95 % intervals.
    """
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for row, arm in enumerate(fits):
        points = {batch: list(logs.values()) for (name, batch), logs in sorted(steps.items()) if name == arm and logs}
        look = style(row)
        if points:
            _draw_steps(left, arm, points, fits[arm], row, look)
        some = {batch: np.exp(np.mean(logs)) for batch, logs in points.items() if (arm, batch) in failed}
        hollow = look | {"linestyle": "", "markerfacecolor": "white", "markersize": 7, "zorder": 3}
        left.plot(list(some), list(some.values()), **hollow)
        found = {batch: ratio for (name, batch), (ratio, _) in sorted(ratios.items()) if name == arm}
        if found:
            shifted = [batch * 1.03 ** (row - len(fits) / 2) for batch in found]  # so that bars do not cover each other
            middle = np.exp([ratio.mean for ratio in found.values()])
            ends = np.exp([[ratio.low for ratio in found.values()], [ratio.high for ratio in found.values()]])
            right.errorbar(shifted, middle, abs(ends - middle), label=arm, linewidth=1, capsize=2, markersize=5, **look)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(target.batch_sizes, [f"{batch:,}" for batch in target.batch_sizes])
        axes.set_xlabel("batch size (samples)")
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.grid(alpha=0.3)
    lowest = min((log for logs in steps.values() for log in logs.values()), default=0.0)
    left.set_ylim(bottom=math.exp(lowest) / 3)  # the lines of perfect scaling go on below
    right.set_xlim(left.get_xlim())
    left.set_ylabel(f"steps to a held-out MLM loss of {target.loss:g} nats")
    left.legend(loc="upper right", frameon=False, fontsize=8, handlelength=4)
    left.text(0.01, 0.04 + 0.025 * len(fits), _BELOW, fontsize=8, transform=left.transAxes)
    right.axhline(1, color="black", linewidth=0.8)
    right.set_ylabel(f"samples / samples of {target.baseline}, 95 % intervals")
    figure.suptitle(title, fontsize=11)
    return save(figure, out_dir)


def _draw_steps(
    axes: Axes, arm: str, points: dict[int, list[float]], fit: CriticalBatch | None, row: int, look: dict
) -> None:
    middle = np.exp([np.mean(logs) for logs in points.values()])
    ends = np.exp([[min(logs) for logs in points.values()], [max(logs) for logs in points.values()]])
    dots = look | {"linestyle": "", "markersize": 5}
    label = arm if fit is None else f"{arm}: critical batch {fit.batch:,.0f}"
    axes.errorbar(list(points), middle, abs(ends - middle), capsize=2, **dots)
    axes.plot([], [], label=label, **(look if fit else dots))  # the legend's
    if fit is None:
        return
    batches = np.geomspace(min(points), max(points), 100)
    color = look["color"]
    axes.plot(batches, fit.steps(batches), color=color, linestyle=look["linestyle"], linewidth=1.2)
    axes.plot(batches, fit.least_steps * fit.batch / batches, ":", color=color, linewidth=0.9)
    height = 0.03 + 0.025 * row  # in the lower left corner, one interval above the other
    low, high = max(fit.low, min(points)), min(fit.high, max(points))
    if low < high and math.isfinite(low):
        axes.plot([low, high], [height] * 2, color=color, linewidth=2, transform=axes.get_xaxis_transform())
    axes.plot([fit.batch], [height], **dots, transform=axes.get_xaxis_transform())
