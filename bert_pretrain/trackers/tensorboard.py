"""TensorBoard: event files in ``run_dir/tensorboard``, written with the package ``tensorboard``.

Numbers are float32 there. One event holds all values of a row. What is computed again after a resume or a rewind
replaces what was written, by the rule of TensorBoard's readers: a ``SessionLog.START`` event at step s discards all
earlier events of step s or later.
"""

import math
import time
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from bert_pretrain.options.stored_options import flat
from bert_pretrain.trackers.tracker import KINDS, Row, RowKey, TrackedRun, plots_in, values_of


class TensorBoardRun:
    """The event files of one run."""

    def __init__(self, run: TrackedRun, step: int) -> None:
        self.folder = run.run_dir / "tensorboard"
        self.where = f"tensorboard --logdir {self.folder}"
        self.held = _held(self.folder)
        self._writer = EventFileWriter(str(self.folder))
        self._step = step
        self.forget(step)
        table = [f"| {name} | {value} |" for name, value in flat(run.config).items()]
        self._add(text_pb("config", "\n".join(["| option | value |", "|---|---|", *table])), 0)

    def log_row(self, row: Row) -> None:
        """One event with all values, flushed."""
        values = values_of(row)
        found = [Summary.Value(tag=name, simple_value=value) for name, value in values.scalars.items()]
        found += [
            Summary.Value(tag=f"layers/{name}", histo=_histogram(by_layer))
            for name, by_layer in values.by_layer.items()
        ]
        self._add(Summary(value=found), values.step)
        self._step = max(self._step, values.step)

    def forget(self, step: int) -> None:
        """Tell readers to discard the events after ``step``."""
        self.held = {key for key in self.held if key[1] <= step}
        self._step = step
        start = Event(session_log=SessionLog(status=SessionLog.START), step=step + 1, wall_time=time.time())
        self._writer.add_event(start)
        self._writer.flush()

    def log_checkpoint(self, path: Path, step: int) -> None:
        """Its path as text."""
        self._add(text_pb("checkpoint", str(path)), step)

    def log_plots(self, folder: Path, step: int) -> None:
        """The files as they are."""
        for path in plots_in(folder):
            content = path.read_bytes()
            width, height = (int.from_bytes(content[place : place + 4]) for place in (16, 20))  # PNG's header
            image = Summary.Image(encoded_image_string=content, width=width, height=height, colorspace=4)
            self._add(Summary(value=[Summary.Value(tag=f"plots/{path.stem}", image=image)]), step)

    def finish(self, state: str) -> None:
        """The state as text, and close."""
        self._add(text_pb("state", state), self._step)
        self._writer.close()

    def _add(self, summary: Summary, step: int) -> None:
        self._writer.add_event(Event(summary=summary, step=step, wall_time=time.time()))
        self._writer.flush()


open_run = TensorBoardRun
"""Begins a new event file in the run's folder."""


def _histogram(values: list[float]) -> HistogramProto:
    """In the first format: readers do not discard histograms of the newer one that are computed again."""
    finite = np.array([value for value in values if math.isfinite(value)])
    counts, edges = np.histogram(finite, bins=30)
    moments = {"num": len(finite), "sum": finite.sum(), "sum_squares": (finite**2).sum()}
    return HistogramProto(min=edges[0], max=edges[-1], bucket=counts, bucket_limit=edges[1:], **moments)


def _held(folder: Path) -> set[RowKey]:
    """The rows in the event files, as a reader sees them."""
    found: set[RowKey] = set()
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            if event.session_log.status == SessionLog.START:
                found = {key for key in found if key[1] < event.step}
            tags = {value.tag.partition("/")[0] for value in event.summary.value}
            found |= {(kind, event.step) for tag, kind in KINDS.items() if tag in tags}
    return found
