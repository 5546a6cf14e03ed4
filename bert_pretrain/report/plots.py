"""The figures of one run or of several, drawn from their metrics."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, groupby, pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bert_pretrain.html_page import SERIES
from bert_pretrain.training.metrics import LAYER_KINDS, Row

TRAIN, HELDOUT = SERIES[0], SERIES[1]
METRICS = {
    "loss": ("MLM loss (nats)", "mlm_loss"),
    "accuracy": ("MLM accuracy", "mlm_accuracy"),
    "next_sentence": ("next-sentence loss (nats)", "nsp_loss"),
    "learning_rate": ("learning rate", "lr"),
    "gradient_norm": ("gradient norm before normalisation", "grad_norm"),
    "speed": ("real tokens per second", "tokens_per_second"),
}
"""Name of the figure, label, and key of the metric; what matters most first."""
LAYER_TITLES = dict(zip(LAYER_KINDS, ("trust ratio", "norm of the weights", "norm of the update"), strict=True))


@dataclass(frozen=True)
class Curves:
    """The metrics of one run, as the figures take them."""

    name: str
    rows: list[Row]
    scale: int = 1
    """Samples of a step, where the horizontal axis counts samples; 1: it counts steps."""


@dataclass(frozen=True)
class Band:
    """Where other runs have been: the loss figure draws it behind the curve of a run."""

    x: Sequence[float]
    """Steps, or samples if the curves are over samples."""
    low: Sequence[float]
    high: Sequence[float]
    label: str


def save(figures: dict[str, Figure], folder: Path) -> None:
    """Write figures as PNG files into ``folder``, which is made."""
    folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=120)


def metric_figures(runs: list[Curves], band: Band | None = None) -> dict[str, Figure]:
    """The figures of the metrics that one of the runs has logged, by name, in the order of ``METRICS``."""
    measured = {key for run in runs for row in run.rows for key in row}
    known = {name: entry for name, entry in METRICS.items() if {entry[1], f"eval_{entry[1]}"} & measured}
    return {
        name: metric_figure(runs, label, key, band if name == "loss" else None) for name, (label, key) in known.items()
    }


def metric_figure(runs: list[Curves], label: str, key: str, band: Band | None = None) -> Figure:
    """One metric over steps, and that of the evaluations if they have it."""
    figure = Figure(figsize=(5.5, 3.3), layout="constrained")
    axes = figure.subplots()
    if band is not None:
        draw_band(axes, band)
    if len(runs) == 1:
        _draw_training(axes, runs[0], key, TRAIN, "training batches")
        _draw_heldout(axes, runs[0], key, HELDOUT, "held-out")
    else:
        has_heldout = any(f"eval_{key}" in row for run in runs for row in run.rows)
        for run, color in zip(runs, cycle(SERIES), strict=False):
            _draw_training(axes, run, key, color, "" if has_heldout else _as_label(run.name), faint=has_heldout)
            _draw_heldout(axes, run, key, color, _as_label(run.name))
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False)
    if key == "grad_norm":
        axes.set_yscale("log")
    by_samples = any(run.scale > 1 for run in runs)
    axes.set_xlabel("samples" if by_samples else "step")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    return figure


def draw_band(axes: Axes, band: Band, color: str = SERIES[5]) -> None:
    """The area between the lowest and the highest of other runs."""
    axes.fill_between(band.x, band.low, band.high, color=color, alpha=0.25, linewidth=0, label=band.label)


def _as_label(name: str) -> str:
    """The end of a long name. Matplotlib reads formulas between dollars, and leaves out labels that begin with an
    underscore."""
    text = (name if len(name) <= 40 else f"...{name[-37:]}").replace("$", r"\$")
    return f"\N{ZERO WIDTH SPACE}{text}" if text.startswith("_") else text


def _points(run: Curves, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Where and what; rows of one step only once, rows without the metric not."""
    found = {row["step"]: row[key] for row in run.rows if key in row}
    return np.array(list(found), float) * run.scale, np.array(list(found.values()), float)


def _draw_training(axes: Axes, run: Curves, key: str, color: str, label: str, faint: bool = False) -> None:
    """The batches themselves faintly, and their moving average over a fiftieth of the run."""
    steps, values = _points(run, key)
    if not len(values):
        return
    window = np.ones(2 * (len(values) // 100) + 1)
    if len(window) == 1 or key == "lr":
        axes.plot(steps, values, color=color, label=label, alpha=0.4 if faint else 1.0, linewidth=1.2,
                  marker="." if len(values) == 1 else "")  # fmt: skip
        return
    smooth = np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
    if not faint:
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        label = f"{label}, moving average" if label else ""
    axes.plot(steps, smooth, color=color, label=label, alpha=0.4 if faint else 1.0, linewidth=1.2)


def _draw_heldout(axes: Axes, run: Curves, key: str, color: str, label: str) -> None:
    steps, values = _points(run, f"eval_{key}")
    if len(values):
        axes.plot(steps, values, color=color, marker="o", markersize=3, label=label)


def layer_figures(rows: list[Row]) -> dict[str, Figure]:
    """Heat maps of the layers over steps, by name; none if the run has no rows of layers."""
    layers = [row for row in rows if LAYER_KINDS[0] in row]
    return {f"layers_{kind}": _layer_map(title, layers, kind) for kind, title in LAYER_TITLES.items() if layers}


def _layer_map(title: str, rows: list[Row], kind: str) -> Figure:
    """Layers over steps, on a log scale. The same tensor of all encoder layers is one band.

    A band of n layers is as high as n/6 single ones, so that its label fits for a model of any depth. The cells are one
    image within the figure.
    """
    names = sorted({name for row in rows for name in row[kind]}, key=_band)
    bands = [(band, len(list(members))) for band, members in groupby(names, key=lambda name: _band(name)[1])]
    heights = [max(1.0, count / 6) / count for _, count in bands for _ in range(count)]
    edges = np.concatenate([[0.0], np.cumsum(heights)])
    values = np.array([[row[kind].get(name, np.nan) for row in rows] for name in names])
    values = np.ma.masked_where(~(np.isfinite(values) & (values > 0)), values)
    steps = [row["step"] for row in rows]
    gap = min((b - a for a, b in pairwise(steps)), default=1)
    figure = Figure(figsize=(10, 1.2 + 0.21 * edges[-1]), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("#dddddd")
    if values.count():
        low, high = np.percentile(values.compressed(), (1, 99))
        norm = LogNorm(low, max(high, low * 1.01))
        mesh = axes.pcolormesh([steps[0] - gap, *steps], edges, values, norm=norm, cmap="viridis", rasterized=True)
        figure.colorbar(mesh, label=f"{title} (grey: 0, or not updated)", extend="both", pad=0.01)
    ends = np.cumsum([count for _, count in bands])
    axes.set_yticks([(edges[end - count] + edges[end]) / 2 for end, (_, count) in zip(ends, bands, strict=True)])
    axes.set_yticklabels([f"{band}  x{count}" if count > 1 else band for band, count in bands], fontsize=7)
    axes.hlines(edges[ends], steps[0] - gap, steps[-1], color="white", linewidth=0.6)
    axes.invert_yaxis()
    axes.set_xlabel("step")
    axes.set_title(f"{title} by layer", fontsize=10)
    return figure


def _band(name: str) -> tuple[int, str, int]:
    """Sort key of layers: embeddings, encoder by tensor and then by depth, heads."""
    found = re.search(r"\.layer\.(\d+)\.", name)
    if found is None:
        return (0 if "embeddings" in name else 2, name.removeprefix("bert."), 0)
    return (1, name[found.end() :], int(found.group(1)))
