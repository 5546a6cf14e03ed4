"""One seed's training with ``transformers.Trainer``: progress lines, checkpoints, stops on request.

A checkpoint is written beside, flushed to disk and renamed, so it is whole or absent. A seed that goes on from it ends
with the same numbers, bit for bit: the Trainer restores weights, moments, schedule, sample order and random states,
and this module the sum of the losses. (More than two ranks: to rounding, for DDP forms its buckets anew.)
"""

import json
import math
import pickle
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401  transformers.Trainer needs it, and says so in an ImportError of its own
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm import tqdm

from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.world import World
from bert_pretrain.errors import ConfigError, on_one_line
from bert_pretrain.files.file_system import fsync, open_to_umask
from bert_pretrain.training.metrics import LineTimer, duration

_PROGRESS = "progress.json"
_LOAD_ERRORS = (OSError, RuntimeError, ValueError, KeyError, EOFError, SafetensorError, pickle.UnpicklingError)


class StoppedError(Exception):
    """A stop was requested; the seed's checkpoint is written."""


class SeedTrainer(transformers.Trainer):
    """Trains and evaluates one seed; checkpoints are in ``folder``/checkpoints."""

    def __init__(
        self,
        folder: Path,
        title: str,
        save_minutes: float | None,
        world: World,
        stop: StopRequest,
        **options: Any,
    ) -> None:
        """``title`` begins each progress line; ``save_minutes`` lie between checkpoints (None: only at stops)."""
        if world.is_first:
            shutil.rmtree(partial_folder(folder), ignore_errors=True)  # of a process that was killed
        super().__init__(**options)
        assert self.model is not None
        self.network = self.model
        self.remove_callback(transformers.PrinterCallback)
        self.remove_callback(transformers.trainer_callback.ProgressCallback)
        self.add_callback(_Progress(self, title))
        # Trainer assumes that the model divides its loss by the accumulation, as language models do. These do not:
        # without this line the gradient would be too large by that factor.
        self.model_accepts_loss_kwargs = False
        self.folder, self.world, self.stop = folder, world, stop
        self.seconds_between_saves = math.inf if save_minutes is None else 60.0 * save_minutes
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=world.device)
        self.earlier_seconds, self.started = 0.0, time.perf_counter()
        self.stage = ""
        """What is evaluated, for progress lines."""
        self.is_saved = self.is_stopped = False
        """Whether the last step has a checkpoint; whether a stop was requested, and agreed by all ranks."""

    def fit(self) -> None:
        """Train to the last step, from the checkpoint if there is one. Raises ``StoppedError``, or ``ConfigError``."""
        checkpoint = self.world.run_on_all_ranks(lambda: newest_checkpoint(self.folder))
        if checkpoint is None:
            self.train()
        else:
            self.world.run_on_all_ranks(lambda: self._restore(checkpoint))
            if not self.is_saved:
                self.train(resume_from_checkpoint=str(checkpoint))
        if self.is_stopped:
            raise StoppedError

    def _restore(self, checkpoint: Path) -> None:
        """Restore the losses; after the last step also the weights, else check that the Trainer will find them."""
        try:
            progress = json.loads((checkpoint / _PROGRESS).read_text(encoding="utf-8"))
            self.is_saved = progress["step"] == progress["steps"]
            self.earlier_seconds = progress["seconds"]
            sums = progress["loss_sums"]
            weights = load_file(checkpoint / "model.safetensors")
            if len(sums) != self.world.size:  # continued on another number of ranks
                sums = [sum(sums), *[0.0] * (self.world.size - 1)]
            self.loss_sum.fill_(sums[self.world.rank])
            if self.is_saved:
                self.network.load_state_dict(weights)
                self.state.global_step = self.state.max_steps = progress["steps"]
            else:
                torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
        except _LOAD_ERRORS as error:
            reason = on_one_line(error)
            raise ConfigError(
                f"checkpoint {checkpoint} cannot be loaded ({reason}); restore the file, or move the checkpoint away "
                "to train this seed from its start"
            ) from None

    def training_step(self, *args: Any, **options: Any) -> torch.Tensor:
        """As the base class, and adds up the losses."""
        loss = super().training_step(*args, **options)
        self.loss_sum += loss
        return loss

    def training_loss(self) -> float:
        """Mean loss of all steps over all ranks."""
        return float(self.world.sum(self.loss_sum.clone())) / self.world.size / self.state.max_steps

    def seconds(self) -> float:
        """Time that this seed has taken, with earlier processes up to their last checkpoint."""
        return self.earlier_seconds + time.perf_counter() - self.started

    def save(self) -> str:
        """Write a checkpoint on all ranks; what went wrong, if anything did. Older ones are removed."""
        fault = ""
        try:
            self._save_checkpoint(self.network, None)
        except (OSError, RuntimeError, SafetensorError) as error:
            fault = on_one_line(error)
        found = self.world.gather((fault, float(self.loss_sum)))
        fault = next((text for text, _ in found if text), "")
        partial = Path(self.args.output_dir)  # type: ignore[arg-type]
        if self.world.is_first and not fault:
            progress = {
                "step": self.state.global_step,
                "steps": self.state.max_steps,
                "loss_sums": [loss for _, loss in found],
                "seconds": self.seconds(),
            }
            try:
                _publish(partial / f"checkpoint-{self.state.global_step}", self.folder, progress)
            except OSError as error:
                fault = str(error)
        if self.world.is_first:
            shutil.rmtree(partial, ignore_errors=True)
        fault = self.world.broadcast(fault)
        self.is_saved = not fault and self.state.global_step == self.state.max_steps
        return fault


def partial_folder(folder: Path) -> Path:
    """Where the Trainer writes a checkpoint of the seed in ``folder`` before it is whole."""
    return folder / "checkpoints" / ".partial"


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of the seed in ``folder``."""
    return max((folder / "checkpoints").glob("step_*"), default=None)


def _publish(written: Path, folder: Path, progress: dict[str, Any]) -> None:
    """Flush a checkpoint to disk, give it its name, and remove the older ones."""
    open_to_umask(written)
    (written / _PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
    fsync(*written.iterdir(), written)
    target = folder / "checkpoints" / f"step_{progress['step']:08d}"
    shutil.rmtree(target, ignore_errors=True)
    written.rename(target)
    fsync(target.parent)
    for other in target.parent.glob("step_*"):
        if other != target:
            shutil.rmtree(other, ignore_errors=True)


class _Progress(transformers.TrainerCallback):
    """Prints lines; saves and stops where all ranks agree to."""

    def __init__(self, trainer: SeedTrainer, title: str) -> None:
        self.trainer, self.title = trainer, title
        self.lines = LineTimer()
        self.bar: tqdm[Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clocks."""
        world = self.trainer.world
        self.first_step = self.line_step = state.global_step
        self.line_loss = float(world.sum(self.trainer.loss_sum.clone())) / world.size
        self.last_end = self.last_save = time.perf_counter()
        self.seconds = self.line_seconds = 0.0
        hidden = not (world.is_first and sys.stderr.isatty())
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", disable=hidden, leave=False)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After each step: decide on all ranks, then print, save, stop."""
        trainer, now = self.trainer, time.perf_counter()
        self.seconds, self.last_end = self.seconds + now - self.last_end, now
        assert self.bar is not None
        self.bar.update()
        is_last = state.global_step == state.max_steps
        save_due = not is_last and now - self.last_save >= trainer.seconds_between_saves
        stops, line, saves = self._agreed(self.lines.due() or is_last, save_due)
        if line:
            self._print_line(state)
        if saves or stops:
            self._save()
        if stops:
            trainer.is_stopped = control.should_training_stop = True

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After each batch of an evaluation: print if due; save and raise ``StoppedError`` if a stop was requested."""
        stops, line, _saves = self._agreed(self.lines.due(), False)
        if line:
            self._print(f"{self.title}  evaluating {self.trainer.stage}")
        if stops:
            if not self.trainer.is_saved:
                self._save()
            raise StoppedError

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        assert self.bar is not None
        self.bar.close()

    def _agreed(self, line: bool, save: bool) -> tuple[bool, bool, bool]:
        """Whether any rank was asked to stop, and what rank 0 says about a line and a checkpoint; one all-reduce."""
        world = self.trainer.world
        own = (self.trainer.stop.requested, line and world.is_first, save and world.is_first)
        if world.size == 1:
            return own
        stops, lines, saves = world.sum(torch.tensor(own, dtype=torch.int32, device=world.device)).tolist()
        return stops > 0, lines > 0, saves > 0

    def _save(self) -> None:
        fault = self.trainer.save()
        self.last_end = self.last_save = time.perf_counter()
        if fault:
            self._print(f"{self.title}  no checkpoint at step {self.trainer.state.global_step} ({fault})")

    def _print_line(self, state: Any) -> None:
        """Loss and rate since the line before; time left at the mean speed of this process, without saves."""
        world, steps = self.trainer.world, state.global_step - self.line_step
        loss = float(world.sum(self.trainer.loss_sum.clone())) / world.size
        batch = self.trainer.args.train_batch_size * self.trainer.args.gradient_accumulation_steps * world.size
        rate = steps * batch / max(self.seconds - self.line_seconds, 1e-9)
        left = self.seconds / (state.global_step - self.first_step) * (state.max_steps - state.global_step)
        self._print(
            f"{self.title}  step {state.global_step}/{state.max_steps}  loss {(loss - self.line_loss) / steps:.4f}  "
            f"{rate:,.1f} examples/s  {duration(left)} left"
        )
        self.line_step = state.global_step
        self.line_loss = loss
        self.line_seconds = self.seconds

    def _print(self, text: str) -> None:
        if self.trainer.world.is_first:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
