"""Checkpoint directories: written under a temporary name, flushed, renamed; the newest valid one is found on resume.

    checkpoints/step_00001000/
        model/            a folder for transformers.from_pretrained, with the tokenizer
        optimizer.pt      moments, master weights and step counts (loaded with weights_only)
        progress.json     step, position in the data, loss scale (see ``Progress``)
        config.yaml       the run's resolved configuration
        checksums.json    SHA-256 of every file above

A directory gets its final name only when all of it is on disk. A damaged one is reported and skipped, never deleted,
and does not count for ``keep_last``.
Random states are not saved: dropout is seeded for every step from (seed, rank, step).
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.optim import Optimizer
from transformers import PreTrainedModel

from bert_pretrain.checkpoint.files import Throttle, find_fault_quickly, save_state, write_checksums
from bert_pretrain.checkpoint.find import checkpoints_in, record_saved_step, step_of
from bert_pretrain.checkpoint.tokenizer_files import copy_tokenizer
from bert_pretrain.errors import ConfigError, number_of, on_one_line
from bert_pretrain.files.file_system import fsync, open_to_umask
from bert_pretrain.model.bert import PretrainingModel, load_weights
from bert_pretrain.model.config_entries import keep_entries
from bert_pretrain.model.precision import MixedPrecision
from bert_pretrain.options.stored_options import FORMAT_VERSION, damaged, read_progress

_NEEDED = ("step", "attempts", "samples_seen", "data_fingerprint")
"""What every version has written into a ``progress.json``."""
_FULL = 1_000_000
"""Free bytes below which an error of a library while it writes counts as a full disk."""


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
    micro_batch_size: int = 0
    """Samples in one forward pass of a rank, which ``batch.micro_batch_size=auto`` has found; 0: not known."""
    ranks: int = 0
    """Ranks of the run that saved; 0: not known."""
    bookmarks: list[list[int]] = field(default_factory=list)
    """Where the streams of text go on (``data/text_stream.py``); empty for other data."""

    @property
    def skipped(self) -> int:
        """Steps skipped because their gradient was not finite."""
        return self.attempts - self.passed_over - self.step


@dataclass
class CheckpointStore:
    """The checkpoints of one run. One process writes; every process may read."""

    directory: Path
    keep_last: int
    tokenizer: Path | None
    keep_every_steps: int = 0
    report: Callable[[str], None] = lambda _: None
    """Gets a message for an old checkpoint that is a link or cannot be removed."""
    record: Path | None = None
    """The file that keeps the step of the newest checkpoint (``find.RECORD``)."""

    def save(
        self,
        model: PreTrainedModel,
        optimizer_state: dict[str, Any],
        progress: Progress,
        config_yaml: str,
        throttle: Throttle = lambda: None,
    ) -> Path:
        """Write the checkpoint of ``progress.step``, then remove old ones.

        Raises OSError for errors of the file system (a full disk) and of memory, others for bugs; then earlier
        checkpoints are unchanged, and no partial one is left. Once it has its name, nothing fails.
        """
        final = self.directory / f"step_{progress.step:08d}"
        for leftover in self.directory.glob(".step_*.partial"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        temporary = self.directory / f".{final.name}.partial"
        try:
            temporary.mkdir(parents=True)
            model.save_pretrained(temporary / "model")
            open_to_umask(temporary / "model")
            save_state(optimizer_state, temporary / "optimizer.pt", throttle)
            if self.tokenizer is not None:
                copy_tokenizer(self.tokenizer, temporary / "model", model.config.max_position_embeddings)
            values = {"format_version": FORMAT_VERSION, **asdict(progress)}
            (temporary / "progress.json").write_text(json.dumps(values, indent=2), encoding="utf-8")
            (temporary / "config.yaml").write_text(config_yaml, encoding="utf-8")
            write_checksums(temporary, throttle)
            fsync(*temporary.rglob("*"), temporary)
            if final.exists() or final.is_symlink():  # damaged: the run would have resumed from a valid one
                names = (final.with_name(f"{final.name}.damaged-{number}") for number in count(1))
                final.rename(next(name for name in names if not name.exists()))
            temporary.rename(final)
        except Exception as error:
            cause = _disk_error(error, self.directory)
            shutil.rmtree(temporary, ignore_errors=True)
            if cause is error:
                raise
            raise cause from error
        try:
            fsync(self.directory)
            if self.record is not None:
                record_saved_step(self.record, progress.step)
            self._remove_old(final, throttle)
        except OSError as error:
            self.report(f"checkpoint {final} is saved; its directory is not tidied ({error})")
        return final

    def all(self) -> list[Path]:
        """All checkpoints by step, damaged ones too."""
        return checkpoints_in(self.directory)

    def _remove_old(self, written: Path, throttle: Throttle) -> None:
        """Keep ``written`` and the newest valid ones, ``keep_last`` in all. Damaged ones stay and do not count."""
        kept = 1
        for path in reversed(self.all()):
            milestone = bool(self.keep_every_steps) and step_of(path) % self.keep_every_steps == 0
            if path == written or (milestone and kept >= self.keep_last) or not self._is_valid(path, throttle):
                continue
            if kept < self.keep_last:
                kept += 1
            else:
                self._remove(path)

    def _is_valid(self, path: Path, throttle: Throttle) -> bool:
        try:
            return find_fault_quickly(path, throttle) is None
        except OSError:  # it cannot be read now: it stays
            return False

    def _remove(self, path: Path) -> None:
        try:
            if path.is_symlink():
                target = path.resolve()
                path.unlink()
                self.report(f"old checkpoint {path} was a link: it is removed, and {target} is kept")
            else:
                shutil.rmtree(path)
        except OSError as error:
            self.report(f"old checkpoint {path} cannot be removed ({error}); training goes on")


def _disk_error(error: Exception, directory: Path) -> Exception:
    """``error`` as an OSError if a library hides one in it, memory ran out or the disk is full; else itself: a bug."""
    if isinstance(error, OSError) or not isinstance(error, (RuntimeError, MemoryError, SafetensorError)):
        return error
    if number := number_of(error):  # of safetensors
        return OSError(number, os.strerror(number))
    if isinstance(error, MemoryError) or "allocate memory" in str(error):  # the latter is torch's
        return OSError(errno.ENOMEM, str(error))
    free = shutil.disk_usage(directory).free
    if free < _FULL:
        return OSError(errno.ENOSPC, f"{error}; {free / 1e6:.1f} MB are free there")
    return error


def load_progress(path: Path) -> Progress:
    """The progress of a checkpoint. Raises ``ConfigError`` if it is damaged or of a later version."""
    values = read_progress(path / "progress.json")
    if "watch" in values:  # its name until version 0.1
        values["spike_detector"] = values.pop("watch")
    try:
        progress = Progress(**values)
    except TypeError as error:
        raise ConfigError(f"{path / 'progress.json'} is of another version of this program ({error})") from None
    for name, default in asdict(Progress()).items():
        value = values.get(name, None if name in _NEEDED else default)
        fits = value is None or isinstance(value, dict) if default is None else type(value) is type(default)
        if not fits or (isinstance(value, int) and value < 0):
            raise damaged(path / "progress.json", ValueError(f"{name} is {value!r}"), "one that is whole")
    return progress


def load_optimizer_state(path: Path, device: torch.device) -> dict[str, Any]:
    """The optimizer state of a valid checkpoint, loaded without executing code."""
    with loading(path / "optimizer.pt") as file:
        state = torch.load(file, map_location=device, weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
    return state


@contextmanager
def loading(path: Path) -> Iterator[Path]:
    """Context that loads ``path``, a part of a checkpoint whose checksums are right. What libraries raise about its
    content becomes a ``ConfigError``; errors of the system stay, for another attempt."""
    try:
        yield path
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if isinstance(error, ConfigError):  # has its own advice
            raise ConfigError(f"{path}: {error}") from error
        raise ConfigError(
            f"{path} cannot be loaded ({on_one_line(error)}); put a copy of one that fits there, or move this "
            "checkpoint away to use the one before it"
        ) from error


def restore(
    path: Path, model: PretrainingModel, optimizer: Optimizer, precision: MixedPrecision, device: torch.device
) -> Progress:
    """Load a valid checkpoint into ``model``, ``optimizer`` and ``precision``; returns its progress.

    No collective, so that it may fail on one rank; on all, ``optimizer.exchange_loaded`` comes next.
    """
    progress = load_progress(path)
    with loading(path / "model") as folder:
        load_weights(model, folder)
        keep_entries(model.bert.config, json.loads((folder / "config.json").read_text(encoding="utf-8")))
    state = load_optimizer_state(path, device)
    with loading(path / "optimizer.pt"):
        optimizer.load_state_dict(state)
    precision.load_state_dict(progress.precision)
    return progress
