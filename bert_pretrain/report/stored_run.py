"""A run as its directory has it: its options, its metrics, its sessions, its shards."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from bert_pretrain.data.shard_directory import data_fingerprint, read_manifest
from bert_pretrain.options.stored_options import read_progress
from bert_pretrain.trackers.tracker import DIVERGED, FAILED, FINISHED, STOPPED
from bert_pretrain.training.metrics import LAYER_KINDS, Row, read_rows
from bert_pretrain.training.sessions import METRICS, read_sessions

RUNNING = "running"
KILLED = "ended without a word, as after a kill"
UNFINISHED = "not finished"
_ENDS = (FINISHED, STOPPED, DIVERGED, FAILED)
_NEEDED = {"mlm_loss": ("samples_seen", "tokens_per_second"), "eval_mlm_loss": ("eval_mlm_accuracy",),
           "trust_ratio": LAYER_KINDS}  # fmt: skip
"""What the rows of a kind must have, by the key that makes their kind."""
_OF_SESSION = {"host", "version", "step", "ranks", "device", "compute", "torch"}


@dataclass(frozen=True)
class Run:
    """One run, as it is on disk at the moment of reading."""

    directory: Path
    options: dict[str, Any]
    rows: list[Row]
    sessions: list[dict[str, Any]]
    is_running: bool
    until: float
    """Up to when this is known, in seconds since 1970: when the metrics were last written; of a running one, now."""

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self.directory.resolve().name

    @cached_property
    def training(self) -> list[Row]:
        """The rows of training steps."""
        return [row for row in self.rows if "mlm_loss" in row]

    @cached_property
    def heldout(self) -> list[Row]:
        """The rows of evaluations."""
        return [row for row in self.rows if "eval_mlm_loss" in row]

    @property
    def done(self) -> int:
        """The last step in the metrics."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def planned(self) -> int:
        """The steps of the whole run."""
        return int(self.options["schedule"]["total_steps"])

    @property
    def last_session(self) -> dict[str, Any]:
        """The newest session; empty for a run of a version that kept no record."""
        return self.sessions[-1] if self.sessions else {}

    @property
    def state(self) -> str:
        """How the run stands, in one or a few words."""
        if self.is_running:
            return RUNNING
        how = self.last_session.get("how")
        if how in _ENDS:
            return str(how)
        if self.training and not math.isfinite(self.training[-1]["mlm_loss"]):
            return DIVERGED
        return KILLED if self.sessions else FINISHED if self.done >= self.planned else UNFINISHED

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the shards; empty if they are not on this machine, or have none."""
        directory = Path(self.options.get("data", {}).get("dir", ""))
        return (read_manifest(directory) if directory.is_dir() else None) or {}

    @property
    def corpus(self) -> set[str]:
        """The names of what the shards were made of, of files without their directories; empty if not known."""
        return {Path(source["name"]).name for source in self.manifest.get("sources", [])}

    def shards(self, split: str) -> tuple[int | None, str | None]:
        """The samples of a split and its fingerprint, as the run found them; None: not known.

        A run of a version that kept no record: as its newest checkpoint says, or the manifest as it is now.
        """
        if of_split := self.last_session.get("data", {}).get(split):
            return of_split["samples"], of_split["fingerprint"]
        listed = [row for row in self.manifest.get("shards", []) if row["split"] == split]
        samples = sum(int(row["samples"]) for row in listed) or None
        found = None
        if listed and all("checksum" in row for row in listed):
            found = data_fingerprint((row["name"], row["samples"], row["checksum"]) for row in listed)
        newest = max(self.directory.glob("checkpoints/step_????????/progress.json"), default=None)
        if split == "train" and newest is not None:
            found = read_progress(newest).get("data_fingerprint") or found
        return samples, found

    def tokens_per_second(self) -> float | None:
        """Real tokens a second, the median of the logged rows but the first, which includes the start-up."""
        rates = [row["tokens_per_second"] for row in self.training[1:] or self.training]
        return median(rates) if rates else None

    def seconds(self) -> float | None:
        """Wall time of all sessions; None for a run of a version that kept no record."""
        if not self.sessions:
            return None
        ends = [session["ended"] or max(self.until, session["time"]) for session in self.sessions]
        return sum(end - session["time"] for end, session in zip(ends, self.sessions, strict=True))


def usable_rows(directory: Path) -> list[Row]:
    """The rows of the run's metrics that have their numbers."""
    path = directory / METRICS
    return [row for row in read_rows(path) if _has_numbers(row)] if path.exists() else []


def _has_numbers(row: Row) -> bool:
    values = [one for value in row.values() for one in (value.values() if isinstance(value, dict) else [value])]
    lacking = [name for kind, names in _NEEDED.items() if kind in row for name in names if name not in row]
    maps = all(isinstance(value, dict) == (name in LAYER_KINDS) for name, value in row.items())
    return not lacking and maps and row["step"] >= 0 and all(isinstance(value, int | float) for value in values)


def usable_sessions(directory: Path) -> list[dict[str, Any]]:
    """The sessions of the run that have what is shown of them."""
    found = [session for session in read_sessions(directory) if session.keys() >= _OF_SESSION]
    return [one for one in found if isinstance(one["step"], int) and isinstance(one.get("data", {}), dict)]
