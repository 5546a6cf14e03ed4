"""``bench step``: this program's step against the script that one would otherwise write.

On the same samples, with the same dropout, in turns in one run. The script: ``BertForPreTraining`` with
``transformers``' defaults, labels on all positions, float32, ``torch.optim.AdamW``. Between the two, a row for each
technique, added to those before it. Shares are of the matrix rate measured on the device in the same run.
"""

import json
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import BertConfig, BertForPreTraining

from bert_pretrain.batches import Counts, StepBatch
from bert_pretrain.checkpoint import CheckpointStore
from bert_pretrain.config import PretrainConfig
from bert_pretrain.distributed import World, open_world
from bert_pretrain.encoder import SpeedConfig
from bert_pretrain.errors import require
from bert_pretrain.flops import training_flops
from bert_pretrain.machine import device_name, timed
from bert_pretrain.metrics import MetricsLog, writable_directory
from bert_pretrain.model import bert_config
from bert_pretrain.precision import compute_dtype
from bert_pretrain.pretrain import build_trainer
from bert_pretrain.structured import entry_point
from bert_pretrain.train import Trainer


@dataclass
class BenchStepConfig(PretrainConfig):
    """Options of ``python -m bert_pretrain.bench step``: those of pretrain, and how long to measure."""

    rounds: int
    """Steps of each variant, taken in turns; the median counts."""
    out_dir: str
    """Where ``step.json`` goes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rounds >= 3, "rounds", self.rounds, "3 or more")


@entry_point("bench_step", BenchStepConfig)
def main(config: BenchStepConfig) -> None:
    """Measure the step, print the table and write the rows."""
    with open_world(config.device) as world:
        require(world.size == 1, "processes", world.size, "1: the benchmark measures one device")
        fault = writable_directory(Path(config.out_dir))
        require(fault is None, "out_dir", config.out_dir, f"a directory that can be written ({fault})")
        rows = measure(config, world)
    print(f"{'variant':<20}{'ms a step':>12}{'tokens/s':>12}{'speed-up':>10}{'of peak':>9}{'data wait':>11}")
    for row in rows:
        print(
            f"{row['variant']:<20}{row['milliseconds']:>12.1f}{row['real_tokens_per_second']:>12,.0f}"
            f"{row['speedup_over_baseline']:>9.2f}x{row['matrix_peak_share']:>9.0%}{row['data_wait_share']:>11.2%}"
        )
    out = Path(config.out_dir) / "step.json"
    out.write_text(json.dumps({"rows": rows, "options": asdict(config)}, indent=2), encoding="utf-8")
    print(f"written to {out}")


def measure(config: BenchStepConfig, world: World) -> list[dict[str, Any]]:
    """The rows of all variants, each step timed in turn. Every variant sees the same samples in its own cut."""
    trainers = {name: _trainer(variant, world) for name, variant in variants(config, world.device).items()}
    runs: dict[str, Callable[[StepBatch], object]] = {"baseline": plain_script(config, world.device)}
    runs |= {name: trainer.train_step for name, trainer in trainers.items()}
    batches = {name: trainer.data.steps(0) for name, trainer in trainers.items()}
    batches["baseline"] = trainers["masked positions"].data.steps(0)
    times: dict[str, list[float]] = {name: [] for name in runs}
    waits: list[float] = []
    total = Counts(0, 0, 0, 0)
    for round_number in tqdm(range(config.rounds + 2), desc="rounds", leave=False):  # two to warm up
        for name, run in runs.items():
            started = time.perf_counter()
            batch = next(batches[name])
            ready = StepBatch(batch.counts, iter(list(batch.micro_batches)))
            wait = time.perf_counter() - started
            seconds = timed(partial(run, ready), world.device)
            if round_number >= 2:
                times[name].append(seconds)
                if name == "all":
                    waits.append(wait)
                    total += batch.counts
    for stream in batches.values():
        stream.close()  # type: ignore[attr-defined]
    return _rows(config, world, times, total, sum(waits), trainers["all"].peak_rate)


def variants(config: BenchStepConfig, device: torch.device) -> dict[str, BenchStepConfig]:
    """Each technique of the run added to the ones before it, in float32; the last, ``all``, is the run itself."""
    wanted = {field.name: getattr(config.speed, field.name) for field in fields(SpeedConfig)}
    speed = SpeedConfig(**dict.fromkeys(wanted, False))
    plain = replace(config, speed=speed, precision=replace(config.precision, compute="fp32"))
    found = {"masked positions": plain}
    for name, value in wanted.items():
        if value:
            speed = replace(speed, **{name: True})
            found["+ " + name.replace("_", " ")] = replace(plain, speed=speed)
    if compute_dtype(config.precision.compute, device) == torch.float32:
        found.popitem()  # nothing is left to add: it is the run itself
    return found | {"all": config}


def _trainer(config: BenchStepConfig, world: World) -> Trainer:
    log = MetricsLog(None, config.schedule.total_steps)
    store = CheckpointStore(Path(config.out_dir) / "none", 1, None)
    return build_trainer(config, world, log, store, config_yaml="")


def _rows(
    config: BenchStepConfig, world: World, times: dict[str, list[float]], total: Counts, waited: float, peak: float
) -> list[dict[str, Any]]:
    rounds = len(times["all"])
    flops = training_flops(config.model, total.samples, total.tokens, total.squared_lengths, total.masked_tokens)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return [
        {
            "model": f"{config.model.num_hidden_layers}x{config.model.hidden_size}",
            "sequence_length": config.data.sequence_length,
            "variant": name,
            "milliseconds": 1e3 * median,
            "real_tokens_per_second": total.tokens / rounds / median,
            "speedup_over_baseline": medians["baseline"] / median,
            "matrix_peak_share": flops / rounds / median / peak,
            "data_wait_share": waited / rounds / (median + waited / rounds) if name == "all" else 0.0,
            "peak_memory_bytes": _peak_memory(world.device),
            "dropout": config.model.hidden_dropout_prob,
            "device": device_name(world.device),
        }
        for name, median in medians.items()
    ]


def plain_script(config: BenchStepConfig, device: torch.device) -> Callable[[StepBatch], None]:
    """One step of the obvious script: transformers' model and loss, labels on all positions, torch's AdamW."""
    shape = bert_config(config.model).to_dict()
    shape.pop("_attn_implementation", None)
    model: torch.nn.Module = BertForPreTraining(BertConfig(**shape)).train()
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optimizer.lr)

    def run(step: StepBatch) -> None:
        micro_batches = list(step.micro_batches)
        for cpu_batch in micro_batches:
            batch = cpu_batch.to(device)
            labels = torch.full_like(batch.input_ids, -100).flatten()
            predicted = batch.masked_labels >= 0
            labels[batch.masked_positions[predicted]] = batch.masked_labels[predicted]
            mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
            out = model(
                input_ids=batch.input_ids,
                attention_mask=mask,
                token_type_ids=batch.segment_ids,
                labels=labels.view_as(batch.input_ids),
                next_sentence_label=batch.next_sentence_labels,
            )
            (out.loss / len(micro_batches)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
