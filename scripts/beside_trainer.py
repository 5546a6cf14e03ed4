"""Our program beside ``transformers.Trainer`` with ``DataCollatorForLanguageModeling``, in turns on one machine.

    python scripts/beside_trainer.py WORK_DIR RESULT.json recipe=demo data.dir=data/demo

Both train the same model from the same weights on the same samples, with the same batch and dropout. Every side is a
process of its own; they take turns of some seconds, and only a side's own turns count as its time. First every setting
of the Trainer that might be the fastest is measured beside ours (tokens/s, peak memory). Then ours and the fastest of
them train for some minutes each, with a schedule that ends there; the held-out loss is computed outside of that time,
by plain ``transformers`` with the masks of the shards. A CPU without bf16 instructions emulates the Trainer's bf16:
give ``--trainer "fp32, sdpa, by length"`` there.
"""

import itertools
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beside_trainer_side import OURS, SETTINGS
from repository_root import ROOT
from results_file import argument_parser, write_result

from bert_pretrain.study.page import as_csv

SIDE = str(ROOT / "scripts" / "beside_trainer_side.py")


@dataclass
class Side:
    """A training process, and what it did in its turns."""

    name: str
    process: subprocess.Popen[str]
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    """Held-out losses: before the first turn, then after each."""
    peak_mb: float = 0.0
    done: bool = False

    def receive(self) -> dict[str, Any]:
        """The next message of the process."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}; see its log")
        return dict(json.loads(line))

    def turn(self, seconds: float) -> None:
        """Let the process train for ``seconds``, and evaluate."""
        assert self.process.stdin is not None
        print(seconds, file=self.process.stdin, flush=True)
        found = self.receive()
        self.seconds.append(found["seconds"])
        self.cpu_seconds.append(found["cpu_seconds"])
        self.tokens.append(found["tokens"])
        self.steps, self.peak_mb, self.done = found["steps"], found["peak_mb"], found["done"]
        if found["loss"] is not None:
            self.losses.append(found["loss"])

    def rate(self, unit: str) -> float:
        """Median tokens per unit of ``seconds`` or ``cpu_seconds``, without the first turn, which warms up."""
        turns = list(zip(self.tokens, getattr(self, unit), strict=True))
        return statistics.median(tokens / spent for tokens, spent in turns[1:])


def start(name: str, work: Path, job: dict[str, Any], options: list[str]) -> Side:
    """Start a side and wait until it is ready for its first turn."""
    job_file = work / "job.json"
    job_file.write_text(json.dumps(job | {"side": name}), encoding="utf-8")
    command = [sys.executable, SIDE, str(work), str(job_file), *options]
    with (work / "sides.log").open("a") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    side = Side(name, process)
    side.losses.extend([loss] if (loss := side.receive()["loss"]) is not None else [])
    return side


def stop(sides: list[Side]) -> None:
    """End the processes."""
    for side in sides:
        assert side.process.stdin is not None
        side.process.stdin.close()
        side.process.wait()


def measure_speed(work: Path, given: Any, options: list[str]) -> list[Side]:
    """Ours and every setting of the Trainer, in turns, without evaluations."""
    job = {"steps": 1_000_000, "heldout": 0, "lr": given.lr, "cpu": False}
    sides = [start(name, work, job, options) for name in (OURS, *(given.trainer or SETTINGS))]
    for _ in range(given.rounds + 1):
        for side in sides:
            side.turn(given.seconds)
    stop(sides)
    return sides


def train_both(work: Path, given: Any, options: list[str], sides: list[Side]) -> list[Side]:
    """Ours and the fastest setting of the Trainer, for ``given.minutes`` each, with held-out losses."""
    ours, *others = sides
    best = max(others, key=lambda side: side.rate("cpu_seconds"))
    runs = []
    for side in (ours, best):
        per_second = side.steps / sum(side.cpu_seconds if given.cpu else side.seconds)
        job = {"steps": round(per_second * 60 * given.minutes), "heldout": given.heldout, "lr": given.lr}
        job["cpu"] = given.cpu
        runs.append(start(side.name, work, job, options))
    while not all(side.done for side in runs):
        for side in runs:
            if not side.done:
                side.turn(given.minutes * 60 / given.points)
    stop(runs)
    return runs


def draw(path: Path, title: str, curves: dict[str, list[list[float]]], cpu: bool) -> None:
    """Write ``path``, an SVG, and a CSV beside it: held-out loss over the time of the side's own turns.

    ``curves``: by side, (minutes, minutes of CPU time, loss) at each point; ``cpu``: over the CPU time.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    time = f"minutes of {'CPU time' if cpu else 'training'}"
    rows = []
    for look, (name, points) in zip(("o-k", "s--"), curves.items(), strict=True):
        label = "bert-pretrain" if name == OURS else f"transformers.Trainer, {name}"
        found = [(point[-2] if cpu else point[0], point[-1]) for point in points]
        axes.plot(*zip(*found, strict=True), look, markersize=4, label=label)
        rows += [{"side": label, time: f"{minute:.3f}", "loss": f"{loss:.4f}"} for minute, loss in found]
    axes.set_xlabel(f"{time}, in turns on one machine")
    axes.set_ylabel("held-out masked-word loss, nats")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with plt.rc_context({"svg.hashsalt": "beside", "svg.fonttype": "none"}):  # the same file each time; text as text
        figure.savefig(path, metadata={"Date": None})
    path.with_suffix(".csv").write_text(as_csv(rows), encoding="utf-8")


def minutes(turns: list[float]) -> list[float]:
    """Minutes at the start and after each of the turns, which are in seconds."""
    return [seconds / 60 for seconds in itertools.accumulate(turns, initial=0.0)]


def main() -> None:
    """Measure, write the result and draw it."""
    parser = argument_parser(__doc__)
    parser.add_argument("work_dir", type=Path, help="a new directory")
    parser.add_argument("result", type=Path, help="JSON file to write, and an SVG and a CSV beside it")
    parser.add_argument("options", nargs="*", help="options of bert-pretrain pretrain")
    parser.add_argument("--title", default="Held-out loss over time")
    parser.add_argument("--seconds", type=float, default=8, help="seconds of a turn of the speed measurement")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side that count")
    parser.add_argument("--minutes", type=float, default=5, help="minutes of training for each side; 0: speed only")
    parser.add_argument("--points", type=int, default=15, help="held-out losses of each side")
    parser.add_argument("--trainer", action="append", choices=SETTINGS, help="a setting to measure; default: all")
    parser.add_argument("--cpu", action="store_true", help="minutes of CPU time: for a machine that is busy otherwise")
    parser.add_argument("--heldout", type=int, default=256, help="held-out samples")
    parser.add_argument("--lr", type=float, default=5e-4, help="the Trainer's learning rate; ours is an option")
    given = parser.parse_args()
    work, options = given.work_dir, given.options
    work.mkdir(parents=True)
    sides = measure_speed(work, given, options)
    rows = [
        {
            "side": side.name if side.name == OURS else f"Trainer: {side.name}",
            "tokens/s": side.rate("seconds"),
            "tokens per CPU second": side.rate("cpu_seconds"),
            "ours over it, wall": sides[0].rate("seconds") / side.rate("seconds"),
            "ours over it, CPU": sides[0].rate("cpu_seconds") / side.rate("cpu_seconds"),
            "peak MB": round(side.peak_mb),
        }
        for side in sides
    ]
    note, curves = "Median over turns; real tokens, without padding.", {}
    if given.minutes:
        runs = train_both(work, given, options, sides)
        curves = {
            side.name: list(map(list, zip(minutes(side.seconds), minutes(side.cpu_seconds), side.losses, strict=True)))
            for side in runs
        }
        draw(given.result.with_suffix(".svg"), given.title, curves, given.cpu)
        ends = [f"{side.name}: {side.losses[-1]:.3f} after {sum(side.seconds) / 60:.1f} minutes, "
                f"{sum(side.cpu_seconds) / 60:.1f} of CPU time, {side.steps:,} steps, "
                f"{side.peak_mb:.0f} MB" for side in runs]  # fmt: skip
        note += f" Held-out loss at the start {runs[0].losses[0]:.3f}. " + "; ".join(ends) + "."
    write_result(given.result, given.title, rows, note, curves=curves)


if __name__ == "__main__":
    main()
