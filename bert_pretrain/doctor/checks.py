"""The checks of ``bert-pretrain doctor``, each a function of the run's options that returns what it found."""

import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch

from bert_pretrain.build import build_trainer
from bert_pretrain.checkpoint.store import CheckpointStore
from bert_pretrain.config import PretrainConfig, check_run_dir, resolved_yaml
from bert_pretrain.data.dataset import check_vocabulary, open_split
from bert_pretrain.distributed.preflight import rank_label
from bert_pretrain.distributed.world import World, is_collective_error, leave, one_message_for_all_ranks, open_world
from bert_pretrain.errors import ConfigError, SharedError
from bert_pretrain.model.bert import build_model, silence_transformers
from bert_pretrain.model.flops import parameter_count
from bert_pretrain.model.precision import compute_dtype
from bert_pretrain.optim.build import build_optimizer, describe_optimizer
from bert_pretrain.plan.hardware_peaks import device_name, measured_matrix_rate, timed
from bert_pretrain.training.metrics import MetricsLog
from bert_pretrain.training.trainer import Trainer

OK, WARN, FAIL = "ok", "warn", "fail"
_MICRO_BATCHES = 2  # gradients of the first only add up, those of the last travel


@dataclass(frozen=True)
class Finding:
    """What one check found on one rank."""

    level: str
    found: str
    advice: str = ""


@dataclass(frozen=True)
class KnownFault:
    """A release of a package that is known to be wrong."""

    package: str
    first: str
    """The first release that has the fault."""
    mended: str
    """The first that has not; empty: none yet."""
    what: str
    guard: str
    """What this program does about it by itself; empty: nothing, so that the user has to follow ``advice``."""
    advice: str = ""

    def strikes(self, installed: str) -> bool:
        """Whether the release ``installed`` has it."""
        found = _release(installed)
        return _release(self.first) <= found and (not self.mended or found < _release(self.mended))


KNOWN_FAULTS = (
    KnownFault(
        "torch", "2.13", "2.15",
        "compiled dropout (inductor's RAND4X) draws masks that repeat or differ between forward and backward "
        "(pytorch issue 198333)",
        "speed.compile turns RAND4X off by itself",
    ),
)  # fmt: skip


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.partition("+")[0].split(".")[:2])


@one_message_for_all_ranks
def run_checks(config: PretrainConfig) -> None:
    """Run all checks on all ranks, print the worst finding of each, end with 1 where one failed."""
    silence_transformers()
    with open_world(config.device, resolved_yaml(config), config.communication.timeout_seconds) as world:
        levels = [checked(name, check, config, world) for name, check in CHECKS.items()]
    if FAIL in levels:
        sys.exit(1)


def checked(name: str, check: Callable[[PretrainConfig, World], Finding], config: PretrainConfig, world: World) -> str:
    """Run one check on every rank; rank 0 prints the worst finding and whose it is. Returns its level.

    A rank that fails alone while the others wait for it in an exchange cannot meet them here: it says so and ends.
    """
    try:
        finding = check(config, world)
    except (ConfigError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and is_collective_error(error):
            raise
        finding = Finding(FAIL, str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
        if world.size > 1 and check in EXCHANGES and not isinstance(error, SharedError):
            say(name, finding, rank_label(world.rank))
            leave(1)
    heard = world.gather((finding, rank_label(world.rank)))
    worst, place = max(heard, key=lambda one: (OK, WARN, FAIL).index(one[0].level))
    if world.is_first:
        alone = worst.level != OK and any(found != worst for found, _ in heard)
        say(name, worst, place if alone else "")
    return worst.level


def say(name: str, finding: Finding, place: str) -> None:
    """A check's line."""
    advice = f"; {finding.advice}" if finding.advice else ""
    print(f"{finding.level:<5} {name:<16} {finding.found}{place}{advice}", flush=True)


def versions(config: PretrainConfig, world: World) -> Finding:
    """Python and the packages, against ``KNOWN_FAULTS``."""
    packages = ("torch", "transformers", "numpy", "h5py")
    found = ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)])
    struck = [fault for fault in KNOWN_FAULTS if fault.strikes(version(fault.package))]
    found += "".join(f"; {fault.what}{fault.guard and f': {fault.guard}'}" for fault in struck)
    exposed = [fault for fault in struck if not fault.guard]
    return Finding(WARN, found, "; ".join(fault.advice for fault in exposed)) if exposed else Finding(OK, found)


def device(config: PretrainConfig, world: World) -> Finding:
    """The device, its driver, the type of its products and how fast they are."""
    dtype = compute_dtype(config.precision.compute, world.device)
    rate = measured_matrix_rate(world.device, dtype)
    found = f"{device_name(world.device)}, {str(dtype).removeprefix('torch.')} products at {rate / 1e12:.3g} TFLOP/s"
    if world.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(world.device)
        found += f", CUDA {torch.version.cuda}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        if free < 0.9 * total:
            return Finding(WARN, found, "another program holds memory of this GPU: nvidia-smi names it")
    elif Path("/proc/driver/nvidia/version").exists() and config.device != "cpu":
        return Finding(
            WARN, found, f"an NVIDIA driver is loaded, but torch {torch.__version__} sees no GPU; see README"
        )
    return Finding(OK, found)


def processors(config: PretrainConfig, world: World) -> Finding:
    """Cores for the ranks of this node, and files that a process may open."""
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    found = f"{cores} cores, {threads} threads a rank, {files:,} open files"
    if files < 1024:
        return Finding(WARN, found, "ulimit -n 4096")
    if world.size > 1 and world.device.type == "cpu" and threads * (world.local_rank + 1) > cores:
        return Finding(WARN, found, "more threads than cores: use fewer processes")
    return Finding(OK, found)


def shared_memory(config: PretrainConfig, world: World) -> Finding:
    """Room in /dev/shm, through which NCCL moves data between the processes of a node."""
    if not Path("/dev/shm").is_dir():
        return Finding(WARN if world.size > 1 else OK, "there is no /dev/shm", "mount a tmpfs there")
    free = shutil.disk_usage("/dev/shm").free / 2**20
    small = free < 512 and world.size > 1 and world.device.type == "cuda"
    advice = "docker run --ipc=host, or --shm-size=1g (docker/run.sh does it)" if small else ""
    return Finding(WARN if small else OK, f"{free:,.0f} MiB free in /dev/shm", advice)


def disk(config: PretrainConfig, world: World) -> Finding:
    """Room for the checkpoints of the run where they will be written, and how fast it takes them."""
    if not world.is_first:
        return Finding(OK, "")
    check_run_dir(config)
    place = _existing(Path(config.run_dir))
    moments = 1 if config.optimizer.algorithm in ("lars", "sgd") else 2
    one = 4 * parameter_count(config.model) * (1 + moments)
    milestones = (
        config.checkpoint.keep_every_steps and config.schedule.total_steps // config.checkpoint.keep_every_steps
    )
    wanted, free = one * (config.checkpoint.keep_last + 1 + milestones), shutil.disk_usage(place).free
    with tempfile.NamedTemporaryFile(dir=place) as file:
        block = os.urandom(1 << 24)
        started = time.perf_counter()
        file.write(block)
        os.fsync(file.fileno())
        rate = len(block) / (time.perf_counter() - started)
    found = (
        f"{free / 2**30:,.1f} GiB free in {place}, {rate / 2**20:,.0f} MiB/s; the run keeps {wanted / 2**30:.2f} GiB"
    )
    if free < wanted:
        return Finding(FAIL, found, "make room, set run_dir elsewhere, or lower checkpoint.keep_last")
    return Finding(OK, found)


def collectives(config: PretrainConfig, world: World) -> Finding:
    """A sum over all ranks: whether it is right, and how fast a gradient's worth of it travels."""
    if world.size == 1:
        return Finding(OK, "one process: nothing to exchange (torchrun ... -m bert_pretrain.doctor tries all)")
    numbers = torch.full((min(parameter_count(config.model), 1 << 24),), world.rank + 1.0, device=world.device)
    world.sum(numbers)
    expected = world.size * (world.size + 1) / 2
    if not bool((numbers == expected).all()):
        return Finding(FAIL, f"the sum over {world.size} ranks is wrong", "see the network, and NCCL_DEBUG=INFO")
    numbers.zero_()
    seconds = min(timed(lambda: world.sum(numbers), world.device) for _ in range(3))
    rate = 2 * (world.size - 1) / world.size * numbers.nbytes / seconds
    kind = "NCCL" if world.device.type == "cuda" else "gloo"
    return Finding(
        OK, f"{world.size} ranks add up by {kind}: {numbers.nbytes >> 20} MiB at {rate / 1e9:.2f} GB/s each way"
    )


def kernels(config: PretrainConfig, world: World) -> Finding:
    """What will compute the update and the attention."""
    model = build_model(config.model, config.speed, config.seed, world.device)
    line = describe_optimizer(build_optimizer(model, config.optimizer), config.optimizer).splitlines()[0]
    return Finding(OK, f"{line}; attention {model.bert.config._attn_implementation}")


def shards(config: PretrainConfig, world: World) -> Finding:
    """The shards, read as the run would read them, and the vocabulary that they were made with."""
    said: list[str] = []
    train, heldout = (open_split(config.data, split, config.model.vocab_size) for split in ("train", "heldout"))
    if train is None:
        return Finding(FAIL, f"data.dir {config.data.dir} holds no training samples", "data_prep.prepare makes shards")
    check_vocabulary(config.data, [split for split in (train, heldout) if split is not None], said.append)
    held = heldout.samples if heldout is not None else 0
    found = f"{train.samples:,} samples in {len(train.paths)} shards, {held:,} held out"
    return Finding(
        WARN if said or not held else OK, found, "; ".join(said) or ("" if held else "nothing to evaluate on")
    )


def two_steps(config: PretrainConfig, world: World) -> Finding:
    """Two short steps and a checkpoint, in a folder that is thrown away."""
    place = _existing(Path(config.run_dir)) if world.is_first else None  # the others' stays empty
    with world.run_on_all_ranks(lambda: tempfile.TemporaryDirectory(dir=place)) as folder:
        trial = replace(config, checkpoint=replace(config.checkpoint, every_steps=2, keep_every_steps=0))
        schedule = replace(config.schedule, total_steps=2)
        trial = replace(trial, schedule=schedule, training=replace(config.training, evaluate_every_steps=10**9))
        log = MetricsLog(None, 2)
        trainer = build_trainer(trial, world, log, CheckpointStore(Path(folder), 1, None), "")
        trainer.heldout = None
        samples = _shorten(trainer)
        started = time.perf_counter()
        trainer.run()
        seconds = time.perf_counter() - started
        skipped = trainer.progress.skipped
    whole = config.batch.global_batch_size
    cut = f" ({whole:,} in the run; here {_MICRO_BATCHES} micro-batches a rank)" if samples < whole else ""
    found = f"two steps of {samples:,} samples{cut} and a checkpoint in {seconds:.1f} s"
    return (
        Finding(WARN, f"{found}, {skipped} skipped", "fp16's loss scale settles so") if skipped else Finding(OK, found)
    )


def _shorten(trainer: Trainer) -> int:
    """Leave of a step as many micro-batches a rank as tell something new; the samples that it then has."""
    plan = trainer.plan
    samples = min(plan.global_batch_size, _MICRO_BATCHES * plan.micro_batch_size * plan.world_size)
    trainer.plan = trainer.data.plan = replace(plan, global_batch_size=samples)
    return samples


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.absolute().parents) if place.is_dir())


CHECKS: dict[str, Callable[[PretrainConfig, World], Finding]] = {
    "versions": versions,
    "device": device,
    "processors": processors,
    "shared memory": shared_memory,
    "disk": disk,
    "collectives": collectives,
    "kernels": kernels,
    "shards": shards,
    "two steps": two_steps,
}
EXCHANGES = (collectives, two_steps)
"""Checks in which ranks wait for each other."""
