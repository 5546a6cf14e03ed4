"""The checks of ``bert-pretrain doctor``: each is a function of the run's options that returns a ``Finding``."""

import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from bert_pretrain.build import trial_trainer
from bert_pretrain.config import PretrainConfig, resolved_yaml
from bert_pretrain.control_group import available_cores
from bert_pretrain.data.dataset import check_vocabulary, tokenizer_size
from bert_pretrain.data.mixture import open_data_sets
from bert_pretrain.data.ready_made import open_ready_made
from bert_pretrain.data.shard_directory import directory_notes
from bert_pretrain.distributed.preflight import rank_label
from bert_pretrain.distributed.world import (
    World,
    exit_process,
    is_collective_error,
    one_message_for_all_ranks,
    open_world,
)
from bert_pretrain.doctor.finding import FAIL, OK, WARN, Finding
from bert_pretrain.doctor.system import program, system, versions
from bert_pretrain.errors import ConfigError, SharedError, on_one_line
from bert_pretrain.hub.shape import resolve_model
from bert_pretrain.model.bert import build_model, silence_transformers
from bert_pretrain.model.choices import describe_choices
from bert_pretrain.model.flops import parameter_count
from bert_pretrain.model.precision import check_compute, compute_dtype, emulation_notice
from bert_pretrain.optim.build import build_optimizer, describe_optimizer
from bert_pretrain.plan.hardware_peaks import data_sheet_rate, device_name, measured_matrix_rate, timed
from bert_pretrain.same_run import check_run_dir

_MICRO_BATCHES = 2  # gradients are accumulated in the first and all-reduced in the last


@one_message_for_all_ranks
def run_checks(config: PretrainConfig) -> None:
    """Run all checks on all ranks and print the worst finding of each. Exits with 1 if one failed."""
    silence_transformers()
    with open_world(config.device, resolved_yaml(config), config.communication.timeout_seconds) as world:
        config = world.run_on_all_ranks(partial(resolve_model, config))
        levels = [checked(check.__name__.replace("_", " "), check, config, world) for check in CHECKS]
    if FAIL in levels:
        sys.exit(1)


def checked(name: str, check: Callable[[PretrainConfig, World], Finding], config: PretrainConfig, world: World) -> str:
    """Run one check on every rank; rank 0 prints the worst finding and its rank. Returns its level.

    If one rank fails in a check with collectives, the others are blocked there; it prints its error and exits.
    """
    try:
        finding = check(config, world)
    except (ConfigError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and is_collective_error(error):
            raise
        finding = Finding(FAIL, on_one_line(error))
        if world.size > 1 and check in WITH_COLLECTIVES and not isinstance(error, SharedError):
            print_finding(name, finding, rank_label(world.rank))
            exit_process(1)
    findings = world.gather((finding, rank_label(world.rank)))
    worst, rank = max(findings, key=lambda pair: (OK, WARN, FAIL).index(pair[0].level))
    if world.is_first:
        differs = worst.level != OK and any(found != worst for found, _ in findings)
        print_finding(name, worst, rank if differs else "")
    return worst.level


def print_finding(name: str, finding: Finding, rank: str) -> None:
    """Print the line of a check."""
    advice = f"; {finding.advice}" if finding.advice else ""
    print(f"{finding.level:<5} {name:<16} {finding.found}{rank}{advice}", flush=True)


def device(config: PretrainConfig, world: World) -> Finding:
    """The device, its driver, the compute type and the matrix rate in it."""
    check_compute("precision.compute", config.precision.compute, world.device)
    dtype = compute_dtype(config.precision.compute, world.device)
    rate = measured_matrix_rate(world.device, dtype)
    found = f"{device_name(world.device)}, {rate / 1e12:.3g} TFLOP/s in {str(dtype).removeprefix('torch.')}"
    if known := data_sheet_rate(device_name(world.device), dtype):
        found += f" ({rate / known:.0%} of the data sheet)"
    if notice := emulation_notice("precision.compute", config.precision.compute, world.device):
        return Finding(WARN, f"{found}; {notice}", "leave it at auto")
    if world.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(world.device)
        found += f", CUDA {torch.version.cuda}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        if free < 0.9 * total:
            return Finding(WARN, found, "another process uses memory of this GPU; nvidia-smi lists it")
    elif Path("/proc/driver/nvidia/version").exists() and config.device != "cpu":
        fault = f"an NVIDIA driver is loaded, but torch {torch.__version__} sees no GPU"
        return Finding(WARN, f"{found}; {fault}", "install a torch build for this driver")
    return Finding(OK, found)


def processors(config: PretrainConfig, world: World) -> Finding:
    """Cores for the ranks of this node, and the limit of open files."""
    cores, threads = available_cores(), torch.get_num_threads()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    found = f"{cores} cores, {threads} threads per rank, limit of {files:,} open files"
    if files < 1024:
        return Finding(WARN, found, "raise the limit with ulimit -n 4096")
    if world.size > 1 and world.device.type == "cpu" and threads * (world.local_rank + 1) > cores:
        return Finding(WARN, found, "there are more threads than cores; use fewer processes")
    return Finding(OK, found)


def shared_memory(config: PretrainConfig, world: World) -> Finding:
    """Free space in /dev/shm, which NCCL uses between the processes of a node."""
    if not Path("/dev/shm").is_dir():
        return Finding(WARN if world.size > 1 else OK, "there is no /dev/shm", "mount a tmpfs there")
    free = shutil.disk_usage("/dev/shm").free / 2**20
    small = free < 512 and world.size > 1 and world.device.type == "cuda"
    advice = "start docker with --ipc=host (as docker/run.sh does) or --shm-size=1g" if small else ""
    return Finding(WARN if small else OK, f"{free:,.0f} MiB free in /dev/shm", advice)


def disk(config: PretrainConfig, world: World) -> Finding:
    """Free space for the run's checkpoints, and the write speed."""
    if not world.is_first:
        return Finding(OK, "")
    check_run_dir(config)
    directory = _nearest_directory(Path(config.run_dir))
    size = 4 * parameter_count(config.model) * (1 + config.optimizer.moments)
    every = config.checkpoint.keep_every_steps
    kept = config.checkpoint.keep_last + 1 + (every and config.schedule.total_steps // every)
    needed, free = size * kept, shutil.disk_usage(directory).free
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        block = os.urandom(1 << 24)
        started = time.perf_counter()
        file.write(block)
        os.fsync(file.fileno())
        rate = len(block) / (time.perf_counter() - started)
    found = (
        f"{free / 2**30:,.1f} GiB free in {directory}, {rate / 2**20:,.0f} MiB/s; run needs {needed / 2**30:.2f} GiB"
    )
    if free < needed:
        return Finding(FAIL, found, "free some space, choose another run_dir, or lower checkpoint.keep_last")
    return Finding(OK, found)


def collectives(config: PretrainConfig, world: World) -> Finding:
    """An all-reduce of the gradient's size: its result and its speed."""
    if world.size == 1:
        return Finding(OK, "not tested with one process; start with torchrun ... -m bert_pretrain.doctor")
    numbers = torch.full((min(parameter_count(config.model), 1 << 24),), world.rank + 1.0, device=world.device)
    world.sum(numbers)
    expected = world.size * (world.size + 1) / 2
    if not bool((numbers == expected).all()):
        return Finding(
            FAIL, f"all-reduce over {world.size} ranks is wrong", "check the network; NCCL_DEBUG=INFO shows details"
        )
    numbers.zero_()
    seconds = min(timed(lambda: world.sum(numbers), world.device) for _ in range(3))
    rate = 2 * (world.size - 1) / world.size * numbers.nbytes / seconds
    kind = "NCCL" if world.device.type == "cuda" else "gloo"
    size = f"{numbers.nbytes >> 20} MiB over {world.size} ranks"
    return Finding(OK, f"{kind} all-reduce of {size} at {rate / 1e9:.2f} GB/s each way")


def kernels(config: PretrainConfig, world: World) -> Finding:
    """The kernels of the optimizer and of attention."""
    model = build_model(config.model, config.speed, config.seed, world.device)
    line = describe_optimizer(build_optimizer(model, config.optimizer), config.optimizer).splitlines()[0]
    return Finding(OK, f"{line}; {describe_choices(model, config.model, config.speed, world.device).strip()}")


def shards(config: PretrainConfig, world: World) -> Finding:
    """The shards, opened as in a run, and their vocabulary."""
    if config.data.kind != "shards":
        notes: list[str] = []
        open_ready_made(config.data, config.model.vocab_size, config.batch.global_batch_size, config.seed, notes.append)
        return Finding(OK, "; ".join(notes))
    warnings = directory_notes(Path(config.data.dir)) if Path(config.data.dir).is_dir() else []
    words, tokens = config.model.vocab_size, tokenizer_size(config.data)
    train, heldout = (open_data_sets(config.data, split, words, tokens=tokens) for split in ("train", "heldout"))
    assert train is not None
    check_vocabulary(config.data, [split for split in (train, heldout) if split is not None], warnings.append)
    if heldout is None:
        warnings.append("without held-out samples there are no evaluations")
    held = heldout.samples if heldout is not None else 0
    found = f"{train.samples:,} training samples in {len(train.paths)} shards, {held:,} held-out samples"
    return Finding(WARN if warnings else OK, found, "; ".join(warnings))


def two_steps(config: PretrainConfig, world: World) -> Finding:
    """Two short steps and a checkpoint, in a temporary directory."""
    parent = _nearest_directory(Path(config.run_dir)) if world.is_first else None  # the other ranks write nothing
    with world.run_on_all_ranks(lambda: tempfile.TemporaryDirectory(dir=parent)) as folder:
        schedule = replace(config.schedule, total_steps=2, shape="constant", warmup_steps=0)
        trial = replace(config, schedule=schedule, init_progress="reset")
        trainer = trial_trainer(trial, world, Path(folder))
        trainer.heldout = None
        plan = trainer.plan
        samples = min(plan.global_batch_size, _MICRO_BATCHES * plan.micro_batch_size * plan.world_size)
        trainer.plan = trainer.data.plan = replace(plan, global_batch_size=samples)
        started = time.perf_counter()
        trainer.run()
        seconds = time.perf_counter() - started
        skipped = trainer.progress.skipped
    batch = config.batch.global_batch_size
    note = f" ({batch:,} in the run; here {_MICRO_BATCHES} micro-batches a rank)" if samples < batch else ""
    found = f"two steps of {samples:,} samples{note} and a checkpoint in {seconds:.1f} s"
    if skipped:
        return Finding(WARN, f"{found}, {skipped} skipped", "fp16 skips steps while its loss scale adapts")
    return Finding(OK, found)


def _nearest_directory(path: Path) -> Path:
    return next(directory for directory in (path, *path.absolute().parents) if directory.is_dir())


CHECKS = (program, versions, system, device, processors, shared_memory, disk, collectives, kernels, shards, two_steps)
WITH_COLLECTIVES = (collectives, two_steps)
"""Checks with collectives."""
