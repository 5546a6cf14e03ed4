"""Fine-tuning with several seeds, with ``transformers.Trainer`` as the training loop.

Writes the scores of each seed, their median and spread, and the predictions in the benchmark's submission format. Each
seed's result is written as soon as it is known; a run that was stopped or killed goes on with the rest.
"""

import hashlib
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import transformers
from torch.distributed.elastic.multiprocessing.errors import record

from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.world import World, one_message_for_all_ranks, open_world
from bert_pretrain.errors import EXIT_STOPPED, ConfigError
from bert_pretrain.files.directory_lock import lock_directory
from bert_pretrain.files.file_system import open_to_umask
from bert_pretrain.finetune import results
from bert_pretrain.finetune.inputs import InputSet, load_split, with_labels
from bert_pretrain.finetune.options import FinetuneConfig, TrainingConfig
from bert_pretrain.finetune.pretrained import find_model, load_tokenizer, new_model
from bert_pretrain.finetune.scores import Scores
from bert_pretrain.finetune.seed_trainer import SeedTrainer, StoppedError, partial_folder
from bert_pretrain.finetune.tasks import Log
from bert_pretrain.model.bert import silence_transformers
from bert_pretrain.model.precision import check_compute, emulation_notice, has_bf16
from bert_pretrain.output import go_on_without_reader


@one_message_for_all_ranks
@record
def run(config: FinetuneConfig) -> None:
    """Fine-tune with every seed; print and write the scores."""
    silence_transformers()
    stop = StopRequest().install_handlers()
    with open_world(config.device, str(config), stop=stop) as world:
        finished = finetune(config, world, stop)
    if not finished:
        sys.exit(EXIT_STOPPED)


def finetune(config: FinetuneConfig, world: World, stop: StopRequest) -> bool:
    """Check the options, then run each seed; False if the run stopped before its end, on request."""
    out_dir = Path(config.out_dir)
    batch = world.run_on_all_ranks(lambda: accumulation_of(config.training, world.size))
    lock = world.run_on_all_ranks(lambda: lock_directory(out_dir, "out_dir") if world.is_first else None)
    with lock or nullcontext():
        return run_seeds(config, world, stop, *batch)


def run_seeds(config: FinetuneConfig, world: World, stop: StopRequest, micro_batch: int, accumulation: int) -> bool:
    """Load and check everything, then run each seed that has no result."""
    log: Log = partial(print, flush=True) if world.is_first else (lambda _: None)
    world.run_on_all_ranks(lambda: check_compute("training.precision", config.training.precision, world.device))
    world.run_on_first_rank(lambda: results.check_out_dir(config))
    if notice := emulation_notice("training.precision", config.training.precision, world.device):
        log(notice)
    source = world.run_on_all_ranks(lambda: find_model(config.model_dir))
    tokenizer = world.run_on_all_ranks(lambda: load_tokenizer(source, config.task.kind, config.training.max_length))
    config = world.run_on_all_ranks(partial(with_labels, config, log))
    model = world.run_on_all_ranks(lambda: new_model(source, config.task, config.from_scratch, 0, log))
    train, evaluations = world.run_on_all_ranks(lambda: load_data(config, tokenizer, log))
    contents = {f"the {inputs.split} set": inputs.fingerprint for inputs in (train, *evaluations)}
    contents["model_dir"] = fingerprint_of(model, config.from_scratch)
    rows = {row["seed"]: row for row in world.run_on_first_rank(lambda: results.claim_out_dir(config, contents))}
    if rows:
        log(f"finished before: seed {', '.join(map(str, rows))}")
    go_on_without_reader()
    for number, seed in enumerate(config.seeds, 1):
        if seed in rows:
            continue
        trainer = SeedTrainer(
            results.seed_folder(config, seed),
            f"seed {seed} ({number} of {len(config.seeds)})",
            config.training.checkpoint_minutes,
            world,
            stop,
            model=new_model(source, config.task, config.from_scratch, seed, log=lambda _: None),
            args=training_arguments(config, seed, micro_batch, accumulation, world),
            train_dataset=train.inputs,
            data_collator=train.collate,
        )
        try:
            rows[seed] = run_seed(config, seed, trainer, evaluations, tokenizer)
        except StoppedError:
            again = "the same command without overwrite=true" if config.overwrite else "the same command"
            log(f"stopped on request in seed {seed} after step {trainer.state.global_step}; run {again} to go on")
            return False
        log("  ".join(f"{n} {v:.2f}" if isinstance(v, float) else f"{n} {v}" for n, v in rows[seed].items()))
    in_order = [rows[seed] for seed in config.seeds]
    summary = results.summarize(in_order)
    log(results.table([*in_order, *({"seed": name, **row} for name, row in summary.items())]))
    world.run_on_first_rank(lambda: results.write_results(config, in_order, summary))
    log(f"wrote results.json and predictions to {config.out_dir}")
    return True


def run_seed(
    config: FinetuneConfig, seed: int, trainer: SeedTrainer, evaluations: list[InputSet], tokenizer: Any
) -> results.Row:
    """Train, evaluate, and write what is kept of one seed. Raises ``StoppedError`` after a checkpoint."""
    world, folder = trainer.world, trainer.folder
    settings = cast(Any, trainer.model).config
    if settings.pad_token_id is None:  # GPT-2's, whose head reads the last token before the padding
        settings.pad_token_id = tokenizer.pad_token_id
    trainer.fit()
    scores, predictions = evaluate(trainer, evaluations)
    row = {"seed": seed, **scores, "training_loss": trainer.training_loss(), "seconds": trainer.seconds()}

    def keep() -> None:
        for path, text in predictions.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
        if config.save_models:
            trainer.save_model(str(folder / "model"))
            open_to_umask(folder / "model")
            tokenizer.save_pretrained(folder / "model")
        results.finish_seed(config, row)

    world.run_on_first_rank(keep, "writing the result of a seed")
    return row


def fingerprint_of(model: Any, from_scratch: bool) -> str:
    """A hash of the pretrained weights, which are all but the heads; empty if there are none."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weights in model.base_model.state_dict().items():
        if not from_scratch and "pooler" not in name:
            digest.update(weights.numpy().tobytes())
    return "" if from_scratch else digest.hexdigest()


def accumulation_of(config: TrainingConfig, ranks: int) -> tuple[int, int]:
    """Micro-batch size of a rank, and its micro-batches per step."""
    share, rest = divmod(config.batch_size, ranks)
    if rest:
        raise ConfigError(f"training.batch_size is {config.batch_size}; allowed: multiples of the {ranks} ranks")
    micro_batch = config.micro_batch_size or share
    if share % micro_batch:
        raise ConfigError(f"training.micro_batch_size is {micro_batch}; allowed: what divides {share}, a rank's share")
    return micro_batch, share // micro_batch


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
    """Arguments of the Trainer: our hyper-parameters; ``SeedTrainer`` saves and prints."""
    training = config.training
    on_gpu = world.device.type == "cuda"
    auto = training.precision == "auto" and on_gpu and has_bf16(world.device)
    arguments = transformers.TrainingArguments(
        output_dir=str(partial_folder(results.seed_folder(config, seed))),
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
        disable_tqdm=True,
    )
    if not on_gpu:  # several processes have "cpu:0" there, to which torch 2.11 cannot load a checkpoint
        vars(arguments)["_setup_devices"] = world.device
    # With one process and several GPUs, the Trainer would multiply the batch size by the number of GPUs.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def evaluate(trainer: SeedTrainer, evaluations: list[InputSet]) -> tuple[Scores, dict[str, str]]:
    """Predict every set and score those with labels. Returns the predictions too: files in a seed's folder."""
    scores: Scores = {}
    predictions: dict[str, str] = {}
    for inputs in evaluations:
        trainer.data_collator = inputs.collate
        trainer.stage = f"{inputs.split}, {len(inputs.inputs):,} inputs"
        found, files = inputs.score(trainer.predict(cast(Any, inputs.inputs)).predictions)
        prefix = inputs.split.removeprefix("dev").lstrip("_")
        scores |= {f"{prefix}_{name}".lstrip("_"): value for name, value in found.items()}
        predictions |= {f"{inputs.split}/{name}": text for name, text in files.items()}
    return scores, predictions
