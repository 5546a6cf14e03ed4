"""The pictures of a run, drawn from its ``metrics.jsonl``, and of a plan."""

import re
from itertools import groupby, pairwise
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # a run has no screen
import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm

from bert_pretrain.training.metrics import LAYER_KINDS, Row, read_rows

_TRAIN, _HELDOUT = "#4477aa", "#cc3311"


def draw_run(run_dir: Path) -> Path:
    """Draw loss, accuracy, learning rate, gradient norm, speed and layers into ``run_dir/plots``; return that."""
    rows = read_rows(run_dir / "metrics.jsonl")
    training = [row for row in rows if "mlm_loss" in row]
    heldout = [row for row in rows if "eval_mlm_loss" in row]
    folder = run_dir / "plots"
    folder.mkdir(exist_ok=True)
    _draw(folder / "loss.png", "masked-word loss (nats)", training, "mlm_loss", heldout, "eval_mlm_loss")
    _draw(folder / "accuracy.png", "masked-word accuracy", training, "mlm_accuracy", heldout, "eval_mlm_accuracy")
    _draw(folder / "next_sentence.png", "next-sentence loss (nats)", training, "nsp_loss", heldout, "eval_nsp_loss")
    _draw(folder / "learning_rate.png", "learning rate", training, "lr")
    _draw(folder / "gradient_norm.png", "gradient norm before normalisation", training, "grad_norm", log=True)
    _draw(folder / "speed.png", "real tokens per second", training, "tokens_per_second")
    layers = [row for row in rows if LAYER_KINDS[0] in row]
    for kind, title in zip(LAYER_KINDS, ("trust ratio", "norm of the weights", "norm of the update"), strict=True):
        if layers:
            _draw_layers(folder / f"layers_{kind}.png", title, layers, kind)
    return folder


def _draw_layers(path: Path, title: str, rows: list[Row], kind: str) -> None:
    """Layers over time, colour on a log scale; the same tensor of all encoder layers is one band, first layer on top.

    A band of n layers is as high as n/6 single ones, so that its label has room in a model of any depth.
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
    """Order of layers in the picture: embeddings, encoder by tensor and then by depth, heads."""
    found = re.search(r"\.layer\.(\d+)\.", name)
    if found is None:
        return (0 if "embeddings" in name else 2, name.removeprefix("bert."), 0)
    return (1, name[found.end() :], int(found.group(1)))


def _draw(
    path: Path,
    label: str,
    training: list[Row],
    key: str,
    heldout: list[Row] | None = None,
    heldout_key: str = "",
    log: bool = False,
) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    steps, values = [row["step"] for row in training], [row[key] for row in training]
    smooth = _smoothed(values)
    if smooth != values and key not in ("lr",):
        axes.plot(steps, values, color=_TRAIN, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth, color=_TRAIN, label="training batches, smoothed")
    else:
        axes.plot(steps, values, color=_TRAIN, label="training batches")
    if heldout:
        axes.plot(
            [row["step"] for row in heldout],
            [row[heldout_key] for row in heldout],
            color=_HELDOUT,
            marker="o",
            markersize=3,
            label="held out",
        )
        axes.legend(frameon=False)
    if log:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _smoothed(values: list[float]) -> list[float]:
    """A running mean over about a fiftieth of the run, short at the ends."""
    half = len(values) // 100
    return [
        sum(values[max(0, i - half) : i + half + 1]) / len(values[max(0, i - half) : i + half + 1])
        for i in range(len(values))
    ]
