"""Weights & Biases: online where a key is found, else offline in ``run_dir/wandb`` (``wandb sync`` uploads it).

The axis of all charts is ``step``. wandb keeps every row that it got: rows that a rewind computes again are logged
again, and the later of two is that of the run.
"""

import netrc
import os
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import wandb

from bert_pretrain.errors import EXIT_STOPPED
from bert_pretrain.trackers.tracker import FINISHED, STOPPED, Ledger, Row, TrackedRun, key_of, plots_in, values_of

START_SECONDS = 60.0
"""How long wandb may take to start online before the run is tracked offline."""
_UPLOAD_SECONDS = 20.0  # at the end; without a limit, wandb's own hook keeps the process from exiting


class WandbRun:
    """An open run of wandb."""

    def __init__(self, run: Any, ledger: Ledger) -> None:
        self._run, self._ledger = run, ledger
        self.where = f"wandb sync {Path(run.dir).parent}" if run.offline else f"wandb run {run.url}"
        self.held = ledger.read()  # wandb does not tell what it has, in particular offline
        run.define_metric("*", step_metric="step")

    def log_row(self, row: Row) -> None:
        """The row as it is, layers nested, and a histogram of each value by layer."""
        layers = values_of(row).by_layer
        self._run.log({**row, **{f"layers/{name}": wandb.Histogram(found) for name, found in layers.items()}})
        self._ledger.add(key_of(row))

    def forget(self, step: int) -> None:
        """Later rows are logged beside those that are there."""
        self.held = {key for key in self.held if key[1] <= step}
        self._ledger.replace(self.held)

    def log_checkpoint(self, path: Path, step: int) -> None:
        """A version of the run's model artifact that refers to the checkpoint."""
        if not path.exists():  # removed meanwhile, in favour of newer ones
            return
        artifact = wandb.Artifact(f"{self._run.id}-checkpoint", type="model", metadata={"step": step})
        artifact.add_reference(path.resolve().as_uri(), checksum=False)
        self._run.log_artifact(artifact)

    def log_plots(self, folder: Path, step: int) -> None:
        """As images."""
        self._run.log({"step": step, **{f"plots/{path.stem}": wandb.Image(str(path)) for path in plots_in(folder)}})

    def finish(self, state: str) -> None:
        """A run that stopped and can be resumed is preempted; one that diverged or failed has failed."""
        self._run.summary["state"] = state
        if state == STOPPED:
            self._run.mark_preempting()
        self._run.finish(exit_code={FINISHED: 0, STOPPED: EXIT_STOPPED}.get(state, 1))


def open_run(run: TrackedRun, step: int) -> WandbRun:
    """Start the run of this directory, or go on with it."""
    settings = wandb.Settings(silent=True, init_timeout=START_SECONDS, finish_timeout=_UPLOAD_SECONDS)
    place: dict[str, Any] = {"project": run.project, "dir": run.run_dir, "name": run.run_dir.name, "config": run.config}

    def start(mode: Literal["online", "offline"]) -> Any:
        return wandb.init(mode=mode, id=run.id, resume="allow", settings=settings, **place)

    try:
        opened = start("online" if run.wandb_mode != "offline" and has_key() else "offline")
    except Exception:  # no server, a wrong key
        if run.wandb_mode == "offline":
            raise
        wandb.teardown()  # which ends the attempt, else the id is in use
        opened = start("offline")
    return WandbRun(opened, Ledger(run.run_dir / "wandb" / "rows_logged.txt"))


def has_key() -> bool:
    """Whether wandb can log in without asking: a key in the environment, or in ~/.netrc for its own host."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    try:
        return host in netrc.netrc(os.environ.get("NETRC") or None).hosts
    except (OSError, netrc.NetrcParseError):
        return False
