"""The figure of a plan: hours and efficiency over the number of devices."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from bert_pretrain.plan.scaling import ScalingCurve

_SERIES = ("#4477aa", "#ee7733", "#228833")


def draw_scaling(path: Path, machine: str, curves: list[ScalingCurve]) -> None:
    """On ``machine``: hours and efficiency against devices; a dot where each batch pays last."""
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
    left.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    right.yaxis.set_major_formatter(PercentFormatter(1))
    right.set_ylim(0, 1.05)
    figure.suptitle(machine)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
