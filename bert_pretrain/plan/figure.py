"""The figure of a plan: hours and efficiency over the number of devices."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from bert_pretrain.files.file_system import new_file
from bert_pretrain.plan.scaling import MOST_DEVICES, Scaling, powers_of_two

_BATCHES = {1: "#4477aa", 4: "#ee7733", 16: "#228833"}
"""The recipe's global batch divided by this, and the colour of the curve."""


def draw_scaling(path: Path, title: str, scaling: Scaling, global_batch: int, steps: int, floor: float) -> None:
    """Draw hours and efficiency over devices, for the batch and fractions of it on the same number of samples.

    A dot marks the largest number of devices whose efficiency is at least ``floor``.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for divisor, color in _BATCHES.items():
        batch = global_batch // divisor
        if batch == 0:
            continue
        devices = powers_of_two(min(MOST_DEVICES, batch))
        hours = [scaling.step(batch, n).total * steps * global_batch / batch / 3600 for n in devices]
        efficiency = [scaling.efficiency(batch, n) for n in devices]
        if divisor == 1:
            ticks = devices[::2]
            left.plot(devices, [hours[0] / n for n in devices], color="grey", linestyle=":", label="ideal")
            right.axhline(floor, color="grey", linestyle=":", label=f"efficiency_floor {floor:.0%}")
        last = scaling.most_efficient_devices(batch, floor)
        for axes, values in ((left, hours), (right, efficiency)):
            axes.plot(devices, values, color=color, label=f"{batch:,} samples a step")
            axes.plot(last, values[devices.index(last)], "o", color=color)
        right.annotate(f"{last:,}", (last, efficiency[devices.index(last)]), (4, 6),
                       textcoords="offset points", color=color)  # fmt: skip
    for axes, label in ((left, "hours"), (right, "scaling efficiency")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
        axes.set_xlabel("devices")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    left.set_yscale("log")
    left.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    right.yaxis.set_major_formatter(PercentFormatter(1))
    right.set_ylim(0, 1.05)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)
