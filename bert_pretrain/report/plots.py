"""The plots of a run, drawn from its ``metrics.jsonl``."""

import re
from itertools import groupby, pairwise
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # runs have no display
import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm

from bert_pretrain.training.metrics import LAYER_KINDS, Row, read_rows

_TRAIN, _HELDOUT = "#4477aa", "#cc3311"
_PLOTS = {
    "loss": ("MLM loss (nats)", "mlm_loss"),
    "accuracy": ("MLM accuracy", "mlm_accuracy"),
    "next_sentence": ("next-sentence loss (nats)", "nsp_loss"),
    "learning_rate": ("learning rate", "lr"),
    "gradient_norm": ("gradient norm before normalisation", "grad_norm"),
    "speed": ("real tokens per second", "tokens_per_second"),
}
"""File name, label, and key of the metric."""


def draw_run(run_dir: Path) -> Path:
    """Draw loss, accuracy, learning rate, gradient norm, speed and layers into ``run_dir/plots``; return that."""
    rows = read_rows(run_dir / "metrics.jsonl")
    folder = run_dir / "plots"
    folder.mkdir(exist_ok=True)
    measured = {key for row in rows for key in row}
    for name, (label, key) in _PLOTS.items():
        if key in measured:
            _draw(folder / f"{name}.png", label, rows, key)
    layers = [row for row in rows if LAYER_KINDS[0] in row]
    for kind, title in zip(LAYER_KINDS, ("trust ratio", "norm of the weights", "norm of the update"), strict=True):
        if layers:
            _draw_layers(folder / f"layers_{kind}.png", title, layers, kind)
    return folder


def _draw_layers(path: Path, title: str, rows: list[Row], kind: str) -> None:
    """Heat map of layers over steps, on a log scale. The same tensor of all encoder layers is one band.

    A band of n layers is as high as n/6 single ones, so that its label fits for a model of any depth.
    """
    names = sorted({name for row in rows for name in row[kind]}, key=_band)
    bands = [(band, len(list(members))) for band, members in groupby(names, key=lambda name: _band(name)[1])]
    heights = [max(1.0, count / 6) / count for _, count in bands for _ in range(count)]
    edges = np.concatenate([[0.0], np.cumsum(heights)])
    values = np.array([[row[kind].get(name, np.nan) for row in rows] for name in names])
    values = np.ma.masked_where(~(np.isfinite(values) & (values > 0)), values)
    steps = [row["step"] for row in rows]
    gap = min((b - a for a, b in pairwise(steps)), default=1)
    figure, axes = plt.subplots(figsize=(10, 1.2 + 0.21 * edges[-1]), layout="constrained")
    axes.set_facecolor("#dddddd")
    if values.count():
        low, high = np.percentile(values.compressed(), (1, 99))
        mesh = axes.pcolormesh(
            [steps[0] - gap, *steps], edges, values, norm=LogNorm(low, max(high, low * 1.01)), cmap="viridis"
        )
        figure.colorbar(mesh, label=f"{title} (grey: 0, or not updated)", extend="both", pad=0.01)
    ends = np.cumsum([count for _, count in bands])
    axes.set_yticks([(edges[end - count] + edges[end]) / 2 for end, (_, count) in zip(ends, bands, strict=True)])
    axes.set_yticklabels([f"{band}  x{count}" if count > 1 else band for band, count in bands], fontsize=7)
    axes.hlines(edges[ends], steps[0] - gap, steps[-1], color="white", linewidth=0.6)
    axes.invert_yaxis()
    axes.set_xlabel("step")
    axes.set_title(f"{title} by layer", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _band(name: str) -> tuple[int, str, int]:
    """Sort key of layers: embeddings, encoder by tensor and then by depth, heads."""
    found = re.search(r"\.layer\.(\d+)\.", name)
    if found is None:
        return (0 if "embeddings" in name else 2, name.removeprefix("bert."), 0)
    return (1, name[found.end() :], int(found.group(1)))


def _draw(path: Path, label: str, rows: list[Row], key: str) -> None:
    """One metric over steps, and that of the evaluations if they have it."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    training, heldout = ([row for row in rows if name in row] for name in ("mlm_loss", f"eval_{key}"))
    steps, values = [row["step"] for row in training], [row[key] for row in training]
    window = np.ones(2 * (len(values) // 100) + 1)  # a fiftieth of the run
    if len(window) > 1 and key != "lr":
        axes.plot(steps, values, color=_TRAIN, alpha=0.25, linewidth=0.8)
        smooth = np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
        axes.plot(steps, smooth, color=_TRAIN, label="training batches, moving average")
    else:
        axes.plot(steps, values, color=_TRAIN, label="training batches")
    if heldout:
        held_steps, held_values = [row["step"] for row in heldout], [row[f"eval_{key}"] for row in heldout]
        axes.plot(held_steps, held_values, color=_HELDOUT, marker="o", markersize=3, label="held-out")
        axes.legend(frameon=False)
    if key == "grad_norm":
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
