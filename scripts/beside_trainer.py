"""Our program beside ``transformers.Trainer`` with ``DataCollatorForLanguageModeling``, in turns on one machine.

    python scripts/beside_trainer.py WORK_DIR RESULT.json recipe=demo data.dir=data/demo

Both train the same model from the same weights on the same samples, with the same batch and dropout. Every side is a
process of its own; they take turns of some seconds, and only a side's own turns count as its time. First every setting
of the Trainer that might be the fastest is measured beside ours (tokens/s, peak memory). Then ours and the fastest of
them train for some minutes each, with a schedule that ends there; the held-out loss is computed outside of that time,
by plain ``transformers`` with the masks of the shards.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from repository_root import ROOT
from results_file import argument_parser, write_result

OURS = "ours"
BY_LENGTH = {"train_sampling_strategy": "group_by_length"}
SETTINGS: dict[str, dict[str, Any]] = {
    "bf16, sdpa": {},
    "bf16, sdpa, by length": BY_LENGTH,
    "bf16, eager, by length": BY_LENGTH | {"attention": "eager"},
    "fp32, sdpa, by length": BY_LENGTH | {"bf16": False},
    "bf16, sdpa, by length, half batches": BY_LENGTH | {"accumulation": 2},
    "bf16, sdpa, by length, 1 loader process": BY_LENGTH | {"dataloader_num_workers": 1},
}
"""Settings of the Trainer, as they differ from bf16 and sdpa; others are its defaults."""


@dataclass
class Side:
    """A training process, and what it did in its turns."""

    name: str
    process: subprocess.Popen[str]
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    """Held-out losses: before the first turn, then after each."""
    peak_mb: float = 0.0
    done: bool = False

    def receive(self) -> dict[str, Any]:
        """The next message of the process."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}; see its log")
        return dict(json.loads(line))

    def turn(self, seconds: float) -> None:
        """Let the process train for ``seconds``, and evaluate."""
        assert self.process.stdin is not None
        print(seconds, file=self.process.stdin, flush=True)
        found = self.receive()
        self.seconds.append(found["seconds"])
        self.cpu_seconds.append(found["cpu_seconds"])
        self.tokens.append(found["tokens"])
        self.steps, self.peak_mb, self.done = found["steps"], found["peak_mb"], found["done"]
        if found["loss"] is not None:
            self.losses.append(found["loss"])

    def rate(self, unit: str) -> float:
        """Median tokens per unit of ``seconds`` or ``cpu_seconds``, without the first turn, which warms up."""
        turns = list(zip(self.tokens, getattr(self, unit), strict=True))
        return statistics.median(tokens / spent for tokens, spent in turns[1:])


def start(name: str, work: Path, job: dict[str, Any], options: list[str]) -> Side:
    """Start a side and wait until it is ready for its first turn."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    job_file = work / "job.json"
    job_file.write_text(json.dumps(job | {"side": name}), encoding="utf-8")
    command = [sys.executable, __file__, "--worker", str(work), str(job_file), *options]
    with (work / "sides.log").open("a") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
    side = Side(name, process)
    side.losses.extend([loss] if (loss := side.receive()["loss"]) is not None else [])
    return side


def stop(sides: list[Side]) -> None:
    """End the processes."""
    for side in sides:
        assert side.process.stdin is not None
        side.process.stdin.close()
        side.process.wait()


class Turns:
    """A worker's half of the turns: training calls ``after_step``, which blocks between two turns."""

    def __init__(self, by_cpu_time: bool) -> None:
        self.by_cpu_time = by_cpu_time
        self.evaluate: Callable[[], float] | None = None
        self.total_steps = self.steps = self.tokens = 0
        self._channel = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print goes to the log

    def ready(self, evaluate: Callable[[], float] | None, total_steps: int) -> None:
        """Report the loss at step 0 and wait for the first turn."""
        self.evaluate, self.total_steps = evaluate, total_steps
        self._send(loss=self.evaluate() if self.evaluate else None)
        self._wait()

    def after_step(self, tokens: int) -> None:
        """Count a step; at the end of a turn, report and wait for the next."""
        self.steps, self.tokens = self.steps + 1, self.tokens + tokens
        spent, used = time.perf_counter() - self._started, time.process_time() - self._cpu_started
        done = self.steps >= self.total_steps
        if (used if self.by_cpu_time else spent) < self._seconds and not done:
            return
        loss = self.evaluate() if self.evaluate else None
        peak = peak_megabytes()
        self._send(
            seconds=spent, cpu_seconds=used, tokens=self.tokens, steps=self.steps, loss=loss, peak_mb=peak, done=done
        )
        self.tokens = 0
        self._wait()

    def _send(self, **message: Any) -> None:
        print(json.dumps(message), file=self._channel, flush=True)

    def _wait(self) -> None:
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        self._seconds, self._started, self._cpu_started = float(line), time.perf_counter(), time.process_time()


def peak_megabytes() -> float:
    """Peak resident memory of this process so far, and of its children now."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    children = sum(child.memory_full_info().uss for child in psutil.Process().children(recursive=True))
    return peak / 1024 + children / 2**20


def heldout_evaluation(model: Any, config: Any, samples: int) -> Callable[[], float]:
    """Mean held-out masked-word loss of a ``transformers`` model, over the first ``samples`` held-out samples."""
    import torch

    from bert_pretrain.data.dataset import open_split
    from bert_pretrain.data.loader import heldout_batches

    shards = open_split(config.data, "heldout", model.config.vocab_size)
    assert shards is not None
    batches = [batch for _, batch in zip(range(-(-samples // 16)), heldout_batches(shards, 16, 0, 1), strict=False)]

    @torch.no_grad()
    def evaluate() -> float:
        state = torch.get_rng_state()
        model.eval()
        total = count = 0.0
        for batch in batches:
            mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
            hidden = model.bert(batch.input_ids, attention_mask=mask, token_type_ids=batch.segment_ids)[0]
            logits = model.cls.predictions(hidden.flatten(0, 1)[batch.masked_positions])
            total += float(torch.nn.functional.cross_entropy(logits, batch.masked_labels, reduction="sum"))
            count += float((batch.masked_labels >= 0).sum())
        model.train()
        torch.set_rng_state(state)
        return total / count

    return evaluate


def run_ours(config: Any, work: Path, job: dict[str, Any], turns: Turns) -> None:
    """Train with our program."""
    from bert_pretrain.build import build_trainer
    from bert_pretrain.checkpoint.store import CheckpointStore
    from bert_pretrain.distributed.world import open_world
    from bert_pretrain.training.metrics import MetricsLog

    with open_world("cpu") as world:
        log = MetricsLog(work / "metrics.jsonl", config.schedule.total_steps)
        trainer = build_trainer(config, world, log, CheckpointStore(work / "checkpoints", 1, None), "")
        if not (work / "start").exists():
            trainer.model.bert.save_pretrained(work / "start")
        evaluate = heldout_evaluation(trainer.model.bert, config, job["heldout"]) if job["heldout"] else None
        step = trainer.train_step

        def counted_step(batch: Any) -> Any:
            result = step(batch)
            turns.after_step(batch.counts.tokens)
            return result

        trainer.train_step = counted_step  # type: ignore[method-assign]
        turns.ready(evaluate, config.schedule.total_steps)
        trainer.run()


def unmasked_samples(config: Any) -> Iterator[dict[str, Any]]:
    """The training samples as a tokenizer gives them: without masks and padding."""
    from bert_pretrain.data.dataset import open_split
    from bert_pretrain.data.masking import restore_ids

    shards = open_split(config.data, "train", config.model.vocab_size)
    assert shards is not None
    for first in range(0, shards.samples, 1024):
        arrays = shards.read(first, min(first + 1024, shards.samples))
        for ids, mask, segments in zip(restore_ids(arrays), arrays["input_mask"], arrays["segment_ids"], strict=True):
            length = int(mask.sum())
            yield {"input_ids": ids[:length].tolist(), "token_type_ids": segments[:length].tolist()}


def make_dataset(config: Any, folder: Path) -> None:
    """Write the samples as a data set, with what ``run_mlm.py`` computes in advance."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.data.tokenizer)
    rows: dict[str, list[Any]] = {"input_ids": [], "token_type_ids": [], "special_tokens_mask": [], "length": []}
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for sample in unmasked_samples(config):
        rows["input_ids"].append(sample["input_ids"])
        rows["token_type_ids"].append(sample["token_type_ids"])
        rows["special_tokens_mask"].append([int(number in special) for number in sample["input_ids"]])
        rows["length"].append(len(sample["input_ids"]))
    Dataset.from_dict(rows).save_to_disk(folder)


def run_trainer(config: Any, work: Path, job: dict[str, Any], turns: Turns) -> None:
    """Train with ``transformers.Trainer``."""
    import transformers
    from datasets import load_from_disk

    setting = dict(SETTINGS[job["side"]])
    bf16, attention = setting.pop("bf16", True), setting.pop("attention", "sdpa")
    batch, accumulation = config.batch.global_batch_size, setting.pop("accumulation", 1)
    model: Any = transformers.BertForMaskedLM.from_pretrained(work / "start", attn_implementation=attention)
    evaluate = heldout_evaluation(model, config, job["heldout"]) if job["heldout"] else None
    tokenizer = transformers.AutoTokenizer.from_pretrained(config.data.tokenizer)
    probability = config.data.masked_lm_prob or 0.15
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability)
    counts: list[int] = []

    def counting(samples: list[dict[str, Any]]) -> dict[str, Any]:
        return dict(collator(samples))

    class Clock(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turns.ready(evaluate, config.schedule.total_steps)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.after_step(sum(counts))
            counts.clear()

    class CountingTrainer(transformers.Trainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
            counts.append(int(inputs["attention_mask"].sum()))
            return super().training_step(model, inputs, *rest)

    arguments = transformers.TrainingArguments(
        output_dir=str(work / "trainer"),
        per_device_train_batch_size=batch // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=config.schedule.total_steps,
        learning_rate=job["lr"],
        lr_scheduler_type="linear",
        warmup_steps=0.05,
        weight_decay=0.01,
        bf16=bf16,
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
        **setting,
    )
    trainer = CountingTrainer(
        model, arguments, train_dataset=load_from_disk(work / "dataset"), data_collator=counting, callbacks=[Clock()]
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()


def worker(work: Path, job_file: Path, options: list[str]) -> None:
    """A side, in its own process."""
    from bert_pretrain.config import PretrainConfig
    from bert_pretrain.config_loading import load_config
    from bert_pretrain.hub.shape import resolve_model
    from bert_pretrain.model.bert import silence_transformers

    silence_transformers()
    job = json.loads(job_file.read_text(encoding="utf-8"))
    turns = Turns(job["cpu"])
    steps = [f"schedule.total_steps={job['steps']}", f"training.evaluate_every_steps={job['steps'] + 1}"]
    steps += [f"checkpoint.every_steps={job['steps'] + 1}", "device=cpu"]
    config = resolve_model(load_config("pretrain", [*options, *steps], PretrainConfig))
    if job["side"] == "data set":
        make_dataset(config, work / "dataset")
    elif job["side"] == OURS:
        run_ours(config, work, job, turns)
    else:
        run_trainer(config, work, job, turns)


def measure_speed(work: Path, given: Any, options: list[str]) -> list[Side]:
    """Ours and every setting of the Trainer, in turns, without evaluations."""
    job = {"steps": 1_000_000, "heldout": 0, "lr": given.lr, "cpu": False}
    sides = [start(name, work, job, options) for name in (OURS, *(given.trainer or SETTINGS))]
    for _ in range(given.rounds + 1):
        for side in sides:
            side.turn(given.seconds)
    stop(sides)
    return sides


def train_both(work: Path, given: Any, options: list[str], sides: list[Side]) -> list[Side]:
    """Ours and the fastest setting of the Trainer, for ``given.minutes`` each, with held-out losses."""
    ours, *others = sides
    best = max(others, key=lambda side: side.rate("cpu_seconds"))
    runs = []
    for side in (ours, best):
        per_second = side.steps / sum(side.cpu_seconds if given.cpu else side.seconds)
        job = {"steps": round(per_second * 60 * given.minutes), "heldout": given.heldout, "lr": given.lr}
        job["cpu"] = given.cpu
        runs.append(start(side.name, work, job, options))
    while not all(side.done for side in runs):
        for side in runs:
            if not side.done:
                side.turn(given.minutes * 60 / given.points)
    stop(runs)
    return runs


def draw(path: Path, title: str, runs: list[Side], cpu: bool) -> None:
    """Held-out loss over the time of the side's own turns; ``cpu``: over its CPU time."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for side, label in zip(runs, ("bert-pretrain", f"transformers.Trainer, {runs[1].name}"), strict=True):
        axes.plot(minutes(side.cpu_seconds if cpu else side.seconds), side.losses, "o-", markersize=3, label=label)
    axes.set_xlabel(f"minutes of {'CPU time' if cpu else 'training'}, in turns on one machine")
    axes.set_ylabel("held-out masked-word loss, nats")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def minutes(turns: list[float]) -> list[float]:
    """Minutes at the start and after each of the turns, which are in seconds."""
    return [seconds / 60 for seconds in itertools.accumulate(turns, initial=0.0)]


def main() -> None:
    """Measure, write the result and draw it."""
    if sys.argv[1:2] == ["--worker"]:
        worker(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
        return
    parser = argument_parser(__doc__)
    parser.add_argument("work_dir", type=Path, help="a new directory")
    parser.add_argument("result", type=Path, help="JSON file to write, and a PNG beside it")
    parser.add_argument("options", nargs="*", help="options of bert-pretrain pretrain")
    parser.add_argument("--title", default="Held-out loss over time")
    parser.add_argument("--seconds", type=float, default=8, help="seconds of a turn of the speed measurement")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side that count")
    parser.add_argument("--minutes", type=float, default=5, help="minutes of training for each side; 0: speed only")
    parser.add_argument("--points", type=int, default=15, help="held-out losses of each side")
    parser.add_argument("--trainer", action="append", choices=SETTINGS, help="a setting to measure; default: all")
    parser.add_argument("--cpu", action="store_true", help="minutes of CPU time: for a machine that is busy otherwise")
    parser.add_argument("--heldout", type=int, default=256, help="held-out samples")
    parser.add_argument("--lr", type=float, default=5e-4, help="the Trainer's learning rate; ours is an option")
    given = parser.parse_args()
    work, options = given.work_dir, given.options
    work.mkdir(parents=True)
    job = work / "job.json"
    job.write_text(json.dumps({"side": "data set", "steps": 1000, "cpu": False}), encoding="utf-8")
    subprocess.run([sys.executable, __file__, "--worker", str(work), str(job), *options], check=True)
    sides = measure_speed(work, given, options)
    rows = [
        {
            "side": side.name if side.name == OURS else f"Trainer: {side.name}",
            "tokens/s": side.rate("seconds"),
            "tokens per CPU second": side.rate("cpu_seconds"),
            "ours over it, wall": sides[0].rate("seconds") / side.rate("seconds"),
            "ours over it, CPU": sides[0].rate("cpu_seconds") / side.rate("cpu_seconds"),
            "peak MB": round(side.peak_mb),
        }
        for side in sides
    ]
    note, curves = "Median over turns; real tokens, without padding.", {}
    if given.minutes:
        runs = train_both(work, given, options, sides)
        draw(given.result.with_suffix(".png"), given.title, runs, given.cpu)
        curves = {
            side.name: list(zip(minutes(side.seconds), minutes(side.cpu_seconds), side.losses, strict=True))
            for side in runs
        }
        ends = [f"{side.name}: {side.losses[-1]:.3f} after {sum(side.seconds) / 60:.1f} minutes, "
                f"{sum(side.cpu_seconds) / 60:.1f} of CPU time, {side.steps:,} steps, "
                f"{side.peak_mb:.0f} MB" for side in runs]  # fmt: skip
        note += f" Held-out loss at the start {runs[0].losses[0]:.3f}. " + "; ".join(ends) + "."
    write_result(given.result, given.title, rows, note, curves=curves)


if __name__ == "__main__":
    main()
