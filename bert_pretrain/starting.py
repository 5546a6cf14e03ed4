"""Where a run starts: from its newest checkpoint, from the checkpoint that it branches from, or at step 0."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch.optim import Optimizer

from bert_pretrain.checkpoint.find import newest_to_resume
from bert_pretrain.checkpoint.store import (
    CheckpointStore,
    Progress,
    load_optimizer_state,
    load_progress,
    loading,
    restore,
)
from bert_pretrain.config import PretrainConfig
from bert_pretrain.data.batch_plan import AUTO, BatchConfig, even_size
from bert_pretrain.data.dataset import Samples
from bert_pretrain.data.text_stream import StreamReader
from bert_pretrain.distributed.world import World
from bert_pretrain.errors import ConfigError
from bert_pretrain.files.retry import retried
from bert_pretrain.hub.from_pretrained import load_pretrained
from bert_pretrain.hub.source import find_source
from bert_pretrain.model.bert import PretrainingModel
from bert_pretrain.model.precision import MixedPrecision
from bert_pretrain.optim.build import moments_by_name
from bert_pretrain.options.stored_options import flat, read_options
from bert_pretrain.same_run import moments_fault
from bert_pretrain.training.metrics import REPLACED, MetricsLog, read_rows
from bert_pretrain.training.micro_batch_size import micro_batch_that_fits


@dataclass
class RunStart:
    """The parts that a run has before it is known where it starts, and the ways to start it."""

    config: PretrainConfig
    world: World
    log: MetricsLog
    model: PretrainingModel
    optimizer: Optimizer
    precision: MixedPrecision
    shards: Samples

    def find_checkpoint(self, store: CheckpointStore) -> str:
        """The checkpoint that the run goes on from: its newest valid one, or that of which it is a branch; else empty.

        Raises ``ConfigError`` if the run has saved checkpoints and none is valid.
        """
        config, log, run_dir = self.config, self.log, store.directory.parent
        trained = store.record is not None and has_saved(run_dir, config.checkpoint.every_steps)
        found = newest_to_resume(store.directory, store.record, log.message, self.world.report_progress, trained)
        if found is None and store.record is not None and (reached := max(logged_steps(run_dir))):
            log.message(
                f"{run_dir} has metrics up to step {reached} and no checkpoint: the run begins again, and these rows "
                f"go to {REPLACED}"
            )
        if found is None and config.init_progress == "keep":
            found = find_source(config.init_from or "", "init_from", log.message).checkpoint
        return str(found or "")

    def resume(self, checkpoint: str) -> Progress:
        """Load ``checkpoint``, which rank 0 has found valid, on every rank."""
        path = Path(checkpoint)
        world = self.world
        log = self.log
        shards = self.shards

        def load() -> Progress:
            if not path.is_dir():
                raise ConfigError(
                    f"rank 0 resumes from {path}, which this node does not see; run_dir must lie on a file system that "
                    "all nodes share"
                )
            if load_progress(path).data_fingerprint != shards.fingerprint:
                raise ConfigError(
                    f"{path} was trained on other shards than those in data.dir now; restore them, or give another "
                    f"run_dir with init_from={path} init_progress=reset"
                )
            return restore(path, self.model, self.optimizer, self.precision, world.device)

        what = f"checkpoint {path}"
        patiently = partial(retried, load, what, log.message, world.report_progress)
        progress: Progress = world.run_on_all_ranks(patiently, f"reading {what}")
        self.optimizer.exchange_loaded()  # type: ignore[attr-defined]
        if isinstance(shards, StreamReader):
            shards.restore(progress.bookmarks)
        log.message(f"resuming from {path}, step {progress.step}")
        return progress

    def begin(self) -> Progress:
        """The progress of a new run, after loading weights and moments from ``init_from`` if it is set.

        Rank 0 verifies the checkpoint, and all load the one that it has found.
        """
        name, log = self.config.init_from, self.log
        if name is not None:

            def find() -> str:
                return str(find_source(name, "init_from", log.message).checkpoint or name)

            found = self.world.run_on_first_rank(find)
            patiently = partial(retried, partial(self._load_source, found), f"init_from {found}", log.message)
            self.world.run_on_all_ranks(patiently, "reading init_from")
            self.optimizer.exchange_loaded()  # type: ignore[attr-defined]
        return Progress(data_fingerprint=self.shards.fingerprint)

    def _load_source(self, found: str) -> None:
        """Load weights and moments from ``found``: a checkpoint that is verified, or the model of ``init_from``."""
        config, log = self.config, self.log
        source = find_source(found, "init_from", log.message, checked=False)
        log.message(f"weights from {source.folder}")
        tokenizer = Path(config.data.tokenizer)
        changes = load_pretrained(self.model, source, tokenizer, log.message, config.init_positions)
        if source.checkpoint is None:
            fault: str | None = "it is no checkpoint of this program"
        else:
            fault = "; ".join(changes) or moments_fault(config, source.checkpoint)
        if config.init_moments in ("keep", "restart") and fault:
            raise ConfigError(
                f"init_moments is {config.init_moments!r}, but init_from {config.init_from!r} has no moments that fit: "
                f"{fault}; give init_moments=reset"
            )
        moments = config.init_moments or ("reset" if fault else "keep")
        if source.checkpoint is not None and moments != "reset":
            self._load_moments(source.checkpoint, restarted=moments == "restart")
        log.message(f"moments: {moments}" + (f" ({fault})" if fault and config.init_moments is None else ""))

    def _load_moments(self, checkpoint: Path, restarted: bool) -> None:
        """``restarted``: with step counts of 0."""
        state = load_optimizer_state(checkpoint, self.world.device)
        with loading(checkpoint / "optimizer.pt"):
            for entry in state["state"].values() if restarted else ():
                if "step" in entry:  # momentum has no step count
                    entry["step"] = torch.zeros_like(entry["step"])
            state, difference = moments_by_name(state, self.optimizer)
            self.optimizer.load_state_dict(state)
        if difference:
            self.log.message(difference)

    def resolve_micro_batch_size(self, newest: str) -> BatchConfig:
        """``config.batch`` with the micro-batch size as a number, the same on all ranks.

        ``auto``: that of the checkpoint ``newest``, if as many ranks have written it; else it is found anew.
        """
        batch = self.config.batch
        length = self.config.data.sequence_length
        world = self.world
        if batch.micro_batch_size != AUTO:
            return batch

        def stored() -> tuple[int, int]:
            progress = load_progress(Path(newest)) if newest else Progress()
            return progress.micro_batch_size, progress.ranks

        before, ranks = world.run_on_first_rank(stored)
        if before and ranks == world.size:
            return replace(batch, micro_batch_size=before)
        size = batch.samples_at_once(length)
        if world.device.type == "cuda":
            share = -(-batch.global_batch_size // world.size)
            sizes = share, length, self.shards.max_predictions
            most = micro_batch_that_fits(self.model, self.precision, world, *sizes, bool(self.model.speed.packing))
            size = even_size(share, most)
            cut = f"{-(-share // size)} micro-batches of {size} samples on each rank"
            self.log.message(
                f"batch.micro_batch_size=auto: {cut}; {most} of its {share} samples fit into memory at once"
            )
        if before:
            self.log.message(
                f"batch.micro_batch_size=auto: {size} samples on {world.size} ranks; it was {before} on {ranks}, which "
                "rounds sums and draws dropout in another way"
            )
        return replace(batch, micro_batch_size=size)


def has_saved(run_dir: Path, every: int) -> bool:
    """Whether a run has saved, by what is not its record: by its report, which a finished run has, or by its metrics.

    A save is on disk or has failed when the one after it begins, and a run ends after ``max_failed_saves`` that failed.
    ``every``: steps between saves now; they may have been less often when the run began.
    """
    stored = run_dir / "config.yaml"
    if not stored.is_file():
        return False
    options, steps = flat(read_options(stored)), logged_steps(run_dir)
    every = max(every, int(options.get("checkpoint.every_steps", 0)))
    last = int(options["schedule.total_steps"])
    failed = max(2, int(options.get("checkpoint.max_failed_saves", 0)))
    finished = max(steps) >= last and (run_dir / "report.html").exists()
    return finished or max(steps) - min(steps) > failed * every  # a branch does not begin at 0


def logged_steps(run_dir: Path) -> list[int]:
    """The steps in the metrics of a run; 0 without."""
    return [int(row["step"]) for row in read_rows(run_dir / "metrics.jsonl")] or [0]
