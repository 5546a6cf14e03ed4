"""The loop. It is handed every part, built, and constructs nothing.

A step: take this rank's micro-batches of the next global batch, run each forward and backward (gradients travel
between ranks on the last one only), update once. Nothing is read back from the device inside a step; its numbers
are fetched while the next step runs.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from bert_pretrain.batch_plan import BatchPlan
from bert_pretrain.batches import Counts, StepBatch
from bert_pretrain.checkpoint import CheckpointStore, Progress
from bert_pretrain.communication import CommunicationConfig, data_parallel, gradients_travel
from bert_pretrain.data import ShardSet
from bert_pretrain.distributed import World
from bert_pretrain.errors import ConfigError, require
from bert_pretrain.flops import training_flops
from bert_pretrain.loader import TrainingData, heldout_batches
from bert_pretrain.metrics import LayerRows, MetricsLog, Row, evaluation_line, training_line
from bert_pretrain.model import ModelConfig, PretrainingModel
from bert_pretrain.precision import MixedPrecision
from bert_pretrain.preemption import StopRequest
from bert_pretrain.sample_order import mixed
from bert_pretrain.step_result import StepResult, fetch

MAX_SKIPPED_IN_A_ROW = 100


@dataclass
class TrainingConfig:
    """Options ``training.*``: how often the run looks up."""

    evaluate_every_steps: int
    """Applied steps between two evaluations on the held-out shards; the last step always gets one."""

    def __post_init__(self) -> None:
        require(self.evaluate_every_steps >= 1, "training.evaluate_every_steps", self.evaluate_every_steps, "1 or more")


@dataclass
class Meter:
    """Work done since the last row."""

    tokens: float = 0.0
    flops: float = 0.0
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)


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
    stop: StopRequest = field(default_factory=StopRequest)

    def __post_init__(self) -> None:
        self.network = data_parallel(self.model, self.world, self.communication, self.precision.scaled)
        self.applied = torch.tensor([self.progress.step], device=self.world.device)
        self._pending: StepResult | None = None
        self._skipped_in_a_row = 0
        self._unhealthy = self._stopping = False
        self._saved_step = self.progress.step
        self._meter = Meter()

    def run(self) -> bool:
        """Train to ``total_steps``, evaluating and saving on the way; False where it stopped before, as asked."""
        steps = self.data.steps(self.progress.attempts, pin=self.world.device.type == "cuda")
        self.log.start_clock()
        try:
            while self.progress.step < self.total_steps and not self._stopping:
                result = self.train_step(self._next(steps))
                self._settle()  # the step before this one: done by now, so that nothing waits
                self._pending = result
                if self._is_boundary(self.progress.step + 1) and self._settle():
                    self._look_up()
        finally:
            steps.close()  # type: ignore[attr-defined]
        self._settle()  # after a stop one more step may be on its way, on every rank
        if self.progress.step > self._saved_step:
            self._save(self.optimizer.state_dict())
            self.world.wait_for_all()
        return self.progress.step == self.total_steps

    def train_step(self, batch: StepBatch) -> StepResult:
        """One global batch, one update. Returns without waiting for the device."""
        attempt = self.progress.attempts + (self._pending is not None)
        self.world.moved(attempt + 1)
        torch.manual_seed(mixed(self.seed, self.world.rank, attempt))  # resuming needs no saved random state
        counts = self._global_counts(batch.counts)
        scale = self.precision.scale.clone()
        sums = self._accumulate(batch, counts)
        rate = self.learning_rates.index_select(0, self.applied.clamp(max=self.total_steps))[0]
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        skipped = self.precision.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
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
        with self.precision.autocast():  # open over all micro-batches: weights are cast once a step
            for index, micro_batch in enumerate(self._timed(batch.micro_batches)):
                with gradients_travel(self.network, index == last):
                    out = self.network(*micro_batch.to(self.world.device).tensors())
                    with self.precision.autocast(enabled=False):
                        loss = (out.mlm_loss / masked + out.nsp_loss / samples) * factor
                        loss.backward()
                with torch.no_grad():
                    sums += torch.stack([part.double() for part in out])
        return sums

    def _global_counts(self, own: Counts) -> torch.Tensor:
        """(5,) float64 on the device: samples, masked tokens, tokens, squared lengths, ranks asked to stop."""
        values = [own.samples, own.masked_tokens, own.tokens, own.squared_lengths, self.stop.asked]
        return self.world.sum(torch.tensor(values, dtype=torch.float64).to(self.world.device, non_blocking=True))

    @torch.no_grad()
    def evaluate(self) -> Row | None:
        """Losses and accuracies over the whole held-out split, in float32, as plain ``transformers`` gives them."""
        if self.heldout is None:
            return None
        self.model.eval()
        totals = torch.zeros(6, dtype=torch.float64, device=self.world.device)
        batches = heldout_batches(self.heldout, self.plan.micro_batch_size, self.world.rank, self.world.size)
        for micro_batch in batches:
            self.world.moved(self.progress.attempts)
            out = self.model(*micro_batch.to(self.world.device).tensors())
            totals[:4] += torch.stack([part.double() for part in out])
            totals[4] += (micro_batch.masked_labels >= 0).sum()
            totals[5] += len(micro_batch.input_ids)
        self.model.train()
        mlm, nsp, mlm_correct, nsp_correct, masked, samples = self.world.sum(totals).tolist()
        masked = max(masked, 1.0)
        return {
            "step": self.progress.step,
            "eval_loss": mlm / masked + nsp / samples,
            "eval_mlm_loss": mlm / masked,
            "eval_nsp_loss": nsp / samples,
            "eval_mlm_accuracy": mlm_correct / masked,
            "eval_nsp_accuracy": nsp_correct / samples,
        }

    def _is_boundary(self, step: int) -> bool:
        return step == self.total_steps or step % self.evaluate_every == 0 or step % self.checkpoint_every == 0

    def _look_up(self) -> None:
        """Evaluate and save, as the step just applied asks for."""
        step = self.progress.step
        started = time.perf_counter()
        done = step == self.total_steps
        if done or step % self.evaluate_every == 0:
            row = self.evaluate()
            if row is not None:
                self.log.row(row)
                self.log.say(evaluation_line(row))
        if done or step % self.checkpoint_every == 0:
            self._save(self.optimizer.state_dict())  # on every rank: the state may be divided over them
        self.world.wait_for_all()
        self._meter.since += time.perf_counter() - started

    def _save(self, optimizer_state: dict) -> None:
        self._saved_step = self.progress.step
        if not self.world.is_first:
            return
        saved = replace(self.progress, precision=self.precision.state_dict())
        try:
            self.store.save(self.model.bert, optimizer_state, saved, self.config_yaml)
        except OSError as error:
            raise ConfigError(
                f"the checkpoint of step {saved.step} could not be written under {self.store.directory} ({error}); "
                "earlier ones are untouched: make room, and start again with the same command"
            ) from None

    def _settle(self) -> bool:
        """Read the numbers of the pending step, count it, log it; True where there was one and it was applied."""
        if self._pending is None:
            return False
        result, self._pending = self._pending, None
        if result.arrived is not None:
            result.arrived.synchronize()
        skipped, rate, norm, scale, unhealthy, samples, masked, tokens, squared, asked, *rest = result.numbers.tolist()
        self._stopping = self._stopping or asked > 0
        self.progress = self.progress.after(applied=skipped == 0.0, samples=int(samples), tokens=int(tokens))
        self._meter.tokens += tokens
        self._meter.flops += training_flops(self.model_config, samples, tokens, squared, masked)
        if unhealthy and not self._unhealthy:
            self.log.say(f"after step {self.progress.step}: a weight or moment is not finite; the run cannot recover")
        self._unhealthy = bool(unhealthy)
        if skipped:
            self._note_skipped(norm)
            return False
        self._skipped_in_a_row = 0
        self.log.advance(self.progress.step)
        if self.progress.step % self.log_every == 0 or self.progress.step == self.total_steps:
            self._log_step(rate, norm, scale, samples, masked, rest[:4])
        if self.layers.may_fall_in(self.progress.step, 1):
            self.log.row(self.layers.row(self.progress.step, rest[4:]))
        return True

    def _note_skipped(self, norm: float) -> None:
        self._skipped_in_a_row += 1
        self.log.say(f"after step {self.progress.step}: gradient norm {norm}, the update is skipped")
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise ConfigError(
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row had a gradient that is not finite, after step "
                f"{self.progress.step}; lower optimizer.lr or use precision.compute=bf16, and go on from a checkpoint"
            )

    def _log_step(self, rate: float, norm: float, scale: float, samples: float, masked: float, sums: list) -> None:
        now = time.perf_counter()
        seconds, meter = now - self._meter.since, self._meter
        self._meter = Meter(since=now)
        mlm, nsp, mlm_correct, nsp_correct = sums
        row = {
            "step": self.progress.step,
            "loss": mlm / max(masked, 1) + nsp / samples,
            "mlm_loss": mlm / max(masked, 1),
            "nsp_loss": nsp / samples,
            "mlm_accuracy": mlm_correct / max(masked, 1),
            "nsp_accuracy": nsp_correct / samples,
            "lr": rate,
            "grad_norm": norm,
            "samples_seen": self.progress.samples_seen,
            "skipped_steps": self.progress.skipped,
            "tokens_per_second": meter.tokens / seconds,
            "matrix_peak_share": meter.flops / seconds / (self.peak_rate * self.world.size),
            "data_wait_share": meter.waited / seconds,
        }
        if self.precision.scaled:
            row["loss_scale"] = scale
        self.log.row(row)
        self.log.say(training_line(row, self.total_steps, self.log.seconds_left(self.progress.step)))

    def _next(self, steps: Iterator[StepBatch]) -> StepBatch:
        started = time.perf_counter()
        batch = next(steps)
        self._meter.waited += time.perf_counter() - started
        return batch

    def _timed(self, items: Iterator) -> Iterator:
        """``items``, the time spent waiting for each counted."""
        while True:
            started = time.perf_counter()
            item = next(items, None)
            self._meter.waited += time.perf_counter() - started
            if item is None:
                return
            yield item
