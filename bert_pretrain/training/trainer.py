"""The training loop. All parts are built elsewhere (``build.py``) and passed in.

A step runs forward and backward on each micro-batch of this rank (the last backward all-reduces the gradients), and one
update. Nothing is read back from the device within a step: its numbers are read while the next step runs.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import torch

from bert_pretrain.checkpoint.async_writer import CheckpointWriter
from bert_pretrain.checkpoint.store import CheckpointStore, Progress
from bert_pretrain.data.batch_plan import BatchPlan
from bert_pretrain.data.collate import Counts, HostToDeviceStream, StepBatch, with_last
from bert_pretrain.data.dataset import SampleSet
from bert_pretrain.data.loader import TrainingData
from bert_pretrain.data.sample_order import hash64
from bert_pretrain.distributed.gradients import data_parallel, sync_gradients
from bert_pretrain.distributed.options import CommunicationConfig
from bert_pretrain.distributed.preemption import StoppedInStep, StopRequest
from bert_pretrain.distributed.world import World
from bert_pretrain.model.bert import PretrainingModel
from bert_pretrain.model.flops import training_flops
from bert_pretrain.model.options import ModelConfig
from bert_pretrain.model.precision import MixedPrecision
from bert_pretrain.optim.build import layer_names
from bert_pretrain.optim.freezing import frozen_names
from bert_pretrain.training import first_step
from bert_pretrain.training.evaluation import evaluate
from bert_pretrain.training.garbage_collection import collected_together
from bert_pretrain.training.loss_spikes import LossSpikeDetector
from bert_pretrain.training.metrics import LayerRows, MetricsLog, Row, evaluation_line, training_line
from bert_pretrain.training.options import CheckpointConfig, LoggingConfig, NumericsConfig, TrainingConfig
from bert_pretrain.training.profile import StepProfiler
from bert_pretrain.training.spike_recovery import SpikeRecovery
from bert_pretrain.training.step_result import StepNumbers, StepResult
from bert_pretrain.training.throughput import Throughput


@dataclass
class Trainer:
    """One run, from the step in ``progress`` to the last of ``learning_rates``."""

    world: World
    model: PretrainingModel
    model_config: ModelConfig
    optimizer: torch.optim.Optimizer
    learning_rates: torch.Tensor
    """(total_steps + 1,) float64 on the device: the rate of the update after k applied ones."""
    precision: MixedPrecision
    plan: BatchPlan
    data: TrainingData
    heldout: SampleSet | None
    store: CheckpointStore
    log: MetricsLog
    progress: Progress
    seed: int
    config_yaml: str
    measure_peak: Callable[[float], float]
    """Measures the FLOP/s of one rank's device, given a rate that it has reached."""
    data_sheet_rate: float | None
    """What the maker of that device states; None if it is not known."""
    training: TrainingConfig
    checkpoint: CheckpointConfig
    logging: LoggingConfig
    communication: CommunicationConfig
    numerics: NumericsConfig
    stop: StopRequest = field(default_factory=StopRequest)

    def __post_init__(self) -> None:
        self.total_steps = len(self.learning_rates) - 1
        self.layers = LayerRows(layer_names(self.optimizer), self.logging.layers_every_steps)
        self.network = data_parallel(self.model, self.world, self.communication, self.precision.scaled)
        self.applied = torch.tensor([self.progress.step], device=self.world.device)
        self._writer = CheckpointWriter(
            self.store, self.log.message, self.checkpoint.max_failed_saves, self.log.trackers.checkpoint
        )
        detector = LossSpikeDetector(**self.progress.spike_detector)
        self.recovery = SpikeRecovery(self.numerics, self.world, self.store, self._writer, self.log, detector)
        self._to_device = HostToDeviceStream(self.world.device)
        self._pending: list[StepResult] = []  # the step whose numbers are not read yet, if there is one
        self._stopping = self._evaluation_interrupted = False
        self._saved_step = self.progress.step
        self.throughput = Throughput(self.measure_peak, self.world.size, self.world.busy, self.data_sheet_rate)
        directory = self.store.directory.parent / "profile"
        self.profiler = StepProfiler(self.logging.profile_steps, directory, self.world, self.log.message)
        self._frozen = frozen_names(self.model)

    def run(self) -> bool:
        """Train to ``total_steps``, with evaluations and checkpoints; False if it stopped earlier, on request.

        On an error, a checkpoint that is being written is finished first.
        """
        try:
            self.check_fast_paths()
            self.log.start_clock()
            if self._evaluation_is_missing():
                self.evaluate()
                self.throughput.restart()
            while self.progress.step < self.total_steps and not self._stopping:
                with collected_together() as collect_if_due:
                    self._run_steps(collect_if_due)
                if self.recovery.reason:
                    self._rewind()
            if self.progress.step > self._saved_step:
                self._save()
            self.world.run_on_all_ranks(self._writer.finish, "writing the last checkpoint")
        except Exception:
            with self.world.busy("writing a checkpoint"):
                self._writer.join()
            raise
        return self.progress.step == self.total_steps and not self._evaluation_interrupted

    def check_fast_paths(self) -> None:
        """On a GPU: compare the fast paths with plain ones on the first micro-batch, and at the first update."""
        if self.world.device.type in first_step.DEVICES:
            own = self.data.micro_batches(self.progress.attempts)
            first = self.world.run_on_all_ranks(lambda: next(own), "reading the first micro-batch")
            first_step.check_first_step(self.model, self.optimizer, self.precision, self.world, first, self.log.message)

    def _run_steps(self, collect_if_due: Callable[[int], None]) -> None:
        """Train until the last step, a stop request, or a fault that needs a rewind."""
        steps = self.data.steps(self.progress.attempts, pin=self.world.device.type == "cuda")
        try:
            while self.progress.step < self.total_steps and not self._stopping and not self.recovery.reason:
                pending = len(self._pending)
                collect_if_due(self.progress.attempts + pending)
                self.profiler.before_step(self.progress.step + 1 + pending)
                with self.profiler.span("wait for samples"):
                    batch = next(self.throughput.time_waiting(steps))
                result = self.train_step(batch)
                with self.profiler.span("read numbers"):
                    self._finish_previous_step()  # by now it is done, so that reading it does not wait
                self._pending = [] if self.recovery.reason else [result]
                intervals = self.training.evaluate_every_steps, self.checkpoint.every_steps
                if self._is_due(self.progress.step + 1, *intervals) and self._finish_previous_step():
                    self._evaluate_and_save()
        except StoppedInStep:
            self._stopping = True
            self._clear_gradients()
        finally:
            self.profiler.finish()
            steps.close()
        self._finish_previous_step()  # after a stop request one more step is pending, on every rank

    def train_step(self, batch: StepBatch) -> StepResult:
        """One global batch and one update. Returns without waiting for the device.

        Raises ``StoppedInStep`` on a stop request if there are no other ranks, who would wait for this one.
        """
        attempt = self.progress.attempts + len(self._pending)
        self.world.report_progress(attempt + 1)
        torch.manual_seed(hash64(self.seed, self.world.rank, attempt))  # so no random state has to be saved
        counts = self._global_counts(batch.counts)
        scale = self.precision.scale.clone()
        sums = self._accumulate(batch, counts)
        rate = self.learning_rates.index_select(0, self.applied.clamp(max=self.total_steps))[0]
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_ratio"] if "lr_ratio" in group else rate
        with self.world.busy_once("the first update, which compiles kernels"), self.profiler.span("optimizer"):
            skipped = self.precision.step(self.optimizer)
        self._clear_gradients()
        self.applied += 1 - skipped.long()
        nonfinite: torch.Tensor = getattr(self.optimizer, "nonfinite_state", torch.zeros_like(skipped))
        sums = self.world.sum(torch.cat([sums, nonfinite.double().view(1)]))  # a rank may know only its own layers
        head = skipped, rate, self.optimizer.grad_norm, scale, sums[4]  # type: ignore[attr-defined]
        numbers = [torch.stack([part.double() for part in head]), counts, sums[:4]]  # in the order of StepNumbers
        if self.layers.due(self.progress.step + 1, 1 + len(self._pending)):
            numbers.append(self.optimizer.layer_report().flatten())  # type: ignore[attr-defined]
        return StepResult(torch.cat(numbers), self.throughput.take_waiting())

    def _accumulate(self, batch: StepBatch, counts: torch.Tensor) -> torch.Tensor:
        """Forward and backward of all micro-batches; this rank's ``PretrainingSums``, (4,) float64 on the device."""
        sums = torch.zeros(4, dtype=torch.float64, device=self.world.device)
        samples, masked = counts[0], counts[1].clamp(min=1)
        factor = self.precision.scale * self.world.size  # DDP averages over ranks, but the loss is a sum over them
        with self.precision.autocast(), self.model.step():  # around all, so that weights are cast once a step
            for micro_batch, last in with_last(self.throughput.time_waiting(batch.micro_batches)):
                self.world.report_progress()
                if self.world.size == 1 and self.stop.requested:
                    raise StoppedInStep
                with sync_gradients(self.network, last):
                    with self.profiler.span("forward"):
                        out = self.network(*self._to_device.copy(micro_batch).tensors())
                    with self.profiler.span("backward"), self.precision.autocast(enabled=False):
                        loss = (out.mlm_loss / masked + out.nsp_loss / samples) * factor
                        loss.backward()
                with torch.no_grad():
                    sums += torch.stack([part.double() for part in out])
        return sums

    def _clear_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=not self.model.speed.cuda_graphs)

    def _global_counts(self, own: Counts) -> torch.Tensor:
        """(5,) float64 on the device: samples, masked tokens, tokens, squared lengths, ranks with a stop request."""
        values = [own.samples, own.masked_tokens, own.tokens, own.squared_lengths, self.stop.requested]
        return self.world.sum(torch.tensor(values, dtype=torch.float64).to(self.world.device, non_blocking=True))

    def _finish_previous_step(self) -> bool:
        """Read, count and log the pending step; True if there was one and its update was applied."""
        if not self._pending:
            return False
        result = self._pending.pop()
        numbers = result.read()
        self._stopping = self._stopping or numbers.stop_requests > 0
        skipped = numbers.skipped > 0
        self.progress = replace(
            self.progress,
            step=self.progress.step + (not skipped),
            attempts=self.progress.attempts + 1,
            samples_seen=self.progress.samples_seen + int(numbers.samples),
            tokens_seen=self.progress.tokens_seen + int(numbers.tokens),
        )
        work = numbers.samples, numbers.tokens, numbers.squared_lengths, numbers.masked
        flops = training_flops(self.model_config, *work, frozen=self._frozen)
        self.throughput.count(numbers.tokens, flops, result.waited, result.ended)
        step = self.progress.step
        if skipped:
            self.log.message(f"after step {step}: the update is skipped, gradient norm {numbers.grad_norm}")
            self.recovery.note_skipped(step, numbers.loss_scale, self.precision.scaled)
            return False
        if self.recovery.note_applied(step, numbers, saved=self._saved_step > 0):
            return False
        self.log.advance(step)
        if self._is_due(step, self.logging.every_steps):
            self._log_step(numbers)
        if self.layers.due(step):
            self.log.row(self.layers.row(step, numbers.layers))
        return True

    def _log_step(self, numbers: StepNumbers) -> None:
        row = {
            "step": self.progress.step,
            **numbers.row(self.model.next_sentence),
            "samples_seen": self.progress.samples_seen,
            "skipped_steps": self.progress.skipped,
            "loss_spikes": self.recovery.detector.spikes,
            **self.throughput.rates(),
        }
        if self.precision.scaled:
            row["loss_scale"] = numbers.loss_scale
        self.log.row(row)
        self.log.message(training_line(row, self.total_steps, self.log.seconds_left(self.progress.step)))

    def _is_due(self, step: int, *intervals: int) -> bool:
        return step == self.total_steps or any(step % every == 0 for every in intervals)

    def _evaluate_and_save(self) -> None:
        """Evaluate and save, if due after the step just applied."""
        with self.throughput.paused():
            if self._is_due(self.progress.step, self.training.evaluate_every_steps):
                self.evaluate()
            if self._is_due(self.progress.step, self.checkpoint.every_steps):
                self._save()
            self.world.barrier()

    def evaluate(self) -> Row | None:
        """Evaluate and log; returns the row, or None without held-out samples or if a stop request interrupted it."""
        if self.heldout is None:
            return None
        with self.optimizer.evaluation_weights():  # type: ignore[attr-defined]
            metrics = evaluate(self.model, self.heldout, self.plan.micro_batch_size, self.world, self.stop)
        if metrics is None:
            self._evaluation_interrupted = self._stopping = True
            return None
        row = {"step": self.progress.step, **metrics}
        self.log.row(row)
        self.log.message(evaluation_line(row))
        return row

    def _evaluation_is_missing(self) -> bool:
        """Whether the evaluation at the step that the run begins at is to be done: a new run's before its first step,
        and one in which the run was interrupted."""
        step = self.progress.step
        due = self._is_due(step, self.training.evaluate_every_steps)
        return self.world.broadcast(self.heldout is not None and due and step not in self.log.evaluated)

    def _save(self) -> None:
        state = self.optimizer.state_dict()  # on every rank: the state may be sharded
        self._saved_step, self.recovery.rewinds = self.progress.step, 0
        states = {"precision": self.precision.state_dict(), "spike_detector": asdict(self.recovery.detector)}
        cut = {"micro_batch_size": self.plan.micro_batch_size, "ranks": self.world.size}
        marks = self.data.bookmarks(self.progress.attempts, self.world.gather)
        progress = replace(self.progress, **states, **cut, bookmarks=marks)  # type: ignore[arg-type]
        with self.optimizer.evaluation_weights():  # type: ignore[attr-defined]
            self.world.run_on_first_rank(
                partial(self._writer.save, self.model.bert, state, progress, self.config_yaml), "saving a checkpoint"
            )

    def _rewind(self) -> None:
        """Go on from the newest checkpoint, with the samples after those of the fault."""
        self.progress = self.recovery.rewind(self.progress.attempts, self.model, self.optimizer, self.precision)
        self._saved_step = self.progress.step  # later ones are damaged
        self.applied.fill_(self.progress.step)
        self.world.run_on_all_ranks(lambda: self.log.resume(self.progress.step), "opening the metrics")
        self.throughput.restart()
