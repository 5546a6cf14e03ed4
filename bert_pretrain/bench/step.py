"""``bench step``: this program's step against what one would otherwise write, on the same samples, in turns in one run.

The baseline is the obvious script: ``BertForPreTraining`` with ``transformers``' defaults, labels on all positions,
float32, ``torch.optim.AdamW``; on GPUs also ``transformers.Trainer`` in bf16. Then a row for each technique, added to
those before it. Shares are of the matrix rate measured on the device in the same run. Under torchrun every process is
measured, and the gradients' way between them.
"""

import json
import statistics
import time
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bert_pretrain.bench.baselines import Measured, plain_script, transformers_trainer
from bert_pretrain.bench.figure import draw_step
from bert_pretrain.bench.options import BenchStepConfig
from bert_pretrain.bench.split import PHASES, Stopwatch, kept_bytes, peak_memory
from bert_pretrain.build import build_trainer
from bert_pretrain.checkpoint.store import CheckpointStore
from bert_pretrain.data.collate import Counts, StepBatch
from bert_pretrain.distributed.gradients import sync_gradients
from bert_pretrain.distributed.world import World, one_message_for_all_ranks, open_world
from bert_pretrain.errors import require
from bert_pretrain.model.bert import silence_transformers
from bert_pretrain.model.flops import training_flops
from bert_pretrain.model.options import SpeedConfig
from bert_pretrain.model.precision import compute_dtype
from bert_pretrain.plan.hardware_peaks import device_name, measured_copy_bandwidth, timed
from bert_pretrain.training.metrics import MetricsLog, writable_directory
from bert_pretrain.training.trainer import Trainer

_WARM_UP = 2  # rounds
_SPLIT_ROUNDS = 3
_COLUMNS = ("data", *PHASES, "communication")


@one_message_for_all_ranks
def run(config: BenchStepConfig) -> None:
    """Measure the step, print the table, write the rows and draw them."""
    silence_transformers()
    with open_world(config.device) as world:
        world.run_on_all_ranks(lambda: _check_out_dir(config.out_dir, world))
        rows = measure(config, world)
        bandwidth = measured_copy_bandwidth(world.device)
    if not world.is_first:
        return
    print(f"{'variant':<20}{'ms a step':>11}{'tokens/s':>11}{'speed-up':>10}{'MFU':>9}{'memory':>9}", end="")
    print("".join(f"{name:>{len(name) + 2}}" for name in _COLUMNS))
    for row in rows:
        parts = (f"{row[f'{name}_ms']:>{len(name) + 2}.1f}" for name in _COLUMNS if row[f"{name}_ms"] is not None)
        memory = row["peak_memory_bytes"]
        print(
            f"{row['variant']:<20}{row['milliseconds']:>11.1f}{row['real_tokens_per_second']:>11,.0f}"
            f"{row['speedup_over_baseline']:>9.2f}x{row['mfu']:>9.1%}"
            f"{'-' if memory is None else f'{memory / 2**20:,.0f} MB':>9}{''.join(parts)}"
        )
    run = next(row for row in rows if row["variant"] == "all")
    computing = 1 - (run["optimizer_ms"] + run["communication_ms"]) / run["milliseconds"]
    alone = run["real_tokens_per_second"] / run["processes"] / computing
    print(f"for bert_pretrain.plan: device_tokens_per_second={alone:.0f}, of forward and backward alone")
    rate = rows[-1]["matrix_rate"]
    print(f"measured here: {rate / 1e12:.3g} TFLOP/s of matrix products, {bandwidth / 1e9:.3g} GB/s copied")
    out = Path(config.out_dir) / "step.json"
    content = {"rows": rows, "copy_bandwidth": bandwidth, "options": asdict(config)}
    out.write_text(json.dumps(content, indent=2), encoding="utf-8")
    draw_step(out.with_suffix(".png"), rows, _COLUMNS)
    print(f"written to {out}, drawn in {out.with_suffix('.png')}")


def _check_out_dir(out_dir: str, world: World) -> None:
    fault = writable_directory(Path(out_dir)) if world.is_first else None
    require(fault is None, "out_dir", out_dir, f"a directory that can be written ({fault})")


@dataclass
class Figures:
    """What was measured of one variant, in seconds and bytes."""

    steps: list[float] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    memory: int | None = None


@dataclass
class Outcome:
    """What was measured of all variants, and of the run itself, which is the variant ``all``."""

    variants: dict[str, Figures] = field(default_factory=dict)
    total: Counts = field(default_factory=lambda: Counts(0, 0, 0, 0))
    waited: float = 0.0
    peak_rate: float = 0.0


def measure(config: BenchStepConfig, world: World) -> list[dict[str, Any]]:
    """The rows of all variants. Every variant sees the same samples in its own cut, of the first one's size.

    On a CPU, which other work disturbs, the variants take turns. A GPU's memory holds one of them at a time.
    """
    configs, outcome = variants(config, world.device), Outcome()
    names = list(configs)
    for group in [[name] for name in names] if world.device.type == "cuda" else [names]:
        size = measure_in_turns({name: configs[name] for name in group}, world, outcome)
        configs = {name: with_size(variant, size) for name, variant in configs.items()}
    _add_transformers_trainer(configs[names[0]], world, outcome.variants)
    sums = world.sum(torch.tensor(list(asdict(outcome.total).values()), dtype=torch.float64, device=world.device))
    total = Counts(*map(int, sums.tolist()))
    return [_row(config, world, name, outcome, total) for name in outcome.variants]


def with_size(config: BenchStepConfig, micro_batch_size: int) -> BenchStepConfig:
    """``config`` with the micro-batch size as a number."""
    return replace(config, batch=replace(config.batch, micro_batch_size=micro_batch_size))


def measure_in_turns(configs: dict[str, BenchStepConfig], world: World, outcome: Outcome) -> int:
    """Add the figures of these variants, with the first of all those of the baseline; returns the micro-batch size."""
    trainers = {name: _trainer(variant, world) for name, variant in configs.items()}
    sources, runs = dict(trainers), {}
    (first, config), *_ = configs.items()
    if not outcome.variants:
        sources["baseline"], runs["baseline"] = trainers[first], plain_script(config, world)
    runs |= {name: Measured(t.train_step, t.network, t.optimizer) for name, t in trainers.items()}
    found = {name: Figures() for name in runs}
    streams = {id(t): t.data.steps(0, pin=world.device.type == "cuda") for t in trainers.values()}
    title = "rounds" if len(configs) > 1 else first
    for number in tqdm(range(_WARM_UP + config.rounds), desc=title, leave=False, disable=not world.is_first):
        source = None
        for name, measured in runs.items():
            started = time.perf_counter()
            if source is not sources[name]:  # the baseline and the first variant run on one cut
                source = sources[name]
                batch = next(streams[id(source)])
                micro_batches = list(batch.micro_batches)
            wait = time.perf_counter() - started
            seconds = timed(partial(measured.run, StepBatch(batch.counts, iter(micro_batches))), world.device)
            if number >= _WARM_UP:
                found[name].steps.append(seconds)
                if name == "all":
                    outcome.waited += wait
                    outcome.total += batch.counts
    for stream in streams.values():
        stream.close()  # type: ignore[attr-defined]
    for name, measured in runs.items():
        take_apart(measured, sources[name], found[name])
    outcome.variants |= found
    outcome.peak_rate = trainers[list(trainers)[-1]].peak_rate  # all comes last
    return trainers[first].plan.micro_batch_size


def take_apart(measured: Measured, source: Trainer, found: Figures) -> None:
    """A few more steps: phases, the time to prepare the samples (on a thread beside the step), and memory."""
    device = source.world.device
    prepared, alone = 0.0, list[float]()
    stopwatch = Stopwatch(measured.network, measured.optimizer, device)
    for step in range(_SPLIT_ROUNDS):
        started = time.perf_counter()
        counts, micro_batches = source.data.counts(step), list(source.data.micro_batches(step))
        prepared += time.perf_counter() - started
        stopwatch.measure(partial(measured.run, StepBatch(counts, iter(micro_batches))))
    stopwatch.remove()
    found.phases = {name: stopwatch.seconds[name] / _SPLIT_ROUNDS for name in PHASES}
    found.phases |= {"data": prepared / _SPLIT_ROUNDS, "communication": 0.0}
    if source.world.size > 1:  # what a step takes less when no gradient travels
        for _ in range(_SPLIT_ROUNDS):
            with sync_gradients(measured.network, now=False):
                alone.append(timed(lambda: measured.run(StepBatch(counts, iter(micro_batches))), device))
        found.phases["communication"] = max(0.0, statistics.median(found.steps) - statistics.median(alone))
        found.phases["backward"] -= found.phases["communication"]
    beyond = peak_memory(lambda: measured.run(StepBatch(counts, iter(micro_batches))), device)
    found.memory = kept_bytes(measured.network, measured.optimizer) + beyond


def _add_transformers_trainer(config: BenchStepConfig, world: World, found: dict[str, Figures]) -> None:
    wanted = config.transformers_trainer
    if wanted is None:
        wanted = world.device.type == "cuda" and world.size == 1
    if wanted and find_spec("accelerate") is None:
        print("transformers.Trainer left out: it needs accelerate (pip install --no-deps accelerate)")
    elif wanted:
        data = _trainer(config, world).data
        steps = [list(data.micro_batches(step)) for step in range(_WARM_UP + config.rounds)]
        found["transformers.Trainer"] = Figures([transformers_trainer(config, world.device, steps)])


def variants(config: BenchStepConfig, device: torch.device) -> dict[str, BenchStepConfig]:
    """Each technique of the run added to the ones before it, beginning in float32; the last, ``all``, is the run."""
    wanted = asdict(config.speed.on(device))
    speed = SpeedConfig(**dict.fromkeys(wanted, False))
    plain = replace(config, speed=speed, precision=replace(config.precision, compute="fp32"))
    found = {"masked positions": plain}
    dtype = compute_dtype(config.precision.compute, device)
    if dtype != torch.float32:
        plain = replace(plain, precision=config.precision)
        found["+ " + str(dtype).removeprefix("torch.")] = plain
    for name in (option.name for option in fields(SpeedConfig) if wanted[option.name]):
        speed = replace(speed, **{name: True})
        found["+ " + name.replace("_", " ")] = replace(plain, speed=speed)
    if len(found) > 1:
        found.popitem()  # with the last technique added it is the run itself
    return found | {"all": config}


def _trainer(config: BenchStepConfig, world: World) -> Trainer:
    log = MetricsLog(None, config.schedule.total_steps)
    store = CheckpointStore(Path(config.out_dir) / "none", 1, None)
    return build_trainer(config, world, log, store, config_yaml="")


def _row(config: BenchStepConfig, world: World, name: str, outcome: Outcome, total: Counts) -> dict[str, Any]:
    found, waited = outcome.variants, outcome.waited
    rounds = len(found["all"].steps)
    flops = training_flops(config.model, total.samples, total.tokens, total.squared_lengths, total.masked_tokens)
    seconds = statistics.median(found[name].steps)
    phases = found[name].phases
    return {
        "model": f"{config.model.num_hidden_layers}x{config.model.hidden_size}",
        "sequence_length": config.data.sequence_length,
        "variant": name,
        "milliseconds": 1e3 * seconds,
        "real_tokens_per_second": total.tokens / rounds / seconds,
        "speedup_over_baseline": statistics.median(found["baseline"].steps) / seconds,
        "mfu": flops / rounds / seconds / (outcome.peak_rate * world.size),
        **{f"{phase}_ms": 1e3 * phases[phase] if phases else None for phase in _COLUMNS},
        "data_wait_share": waited / rounds / (seconds + waited / rounds) if name == "all" else 0.0,
        "peak_memory_bytes": found[name].memory,
        "matrix_rate": outcome.peak_rate,
        "dropout": config.model.hidden_dropout_prob,
        "processes": world.size,
        "device": device_name(world.device),
    }
