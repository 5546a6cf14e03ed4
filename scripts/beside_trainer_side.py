"""The training processes of ``beside_trainer.py``: ours, and ``transformers.Trainer`` with each of its settings.

    python scripts/beside_trainer_side.py WORK_DIR JOB.json recipe=demo data.dir=data/demo

``beside_trainer.py`` starts it. It reads a number of seconds from stdin, trains for so long, and writes a JSON line.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import repository_root  # noqa: F401  makes bert_pretrain importable

OURS = "ours"
BY_LENGTH = {"train_sampling_strategy": "group_by_length"}
SETTINGS: dict[str, dict[str, Any]] = {
    "bf16, sdpa": {},
    "bf16, sdpa, by length": BY_LENGTH,
    "bf16, eager, by length": BY_LENGTH | {"attention": "eager"},
    "fp32, sdpa, by length": BY_LENGTH | {"bf16": False},
    "bf16, sdpa, by length, half batches": BY_LENGTH | {"accumulation": 2},
    "bf16, sdpa, by length, 1 loader process": BY_LENGTH | {"dataloader_num_workers": 1},
    "bf16, sdpa, compiled": {"torch_compile": True},
}
"""Settings of the Trainer, as they differ from bf16 and sdpa; others are its defaults."""


class Turns:
    """A worker's half of the turns: training calls ``after_step``, which blocks between two turns."""

    def __init__(self, by_cpu_time: bool, cuda: bool) -> None:
        self.by_cpu_time, self.cuda = by_cpu_time, cuda
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
        done = self.steps >= self.total_steps
        if self._spent()[self.by_cpu_time] < self._seconds and not done:
            return
        if self.cuda:
            import torch

            torch.cuda.synchronize()
        spent, used = self._spent()
        loss = self.evaluate() if self.evaluate else None
        peak = peak_megabytes(self.cuda)
        self._send(
            seconds=spent, cpu_seconds=used, tokens=self.tokens, steps=self.steps, loss=loss, peak_mb=peak, done=done
        )
        self.tokens = 0
        self._wait()

    def _spent(self) -> tuple[float, float]:
        """Seconds and CPU seconds of this turn."""
        return time.perf_counter() - self._started, time.process_time() - self._cpu_started

    def _send(self, **message: Any) -> None:
        print(json.dumps(message), file=self._channel, flush=True)

    def _wait(self) -> None:
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        self._seconds, self._started, self._cpu_started = float(line), time.perf_counter(), time.process_time()


def peak_megabytes(cuda: bool) -> float:
    """Peak memory of this process on the GPU; on a CPU its resident memory, and that of its children now."""
    if cuda:
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
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
    pairs = zip(range(-(-samples // 16)), heldout_batches(shards, 16, 0, 1), strict=False)
    batches = [batch for _, batch in pairs]

    @torch.no_grad()
    def evaluate() -> float:
        state = torch.get_rng_state()
        model.eval()
        total = count = 0.0
        for stored in batches:
            batch = stored.to(model.device)
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

    with open_world(config.device) as world:
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


def unmasked_samples(config: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids and segments of the training samples as a tokenizer gives them: without masks and padding."""
    from bert_pretrain.data.dataset import open_split
    from bert_pretrain.data.masking_rule import restore_ids

    shards = open_split(config.data, "train", config.model.vocab_size)
    assert shards is not None
    for first in range(0, shards.samples, 1024):
        arrays = shards.read(first, min(first + 1024, shards.samples))
        for ids, mask, segments in zip(restore_ids(arrays), arrays["input_mask"], arrays["segment_ids"], strict=True):
            length = int(mask.sum())
            yield ids[:length], segments[:length]


class Samples:
    """The training samples as a data set of the Trainer, with what ``run_mlm.py`` computes in advance."""

    def __init__(self, config: Any, special: set[int]) -> None:
        self.special = list(special)
        self.rows = list(unmasked_samples(config))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, list[int]]:
        ids, segments = self.rows[number]
        marked = np.isin(ids, self.special).astype(int)
        columns = {"input_ids": ids, "token_type_ids": segments, "special_tokens_mask": marked}
        return {name: column.tolist() for name, column in columns.items()}


def run_trainer(config: Any, work: Path, job: dict[str, Any], turns: Turns) -> None:
    """Train with ``transformers.Trainer``."""
    import transformers

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
        use_cpu=not turns.cuda,
        dataloader_pin_memory=turns.cuda,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
        remove_unused_columns=False,  # or the collator would compute special_tokens_mask again
        **setting,
    )
    samples = Samples(config, set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
    trainer = CountingTrainer(model, arguments, train_dataset=samples, data_collator=counting, callbacks=[Clock()])
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()


def main() -> None:
    """A side."""
    import torch

    from bert_pretrain.config import PretrainConfig
    from bert_pretrain.hub.shape import resolve_model
    from bert_pretrain.model.bert import silence_transformers
    from bert_pretrain.options.config_loading import load_config

    silence_transformers()
    work, job_file, options = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    job = json.loads(job_file.read_text(encoding="utf-8"))
    steps = [f"schedule.total_steps={job['steps']}", f"training.evaluate_every_steps={job['steps'] + 1}"]
    steps += [
        f"checkpoint.every_steps={job['steps'] + 1}",
    ]
    config = resolve_model(load_config("pretrain", [*options, *steps], PretrainConfig))
    turns = Turns(job["cpu"], torch.cuda.is_available() and config.device != "cpu")
    if job["side"] == OURS:
        run_ours(config, work, job, turns)
    else:
        run_trainer(config, work, job, turns)


if __name__ == "__main__":
    main()
