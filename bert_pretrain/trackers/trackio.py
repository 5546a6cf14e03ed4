"""trackio: a run in its local database, or on the server or Space that TRACKIO_SERVER_URL or TRACKIO_SPACE_ID name.

trackio keeps every row that it got. Rows that a rewind computes again are logged again: the later of two is that of the
run.
"""

import json
import os
from pathlib import Path

import trackio
from trackio.sqlite_storage import SQLiteStorage

from bert_pretrain.options.stored_options import flat
from bert_pretrain.trackers.tracker import KINDS, Ledger, Row, RowKey, TrackedRun, key_of, plots_in, values_of


class TrackioRun:
    """One run of trackio."""

    def __init__(self, run: TrackedRun) -> None:
        config = json.loads(json.dumps(flat(run.config), default=str))
        self._run = trackio.init(
            run.project, run.id, config=config, resume="allow", auto_log_gpu=False, auto_log_cpu=False, embed=False
        )
        self.where = f"trackio show --project {run.project}"
        is_local = not any(os.environ.get(name) for name in ("TRACKIO_SERVER_URL", "TRACKIO_SPACE_ID"))
        self._ledger = None if is_local else Ledger(run.run_dir / "trackio_rows.txt")  # a server does not tell
        self.held = self._ledger.read() if self._ledger else _held(run.project, self._run.id)

    def log_row(self, row: Row) -> None:
        """All values, and a histogram of each value by layer."""
        values = values_of(row)
        histograms = {f"layers/{name}": trackio.Histogram(found) for name, found in values.by_layer.items()}
        self._run.log({**values.scalars, **histograms}, step=values.step)
        if self._ledger:
            self._ledger.add(key_of(row))

    def forget(self, step: int) -> None:
        """Later rows are logged beside those that are there."""
        self.held = {key for key in self.held if key[1] <= step}
        if self._ledger:
            self._ledger.replace(self.held)

    def log_checkpoint(self, path: Path, step: int) -> None:
        """Its path as text."""
        self._run.log({"checkpoint": str(path)}, step=step)

    def log_plots(self, folder: Path, step: int) -> None:
        """As images."""
        self._run.log({f"plots/{path.stem}": trackio.Image(str(path)) for path in plots_in(folder)}, step=step)

    def finish(self, state: str) -> None:
        """The state as text, and close."""
        self._run.log({"state": state})
        self._run.finish()


def open_run(run: TrackedRun, step: int) -> TrackioRun:
    """The run of this directory, or a new one."""
    return TrackioRun(run)


def _held(project: str, run_id: str) -> set[RowKey]:
    """The rows in the database of this machine."""
    found: set[RowKey] = set()
    for row in SQLiteStorage.get_logs(project, run_id=run_id):
        found |= {(KINDS[kind], row["step"]) for kind in {name.partition("/")[0] for name in row} & KINDS.keys()}
    return found
