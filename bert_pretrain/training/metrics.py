"""Metrics of a run: rows in ``metrics.jsonl``, lines and a progress bar on the terminal, trackers.

There are three kinds of rows, each with ``step``: a training step (has ``loss``), an evaluation (has ``eval_loss``),
and the layers of one update (has ``trust_ratio``, see ``LayerRows``).
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from bert_pretrain.files.file_system import replace_file
from bert_pretrain.trackers.feed import TrackerFeeds
from bert_pretrain.trackers.tracker import FINISHED, Row, TrackedRun

REPLACED = "metrics_replaced.jsonl"
LAYER_KINDS = ("trust_ratio", "weight_norm", "update_norm")


class MetricsLog:
    """Writes to ``metrics.jsonl``, terminal and trackers; to nothing without ``path`` (all ranks but the first)."""

    def __init__(
        self,
        path: Path | None,
        total_steps: int,
        busy: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
    ) -> None:
        """``busy``: context of what may take long, such as a slow disk, or a terminal that is stopped."""
        self.path, self.busy = path, busy
        hidden = path is None or not sys.stderr.isatty()
        self._bar = tqdm(total=total_steps, unit="step", disable=hidden, dynamic_ncols=True, smoothing=0.05)
        self.trackers = TrackerFeeds()
        self._unwritten = ""
        self.evaluated: set[int] = set()
        """Steps whose evaluation was in the metrics when the run was resumed."""
        self._started = time.perf_counter()
        self._first_step = 0

    def message(self, text: str) -> None:
        """Print one line."""
        if self.path is not None:
            with self.busy("printing"):
                tqdm.write(text, file=sys.stdout)
                sys.stdout.flush()

    def resume(self, step: int) -> None:
        """Remove the rows of steps after ``step``, which will be computed again; a copy is kept (``keep_rows``)."""
        self._first_step = step
        self.advance(step)
        if self.path is None:
            return
        unwritten = self._unwritten.splitlines(keepends=True)
        self._unwritten = "".join(line for line in unwritten if json.loads(line)["step"] <= step)
        rows = keep_rows(self.path, step, self.message)
        self.trackers.forget(step)
        self.evaluated = {row["step"] for row in rows if "eval_loss" in row}

    def start_trackers(self, names: list[str], run: TrackedRun, step: int) -> None:
        """Feed trackers too, with the rows that there are and those to come."""
        if self.path is not None:
            self.trackers.start(names, run, step, partial(read_rows, self.path), self.message)

    def row(self, row: Row) -> None:
        """Append one row to ``metrics.jsonl``, flushed at once, and hand it to the trackers."""
        if self.path is None:
            return
        with self.busy("writing metrics"):
            self._append(json.dumps(row) + "\n")
            self.trackers.row(row)

    def _append(self, line: str) -> None:
        """Rows that cannot be written stay in memory, and are written with the next one that can."""
        assert self.path is not None
        reported = bool(self._unwritten)
        self._unwritten += line
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

    def close(self, state: str = FINISHED) -> None:
        """Close the progress bar and the trackers; ``state``: how the run ended (``trackers/tracker.py``)."""
        self._bar.close()
        if self._unwritten:
            self.message(f"{self._unwritten.count(chr(10))} rows could not be written to {self.path}")
        with self.busy("finishing the trackers"):
            self.trackers.finish(state)


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


def training_line(row: Row, total_steps: int, seconds_left: float) -> str:
    """The line for a training step."""
    of_data_sheet = f" (data sheet {row['mfu_data_sheet']:.0%})" if "mfu_data_sheet" in row else ""
    return (
        f"step {row['step']:>7}/{total_steps}  loss {row['loss']:.3f}  mlm {row['mlm_loss']:.3f}  "
        f"acc {row['mlm_accuracy']:.3f}  lr {row['lr']:.2e}  |g| {row['grad_norm']:.3g}  "
        f"{row['tokens_per_second']:,.0f} tokens/s  MFU {row['mfu']:.0%}{of_data_sheet}  {duration(seconds_left)} left"
    )


def evaluation_line(row: Row) -> str:
    """The line for an evaluation."""
    next_sentence = f"  nsp acc {row['eval_nsp_accuracy']:.3f}" if "eval_nsp_accuracy" in row else ""
    return (
        f"step {row['step']:>7}  held out: loss {row['eval_loss']:.3f}  mlm {row['eval_mlm_loss']:.4f}  "
        f"mlm acc {row['eval_mlm_accuracy']:.3f}{next_sentence}"
    )


class LineTimer:
    """Says when a progress line is due: every 5 seconds at first, then after a fifth of the time that has passed.

    At least every 5 minutes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self.started = clock, clock()
        self._next = self.started + 5.0

    def due(self) -> bool:
        """True if a line is due; it is then taken as printed."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + min(300.0, max(5.0, 0.2 * (now - self.started)))
        return True


def perplexity(loss: float) -> float:
    """Of a masked-LM loss in nats."""
    return math.exp(min(loss, 700.0))  # exp(710) is no float


def duration(seconds: float) -> str:
    """``2d03h``, ``4h07m``, ``5m09s`` or ``12s``."""
    seconds = int(seconds)
    days = seconds // 86_400
    hours = seconds // 3_600 % 24
    minutes = seconds // 60 % 60
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds % 60:02d}s" if minutes else f"{seconds}s"


def read_rows(path: Path) -> list[Row]:
    """The rows of a ``metrics.jsonl``, without lines that are damaged or that a kill has cut off."""
    return [row for _, row in _parsed(path) if row is not None]


def keep_rows(path: Path, step: int, report: Callable[[str], None]) -> list[Row]:
    """Remove the rows after ``step`` and damaged lines from ``path``, and return the others.

    What is removed is first appended to ``metrics_replaced.jsonl`` beside it, on disk. ``report`` gets the numbers of
    damaged lines; the last line is no news, because a kill may cut it off.
    """
    lines = _parsed(path)
    kept = [(line, row) for line, row in lines if row is not None and row["step"] <= step]
    removed = [line for line, row in lines if row is None or row["step"] > step]
    copy = path.with_name(REPLACED)
    if damaged := [str(i) for i, (_, row) in enumerate(lines[:-1], 1) if row is None]:
        where = f"line{'s' * (len(damaged) > 1)} {', '.join(damaged[:9])}{', ...' * (len(damaged) > 9)}"
        report(f"{path} is damaged in {where}: moved to {copy.name}, the other rows are kept")
    if removed:
        with open(copy, "ab") as file:
            file.write(b"".join(line + b"\n" for line in removed))
            file.flush()
            os.fsync(file.fileno())
    content = b"".join(line + b"\n" for line, _ in kept)
    if not path.exists() or path.read_bytes() != content:
        replace_file(path, content)
    return [row for _, row in kept]


def _parsed(path: Path) -> list[tuple[bytes, Row | None]]:
    """The lines of ``path`` that are not empty, each with its row; None for a damaged one."""
    content = path.read_bytes() if path.exists() else b""
    found: list[tuple[bytes, Row | None]] = []
    for line in filter(None, content.split(b"\n")):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        found.append((line, row if isinstance(row, dict) and isinstance(row.get("step"), int) else None))
    return found
