"""Metrics of a run: rows in ``metrics.jsonl``, lines and a progress bar on the terminal, wandb.

There are three kinds of rows, each with ``step``: a training step (has ``loss``), an evaluation (has ``eval_loss``),
and the layers of one update (has ``trust_ratio``, see ``LayerRows``).
"""

import json
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from tqdm import tqdm

from bert_pretrain.errors import ConfigError

Row = dict[str, Any]
Item = TypeVar("Item")
WANDB_SECONDS = 60.0
"""How long wandb may take to start and to finish."""
LAYER_KINDS = ("trust_ratio", "weight_norm", "update_norm")


class MetricsLog:
    """Writes to ``metrics.jsonl``, the terminal and wandb; to nothing without ``path`` (all ranks but the first)."""

    def __init__(self, path: Path | None, total_steps: int) -> None:
        self.path = path
        hidden = path is None or not sys.stderr.isatty()
        self._bar = tqdm(total=total_steps, unit="step", disable=hidden, dynamic_ncols=True, smoothing=0.05)
        self._wandb: Any = None
        self._unwritten = ""
        self.evaluated: set[int] = set()
        """Steps whose evaluation was in the metrics when the run was resumed."""
        self._started = time.perf_counter()
        self._first_step = 0

    def message(self, text: str) -> None:
        """Print one line."""
        if self.path is not None:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def resume(self, step: int) -> None:
        """Remove the rows of steps after ``step``: they will be computed again."""
        self._first_step = step
        self._bar.update(step - self._bar.n)
        if self.path is None:
            return
        self.path.touch()
        rows = [row for row in read_rows(self.path) if row["step"] <= step]
        self.evaluated = {row["step"] for row in rows if "eval_loss" in row}
        temporary = self.path.with_name(f".{self.path.name}.partial")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        temporary.rename(self.path)

    def open_wandb(self, mode: str, project: str, run_dir: Path, key_present: bool, config: Row) -> None:
        """Log to wandb too. No failure of wandb stops the run."""
        if self.path is None or mode == "disabled":
            return
        attempts: list[Literal["online", "offline"]] = ["online", "offline"]
        for wanted in attempts if mode != "offline" and key_present else attempts[1:]:
            try:
                import wandb  # takes half a second to load

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
            except Exception as error:  # no server, a full disk
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                self.message(f"wandb cannot start {wanted}: {reason}")

    def row(self, row: Row) -> None:
        """Append one row to ``metrics.jsonl``, flushed at once, and to wandb."""
        if self.path is None:
            return
        self._append(json.dumps(row) + "\n")
        if self._wandb is not None:
            try:
                self._wandb.log(row, step=row["step"])
            except Exception as error:
                self._wandb = None
                self.message(f"wandb failed and is off from now on: {error}")

    def _append(self, line: str) -> None:
        """Rows that cannot be written stay in memory, and are written with the next one that can."""
        assert self.path is not None
        reported, self._unwritten = bool(self._unwritten), self._unwritten + line
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(self._unwritten)
            self._unwritten = ""
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.path, size)  # half a row would hide the ones after it
            if not reported:
                self.message(f"{self.path} cannot be written ({error}); training goes on, its rows are kept in memory")

    def advance(self, step: int) -> None:
        """Advance the progress bar to ``step``."""
        self._bar.update(step - self._bar.n)

    def seconds_left(self, step: int) -> float:
        """Estimated from the mean time of a step since ``start_clock``."""
        done = max(1, step - self._first_step)
        return (time.perf_counter() - self._started) / done * (self._bar.total - step)

    def start_clock(self) -> None:
        """Start to measure the time of the steps."""
        self._started = time.perf_counter()

    def close(self, failed: bool = False) -> None:
        """Close the progress bar and finish the wandb run, marked as ``failed`` or not."""
        self._bar.close()
        if self._unwritten:
            self.message(f"{self._unwritten.count(chr(10))} rows could not be written to {self.path}")
        if self._wandb is None:
            return
        # In a thread with a timeout: without its server, wandb tries for hours.
        thread = threading.Thread(target=self._finish_wandb, args=(failed,), daemon=True)
        thread.start()
        thread.join(WANDB_SECONDS)
        if thread.is_alive():
            self.message(f"wandb does not answer; upload the run later: wandb sync {self._wandb.dir}")

    def _finish_wandb(self, failed: bool) -> None:
        try:
            self._wandb.finish(exit_code=int(failed))
        except Exception as error:
            self.message(f"wandb could not finish: {error}")


@dataclass(frozen=True)
class LayerRows:
    """Rows with the trust ratios and norms of one update by layer.

    ``trust_ratio``, ``weight_norm`` (||w|| before the update) and ``update_norm`` (||u||) map the name of each layer to
    its value, with six digits.
    """

    names: list[str]
    """The layers in the optimizer's ``layer_report``; empty if it is not layer-wise: no rows."""
    every: int
    """Applied steps between two rows; 0: no rows."""

    def due(self, first: int, count: int = 1) -> bool:
        """Whether one of ``count`` steps from ``first`` on gets a row."""
        return bool(self.names and self.every) and any(step % self.every == 0 for step in range(first, first + count))

    def row(self, step: int, values: list[float]) -> Row:
        """The row of ``step`` from the flattened (3, layers) ``layer_report``; NaN marks layers without an update."""
        row: Row = {"step": step}
        count = len(self.names)
        for i, kind in enumerate(LAYER_KINDS):
            pairs = zip(self.names, values[i * count : (i + 1) * count], strict=True)
            row[kind] = {name: float(f"{value:.6g}") for name, value in pairs if not math.isnan(value)}
        return row


@dataclass
class Throughput:
    """Tokens and FLOPs of all ranks, and waiting time, since the last row."""

    tokens: float = 0.0
    flops: float = 0.0
    waited: float = 0.0
    """Seconds spent waiting for data."""
    since: float = field(default_factory=time.perf_counter)

    def time_waiting(self, items: Iterator[Item]) -> Iterator[Item]:
        """``items``, measuring the time that the consumer waits for them."""
        while True:
            started = time.perf_counter()
            item = next(items, None)
            self.waited += time.perf_counter() - started
            if item is None:
                return
            yield item

    def rates(self, peak: float) -> Row:
        """The metrics of the interval, and start a new one; ``peak``: FLOP/s of all devices together."""
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
    """The line for a training step."""
    return (
        f"step {row['step']:>7}/{total_steps}  loss {row['loss']:.3f}  mlm {row['mlm_loss']:.3f}  "
        f"acc {row['mlm_accuracy']:.3f}  lr {row['lr']:.2e}  |g| {row['grad_norm']:.3g}  "
        f"{row['tokens_per_second']:,.0f} tokens/s  MFU {row['mfu']:.0%}  {duration(seconds_left)} left"
    )


def evaluation_line(row: Row) -> str:
    """The line for an evaluation."""
    next_sentence = f"  nsp acc {row['eval_nsp_accuracy']:.3f}" if "eval_nsp_accuracy" in row else ""
    return (
        f"step {row['step']:>7}  held out: loss {row['eval_loss']:.3f}  mlm {row['eval_mlm_loss']:.4f}  "
        f"mlm acc {row['eval_mlm_accuracy']:.3f}{next_sentence}"
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
    """The rows of a ``metrics.jsonl``, up to a line that a kill has cut off."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def require_writable(path: Path, option: str, instead: str = "give another") -> None:
    """Create the directory ``path`` and try to write into it. Raises ``ConfigError`` with the advice ``instead``."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be written ({error}); {instead}") from None
