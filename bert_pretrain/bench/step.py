"""``bench step``: our training step compared with plain PyTorch, on the same samples, interleaved in one run.

The baseline is the obvious script: ``BertForPreTraining`` with ``transformers``' defaults, labels on all positions,
float32, ``torch.optim.AdamW``; on GPUs also ``transformers.Trainer`` in bf16. Each further row adds one technique to
those above it. MFU is relative to the matrix rate measured in the same run, and to the data sheet's where the GPU is
known. Under torchrun the all-reduce of the gradients is measured too.

On a single GPU step.json is written after each variant, and a variant that fails does not end the others.
"""

import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm

from bert_pretrain.bench.baselines import Measured, plain_script, transformers_trainer
from bert_pretrain.bench.options import BenchStepConfig
from bert_pretrain.bench.phases import PHASES, Stopwatch, peak_memory, state_bytes
from bert_pretrain.build import trial_trainer
from bert_pretrain.data.collate import Counts, StepBatch
from bert_pretrain.distributed.gradients import sync_gradients
from bert_pretrain.distributed.world import World, one_message_for_all_ranks, open_world
from bert_pretrain.errors import with_type
from bert_pretrain.files.file_system import require_writable, write_json
from bert_pretrain.hub.shape import resolve_model
from bert_pretrain.model.bert import resolve_packing, silence_transformers
from bert_pretrain.model.flops import training_flops
from bert_pretrain.model.options import SpeedConfig
from bert_pretrain.model.precision import check_compute, compute_dtype, emulation_notice
from bert_pretrain.plan.hardware_peaks import data_sheet_rate, device_name, measured_copy_bandwidth, timed
from bert_pretrain.training.metrics import Row
from bert_pretrain.training.trainer import Trainer

_WARM_UP = 2  # rounds
_PHASE_ROUNDS = 3
_NO_FOLDER = Path("none")  # nothing is saved
_COLUMNS = {"data": "", "forward": "#4477aa", "backward": "#88bbdd", "optimizer": "#ee7733", "communication": "#228833"}
"""Columns of the table, and their colours in the figure. Data is loaded in parallel to the step and not drawn."""


@one_message_for_all_ranks
def run(config: BenchStepConfig) -> None:
    """Measure the step, print the table, write step.json and step.png."""
    silence_transformers()
    out = Path(config.out_dir) / "step.json"
    with open_world(config.device) as world:
        config = world.run_on_all_ranks(partial(resolve_model, config))
        check_compute("precision.compute", config.precision.compute, world.device)
        if world.is_first and (notice := emulation_notice("precision.compute", config.precision.compute, world.device)):
            print(notice)
        world.run_on_first_rank(lambda: require_writable(Path(config.out_dir), "out_dir"))
        bandwidth = measured_copy_bandwidth(world.device)
        for outcome in measure(config, world):
            rows = [_row(config, world, name, outcome) for name in outcome.variants]
            content = {"rows": rows, "failed": outcome.failed, "copy_bandwidth": bandwidth, "options": asdict(config)}
            if world.is_first:
                write_json(out, content)
    if world.is_first:
        print_table(rows)
        peak = f"{rows[-1]['matrix_rate'] / 1e12:.3g} TFLOP/s of matrix products"
        print(f"measured peaks: {peak}, {bandwidth / 1e9:.3g} GB/s copied")
        draw_step(out.with_suffix(".png"), rows)
        print(f"wrote {out} and {out.with_suffix('.png')}")
    if outcome.failed:
        sys.exit(f"failed: {', '.join(outcome.failed)}")


def print_table(rows: list[Row]) -> None:
    """One line a variant, and the rate that ``bert-pretrain plan`` takes."""
    print(f"{'variant':<20}{'ms a step':>11}{'tokens/s':>11}{'speed-up':>10}{'MFU':>9}{'padding':>9}", end="")
    print(f"{'memory':>9}" + "".join(f"{name:>{len(name) + 2}}" for name in _COLUMNS))
    for row in rows:
        parts = (f"{row[f'{name}_ms']:>{len(name) + 2}.1f}" for name in _COLUMNS if row[f"{name}_ms"] is not None)
        memory, padding = row["peak_memory_bytes"], row["padding_share"]
        print(
            f"{row['variant']:<20}{row['milliseconds']:>11.1f}{row['real_tokens_per_second']:>11,.0f}"
            f"{row['speedup_over_baseline']:>9.2f}x{row['mfu']:>9.1%}"
            f"{'-' if padding is None else f'{padding:.1%}':>9}"
            f"{'-' if memory is None else f'{memory / 2**20:,.0f} MB':>9}{''.join(parts)}"
        )
    for run in (row for row in rows if row["variant"] == "all"):
        share = 1 - (run["optimizer_ms"] + run["communication_ms"]) / run["milliseconds"]
        rate = run["real_tokens_per_second"] / run["processes"] / share
        print(f"forward and backward alone, for bert-pretrain plan: device_tokens_per_second={rate:.0f}")


@dataclass
class Figures:
    """Measurements of one variant, in seconds and bytes."""

    steps: list[float] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    memory: int | None = None
    padding: float | None = None
    """Share of padding in the tokens computed."""


@dataclass
class Outcome:
    """Measurements of all variants so far, and the samples of their rounds."""

    variants: dict[str, Figures] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Variants that failed, and the errors."""
    total: Counts = field(default_factory=lambda: Counts(0, 0, 0, 0))
    """Of all ranks."""
    waited: float = 0.0
    """Seconds that the steps of the variant ``all``, which is the run itself, waited for data."""
    peak_rate: float = 0.0


def measure(config: BenchStepConfig, world: World) -> Iterator[Outcome]:
    """The outcome after each group of variants. All see the same samples with the micro-batch size of the first.

    On a CPU the steps of all variants are interleaved, against disturbance by other processes. On a GPU the variants
    run one after the other, because only one fits into memory.
    """
    configs, outcome = variants(config, world.device), Outcome()
    names, alone = list(configs), world.device.type == "cuda"
    for group in [[name] for name in names] if alone else [names]:
        try:
            size = measure_interleaved({name: configs[name] for name in group}, world, outcome)
        except RuntimeError as error:  # also those of compilers, and of memory
            if not alone or world.size > 1 or not outcome.variants:
                raise
            outcome.failed[group[0]] = with_type(error)
            print(f"failed {group[0]}: {outcome.failed[group[0]]}", file=sys.stderr)
            continue
        configs = {k: replace(c, batch=replace(c.batch, micro_batch_size=size)) for k, c in configs.items()}
        yield outcome
    _add_transformers_trainer(configs[names[0]], world, outcome.variants)
    yield outcome


def measure_interleaved(configs: dict[str, BenchStepConfig], world: World, outcome: Outcome) -> int:
    """Measure these variants, and in the first call also the baseline; return the micro-batch size."""
    trainers = {name: trial_trainer(variant, world, _NO_FOLDER) for name, variant in configs.items()}
    runs = {name: Measured(t.train_step, t.network, t.optimizer) for name, t in trainers.items()}
    (first, config), *_ = configs.items()
    on_batches_of = {name: [name] for name in configs}
    if not outcome.variants:  # the baseline runs on the micro-batches of the first variant
        runs = {"baseline": plain_script(config, world)} | runs
        on_batches_of[first] = ["baseline", first]
    found, total = {name: Figures() for name in runs}, Counts(0, 0, 0, 0)
    streams = {name: t.data.steps(0, pin=world.device.type == "cuda") for name, t in trainers.items()}
    title = "rounds" if len(configs) > 1 else first
    for number in tqdm(range(_WARM_UP + config.rounds), desc=title, leave=False, disable=not world.is_first):
        for name, stream in streams.items():
            started = time.perf_counter()
            batch = next(stream)
            micro_batches = list(batch.micro_batches)
            wait = time.perf_counter() - started
            for run in on_batches_of[name]:
                step = partial(runs[run].run, StepBatch(batch.counts, iter(micro_batches)))
                seconds = timed(step, world.device)
                found[run].steps += [seconds] if number >= _WARM_UP else []
            if number >= _WARM_UP:
                total += batch.counts if name == first else Counts(0, 0, 0, 0)
                outcome.waited += wait if name == "all" else 0.0
    for stream in streams.values():
        stream.close()
    for name, trainer in trainers.items():
        for run in on_batches_of[name]:
            measure_phases(runs[run], trainer, found[run])
    sums = world.sum(torch.tensor(list(asdict(total).values()), dtype=torch.float64, device=world.device))
    outcome.total = Counts(*map(int, sums.tolist()))  # each time the same samples
    outcome.variants |= found
    outcome.peak_rate = trainers[list(trainers)[-1]].throughput.peak_rate  # the variant ``all`` is the last
    return trainers[first].plan.micro_batch_size


def measure_phases(measured: Measured, source: Trainer, found: Figures) -> None:
    """A few more steps, for the time of each phase, the time to load the samples, and memory."""
    device = source.world.device
    loading, computed, real = 0.0, 0, 0
    stopwatch = Stopwatch(measured.network, measured.optimizer, device)
    for step in range(_PHASE_ROUNDS):
        started = time.perf_counter()
        counts = source.data.counts(step)
        micro_batches = list(source.data.micro_batches(step))
        loading += time.perf_counter() - started
        computed += sum(one.input_ids.numel() for one in micro_batches)
        real += counts.tokens
        stopwatch.measure(partial(measured.run, StepBatch(counts, iter(micro_batches))))
    stopwatch.remove()
    found.padding = 1 - real / computed
    found.phases = {name: stopwatch.seconds[name] / _PHASE_ROUNDS for name in PHASES}
    found.phases |= {"data": loading / _PHASE_ROUNDS, "communication": 0.0}

    def run_step() -> object:
        return measured.run(StepBatch(counts, iter(micro_batches)))

    if source.world.size > 1:  # communication: the time that a step saves without the all-reduce
        with sync_gradients(measured.network, now=False):
            local = [timed(run_step, device) for _ in range(_PHASE_ROUNDS)]
        found.phases["communication"] = max(0.0, statistics.median(found.steps) - statistics.median(local))
        found.phases["backward"] -= found.phases["communication"]
    found.memory = state_bytes(measured.network, measured.optimizer) + peak_memory(run_step, device)


def _add_transformers_trainer(config: BenchStepConfig, world: World, found: dict[str, Figures]) -> None:
    wanted = config.transformers_trainer
    if wanted is None:
        wanted = world.device.type == "cuda" and world.size == 1
    if wanted and find_spec("accelerate") is None:
        print("skipped transformers.Trainer: it needs accelerate (pip install 'bert-pretrain[finetune]')")
    elif wanted:
        data = trial_trainer(config, world, _NO_FOLDER).data
        steps = [list(data.micro_batches(step)) for step in range(_WARM_UP + config.rounds)]
        found["transformers.Trainer"] = Figures([transformers_trainer(config, world.device, steps)])


def variants(config: BenchStepConfig, device: torch.device) -> dict[str, BenchStepConfig]:
    """One technique of the run after the other, cumulatively, from float32 on; the last, ``all``, is the run itself.

    Packing comes last: ``all`` beside the row before it is packed beside grouped by length.
    """
    dtype = compute_dtype(config.precision.compute, device)
    wanted = asdict(resolve_packing(config.speed, config.model, dtype, device).on(device))
    speed = SpeedConfig(**dict.fromkeys(wanted, False))
    plain = replace(config, speed=speed, precision=replace(config.precision, compute="fp32"))
    found = {"masked positions": plain}
    if dtype != torch.float32:
        plain = replace(plain, precision=config.precision)
        found["+ " + str(dtype).removeprefix("torch.")] = plain
    names = [option.name for option in fields(SpeedConfig) if wanted[option.name]]
    for name in sorted(names, key=lambda name: name == "packing"):
        speed = replace(speed, **{name: True})
        found["+ " + name.replace("_", " ")] = replace(plain, speed=speed)
    if len(found) > 1:
        found.popitem()  # with the last technique it would equal the run
    return found | {"all": config}


def _row(config: BenchStepConfig, world: World, name: str, outcome: Outcome) -> Row:
    found = outcome.variants
    waited = outcome.waited
    total = outcome.total
    rounds = config.rounds
    flops = training_flops(config.model, total.samples, total.tokens, total.squared_lengths, total.masked_tokens)
    seconds = statistics.median(found[name].steps)
    phases, device = found[name].phases, device_name(world.device)
    data_sheet = data_sheet_rate(device, compute_dtype(config.precision.compute, world.device))
    return {
        "model": f"{config.model.num_hidden_layers}x{config.model.hidden_size}",
        "sequence_length": config.data.sequence_length,
        "variant": name,
        "milliseconds": 1e3 * seconds,
        "real_tokens_per_second": total.tokens / rounds / seconds,
        "speedup_over_baseline": statistics.median(found["baseline"].steps) / seconds,
        "mfu": flops / rounds / seconds / (outcome.peak_rate * world.size),
        "mfu_data_sheet": None if data_sheet is None else flops / rounds / seconds / (data_sheet * world.size),
        **{f"{phase}_ms": 1e3 * phases[phase] if phases else None for phase in _COLUMNS},
        "data_wait_share": waited / rounds / (seconds + waited / rounds) if name == "all" else 0.0,
        "padding_share": found[name].padding,
        "peak_memory_bytes": found[name].memory,
        "matrix_rate": outcome.peak_rate,
        "matrix_rate_data_sheet": data_sheet,
        "dropout": config.model.hidden_dropout_prob,
        "processes": world.size,
        "device": device,
    }


def draw_step(path: Path, rows: list[Row]) -> None:
    """Draw one stacked bar per variant, made of its phases."""
    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.4 * len(rows)), layout="constrained")
    names = [row["variant"] for row in rows]
    left = np.zeros(len(rows))
    for phase, color in list(_COLUMNS.items())[1:]:
        width = np.array([row[f"{phase}_ms"] or 0.0 for row in rows])
        axes.barh(names, width, left=left, color=color, label=phase)
        left += width
    axes.plot([row["milliseconds"] for row in rows], names, "k|", markersize=14, label="step without hooks")
    for row, end in zip(rows, left, strict=True):
        text = f"  {row['speedup_over_baseline']:.2f}x, {row['mfu']:.0%} MFU"
        axes.text(max(end, row["milliseconds"]), row["variant"], text, va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(row["milliseconds"] for row in rows))
    axes.set_xlabel(f"milliseconds per step: {rows[0]['model']}, {rows[0]['device']}")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
