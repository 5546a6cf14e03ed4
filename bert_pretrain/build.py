"""Options -> parts -> ``Trainer.run()``. Every part of a run is built here, top to bottom."""

import os
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from bert_pretrain.checkpoint.find import RECORD
from bert_pretrain.checkpoint.store import CheckpointStore
from bert_pretrain.config import PretrainConfig, resolved_yaml
from bert_pretrain.data.batch_plan import BatchConfig, BatchPlan
from bert_pretrain.data.collate import Shape, fixed_shapes
from bert_pretrain.data.dataset import check_vocabulary, report_single_segments, tokenizer_size
from bert_pretrain.data.dynamic_masking import dynamic_masking
from bert_pretrain.data.loader import TrainingData
from bert_pretrain.data.mixture import describe_mixture, open_data_sets, sample_order, sets_of
from bert_pretrain.data.options import DataConfig
from bert_pretrain.data.packing import packed_shapes
from bert_pretrain.data.ready_made import Opened, open_ready_made
from bert_pretrain.data.remote_shards import check_cache, local_data
from bert_pretrain.data.sample_order import MixedOrder, SampleOrder
from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.world import World, one_message_for_all_ranks, open_world
from bert_pretrain.errors import EXIT_STOPPED, ConfigError, DivergedError, on_one_line
from bert_pretrain.files.directory_lock import DirectoryLock, lock_directory
from bert_pretrain.files.file_system import check_file_writable, require_writable
from bert_pretrain.hub.export import check_before_training
from bert_pretrain.hub.shape import resolve_model
from bert_pretrain.hub.source import hub_base
from bert_pretrain.model.bert import PretrainingModel, build_model, resolve_packing, silence_transformers
from bert_pretrain.model.choices import describe_choices
from bert_pretrain.model.compile import compile_model, turn_off_compiling
from bert_pretrain.model.precision import MixedPrecision, check_compute, dtype_name
from bert_pretrain.optim.build import build_optimizer, describe_optimizer
from bert_pretrain.optim.freezing import describe_frozen
from bert_pretrain.optim.schedule import learning_rate_table
from bert_pretrain.output import go_on_without_reader
from bert_pretrain.plan.hardware_peaks import data_sheet_rate, device_name, measured_matrix_rate
from bert_pretrain.plan.run import describe_plan
from bert_pretrain.report.run import write_report
from bert_pretrain.same_run import check_run_dir, write_config
from bert_pretrain.starting import RunStart
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


def build_trainer(
    config: PretrainConfig, world: World, log: MetricsLog, store: CheckpointStore, config_yaml: str
) -> Trainer:
    """All parts of a run, restored from the newest checkpoint in ``store`` if there is one.

    Work that can fail on one rank alone runs in ``world.run_on_all_ranks``, so that all ranks exit with its message.
    The collectives are in between: in ``RunStart`` and ``Trainer``.
    """
    data, order = world.run_on_all_ranks(lambda: open_data(config, world, log), "reading and checking the shards")
    shards = data.train
    words, positions = config.model.vocab_size, config.model.max_position_embeddings
    world.run_on_first_rank(partial(check_before_training, Path(config.data.tokenizer), words, positions))
    precision = MixedPrecision(config.precision, world.device)
    speed = world.run_on_all_ranks(lambda: resolve_packing(config.speed, config.model, precision.dtype, world.device))
    model = world.run_on_all_ranks(lambda: build_model(config.model, speed, config.seed, world.device))
    optimizer = world.run_on_all_ranks(lambda: build_optimizer(model, config.optimizer))  # freezes: saves memory
    start = RunStart(config, world, log, model, optimizer, precision, shards)
    newest = world.run_on_first_rank(lambda: start.find_checkpoint(store))
    batch = start.resolve_micro_batch_size(newest)
    plan = world.run_on_all_ranks(
        lambda: BatchPlan(batch.global_batch_size, batch.samples_at_once(config.data.sequence_length), world.size)
    )
    progress = start.resume(newest) if newest else start.begin()
    print_plan(start, batch, order)
    # Last, because it takes minutes.
    shapes = compiled_shapes(config, model, precision, plan.largest_micro_batch, shards.max_predictions, world, log)
    learning_rates = learning_rate_table(config.optimizer.lr, config.schedule)
    return Trainer(
        world=world,
        model=model,
        model_config=config.model,
        optimizer=optimizer,
        learning_rates=torch.tensor(learning_rates, dtype=torch.float64, device=world.device),
        precision=precision,
        plan=plan,
        data=TrainingData(
            shards=shards,
            order=order,
            plan=plan,
            rank=world.rank,
            masking=data.masking,
            prefetch=config.data.prefetch,
            group_by_length=model.speed.group_by_length,
            shapes=shapes,
            packing=model.speed.packing,
        ),
        heldout=data.heldout,
        store=store,
        log=log,
        progress=progress,
        seed=config.seed,
        config_yaml=config_yaml,
        measure_peak=partial(measured_matrix_rate, world.device, precision.dtype),
        data_sheet_rate=data_sheet_rate(device_name(world.device), precision.dtype),
        training=config.training,
        checkpoint=config.checkpoint,
        logging=config.logging,
        communication=config.communication,
        numerics=config.numerics,
    )


def trial_trainer(config: PretrainConfig, world: World, folder: Path) -> Trainer:
    """A trainer that prints nothing and keeps no metrics, to measure or to try steps; ``folder``: for checkpoints."""
    log, store = MetricsLog(None, config.schedule.total_steps), CheckpointStore(folder, 1, None)
    return build_trainer(config, world, log, store, config_yaml="")


def print_plan(start: RunStart, batch: BatchConfig, order: SampleOrder | MixedOrder) -> None:
    """Print the plan of the run with ``batch``, and what was chosen for it."""
    config, world, model, message = start.config, start.world, start.model, start.log.message
    resolved, dtype = replace(config, batch=batch), dtype_name(start.precision.dtype)
    mixture = describe_mixture(start.shards, order, config.schedule.total_steps * batch.global_batch_size)
    message(describe_plan(resolved, world.size, world.device.type, dtype, start.shards.samples, mixture))
    message(describe_choices(model, config.model, config.speed, world.device))
    optimizer = describe_optimizer(start.optimizer, config.optimizer)
    message("\n".join(filter(None, (optimizer, describe_frozen(model)))))


def compiled_shapes(
    config: PretrainConfig,
    model: PretrainingModel,
    precision: MixedPrecision,
    samples: int,
    predictions: int,
    world: World,
    log: MetricsLog,
) -> list[Shape] | None:
    """Compile ``model`` for micro-batches of up to ``samples``; the only shapes that they may have from now on.

    None without ``speed.compile``, or if it fails and that is not the user's own wish: then the run goes on without, on
    all ranks.
    """
    largest, speed = (samples, config.data.sequence_length, predictions), model.speed
    if not speed.compile:
        return None
    shapes = packed_shapes(*largest) if speed.packing else fixed_shapes(*largest, speed.group_by_length)
    try:
        world.run_on_all_ranks(partial(compile_model, model, precision, shapes, log.message), "compiling the model")
    except ConfigError as error:
        if config.speed.compile:
            raise
        log.message(f"{error}; the run goes on without")
        turn_off_compiling(model)
        return None
    return shapes


def check_device_and_run_dir(config: PretrainConfig, world: World) -> DirectoryLock | None:
    """Lock ``run_dir`` on the first rank.

    Raises ``ConfigError`` if it is in use, holds another run or is not writable, or the device lacks the precision.
    """
    check_run_dir(config)
    check_compute(config.precision, world.device)
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


def open_data(config: PretrainConfig, world: World, log: MetricsLog) -> tuple[Opened, SampleOrder | MixedOrder]:
    """Training and held-out samples, checked, and the dynamic masking; and the order. Raises ``ConfigError``."""
    words = config.model.vocab_size
    if config.data.kind != "shards":
        found = open_ready_made(config.data, words, config.batch.global_batch_size, config.seed, log.message)
        return found, SampleOrder(config.seed, found.train.samples, config.data.block_size)
    tokens = tokenizer_size(config.data)
    share = world.local_rank, world.local_size  # each file is read once on a node, in case it has copies of its own
    shards = open_data_sets(config.data, "train", words, log.message, tokens, share)
    assert shards is not None
    report_single_segments(shards, config.model.next_sentence, log.message)
    heldout = open_data_sets(config.data, "heldout", words, tokens=tokens, share=share)
    check_cache(config.data, sets_of(shards), sets_of(heldout))
    check_vocabulary(config.data, [split for split in (shards, heldout) if split is not None], log.message)
    order = sample_order(config.data, shards, config.seed, log.message)
    return Opened(shards, heldout, dynamic_masking(config.data, shards, config.seed)), order
