"""What a run says while it runs: a row of JSON and a line for each logged step, a bar on a terminal, wandb if asked.

Three kinds of rows, each with ``step``, told apart by a key that only they have: a training step (``loss``), an
evaluation (``eval_loss``), and the layers of one update (``trust_ratio``, see ``LayerRows``).
"""

import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tqdm import tqdm

from bert_pretrain.model.flops import training_flops
from bert_pretrain.model.options import ModelConfig

if TYPE_CHECKING:
    from bert_pretrain.training.step_result import StepNumbers

Row = dict[str, Any]
Item = TypeVar("Item")
WANDB_SECONDS = 60.0
"""How long the end of a run waits for wandb."""
LAYER_KINDS = ("trust_ratio", "weight_norm", "update_norm")


class MetricsLog:
    """``metrics.jsonl``, the terminal and wandb. With no ``path`` (ranks other than the first) it is silent."""

    def __init__(self, path: Path | None, total_steps: int) -> None:
        self.path = path
        self._bar = tqdm(
            total=total_steps,
            unit="step",
            disable=path is None or not sys.stderr.isatty(),
            dynamic_ncols=True,
            smoothing=0.05,
        )
        self._wandb: Any = None
        self._unwritten = ""
        self._evaluated: set[int] = set()
        self._started = time.perf_counter()
        self._first_step = 0

    def message(self, text: str) -> None:
        """One line to the user."""
        if self.path is not None:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def resume(self, step: int) -> None:
        """Drop the rows of steps after ``step``: they are about to be computed again."""
        self._first_step = step
        self._bar.update(step - self._bar.n)
        if self.path is None:
            return
        self.path.touch()
        rows = [row for row in read_rows(self.path) if row["step"] <= step]
        self._evaluated = {row["step"] for row in rows if "eval_loss" in row}
        temporary = self.path.with_name(f".{self.path.name}.partial")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        temporary.rename(self.path)

    def had_evaluation(self, step: int) -> bool:
        """Whether there was a row of an evaluation of ``step`` when the run was resumed."""
        return step in self._evaluated

    def open_wandb(self, mode: str, project: str, run_dir: Path, key_present: bool, config: Row) -> None:
        """Log to wandb as well. Whatever wandb does, the run goes on."""
        if self.path is None or mode == "disabled":
            return
        attempts: list[Literal["online", "offline"]] = ["online", "offline"]
        for wanted in attempts if mode != "offline" and key_present else attempts[1:]:
            try:
                import wandb  # half a second that only its users pay

                self._wandb = wandb.init(
                    project=project,
                    dir=run_dir,
                    mode=wanted,
                    name=run_dir.name,
                    id=run_dir.name,
                    resume="allow",
                    config=config,
                    settings=wandb.Settings(silent=True, init_timeout=WANDB_SECONDS),
                )
                return
            except Exception as error:  # a vanished server or a full disk must not end a run of days
                self.message(
                    f"wandb is not {wanted}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
                )

    def row(self, row: Row) -> None:
        """Append one row to ``metrics.jsonl`` and to wandb; flushed, so that a killed run has its rows."""
        if self.path is None:
            return
        self._append(json.dumps(row) + "\n")
        if self._wandb is not None:
            try:
                self._wandb.log(row, step=row["step"])
            except Exception as error:
                self._wandb = None
                self.message(f"wandb is off from here: {error}")

    def _append(self, line: str) -> None:
        """Where the disk takes no rows they wait here, and go with the next one that it takes."""
        assert self.path is not None
        waiting, self._unwritten = self._unwritten, self._unwritten + line
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(self._unwritten)
            self._unwritten = ""
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.path, size)  # half a row would hide those after it
            if not waiting:
                self.message(f"{self.path} cannot be written ({error}); training goes on, its rows are kept in memory")

    def advance(self, step: int) -> None:
        """Move the bar."""
        self._bar.update(step - self._bar.n)

    def seconds_left(self, step: int) -> float:
        """Estimated from the rate since this process began."""
        done = max(1, step - self._first_step)
        return (time.perf_counter() - self._started) / done * (self._bar.total - step)

    def start_clock(self) -> None:
        """Estimates of the time left count from here."""
        self._started = time.perf_counter()

    def close(self, failed: bool = False) -> None:
        """End the bar and the wandb run, there too as ``failed`` says."""
        self._bar.close()
        if self._unwritten:
            self.message(f"{self._unwritten.count(chr(10))} rows could not be written to {self.path}")
        if self._wandb is None:
            return
        # Without its server, wandb tries for hours.
        done = threading.Thread(target=self._finish_wandb, args=(failed,), daemon=True)
        done.start()
        done.join(WANDB_SECONDS)
        if done.is_alive():
            self.message(f"wandb does not answer; the run's data are in {self._wandb.dir}: wandb sync")

    def _finish_wandb(self, failed: bool) -> None:
        try:
            self._wandb.finish(exit_code=int(failed))
        except Exception as error:
            self.message(f"wandb did not finish: {error}")


@dataclass(frozen=True)
class LayerRows:
    """Rows about what layer-wise adaptation did in one update, each value by layer.

    ``trust_ratio``, ``weight_norm`` (||w|| before the update) and ``update_norm`` (||u||) each map the name of a layer
    to its value, six digits.
    """

    names: list[str]
    """The layers of the optimizer's ``layer_report``; none where it adapts none: then there are no rows."""
    every: int
    """Applied steps between two rows; 0: no rows."""

    def may_fall_in(self, first: int, count: int) -> bool:
        """Whether one of ``count`` steps from ``first`` on gets a row."""
        return bool(self.names and self.every) and any(step % self.every == 0 for step in range(first, first + count))

    def row(self, step: int, values: list[float]) -> Row:
        """The row of ``step``; ``values``: the report's three rows in one; NaN, for layers not updated, is left out."""
        row: Row = {"step": step}
        count = len(self.names)
        for i, kind in enumerate(LAYER_KINDS):
            pairs = zip(self.names, values[i * count : (i + 1) * count], strict=True)
            row[kind] = {name: float(f"{value:.6g}") for name, value in pairs if not math.isnan(value)}
        return row


@dataclass
class Throughput:
    """Work done since the last row."""

    tokens: float = 0.0
    flops: float = 0.0
    waited: float = 0.0
    """Seconds spent waiting for data."""
    since: float = field(default_factory=time.perf_counter)

    def add(self, model: ModelConfig, step: "StepNumbers") -> None:
        """Count a step of all ranks."""
        self.tokens += step.tokens
        self.flops += training_flops(model, step.samples, step.tokens, step.squared, step.masked)

    def time_waiting(self, items: Iterator[Item]) -> Iterator[Item]:
        """``items``, the time spent waiting for each counted."""
        while True:
            started = time.perf_counter()
            item = next(items, None)
            self.waited += time.perf_counter() - started
            if item is None:
                return
            yield item

    def rates(self, peak: float) -> Row:
        """What a row says of the time, and begin anew; ``peak``: FLOP/s of all devices together."""
        now = time.perf_counter()
        seconds = now - self.since
        row = {
            "tokens_per_second": self.tokens / seconds,
            "mfu": self.flops / seconds / peak,
            "matrix_peak_share": self.flops / seconds / peak,  # the name of mfu until version 0.1
            "data_wait_share": self.waited / seconds,
        }
        self.tokens = self.flops = self.waited = 0.0
        self.since = now
        return row


def training_line(row: Row, total_steps: int, seconds_left: float) -> str:
    """A logged step in one line."""
    return (
        f"step {row['step']:>7}/{total_steps}  loss {row['loss']:.3f}  mlm {row['mlm_loss']:.3f}  "
        f"acc {row['mlm_accuracy']:.3f}  lr {row['lr']:.2e}  |g| {row['grad_norm']:.3g}  "
        f"{row['tokens_per_second']:,.0f} tokens/s  MFU {row['mfu']:.0%}  {duration(seconds_left)} left"
    )


def evaluation_line(row: Row) -> str:
    """An evaluation in one line."""
    return (
        f"step {row['step']:>7}  held out: loss {row['eval_loss']:.3f}  mlm {row['eval_mlm_loss']:.4f}  "
        f"mlm acc {row['eval_mlm_accuracy']:.3f}  nsp acc {row['eval_nsp_accuracy']:.3f}"
    )


def duration(seconds: float) -> str:
    """``2d03h``, ``4h07m``, ``5m09s`` or ``12s``."""
    seconds = int(seconds)
    days, hours, minutes = seconds // 86_400, seconds // 3_600 % 24, seconds // 60 % 60
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds % 60:02d}s" if minutes else f"{seconds}s"


def read_rows(path: Path) -> list[Row]:
    """The rows of a ``metrics.jsonl``; a last line torn by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def writable_directory(path: Path) -> str | None:
    """Create ``path`` and try to write in it; what stands in the way, or None."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return str(error)
    return None
