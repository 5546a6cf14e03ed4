"""The loop. It is handed every part, built, and constructs nothing.

A step: take this rank's micro-batches of the next global batch, run each forward and backward (gradients travel
between ranks on the last one only), update once. Nothing is read back from the device inside a step; its numbers
are fetched while the next step runs.
"""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from bert_pretrain.checkpoint.async_writer import CheckpointWriter
from bert_pretrain.checkpoint.store import CheckpointStore, Progress, restore
from bert_pretrain.data.batch_plan import BatchPlan
from bert_pretrain.data.collate import Counts, HostToDeviceStream, StepBatch
from bert_pretrain.data.dataset import ShardSet
from bert_pretrain.data.loader import TrainingData
from bert_pretrain.data.sample_order import hash64
from bert_pretrain.distributed.gradients import data_parallel, sync_gradients
from bert_pretrain.distributed.options import CommunicationConfig
from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.world import World
from bert_pretrain.errors import DivergedError, SharedError
from bert_pretrain.model.bert import PretrainingModel
from bert_pretrain.model.options import ModelConfig
from bert_pretrain.model.precision import MixedPrecision
from bert_pretrain.training.evaluation import evaluate
from bert_pretrain.training.loss_spikes import LossSpikeDetector
from bert_pretrain.training.metrics import LayerRows, MetricsLog, Row, Throughput, evaluation_line, training_line
from bert_pretrain.training.options import NumericsConfig
from bert_pretrain.training.step_result import StepNumbers, StepResult, fetch


@dataclass
class Trainer:
    """One run, from the step in ``progress`` to ``total_steps``."""

    world: World
    model: PretrainingModel
    model_config: ModelConfig
    optimizer: torch.optim.Optimizer
    learning_rates: torch.Tensor
    """(total_steps + 1,) float64 on the device: the rate of the update after k applied ones."""
    precision: MixedPrecision
    plan: BatchPlan
    data: TrainingData
    heldout: ShardSet | None
    store: CheckpointStore
    log: MetricsLog
    progress: Progress
    seed: int
    config_yaml: str
    total_steps: int
    log_every: int
    layers: LayerRows
    evaluate_every: int
    checkpoint_every: int
    peak_rate: float
    """Measured FLOP/s of one rank's device."""
    communication: CommunicationConfig
    numerics: NumericsConfig
    stop: StopRequest = field(default_factory=StopRequest)

    def __post_init__(self) -> None:
        self.network = data_parallel(self.model, self.world, self.communication, self.precision.scaled)
        self.applied = torch.tensor([self.progress.step], device=self.world.device)
        self._writer = CheckpointWriter(self.store, self.log.message)
        self._spike_detector = LossSpikeDetector(**self.progress.spike_detector)
        self._to_device = HostToDeviceStream(self.world.device)
        self._pending: StepResult | None = None
        self._trouble = ""
        self._stopping = self._owes_evaluation = False
        self._saved_step, self._rewinds = self.progress.step, 0
        self._throughput = Throughput()

    def run(self) -> bool:
        """Train to ``total_steps``, evaluating and saving on the way; False where it stopped before, as asked.

        Whatever ends it, a checkpoint that is being written becomes whole.
        """
        with self._writer.finish_on_error():
            self.log.start_clock()
            if self._evaluation_is_missing():
                self._log_evaluation()
                self._throughput = Throughput()
            while self.progress.step < self.total_steps and not self._stopping:
                self._train()
                if self._trouble:
                    self._rewind()
            if self.progress.step > self._saved_step:
                self._save()
            self.world.run_on_all_ranks(self._writer.finish)
        return self.progress.step == self.total_steps and not self._owes_evaluation

    def _train(self) -> None:
        """Steps from here to the end, to a stop, or to trouble that asks for a rewind."""
        steps = self.data.steps(self.progress.attempts, pin=self.world.device.type == "cuda")
        try:
            while self.progress.step < self.total_steps and not self._stopping and not self._trouble:
                result = self.train_step(next(self._throughput.time_waiting(steps)))
                self._finish_previous_step()  # the step before this one: done by now, so that nothing waits
                self._pending = None if self._trouble else result
                if self._is_boundary(self.progress.step + 1) and self._finish_previous_step():
                    self._evaluate_and_save()
        finally:
            steps.close()  # type: ignore[attr-defined]
        self._finish_previous_step()  # after a stop one more step may be on its way, on every rank

    def train_step(self, batch: StepBatch) -> StepResult:
        """One global batch, one update. Returns without waiting for the device."""
        attempt = self.progress.attempts + (self._pending is not None)
        self.world.report_progress(attempt + 1)
        torch.manual_seed(hash64(self.seed, self.world.rank, attempt))  # resuming needs no saved random state
        counts = self._global_counts(batch.counts)
        scale = self.precision.scale.clone()
        sums = self._accumulate(batch, counts)
        rate = self.learning_rates.index_select(0, self.applied.clamp(max=self.total_steps))[0]
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        skipped = self.precision.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=not self.model.speed.cuda_graphs)
        self.applied += 1 - skipped.long()
        norm: torch.Tensor = self.optimizer.grad_norm  # type: ignore[attr-defined]
        unhealthy: torch.Tensor = getattr(self.optimizer, "nonfinite_state", torch.zeros_like(skipped))
        sums = self.world.sum(torch.cat([sums, unhealthy.double().view(1)]))  # each rank may know its layers only
        head = [part.double() for part in (skipped, rate, norm, scale, sums[4])]
        numbers = [torch.stack(head), counts, sums[:4]]
        if self.layers.may_fall_in(self.progress.step + 1, 1 + (self._pending is not None)):
            numbers.append(self.optimizer.layer_report().flatten())  # type: ignore[attr-defined]
        return fetch(torch.cat(numbers))

    def _accumulate(self, batch: StepBatch, counts: torch.Tensor) -> torch.Tensor:
        """Forward and backward of all micro-batches; the four sums of this rank, (4,) float64 on the device."""
        sums = torch.zeros(4, dtype=torch.float64, device=self.world.device)
        last = self.plan.accumulation(self.world.rank) - 1
        samples, masked = counts[0], counts[1].clamp(min=1)
        factor = self.precision.scale * self.world.size  # DDP takes the mean over ranks, the loss is a sum over them
        with self.precision.autocast(), self.model.step():  # open over all: large weights are cast once a step
            for index, micro_batch in enumerate(self._throughput.time_waiting(batch.micro_batches)):
                self.world.report_progress()
                with sync_gradients(self.network, index == last):
                    out = self.network(*self._to_device.copy(micro_batch).tensors())
                    with self.precision.autocast(enabled=False):
                        loss = (out.mlm_loss / masked + out.nsp_loss / samples) * factor
                        loss.backward()
                with torch.no_grad():
                    sums += torch.stack([part.double() for part in out])
        return sums

    def _global_counts(self, own: Counts) -> torch.Tensor:
        """(5,) float64 on the device: samples, masked tokens, tokens, squared lengths, ranks asked to stop."""
        values = [own.samples, own.masked_tokens, own.tokens, own.squared_lengths, self.stop.requested]
        return self.world.sum(torch.tensor(values, dtype=torch.float64).to(self.world.device, non_blocking=True))

    def evaluate(self) -> Row | None:
        """The row of an evaluation on the held-out split; None without one, or where a request to stop cut it short."""
        if self.heldout is None:
            return None
        found = evaluate(self.model, self.heldout, self.plan.micro_batch_size, self.world, self.stop)
        self._owes_evaluation = found is None
        self._stopping = self._stopping or self._owes_evaluation
        return None if found is None else {"step": self.progress.step, **found}

    def _log_evaluation(self) -> None:
        row = self.evaluate()
        if row is not None:
            self.log.row(row)
            self.log.message(evaluation_line(row))

    def _evaluation_is_missing(self) -> bool:
        """Whether the run that is resumed was stopped in the evaluation of its last step."""
        step = self.progress.step
        due = self.heldout is not None and step > 0 and (step == self.total_steps or step % self.evaluate_every == 0)
        missing = due and self.world.is_first and not self.log.had_evaluation(step)
        return bool(self.world.broadcast("missing" if missing else ""))

    def _is_boundary(self, step: int) -> bool:
        return step == self.total_steps or step % self.evaluate_every == 0 or step % self.checkpoint_every == 0

    def _evaluate_and_save(self) -> None:
        """Evaluate and save, as the step just applied asks for."""
        step = self.progress.step
        started = time.perf_counter()
        done = step == self.total_steps
        if done or step % self.evaluate_every == 0:
            self._log_evaluation()
        if done or step % self.checkpoint_every == 0:
            self._save()
        self.world.wait_for_all()
        self._throughput.since += time.perf_counter() - started

    def _save(self) -> None:
        state = self.optimizer.state_dict()  # on every rank: the state may be divided over them
        self._saved_step, self._rewinds = self.progress.step, 0
        if self.world.is_first:
            saved = replace(
                self.progress, precision=self.precision.state_dict(), spike_detector=self._spike_detector.state_dict()
            )
            self._writer.save(self.model.bert, state, saved, self.config_yaml)

    def _rewind(self) -> None:
        """Go back to the newest checkpoint, and on with the samples behind those that led to ``_trouble``.

        Nothing of it needs to be saved: a run that is resumed from that checkpoint meets the same trouble again.
        """
        behind, trouble, self._trouble = self.progress.attempts, self._trouble, ""
        self._rewinds += 1
        if self._rewinds > self.numerics.max_rewinds:
            raise SharedError(
                f"after step {self.progress.step}: {trouble}; the run went back {self.numerics.max_rewinds} times "
                "(numerics.max_rewinds) and always met trouble again: lower optimizer.lr, or look at the samples"
            )
        self._writer.wait()
        found = self.world.broadcast(
            str(self.store.newest_valid(self.log.message) or "") if self.world.is_first else ""
        )
        if not found:
            self.log.message(f"after step {self.progress.step}: {trouble}; there is no checkpoint to go back to")
            return
        parts = self.model, self.optimizer, self.precision, self.world.device
        self.progress = self.world.run_on_all_ranks(lambda: restore(Path(found), *parts))
        passed = behind - self.progress.attempts
        self.log.message(f"{trouble}; back to step {self.progress.step}, passing over {passed} global batches")
        self.progress = replace(self.progress, attempts=behind, passed_over=self.progress.passed_over + passed)
        self._spike_detector = LossSpikeDetector(**self.progress.spike_detector)
        self.applied.fill_(self.progress.step)
        self.log.resume(self.progress.step)
        self._throughput = Throughput()

    def _finish_previous_step(self) -> bool:
        """Read the numbers of the pending step, count it, log it; True where there was one and it was applied."""
        if self._pending is None:
            return False
        numbers, self._pending = self._pending.read(), None
        self._stopping = self._stopping or numbers.stop_requests > 0
        skipped = numbers.skipped > 0
        self.progress = self.progress.after(not skipped, int(numbers.samples), int(numbers.tokens))
        self._throughput.add(self.model_config, numbers)
        step = self.progress.step
        if skipped:
            self.log.message(f"after step {step}: gradient norm {numbers.norm}, the update is skipped")
            self._spike_detector.note_skipped(
                step, numbers.scale, self.precision.scaled, self.numerics.max_skipped_in_a_row
            )
            return False
        spike = self._spike_detector.note_applied(numbers.loss, self.numerics.spike_deviations)
        if self._is_trouble(numbers, spike):
            return False
        self.log.advance(step)
        if step % self.log_every == 0 or step == self.total_steps:
            self._log_step(numbers)
        if self.layers.may_fall_in(step, 1):
            self.log.row(self.layers.row(step, numbers.layers))
        return True

    def _is_trouble(self, numbers: StepNumbers, spike: str | None) -> bool:
        """Say what is wrong with a step that was applied; True where the run goes back for it."""
        step, rewinding = self.progress.step, self.numerics.on_spike == "rewind" and self._saved_step > 0
        if numbers.unhealthy and not rewinding:
            raise DivergedError(
                f"after step {step} a weight or moment is not finite, and the run cannot recover; lower optimizer.lr "
                "and go on from a checkpoint, or let numerics.on_spike=rewind do it"
            )
        said = "a weight or moment is not finite" if numbers.unhealthy else spike
        if said:
            self.log.message(f"step {step}: {said}")
        if said and rewinding:
            self._trouble = f"step {step}: {said}"
        return bool(self._trouble)

    def _log_step(self, numbers: StepNumbers) -> None:
        row = {
            "step": self.progress.step,
            "loss": numbers.loss,
            "mlm_loss": numbers.mlm_loss,
            "nsp_loss": numbers.nsp_loss,
            "mlm_accuracy": numbers.mlm_correct / max(numbers.masked, 1),
            "nsp_accuracy": numbers.nsp_correct / numbers.samples,
            "lr": numbers.rate,
            "grad_norm": numbers.norm,
            "samples_seen": self.progress.samples_seen,
            "skipped_steps": self.progress.skipped,
            "loss_spikes": self._spike_detector.spikes,
            **self._throughput.rates(self.peak_rate * self.world.size),
        }
        if self.precision.scaled:
            row["loss_scale"] = numbers.scale
        self.log.row(row)
        self.log.message(training_line(row, self.total_steps, self.log.seconds_left(self.progress.step)))
