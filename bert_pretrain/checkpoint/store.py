"""Checkpoint directories: written under a temporary name, flushed, renamed; the newest valid one is found on resume.

    checkpoints/step_00001000/
        model/            a folder for transformers.from_pretrained, with the tokenizer
        optimizer.pt      moments, master weights and step counts (loaded with weights_only)
        progress.json     step, position in the data, loss scale (see ``Progress``)
        config.yaml       the run's resolved configuration
        checksums.json    SHA-256 of every file above

A directory gets its final name only when all of it is on disk. A damaged one is reported and skipped, never deleted.
Random states are not saved: dropout is seeded for every step from (seed, rank, step).
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.optim import Optimizer
from transformers import PreTrainedModel

from bert_pretrain.checkpoint.directories import checkpoints_in, newest_valid
from bert_pretrain.checkpoint.files import Throttle, find_fault, fsync, save_state, write_checksums
from bert_pretrain.checkpoint.tokenizer_files import copy_tokenizer
from bert_pretrain.model.bert import PretrainingModel, load_weights
from bert_pretrain.model.config_entries import keep_entries
from bert_pretrain.model.precision import MixedPrecision


@dataclass(frozen=True)
class Progress:
    """The state of a run besides weights and optimizer."""

    step: int = 0
    """Applied steps: the position in the schedule."""
    attempts: int = 0
    """Global batches consumed, those of skipped steps and before a rewind too: the position in the data."""
    passed_over: int = 0
    """Global batches that rewinds have dropped."""
    samples_seen: int = 0
    tokens_seen: int = 0
    """Real tokens, without padding."""
    data_fingerprint: str = ""
    precision: dict[str, float] | None = None
    """State of ``MixedPrecision``."""
    spike_detector: dict[str, Any] = field(default_factory=dict)
    """State of ``LossSpikeDetector``."""

    @property
    def skipped(self) -> int:
        """Steps skipped because their gradient was not finite."""
        return self.attempts - self.passed_over - self.step


class CheckpointStore:
    """The checkpoints of one run. One process writes; every process may read."""

    def __init__(self, directory: Path, keep_last: int, tokenizer: Path | None, keep_every_steps: int = 0) -> None:
        self.directory, self.keep_last, self.tokenizer = directory, keep_last, tokenizer
        self.keep_every_steps = keep_every_steps

    def save(
        self,
        model: PreTrainedModel,
        optimizer_state: dict[str, Any],
        progress: Progress,
        config_yaml: str,
        throttle: Throttle = lambda: None,
    ) -> Path:
        """Write the checkpoint of ``progress.step``, then remove old ones.

        Raises OSError for errors of the file system (a full disk); then earlier checkpoints are unchanged, and no
        partial one is left.
        """
        final = self.directory / f"step_{progress.step:08d}"
        for leftover in self.directory.glob(".step_*.partial"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        temporary = self.directory / f".{final.name}.partial"
        try:
            temporary.mkdir(parents=True)
            model.save_pretrained(temporary / "model")
            save_state(optimizer_state, temporary / "optimizer.pt", throttle)
            if self.tokenizer is not None:
                copy_tokenizer(self.tokenizer, temporary / "model", model.config.max_position_embeddings)
            (temporary / "progress.json").write_text(json.dumps(asdict(progress), indent=2), encoding="utf-8")
            (temporary / "config.yaml").write_text(config_yaml, encoding="utf-8")
            write_checksums(temporary, throttle)
            fsync(*temporary.rglob("*"), temporary)
        except (OSError, RuntimeError, SafetensorError) as error:  # libraries hide a full disk in the latter two
            free = (
                ""
                if isinstance(error, OSError)
                else f"; {shutil.disk_usage(self.directory).free / 1e6:.1f} MB are free there"
            )
            shutil.rmtree(temporary, ignore_errors=True)
            raise OSError(f"{error}{free}") from error
        if final.exists():  # damaged: the run would have resumed from a valid one
            names = (final.with_name(f"{final.name}.damaged-{number}") for number in count(1))
            final.rename(next(name for name in names if not name.exists()))
        temporary.rename(final)
        fsync(self.directory)
        self._remove_old(throttle)
        return final

    def newest_valid(self, report: Callable[[str], None]) -> Path | None:
        """The newest undamaged checkpoint; ``report`` gets a message for each damaged one that is skipped."""
        return newest_valid(self.directory, report)

    def all(self) -> list[Path]:
        """All checkpoints by step, damaged ones too."""
        return checkpoints_in(self.directory)

    def _remove_old(self, throttle: Throttle) -> None:
        for path in self.all()[: -self.keep_last]:
            milestone = self.keep_every_steps and int(path.name[5:]) % self.keep_every_steps == 0
            if not milestone and find_fault(path, throttle) is None:  # a damaged one stays, as evidence
                shutil.rmtree(path)


def load_progress(path: Path) -> Progress:
    """The progress of a valid checkpoint."""
    values = json.loads((path / "progress.json").read_text(encoding="utf-8"))
    if "watch" in values:  # its name until version 0.1
        values["spike_detector"] = values.pop("watch")
    return Progress(**values)


def load_optimizer_state(path: Path, device: torch.device) -> dict[str, Any]:
    """The optimizer state of a valid checkpoint, loaded without executing code."""
    state: dict[str, Any] = torch.load(path / "optimizer.pt", map_location=device, weights_only=True)
    return state


def restore(
    path: Path, model: PretrainingModel, optimizer: Optimizer, precision: MixedPrecision, device: torch.device
) -> Progress:
    """Load a valid checkpoint into ``model``, ``optimizer`` and ``precision``; returns its progress."""
    progress = load_progress(path)
    load_weights(model, path / "model")
    keep_entries(model.bert.config, json.loads((path / "model/config.json").read_text(encoding="utf-8")))
    optimizer.load_state_dict(load_optimizer_state(path, device))
    precision.load_state_dict(progress.precision)
    return progress
