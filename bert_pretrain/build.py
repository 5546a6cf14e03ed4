"""Options -> the parts of a run. All are built here by name, top to bottom."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from bert_pretrain.checkpoint.store import CheckpointStore
from bert_pretrain.config import PretrainConfig
from bert_pretrain.data.batch_plan import BatchConfig, BatchPlan
from bert_pretrain.data.collate import Shape, fixed_shapes
from bert_pretrain.data.dataset import check_vocabulary, report_single_segments, tokenizer_size
from bert_pretrain.data.dynamic_masking import dynamic_masking
from bert_pretrain.data.loader import TrainingData
from bert_pretrain.data.mixture import describe_mixture, open_data_sets, sample_order, sets_of
from bert_pretrain.data.packing import packed_shapes
from bert_pretrain.data.ready_made import Opened, open_ready_made
from bert_pretrain.data.remote_shards import check_cache
from bert_pretrain.data.sample_order import MixedOrder, SampleOrder
from bert_pretrain.distributed.world import World
from bert_pretrain.errors import ConfigError
from bert_pretrain.hub.export import check_before_training
from bert_pretrain.model.bert import PretrainingModel, build_model, resolve_packing
from bert_pretrain.model.choices import describe_choices
from bert_pretrain.model.compile import compile_model, turn_off_compiling
from bert_pretrain.model.precision import MixedPrecision, dtype_name, emulation_notice
from bert_pretrain.optim.build import build_optimizer, describe_optimizer
from bert_pretrain.optim.freezing import describe_frozen
from bert_pretrain.optim.schedule import learning_rate_table
from bert_pretrain.plan.hardware_peaks import data_sheet_rate, device_name, measured_matrix_rate
from bert_pretrain.plan.run import describe_plan
from bert_pretrain.starting import RunStart
from bert_pretrain.training.metrics import MetricsLog
from bert_pretrain.training.trainer import Trainer


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
    if notice := emulation_notice("precision.compute", config.precision.compute, world.device):
        message(notice)
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
    return Opened(shards, heldout, dynamic_masking(config.data, shards, config.seed, log.message)), order
