"""The figure of ``bench step``."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from bert_pretrain.training.metrics import Row


def draw_step(path: Path, rows: list[Row], phases: tuple[str, ...]) -> None:
    """A bar for each variant of a step, made of its phases; what the data takes runs beside it, and is not in it."""
    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.4 * len(rows)), layout="constrained")
    parts = [phase for phase in phases if phase != "data"]
    names = [row["variant"] for row in rows]
    left = np.zeros(len(rows))
    for phase, color in zip(parts, ("#4477aa", "#88bbdd", "#ee7733", "#228833"), strict=True):
        width = np.array([row[f"{phase}_ms"] or 0.0 for row in rows])
        axes.barh(names, width, left=left, color=color, label=phase)
        left += width
    axes.plot([row["milliseconds"] for row in rows], names, "k|", markersize=14, label="step, not taken apart")
    for row, end in zip(rows, left, strict=True):
        text = f"  {row['speedup_over_baseline']:.2f}x, {row['mfu']:.0%} MFU"
        axes.text(max(end, row["milliseconds"]), row["variant"], text, va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(row["milliseconds"] for row in rows))
    axes.set_xlabel(f"milliseconds a step: {rows[0]['model']}, {rows[0]['device']}")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
