"""Fine-tuning with several seeds, with ``transformers.Trainer`` as the training loop.

Writes the scores of each seed, their median and spread, and the predictions in the benchmark's submission format.
"""

import json
import logging
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch.distributed.elastic.multiprocessing.errors import record

from bert_pretrain.distributed.world import World, one_message_for_all_ranks, open_world
from bert_pretrain.errors import ConfigError
from bert_pretrain.file_system import require_writable
from bert_pretrain.finetune.inputs import InputSet, load_split
from bert_pretrain.finetune.options import FinetuneConfig, TrainingConfig
from bert_pretrain.finetune.pretrained import load_tokenizer, new_model
from bert_pretrain.finetune.scores import Scores
from bert_pretrain.finetune.tasks import Log
from bert_pretrain.model.bert import silence_transformers
from bert_pretrain.output import go_on_without_reader

_SUMMARY: dict[str, Callable[[list[float]], float]] = {
    "median": statistics.median,
    "deviation": lambda values: statistics.stdev(values) if len(values) > 1 else 0.0,
    "least": min,
    "greatest": max,
}
"""Rows of the summary over the seeds, by their keys in results.json."""


@one_message_for_all_ranks
@record
def run(config: FinetuneConfig) -> None:
    """Fine-tune with every seed; print and write the scores."""
    silence_transformers()
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    with open_world(config.device, str(config)) as world:
        finetune(config, world)


def finetune(config: FinetuneConfig, world: World) -> None:
    """Load and check everything, then run each seed."""
    log: Log = print if world.is_first else (lambda _: None)
    out_dir = Path(config.out_dir)
    micro_batch, accumulation = world.run_on_all_ranks(lambda: accumulation_of(config.training, world.size))
    world.run_on_all_ranks(lambda: check_out_dir(out_dir, config.overwrite) if world.is_first else None)
    tokenizer = world.run_on_all_ranks(lambda: load_tokenizer(config.model_dir, config.training.max_length))
    world.run_on_all_ranks(lambda: new_model(config.model_dir, config.task, config.from_scratch, 0, log))
    train, evaluations = world.run_on_all_ranks(lambda: load_data(config, tokenizer, log))
    runs: list[dict[str, Any]] = []
    go_on_without_reader()
    for seed in config.seeds:
        started, folder = time.perf_counter(), out_dir / f"seed_{seed}"
        trainer = transformers.Trainer(
            model=new_model(config.model_dir, config.task, config.from_scratch, seed, log=lambda _: None),
            args=training_arguments(config, seed, micro_batch, accumulation, world),
            train_dataset=train.inputs,
            data_collator=train.collate,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        # Trainer assumes that the model divides its loss by the accumulation, as language models do. These do not:
        # without this line the gradient would be too large by that factor.
        trainer.model_accepts_loss_kwargs = False
        loss = float(world.sum(torch.tensor(trainer.train().training_loss, device=world.device))) / world.size
        scores = evaluate(trainer, evaluations, folder if world.is_first else None)
        if config.save_models and world.is_first:
            trainer.save_model(str(folder / "model"))
            tokenizer.save_pretrained(folder / "model")
        runs.append({"seed": seed, **scores, "training_loss": loss, "seconds": time.perf_counter() - started})
        log(table(runs[-1:], with_head=len(runs) == 1))
    columns = {name: [run[name] for run in runs] for name in runs[0] if name != "seed"}
    summary = {
        name: {column: reduce(values) for column, values in columns.items()} for name, reduce in _SUMMARY.items()
    }
    log(table([{"seed": name, **row} for name, row in summary.items()], with_head=False))
    if world.is_first:
        write_results(out_dir, config, {"runs": runs, **summary})
    log(f"wrote results.json and predictions to {out_dir}")


def accumulation_of(config: TrainingConfig, ranks: int) -> tuple[int, int]:
    """Micro-batch size of a rank, and its micro-batches per step."""
    share, rest = divmod(config.batch_size, ranks)
    if rest:
        raise ConfigError(f"training.batch_size is {config.batch_size}; allowed: multiples of the {ranks} ranks")
    micro_batch = config.micro_batch_size or share
    if share % micro_batch:
        raise ConfigError(f"training.micro_batch_size is {micro_batch}; allowed: what divides {share}, a rank's share")
    return micro_batch, share // micro_batch


def check_out_dir(out_dir: Path, overwrite: bool) -> None:
    """Raise ``ConfigError`` if earlier results would be lost or new ones cannot be written."""
    if (out_dir / "results.json").exists() and not overwrite:
        raise ConfigError(f"out_dir {out_dir} holds results; give another, or overwrite=true to replace them")
    require_writable(out_dir, "out_dir")


def load_data(config: FinetuneConfig, tokenizer: Any, log: Log) -> tuple[InputSet, list[InputSet]]:
    """The training set, and the sets to evaluate or predict."""
    names = [split for split in config.task.splits if config.predict_test or not split.startswith("test")]
    sets = [load_split(config, split, tokenizer, log) for split in names]
    found = {inputs.split: inputs for inputs in sets if inputs is not None}
    log(f"{config.task.name}: " + ", ".join(f"{split} {len(i.inputs):,} inputs" for split, i in found.items()))
    return found.pop("train"), list(found.values())


def training_arguments(
    config: FinetuneConfig, seed: int, micro_batch: int, accumulation: int, world: World
) -> transformers.TrainingArguments:
    """Arguments of the Trainer: our hyper-parameters, no checkpoints, no logs."""
    training = config.training
    on_gpu = world.device.type == "cuda"
    auto = training.precision == "auto" and on_gpu and torch.cuda.is_bf16_supported()
    arguments = transformers.TrainingArguments(
        output_dir=str(Path(config.out_dir) / f"seed_{seed}"),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=training.eval_batch_size,
        num_train_epochs=training.epochs,
        learning_rate=training.lr,
        lr_scheduler_type="linear",
        warmup_steps=training.warmup_proportion,  # a value below 1 is a share of the steps
        weight_decay=training.weight_decay,
        adam_epsilon=training.adam_eps,
        max_grad_norm=training.max_grad_norm,
        seed=seed,
        bf16=training.precision == "bf16" or auto,
        fp16=training.precision == "fp16",
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=not (world.is_first and sys.stderr.isatty()),
    )
    # With one process and several GPUs, the Trainer would multiply the batch size by the number of GPUs.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def evaluate(trainer: transformers.Trainer, evaluations: list[InputSet], folder: Path | None) -> Scores:
    """Predict every set and score those with labels; write the predictions if ``folder`` is given."""
    scores: Scores = {}
    for inputs in evaluations:
        trainer.data_collator = inputs.collate
        found, files = inputs.score(trainer.predict(cast(Any, inputs.inputs)).predictions)
        prefix = inputs.split.removeprefix("dev").lstrip("_")
        scores |= {f"{prefix}_{name}".lstrip("_"): value for name, value in found.items()}
        if folder is not None:
            (folder / inputs.split).mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (folder / inputs.split / name).write_text(text, encoding="utf-8")
    return scores


def table(rows: list[dict[str, Any]], with_head: bool) -> str:
    """Rows as text, one column per key."""
    widths = {name: max(9, len(name)) for name in rows[0]}
    lines = ["  ".join(f"{name:>{width}}" for name, width in widths.items())] if with_head else []
    for row in rows:
        cells = [f"{row[n]:>{w}.2f}" if isinstance(row[n], float) else f"{row[n]:>{w}}" for n, w in widths.items()]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def write_results(out_dir: Path, config: FinetuneConfig, scores: dict[str, Any]) -> None:
    """Write ``results.json`` atomically: the scores of each seed, their median and spread, all options."""
    result = {
        "task": config.task.name,
        "model": config.model_dir,
        "from_scratch": config.from_scratch,
        **scores,
        "options": asdict(config),
    }
    temporary = out_dir / ".results.json.partial"
    temporary.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.rename(out_dir / "results.json")
