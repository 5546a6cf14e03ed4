"""``python -m bert_pretrain.finetune task=NAME model_dir=FOLDER_OR_HUB_NAME``.

Fine-tunes a pretrained model with several seeds on GLUE or SQuAD and writes the scores, their median and spread, and
the predictions in the form in which they are submitted. ``transformers``' Trainer is the loop.
"""

import json
import logging
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch.distributed.elastic.multiprocessing.errors import record

from bert_pretrain.distributed.world import World, one_message_for_all_ranks, open_world
from bert_pretrain.errors import ConfigError
from bert_pretrain.finetune.inputs import InputSet, load_split
from bert_pretrain.finetune.options import FinetuneConfig, TrainingConfig
from bert_pretrain.finetune.pretrained import load_tokenizer, new_model
from bert_pretrain.finetune.scores import Scores
from bert_pretrain.finetune.tasks import Say
from bert_pretrain.model.bert import silence_transformers
from bert_pretrain.training.metrics import writable_directory


@one_message_for_all_ranks
@record
def run(config: FinetuneConfig) -> None:
    """Fine-tune with every seed; print and write the scores."""
    silence_transformers()
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    with open_world(config.device, str(config)) as world:
        finetune(config, world)


def finetune(config: FinetuneConfig, world: World) -> None:
    """Read and check everything, then a run for each seed."""
    say: Say = print if world.is_first else (lambda _: None)
    out_dir = Path(config.out_dir)
    micro_batch, accumulation = world.run_on_all_ranks(lambda: batch_cut(config.training, world.size))
    world.run_on_all_ranks(lambda: check_out_dir(out_dir, config.overwrite) if world.is_first else None)
    tokenizer = world.run_on_all_ranks(lambda: load_tokenizer(config.model_dir, config.training.max_length))
    world.run_on_all_ranks(lambda: new_model(config.model_dir, config.task, config.from_scratch, 0, say))
    train, evaluations = world.run_on_all_ranks(lambda: load_data(config, tokenizer, say))
    runs: list[dict[str, Any]] = []
    for seed in config.seeds:
        started, folder = time.perf_counter(), out_dir / f"seed_{seed}"
        trainer = transformers.Trainer(
            model=new_model(config.model_dir, config.task, config.from_scratch, seed, say=lambda _: None),
            args=training_arguments(config, seed, micro_batch, accumulation, world),
            train_dataset=train.inputs,
            data_collator=train.batch,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        # Trainer takes it that these models divide their loss by the number of micro-batches of a step, as language
        # models do. They do not, so the gradient would grow with that number.
        trainer.model_accepts_loss_kwargs = False
        loss = float(world.sum(torch.tensor(trainer.train().training_loss, device=world.device))) / world.size
        scores = evaluate(trainer, evaluations, folder if world.is_first else None)
        if config.save_models and world.is_first:
            trainer.save_model(str(folder / "model"))
            tokenizer.save_pretrained(folder / "model")
        runs.append({"seed": seed, **scores, "training_loss": loss, "seconds": time.perf_counter() - started})
        say(table(runs[-1:], with_head=len(runs) == 1))
    summary = summarise(runs)
    say(table(summary, with_head=False))
    if world.is_first:
        write_results(out_dir, config, runs, summary)
    say(f"results.json and predictions are in {out_dir}")


def batch_cut(config: TrainingConfig, ranks: int) -> tuple[int, int]:
    """A rank's micro-batch, and how many of them are its share of a step."""
    share, rest = divmod(config.batch_size, ranks)
    if rest:
        raise ConfigError(f"training.batch_size is {config.batch_size}; allowed: multiples of the {ranks} ranks")
    micro_batch = config.micro_batch_size or share
    if share % micro_batch:
        raise ConfigError(f"training.micro_batch_size is {micro_batch}; allowed: what divides {share}, a rank's share")
    return micro_batch, share // micro_batch


def check_out_dir(out_dir: Path, overwrite: bool) -> None:
    """Raise ``ConfigError`` where results would be lost or cannot be written."""
    if (out_dir / "results.json").exists() and not overwrite:
        raise ConfigError(f"out_dir {out_dir} holds results; give another, or overwrite=true to replace them")
    fault = writable_directory(out_dir)
    if fault is not None:
        raise ConfigError(f"out_dir {out_dir} cannot be written ({fault}); give another")


def load_data(config: FinetuneConfig, tokenizer: Any, say: Say) -> tuple[InputSet, list[InputSet]]:
    """The training set, and the sets to evaluate or to predict."""
    task, training = config.task, config.training
    sets = []
    for split in task.splits:
        if config.predict_test or not split.startswith("test"):
            samples = training.max_train_samples if split == "train" else None
            sets.append(load_split(task, config.data, split, tokenizer, training.max_length, samples, say))
    found = {inputs.split: inputs for inputs in sets if inputs is not None}
    say(f"{task.name}: " + ", ".join(f"{split} {len(inputs.inputs):,} inputs" for split, inputs in found.items()))
    return found.pop("train"), list(found.values())


def training_arguments(
    config: FinetuneConfig, seed: int, micro_batch: int, accumulation: int, world: World
) -> transformers.TrainingArguments:
    """What the Trainer is told: no files, no reports, the hyper-parameters as they stand."""
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
        warmup_steps=training.warmup_proportion,  # below 1, it is a share
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
    # With one process and several GPUs, the Trainer would multiply the batch by their number.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def evaluate(trainer: transformers.Trainer, evaluations: list[InputSet], folder: Path | None) -> Scores:
    """Predict every set and score those with labels; write the predictions where there is a ``folder``."""
    scores: Scores = {}
    for inputs in evaluations:
        trainer.data_collator = inputs.batch
        found, files = inputs.read(trainer.predict(cast(Any, inputs.inputs)).predictions)
        prefix = inputs.split.removeprefix("dev").lstrip("_")
        scores |= {f"{prefix}_{name}".lstrip("_"): value for name, value in found.items()}
        if folder is not None:
            (folder / inputs.split).mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (folder / inputs.split / name).write_text(text, encoding="utf-8")
    return scores


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the median, the standard deviation, the least and the greatest of every column."""
    columns = {name: [run[name] for run in runs] for name in runs[0] if name != "seed"}
    medians = {name: statistics.median(values) for name, values in columns.items()}
    deviations = {name: statistics.stdev(v) if len(v) > 1 else 0.0 for name, v in columns.items()}
    least, greatest = ({name: pick(values) for name, values in columns.items()} for pick in (min, max))
    return [
        {"seed": "median", **medians},
        {"seed": "deviation", **deviations},
        {"seed": "least", **least},
        {"seed": "greatest", **greatest},
    ]


def table(rows: list[dict[str, Any]], with_head: bool) -> str:
    """Rows as text, a column each for what they hold."""
    widths = {name: max(9, len(name)) for name in rows[0]}
    lines = ["  ".join(f"{name:>{width}}" for name, width in widths.items())] if with_head else []
    for row in rows:
        cells = [f"{row[n]:>{w}.2f}" if isinstance(row[n], float) else f"{row[n]:>{w}}" for n, w in widths.items()]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def write_results(
    out_dir: Path, config: FinetuneConfig, runs: list[dict[str, Any]], summary: list[dict[str, Any]]
) -> None:
    """``results.json`` (each seed, median and spread, all options), whole or not at all."""
    result = {
        "task": config.task.name,
        "model": config.model_dir,
        "from_scratch": config.from_scratch,
        "runs": runs,
        **{row["seed"]: {name: value for name, value in row.items() if name != "seed"} for row in summary},
        "options": asdict(config),
    }
    temporary = out_dir / ".results.json.partial"
    temporary.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.rename(out_dir / "results.json")
