"""Checkpoints: written beside, flushed, checked and renamed; the newest valid one found again.

    checkpoints/step_00001000/
        model/            a folder that transformers.from_pretrained loads, tokenizer included
        optimizer.pt      moments, master weights and counts (loaded with weights_only)
        progress.json     where the run stands
        config.yaml       the run's resolved configuration
        checksums.json    SHA-256 of every file above

A directory has its final name only when all of it is on disk. One that is torn or altered is named, passed over and
never deleted. Random states need no place here: dropout is seeded anew for every step from (seed, rank, step).
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import BertForPreTraining

from bert_pretrain.checkpoint.files import (
    Throttle,
    find_fault,
    flush,
    flush_directory,
    no_throttle,
    save_state,
    write_checksums,
)
from bert_pretrain.errors import ConfigError
from bert_pretrain.model.bert import PretrainingModel, load_weights
from bert_pretrain.model.precision import MixedPrecision

TOKENIZER_FILES = (
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_NAME = re.compile(r"step_(\d{8})")


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    step: int = 0
    """Applied steps: the position in the schedule."""
    attempts: int = 0
    """Global batches consumed, skipped and passed over ones too: the position in the data."""
    passed_over: int = 0
    """Global batches left behind by going back to a checkpoint."""
    samples_seen: int = 0
    tokens_seen: int = 0
    """Real tokens."""
    data_fingerprint: str = ""
    precision: dict[str, float] | None = None
    spike_detector: dict[str, Any] = field(default_factory=dict)
    """State of ``LossSpikeDetector``."""

    def after(self, applied: bool, samples: int, tokens: int) -> "Progress":
        """This progress after one more attempt."""
        return replace(
            self,
            step=self.step + applied,
            attempts=self.attempts + 1,
            samples_seen=self.samples_seen + samples,
            tokens_seen=self.tokens_seen + tokens,
        )

    @property
    def skipped(self) -> int:
        """Steps whose gradient was not finite."""
        return self.attempts - self.passed_over - self.step


class CheckpointStore:
    """The checkpoints of one run. One process writes; every process may read."""

    def __init__(self, directory: Path, keep_last: int, tokenizer: Path | None, keep_every_steps: int = 0) -> None:
        self.directory, self.keep_last, self.tokenizer = directory, keep_last, tokenizer
        self.keep_every_steps = keep_every_steps

    def save(
        self,
        model: BertForPreTraining,
        optimizer_state: dict[str, Any],
        progress: Progress,
        config_yaml: str,
        throttle: Throttle = no_throttle,
    ) -> Path:
        """Write a checkpoint named after ``progress.step``, then remove those that need not be kept.

        ``rest`` is called after each megabyte that was written or read.
        Errors of the file system (a full disk) are raised as OSError; nothing is left behind, earlier checkpoints stay.
        """
        final = self.directory / f"step_{progress.step:08d}"
        for left in self.directory.glob(".step_*.partial"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        temporary = self.directory / f".{final.name}.partial"
        try:
            self._write(temporary, model, optimizer_state, progress, config_yaml, throttle)
        except (OSError, RuntimeError, SafetensorError) as error:  # the latter two: a full disk, as libraries report it
            room = "" if isinstance(error, OSError) else f"; {_megabytes_left(self.directory):.1f} MB are left there"
            shutil.rmtree(temporary, ignore_errors=True)
            raise OSError(f"{error}{room}") from error
        if final.exists():  # a damaged one: a valid one would have been resumed from, and no step is saved twice
            final.rename(_free_name(final))
        temporary.rename(final)
        flush_directory(self.directory)
        self._remove_old(throttle)
        return final

    def _write(
        self,
        path: Path,
        model: BertForPreTraining,
        optimizer_state: dict[str, Any],
        progress: Progress,
        config_yaml: str,
        throttle: Throttle,
    ) -> None:
        path.mkdir(parents=True)
        model.save_pretrained(path / "model")
        save_state(optimizer_state, path / "optimizer.pt", throttle)
        for name in TOKENIZER_FILES:
            if self.tokenizer is not None and (self.tokenizer / name).is_file():
                shutil.copyfile(self.tokenizer / name, path / "model" / name)
        (path / "progress.json").write_text(json.dumps(asdict(progress), indent=2), encoding="utf-8")
        (path / "config.yaml").write_text(config_yaml, encoding="utf-8")
        write_checksums(path, throttle)
        flush(path)

    def newest_valid(self, report: Callable[[str], None]) -> Path | None:
        """The newest checkpoint whose every file is as it was written; ``report`` hears of those passed over."""
        for path in reversed(self.all()):
            fault = find_fault(path)
            if fault is None:
                return path
            report(f"checkpoint {path} is passed over: {fault}")
        return None

    def all(self) -> list[Path]:
        """All checkpoints by step, valid or not."""
        if not self.directory.is_dir():
            return []
        return sorted(path for path in self.directory.iterdir() if _NAME.fullmatch(path.name))

    def _remove_old(self, throttle: Throttle) -> None:
        for path in self.all()[: -self.keep_last]:
            milestone = self.keep_every_steps and int(path.name[5:]) % self.keep_every_steps == 0
            if milestone or find_fault(path, throttle) is not None:
                continue  # a damaged one is evidence, and not ours to delete
            shutil.rmtree(path)


def _megabytes_left(directory: Path) -> float:
    """Room on the disk; what libraries say of a full one does not tell that it is full."""
    return shutil.disk_usage(next(path for path in (directory, *directory.parents) if path.exists())).free / 1e6


def load_progress(path: Path) -> Progress:
    """The progress of a valid checkpoint."""
    values = json.loads((path / "progress.json").read_text(encoding="utf-8"))
    if "watch" in values:  # its name until version 0.1
        values["spike_detector"] = values.pop("watch")
    return Progress(**values)


def load_optimizer_state(path: Path, device: torch.device) -> dict[str, Any]:
    """The optimizer's state of a valid checkpoint, without executing code."""
    state: dict[str, Any] = torch.load(path / "optimizer.pt", map_location=device, weights_only=True)
    return state


def restore(
    path: Path,
    model: PretrainingModel,
    optimizer: torch.optim.Optimizer,
    precision: MixedPrecision,
    device: torch.device,
) -> Progress:
    """Put everything where a valid checkpoint left it."""
    progress = load_progress(path)
    load_weights(model, path / "model")
    optimizer.load_state_dict(load_optimizer_state(path, device))
    precision.load_state_dict(progress.precision)
    return progress


def resolve_init(path: Path, report: Callable[[str], None]) -> Path:
    """What ``init_from`` means: a checkpoint, or a run directory's newest valid one; ``report`` as there.

    Raises ``ConfigError`` where there is none.
    """
    checkpoints = path / "checkpoints"
    if checkpoints.is_dir():
        newest = CheckpointStore(checkpoints, 1, None).newest_valid(report)
        if newest is not None:
            return newest
    if not (path / "model").is_dir():
        raise ConfigError(
            f"init_from is {str(path)!r}, which is no checkpoint; give a run directory or one of its checkpoints/step_*"
        )
    fault = find_fault(path)
    if fault is not None:
        raise ConfigError(f"init_from is {str(path)!r}, which is damaged: {fault}")
    return path


def _free_name(path: Path) -> Path:
    number = 1
    while (candidate := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return candidate
