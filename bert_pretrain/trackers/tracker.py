"""What every tracker does, and the rows that it gets.

A tracker is a module of this package with ``open_run(TrackedRun) -> Tracker``. It is loaded only if it is chosen, and
then needs its library. Its functions run in a thread (``feed.py``), may block and may raise.
"""

import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bert_pretrain.errors import ConfigError, on_one_line

Row = dict[str, Any]
RowKey = tuple[str, int]
"""Kind and step of a row: there is one of a kind at a step."""
KINDS = {"loss": "training", "eval_loss": "evaluation", "trust_ratio": "layers"}
"""The kinds of rows, each by a key that it alone has (see ``training/metrics.py``)."""
_ID = "tracker_id"
FINISHED = "finished"
STOPPED = "stopped"
DIVERGED = "diverged"
FAILED = "failed"
"""States that a process leaves a run in; a stopped one can be resumed."""


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker is to show."""

    run_dir: Path
    project: str
    """Of wandb and trackio; the experiment of mlflow."""
    config: Row
    """Nested options."""
    wandb_mode: str
    """``auto``, ``online`` or ``offline``."""
    mlflow_uri: str | None
    """Address of mlflow's store; None: mlflow's own default."""
    id: str = ""
    """Of ``run_id``."""


def run_id(run_dir: Path) -> str:
    """The id of the run in ``run_dir``: drawn once and kept there, so that runs of the same name stay apart."""
    found = stored_id(run_dir)
    if not found:  # in a version before 0.2, the name was wandb's id
        found = run_dir.name if (run_dir / "wandb").is_dir() else f"{run_dir.name}-{secrets.token_hex(4)}"
    with suppress(OSError):  # a full disk stops no run
        (run_dir / _ID).write_text(found, encoding="utf-8")
    return found


def stored_id(run_dir: Path) -> str:
    """The id of an earlier process of the run; empty if there is none. Raises ``ConfigError`` if it cannot be read."""
    for name in (_ID, "wandb_id"):  # the latter of version 0.2
        path = run_dir / name
        try:
            if path.exists():
                return path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{path} cannot be read ({on_one_line(error)}); restore it, the run's id in its trackers, or move it "
                "away to track the run as a new one"
            ) from None
    return ""


class Tracker(Protocol):
    """A run that is open in a tracker."""

    where: str
    """Where its user sees it, for one line on the terminal."""
    held: set[RowKey]
    """The rows that the tracker has. The feed adds those that it sends."""

    def log_row(self, row: Row) -> None:
        """Log all values of a row, at its step."""

    def forget(self, step: int) -> None:
        """Rows of later steps will be computed again, with other values: remove them, if the tracker can."""

    def log_checkpoint(self, path: Path, step: int) -> None:
        """Note where a checkpoint lies; its files are not copied."""

    def log_plots(self, folder: Path, step: int) -> None:
        """Log the images in ``folder``."""

    def finish(self, state: str) -> None:
        """Close the run in one of the states above."""


@dataclass
class Values:
    """The values of a row, as trackers take them: one number a name."""

    step: int
    scalars: dict[str, float] = field(default_factory=dict)
    """``loss``, ..., and ``trust_ratio/LAYER``, ``weight_norm/LAYER``, ``update_norm/LAYER``."""
    by_layer: dict[str, list[float]] = field(default_factory=dict)
    """``trust_ratio``, ``weight_norm``, ``update_norm``: the values of all layers, for a histogram."""


def values_of(row: Row) -> Values:
    """The values of a row of ``metrics.jsonl``, without its step."""
    found = Values(row["step"])
    for name, value in row.items():
        if isinstance(value, dict):
            found.by_layer[name] = list(value.values())
            found.scalars |= {f"{name}/{layer}": number for layer, number in value.items()}
        elif name != "step":
            found.scalars[name] = value
    return found


def key_of(row: Row) -> RowKey:
    """Kind and step of a row."""
    return next((kind for name, kind in KINDS.items() if name in row), "other"), row["step"]


class Ledger:
    """The rows that a tracker got, noted in a file of the run: for trackers that do not tell what they have."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> set[RowKey]:
        """Of all processes of the run."""
        if not self._path.exists():
            return set()
        noted = (line.split() for line in self._path.read_text(encoding="utf-8").splitlines())
        return {(kind, int(step)) for kind, step in noted}

    def add(self, key: RowKey) -> None:
        """Note one more."""
        with open(self._path, "a", encoding="utf-8") as file:
            print(*key, file=file)

    def replace(self, held: set[RowKey]) -> None:
        """Note these and no others."""
        self._path.write_text("".join(f"{kind} {step}\n" for kind, step in sorted(held)), encoding="utf-8")


def plots_in(folder: Path) -> list[Path]:
    """The images in ``folder``, without empty ones."""
    return [path for path in sorted(folder.glob("*.png")) if path.stat().st_size]
