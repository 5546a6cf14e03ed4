"""One run: its process group, the lock of ``run_dir``, what it records, its report."""

import os
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from bert_pretrain.build import build_trainer
from bert_pretrain.checkpoint.find import RECORD
from bert_pretrain.checkpoint.store import CheckpointStore
from bert_pretrain.config import PretrainConfig, resolved_yaml
from bert_pretrain.data.options import DataConfig
from bert_pretrain.data.remote_shards import local_data
from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.world import World, one_message_for_all_ranks, open_world
from bert_pretrain.errors import EXIT_STOPPED, DivergedError, on_one_line
from bert_pretrain.files.directory_lock import DirectoryLock, lock_directory
from bert_pretrain.files.file_system import check_file_writable, require_writable
from bert_pretrain.hub.shape import resolve_model
from bert_pretrain.hub.source import hub_base
from bert_pretrain.model.bert import silence_transformers
from bert_pretrain.model.precision import check_compute, dtype_name
from bert_pretrain.output import go_on_without_reader
from bert_pretrain.plan.hardware_peaks import device_name
from bert_pretrain.report.run import write_report
from bert_pretrain.same_run import check_run_dir, in_stored_order, write_config
from bert_pretrain.trackers.choice import load_trackers
from bert_pretrain.trackers.tracker import DIVERGED, FAILED, FINISHED, STOPPED, TrackedRun
from bert_pretrain.training.metrics import MetricsLog
from bert_pretrain.training.sessions import last_written, recorded_session
from bert_pretrain.training.trainer import Trainer


@one_message_for_all_ranks
@record
def run(config: PretrainConfig) -> None:
    """Pretrain, or resume the run in ``run_dir``."""
    silence_transformers()
    stop = StopRequest().install_handlers()
    stop.stop_after(config.training.stop_after_minutes)
    with open_world(config.device, resolved_yaml(config), config.communication.timeout_seconds, stop) as world:
        finished = pretrain(config, world, stop)
    if not finished:
        sys.exit(EXIT_STOPPED)


def pretrain(config: PretrainConfig, world: World, stop: StopRequest) -> bool:
    """Build all parts and train; False if the run stopped before its last step, on request."""
    config = world.run_on_all_ranks(partial(in_stored_order, config))
    stated = config.data  # an address, where the shards lie at one
    config = world.run_on_all_ranks(
        lambda: resolve_model(replace(config, data=local_data(stated))), "reading the manifest and finding init_from"
    )
    lock = world.run_on_all_ranks(lambda: check_device_and_run_dir(config, world))
    with lock or nullcontext():
        return train(config, world, stop, stated)


def train(config: PretrainConfig, world: World, stop: StopRequest, stated: DataConfig) -> bool:
    """The rest of ``pretrain``, while the first rank holds the lock of ``run_dir``. ``stated``: with the address."""
    run_dir, kept, tokenizer = Path(config.run_dir), config.checkpoint, Path(config.data.tokenizer)
    config_yaml = resolved_yaml(replace(config, data=stated))
    metrics = run_dir / "metrics.jsonl" if world.is_first else None
    log = MetricsLog(metrics, config.schedule.total_steps, world.busy)
    store = CheckpointStore(
        run_dir / "checkpoints", kept.keep_last, tokenizer, kept.keep_every_steps, log.message, run_dir / RECORD
    )
    trainer = build_trainer(config, world, log, store, config_yaml)
    facts = session_facts(trainer, config)  # before the metrics are written anew
    # Now that all parts are built: a mistake must not claim the directory.
    world.run_on_first_rank(lambda: write_config(run_dir, config_yaml, trainer.progress.step), "writing config.yaml")
    world.run_on_all_ranks(lambda: log.resume(trainer.progress.step), "opening the metrics")
    if world.is_first:
        log.start_trackers(config.logging.chosen_trackers(), tracked_run(config), trainer.progress.step)
    trainer.stop = stop
    try:
        go_on_without_reader()
        recorded = recorded_session(run_dir, facts, log.message) if world.is_first else nullcontext(dict[str, object]())
        with recorded as session:
            finished = trainer.run()
            if finished:
                session["how"] = FINISHED
    except BaseException as error:  # also an interrupt
        log.close(DIVERGED if isinstance(error, DivergedError) else FAILED)
        raise
    try:
        report = drawn_report(run_dir, log, trainer.progress.step) if finished and world.is_first else ""
    finally:  # also at an interrupt
        log.close(FINISHED if finished else STOPPED)
    if finished:
        log.message(f"finished: checkpoints in {store.directory}{report}")
    else:
        step = trainer.progress.step
        reached = f"after step {step}, which is saved" if step else "before the first step"
        log.message(f"stopped on request {reached}; rerun the same command to resume")
    return finished


def check_device_and_run_dir(config: PretrainConfig, world: World) -> DirectoryLock | None:
    """Lock ``run_dir`` on the first rank.

    Raises ``ConfigError`` if it is in use, holds another run or is not writable, or the device lacks the precision.
    """
    check_run_dir(config)
    check_compute("precision.compute", config.precision.compute, world.device)
    if not world.is_first:
        return None
    run_dir = Path(config.run_dir)
    require_writable(run_dir, "run_dir")
    load_trackers(config.logging.chosen_trackers(), tracked_run(config))
    check_file_writable(run_dir / "config.yaml", "run_dir's")
    check_file_writable(run_dir / "metrics.jsonl", "run_dir's")
    if os.path.lexists(run_dir / "checkpoints"):
        require_writable(run_dir / "checkpoints", "run_dir's", "make it writable, or give another run_dir")
    return lock_directory(run_dir, "run_dir")


def tracked_run(config: PretrainConfig) -> TrackedRun:
    """The run as trackers see it."""
    logging = config.logging
    project = logging.wandb_project or logging.project
    return TrackedRun(Path(config.run_dir), project, asdict(config), logging.wandb or "auto", logging.mlflow_uri)


def drawn_report(run_dir: Path, log: MetricsLog, step: int) -> str:
    """Draw the report of a finished run; what to say of it. A run whose report fails has finished all the same."""
    try:
        with log.busy("drawing the plots"):
            page = write_report(run_dir)
            log.trackers.plots(page.parent / "plots", step)
    except Exception as error:  # of the disk, or of a library
        return f"; no report ({on_one_line(error)}): mend that, then bert-pretrain report run_dir={run_dir}"
    return f", report with plots in {page}"


def session_facts(trainer: Trainer, config: PretrainConfig) -> dict[str, object]:
    """What ``sessions.jsonl`` tells of a process: where it begins, on what, and with which data."""
    splits = {"train": trainer.data.shards, "heldout": trainer.heldout}
    return {
        "step": trainer.progress.step,
        "before": last_written(trainer.store.directory.parent),
        "device": device_name(trainer.world.device),
        "ranks": trainer.world.size,
        "compute": dtype_name(trainer.precision.dtype),
        "micro_batch_size": trainer.plan.micro_batch_size,
        "torch": torch.__version__,
        "base_model": hub_base(config.init_from),
        "data": {
            split: {"samples": shards.samples, "fingerprint": shards.fingerprint}
            for split, shards in splits.items()
            if shards is not None
        },
    }
