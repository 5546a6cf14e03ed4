"""Faults of a step (``loss_spikes``, a state that is not finite), and the way back to the newest checkpoint."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bert_pretrain.checkpoint.async_writer import CheckpointWriter
from bert_pretrain.checkpoint.find import newest_valid
from bert_pretrain.checkpoint.store import CheckpointStore, Progress, restore
from bert_pretrain.distributed.world import World
from bert_pretrain.errors import DivergedError, SharedError
from bert_pretrain.model.bert import PretrainingModel
from bert_pretrain.model.precision import MixedPrecision
from bert_pretrain.training.loss_spikes import LossSpikeDetector
from bert_pretrain.training.metrics import MetricsLog
from bert_pretrain.training.options import NumericsConfig
from bert_pretrain.training.step_result import StepNumbers


@dataclass
class SpikeRecovery:
    """What the run does about faults: report and count them, rewind, or end. All ranks decide alike."""

    config: NumericsConfig
    world: World
    store: CheckpointStore
    writer: CheckpointWriter
    log: MetricsLog
    detector: LossSpikeDetector
    reason: str = ""
    """Why the run has to rewind; empty: it has not."""
    checkpoint: str = ""
    """Where to."""
    rewinds: int = 0
    """Since the last save."""

    def note_skipped(self, step: int, loss_scale: float, scaled: bool) -> None:
        """Count a step that was skipped after ``step``. Raises ``DivergedError`` after too many."""
        self.detector.note_skipped(step, loss_scale, scaled, self.config.max_skipped_in_a_row)

    def note_applied(self, step: int, numbers: StepNumbers, saved: bool) -> bool:
        """Report a loss spike or a state that is not finite after an applied step; True if the run has to rewind.

        ``saved``: whether the run has a checkpoint.
        """
        fault = self.detector.note_applied(numbers.loss, self.config.spike_deviations)
        if numbers.nonfinite_state:
            fault = "a weight or moment is not finite"
        if not fault:
            return False
        self.checkpoint = ""
        if self.config.on_spike == "rewind" and saved:
            self.checkpoint = self.world.run_on_first_rank(self._newest_checkpoint)
        if numbers.nonfinite_state and not self.checkpoint:
            raise DivergedError(
                f"after step {step} {fault}, and the run cannot recover; lower optimizer.lr and go on from a "
                "checkpoint, or let numerics.on_spike=rewind do it"
            )
        nowhere = self.config.on_spike == "rewind" and not self.checkpoint
        self.log.message(f"step {step}: {fault}{'; there is no checkpoint to rewind to' if nowhere else ''}")
        self.reason = f"step {step}: {fault}" if self.checkpoint else ""
        return bool(self.reason)

    def _newest_checkpoint(self) -> str:
        """The newest valid checkpoint, empty if there is none; on rank 0."""
        self.writer.wait()
        return str(newest_valid(self.store.directory, self.log.message, self.world.report_progress) or "")

    def rewind(
        self, attempts: int, model: PretrainingModel, optimizer: torch.optim.Optimizer, precision: MixedPrecision
    ) -> Progress:
        """Restore ``checkpoint``; the samples of the ``attempts`` since then are skipped.

        Nothing about it is saved: a run resumed from that checkpoint meets the same fault and rewinds again.
        """
        reason, self.reason = self.reason, ""
        self.rewinds += 1
        if self.rewinds > self.config.max_rewinds:
            raise SharedError(
                f"{reason}; there was such a fault after each of {self.config.max_rewinds} rewinds to one checkpoint "
                "(numerics.max_rewinds): lower optimizer.lr, or look at the samples"
            )
        parts = model, optimizer, precision, self.world.device
        progress = self.world.run_on_all_ranks(lambda: restore(Path(self.checkpoint), *parts), "reading a checkpoint")
        optimizer.exchange_loaded()  # type: ignore[attr-defined]
        dropped = attempts - progress.attempts
        self.log.message(f"{reason}; back to step {progress.step}, skipping {dropped} global batches")
        self.detector = LossSpikeDetector(**progress.spike_detector)
        return replace(progress, attempts=attempts, passed_over=progress.passed_over + dropped)
