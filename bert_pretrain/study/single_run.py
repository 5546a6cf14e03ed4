"""One run of a study: an ordinary run of ``pretrain`` with a directory of its own.

A study that was stopped, or killed, goes on in the run that it was in. A finished run keeps ``result.json``,
``metrics.jsonl``, ``config.yaml`` and ``log.txt``, but no checkpoints, and is not repeated.
"""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from bert_pretrain.checkpoint.find import RECORD
from bert_pretrain.config import PretrainConfig
from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.world import World
from bert_pretrain.errors import EXIT_STOPPED, DivergedError
from bert_pretrain.files.file_system import write_json
from bert_pretrain.options.stored_options import read_options
from bert_pretrain.program import program_version
from bert_pretrain.run import pretrain
from bert_pretrain.same_run import check_run_dir
from bert_pretrain.study.curve import Curve, count_outliers
from bert_pretrain.study.options import SpikeConfig
from bert_pretrain.training.metrics import read_rows

METRICS, RESULT = "metrics.jsonl", "result.json"


class StopAtTarget(StopRequest):
    """Asks a run to stop when its metrics show a held-out loss at or below ``target``, or when ``outer`` asks."""

    def __init__(self, outer: StopRequest, metrics: Path, target: float) -> None:
        super().__init__()
        self.outer, self.metrics, self.target = outer, metrics, target
        self._size, self._reached = -1, False

    @property
    def requested(self) -> bool:
        """As for ``StopRequest``. Read once a step: the file is read again only when it has grown."""
        return self.outer.requested or self.reached()

    def reached(self) -> bool:
        """Whether an evaluation in the metrics is at or below the target."""
        size = self.metrics.stat().st_size if self.metrics.exists() else 0
        if size != self._size:
            self._size = size
            self._reached = any(loss <= self.target for _, loss in evaluations(self.metrics))
        return self._reached


def evaluations(metrics: Path) -> list[tuple[int, float]]:
    """Step and held-out MLM loss of every evaluation in the file, that before the first step included."""
    if not metrics.exists():
        return []
    return [(row["step"], row["eval_mlm_loss"]) for row in read_rows(metrics) if "eval_mlm_loss" in row]


def losses_and_norms(metrics: Path, target: float | None) -> tuple[list[tuple[int, float]], list[float]]:
    """Step and loss of every evaluation, and every gradient norm.

    With a target: up to the evaluation that reaches it, and that before the first step too. How many steps a run does
    beyond depends on the moment at which it was stopped or killed.
    """
    found = evaluations(metrics)
    norms = [(row["step"], row["grad_norm"]) for row in read_rows(metrics) if "grad_norm" in row]
    if target is None:
        return [row for row in found if row[0] > 0], [norm for _, norm in norms]
    for at, (end, loss) in enumerate(found):
        if loss <= target:
            return found[: at + 1], [norm for step, norm in norms if step <= end]
    return found, [norm for _, norm in norms]


@dataclass(frozen=True)
class SingleRun:
    """What to run, and the words of the command that does the same."""

    arm: str
    config: PretrainConfig
    words: list[str]
    spike: SpikeConfig | None = None
    target: float | None = None
    """The run ends at this held-out loss; None: after the last step."""

    def curve(self, world: World, stop: StopRequest) -> Curve:
        """The curve of the run, which is run first unless it is finished."""
        path = Path(self.config.run_dir) / RESULT
        if self.target is not None and (known := self._curve_of_other_length(path, self.target)):
            return known
        self._check_run_dir(self.config.schedule.total_steps)
        if not path.exists():
            self._run(path, world, stop)
        return self._read(path)

    def _check_run_dir(self, total_steps: int) -> None:
        """``check_run_dir`` for ``total_steps``. A finished run has no checkpoint, so it may not be extended."""
        config = replace(self.config, schedule=replace(self.config.schedule, total_steps=total_steps))
        check_run_dir(config, may_extend=False, advice="give the study the options that it had, or another out_dir")

    def _read(self, path: Path) -> Curve:
        return Curve(self.arm, self.config.optimizer.lr, self.config.seed, **json.loads(path.read_text("utf-8")))

    def _curve_of_other_length(self, path: Path, target: float) -> Curve | None:
        """The curve, if the run is there with another number of steps and tells enough.

        When a batch size is added, the others' runs are given up earlier or later than before. With a constant rate a
        run's past does not depend on that: a longer one is cut, and one that reached the target stands. Any other is
        removed, to be run again.
        """
        run_dir, schedule = path.parent, self.config.schedule
        stored = run_dir / "config.yaml"
        steps = int(read_options(stored)["schedule"]["total_steps"]) if stored.is_file() else schedule.total_steps
        if steps == schedule.total_steps:
            return None
        self._check_run_dir(steps)
        if path.exists() and schedule.shape == "constant" and schedule.warmup_steps is not None:
            known = self._read(path)
            if steps > schedule.total_steps or known.final <= target:
                return known.until(schedule.total_steps)
        shutil.rmtree(run_dir)
        return None

    def _run(self, path: Path, world: World, stop: StopRequest) -> None:
        """Train to the end with the output in ``log.txt``, and write the curve to ``path``."""
        run_dir, batch, started = path.parent, self.config.batch.global_batch_size, time.process_time()
        run_dir.mkdir(parents=True, exist_ok=True)
        diverged = self._train(run_dir, world, stop)
        found, norms = losses_and_norms(run_dir / METRICS, self.target)
        result = {
            "samples": [step * batch for step, _ in found],
            "losses": [loss for _, loss in found],
            "diverged": diverged,
            "batch": batch,
            "norms": len(norms),
            "outliers": count_outliers(norms),
            "command": shlex.join(["bert-pretrain", "pretrain", *self.words]),
            "commit": program_version(),
            "cpu_seconds": round(time.process_time() - started, 1),
        }
        write_json(path, result)
        (run_dir / RECORD).unlink(missing_ok=True)  # so that without its result.json it is run again
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)

    def _train(self, run_dir: Path, world: World, stop: StopRequest) -> bool:
        """Whether the run diverged. Exits if a stop was requested, after a checkpoint."""
        at_target = None if self.target is None else StopAtTarget(stop, run_dir / METRICS, self.target)
        try:
            with spiked(self.spike), open(run_dir / "log.txt", "a", encoding="utf-8") as log, redirect_stdout(log):
                if at_target is None:
                    finished = pretrain(self.config, world, stop)
                else:  # killed after its last evaluation, it has no more to do
                    finished = at_target.reached() or pretrain(self.config, world, at_target) or at_target.reached()
        except DivergedError:
            return True
        if not finished:
            print("stopped as requested; run the same command to continue")
            sys.exit(EXIT_STOPPED)
        return False


@contextmanager
def spiked(spike: SpikeConfig | None) -> Iterator[None]:
    """Scale the gradient of one step of any optimizer that runs inside, through torch's step hook.

    The step count is read from the optimizer's state, so a resumed run spikes at the same step. The optimizer must
    count its steps there.
    """
    if spike is None:
        yield
        return

    def multiply(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        params = [param for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
        if int(optimizer.state[params[0]].get("step", 0)) == spike.step:
            torch._foreach_mul_([param.grad for param in params], spike.factor)

    hook = register_optimizer_step_pre_hook(multiply)
    try:
        yield
    finally:
        hook.remove()
