"""The pictures of a run, drawn from its ``metrics.jsonl``, and of a plan."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a run has no screen
import matplotlib.pyplot as plt

from bert_pretrain.metrics import Row, read_rows

_TRAIN, _HELDOUT = "#4477aa", "#cc3311"
_SERIES = ("#4477aa", "#ee7733", "#228833")


@dataclass(frozen=True)
class Curve:
    """One global batch on more and more devices."""

    label: str
    devices: list[int]
    hours: list[float]
    efficiency: list[float]
    last_paying: int
    floor: float


def draw_run(run_dir: Path) -> Path:
    """Draw loss, accuracy, learning rate, gradient norm and speed into ``run_dir/plots``; return that folder."""
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
    return folder


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


def draw_scaling(path: Path, curves: list[Curve]) -> None:
    """Hours and efficiency against devices; a dot where each batch pays last."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for curve, color in zip(curves, _SERIES, strict=False):
        last = curve.devices.index(curve.last_paying)
        left.plot(curve.devices, curve.hours, color=color, label=curve.label)
        right.plot(curve.devices, curve.efficiency, color=color, label=curve.label)
        for axes, values in ((left, curve.hours), (right, curve.efficiency)):
            axes.plot(curve.last_paying, values[last], "o", color=color)
        right.annotate(f"{curve.last_paying:,}", (curve.last_paying, curve.efficiency[last]), (4, 6),
                       textcoords="offset points", color=color)  # fmt: skip
    first = curves[0]
    ideal = [first.hours[0] / n for n in first.devices]
    left.plot(first.devices, ideal, color="grey", linestyle=":", label="without any loss")
    right.axhline(first.floor, color="grey", linestyle=":", label=f"{first.floor:.0%}: the batch pays up to here")
    for axes, label in ((left, "hours"), (right, "scaling efficiency")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(first.devices[::2], [f"{n:,}" for n in first.devices[::2]])
        axes.set_xlabel("devices")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    left.set_yscale("log")
    right.set_ylim(0, 1.05)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
