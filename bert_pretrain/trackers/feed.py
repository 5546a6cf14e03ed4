"""Feeds the chosen trackers: each from a thread of its own, behind a bounded queue.

The trainer only puts rows into the queues and never waits. A tracker that fails is tried again after a pause that
doubles. Rows that it did not get, because it failed or its queue was full, are read from ``metrics.jsonl`` and sent
once it answers, also by a later process of the run. So a tracker ends with every row once, or lacks rows and says so.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from bert_pretrain.errors import on_one_line
from bert_pretrain.trackers.tracker import FINISHED, Row, RowKey, TrackedRun, Tracker, key_of, run_id

MOST_WAITING = 1000
"""Rows in the queue of one tracker: more are dropped, and read from the file later."""
FINISH_SECONDS = 30.0
"""How long the end of a run waits for its trackers, all together."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
"""Seconds before a tracker that failed is tried again."""
Report = Callable[[str], None]


class TrackerFeed:
    """One tracker, its thread and its queue."""

    def __init__(
        self, name: str, open_run: Callable[[int], Tracker], step: int, read: Callable[[], list[Row]], report: Report
    ) -> None:
        """``step``: that the run begins at; ``read`` reads ``metrics.jsonl``; ``report`` gets one line a message."""
        self.name = name
        self._open = open_run
        self._step = step
        self._read = read
        self._report = report
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._tracker: Tracker | None = None
        self.dropped = 0  # written by the trainer's thread alone
        self._dropped_before, self._behind = 0, True  # the rows that the file has already
        self._pause, self._next_try, self._said = FIRST_PAUSE, 0.0, False
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def row(self, row: Row) -> None:
        """Send ``row``; never waits."""
        if self._queue.qsize() < MOST_WAITING:
            self._queue.put(partial(self._send, [row]))
            return
        if not self.dropped:
            self._report(
                f"{self.name} does not keep up: {MOST_WAITING} rows wait for it, and the next ones are dropped"
            )
        self.dropped += 1

    def forget(self, step: int) -> None:
        """The rows after ``step`` will be computed again."""
        self._queue.put(partial(self._forget, step))

    def call(self, work: Callable[[Tracker], None]) -> None:
        """Let the tracker do something else, such as to note a checkpoint; dropped where its queue is full."""
        if self._queue.qsize() < MOST_WAITING:
            self._queue.put(partial(self._call, work))

    def finish(self, state: str) -> None:
        """Send what it lacks, and close it; ``join`` waits for that."""
        self._queue.put(partial(self._finish, state))
        self._queue.put(None)

    def join(self, seconds: float, patient: bool) -> None:
        """Wait up to ``seconds`` for the end, if ``patient`` as long as rows go through; say what the tracker lacks."""
        self._thread.join(seconds)
        before = 0
        while patient and self._thread.is_alive() and len(self._held()) > before:
            before = len(self._held())
            self._thread.join(FINISH_SECONDS)
        held = self._held()
        lacking = sum(key_of(row) not in held for row in self._read())
        if lacking or self._thread.is_alive():
            silent = " does not answer and" if self._thread.is_alive() else ""
            self._report(f"{self.name}{silent} lacks {lacking} rows of metrics.jsonl; the same command sends them")

    def _held(self) -> set[RowKey]:
        return self._tracker.held if self._tracker is not None else set()

    def _work(self) -> None:
        self._send([])
        for work in iter(self._queue.get, None):
            work()

    def _send(self, rows: list[Row], now: bool = False) -> None:
        """Send ``rows``, or all rows of the file if the tracker lacks some; ``now``: however long ago it failed."""
        dropped = self.dropped
        behind = self._behind or dropped > self._dropped_before
        if behind and not now and time.monotonic() < self._next_try:
            return
        try:
            if self._tracker is None:
                self._tracker = self._open(self._step)
                self._report(f"tracked: {self._tracker.where}")
            for row in self._read() if behind else rows:
                if key_of(row) not in self._tracker.held:
                    self._tracker.log_row(row)
                    self._tracker.held.add(key_of(row))
            self._behind = False
            self._dropped_before = dropped
            self._pause = FIRST_PAUSE
        except Exception as error:  # of any kind: the library is not ours
            self._failed(error)
            self._behind, self._next_try = True, time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _forget(self, step: int) -> None:
        self._step = step
        if self._tracker is not None:
            self._call(lambda tracker: tracker.forget(step))

    def _call(self, work: Callable[[Tracker], None]) -> None:
        try:
            if self._tracker is not None:
                work(self._tracker)
        except Exception as error:
            self._failed(error)

    def _finish(self, state: str) -> None:
        self._send([], now=True)
        self._call(lambda tracker: tracker.finish(state))

    def _failed(self, error: Exception) -> None:
        if not self._said:
            self._report(f"{self.name} failed ({on_one_line(error)}); training goes on, and it is tried again")
        self._said = True


class TrackerFeeds:
    """The feeds of all trackers of a run; none on other ranks than the first, and where none is chosen."""

    def __init__(self) -> None:
        self._feeds: list[TrackerFeed] = []

    def start(
        self, names: list[str], run: TrackedRun, step: int, read: Callable[[], list[Row]], report: Report
    ) -> None:
        """Start the threads. The modules are loaded (``choice.load_trackers``)."""
        if names:
            run = replace(run, id=run_id(run.run_dir))
        for name in names:
            open_run = partial(import_module(f"bert_pretrain.trackers.{name}").open_run, run)
            self._feeds.append(TrackerFeed(name, open_run, step, read, report))

    def row(self, row: Row) -> None:
        """A row of ``metrics.jsonl``."""
        for feed in self._feeds:
            feed.row(row)

    def forget(self, step: int) -> None:
        """The rows after ``step`` were removed from ``metrics.jsonl``."""
        for feed in self._feeds:
            feed.forget(step)

    def checkpoint(self, path: Path, step: int) -> None:
        """A checkpoint that is on disk."""
        for feed in self._feeds:
            feed.call(lambda tracker: tracker.log_checkpoint(path, step))

    def plots(self, folder: Path, step: int) -> None:
        """The images of ``folder``."""
        for feed in self._feeds:
            feed.call(lambda tracker: tracker.log_plots(folder, step))

    def finish(self, state: str) -> None:
        """Close all runs in ``state``, in a bounded time; a finished run waits for rows as long as they go through."""
        end = time.monotonic() + FINISH_SECONDS
        for feed in self._feeds:
            feed.finish(state)
        for feed in self._feeds:
            feed.join(max(0.0, end - time.monotonic()), patient=state == FINISHED)
