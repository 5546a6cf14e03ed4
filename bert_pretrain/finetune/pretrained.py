"""Loads a pretrained folder, or a model from the hub, with the head of a task."""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer

from bert_pretrain.data.tokenizer_files import has_tokenizer
from bert_pretrain.errors import ConfigError, on_one_line
from bert_pretrain.finetune.options import TaskConfig
from bert_pretrain.finetune.tasks import Log


def load_tokenizer(model_dir: str, max_length: int) -> Any:
    """The tokenizer of ``model_dir``. Raises ``ConfigError`` if it is missing or does not fit the model."""
    config, folder = load_config(model_dir), Path(model_dir)
    try:
        if folder.is_dir() and not has_tokenizer(folder):
            raise OSError("no tokenizer.json")  # transformers would make an empty one
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model_dir {model_dir} has no tokenizer that loads ({on_one_line(error)}); export the run again with its "
            "data.tokenizer in place"
        ) from None
    if not tokenizer.is_fast:
        raise ConfigError(f"model_dir {model_dir} has no fast tokenizer; give a folder with tokenizer.json")
    if len(tokenizer) > config.vocab_size:
        raise ConfigError(
            f"model_dir {model_dir}: its tokenizer has {len(tokenizer)} tokens, its model only {config.vocab_size}; "
            "export it again"
        )
    positions = getattr(config, "max_position_embeddings", max_length)
    if max_length > positions:
        raise ConfigError(f"training.max_length is {max_length}; allowed: up to {positions}, the model's positions")
    return tokenizer


def load_config(model_dir: str) -> Any:
    """The model's configuration. Raises ``ConfigError`` if ``model_dir`` is not a model."""
    folder = Path(model_dir)
    if folder.exists() and not (folder / "config.json").exists():
        is_run = (folder / "checkpoints").is_dir()
        hint = f"; it is a run: export it with bert-pretrain export run_dir={folder}" if is_run else ""
        raise ConfigError(f"model_dir is {model_dir!r}, which is no exported folder (no config.json){hint}")
    try:
        return AutoConfig.from_pretrained(model_dir)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model_dir is {model_dir!r}, which is neither a folder written by bert-pretrain export nor a model on the "
            f"hub that can be downloaded ({on_one_line(error)})"
        ) from None


def new_model(model_dir: str, task: TaskConfig, from_scratch: bool, seed: int, log: Log) -> Any:
    """The model with a new head, initialised from ``seed``; if ``from_scratch``, all weights are.

    Raises ``ConfigError`` if ``model_dir`` lacks encoder weights, which would otherwise be random.
    """
    config = load_config(model_dir)
    auto: Any = transformers.AutoModelForSequenceClassification
    if task.kind == "tags":
        auto = transformers.AutoModelForTokenClassification
    if task.kind == "squad":
        auto = transformers.AutoModelForQuestionAnswering
        config.num_labels = 2  # start and end, whatever head was trained before
    else:
        config.num_labels = max(1, len(task.labels))
        config.id2label = dict(enumerate(task.labels or ["score"]))
        config.label2id = {label: number for number, label in config.id2label.items()}
    config.problem_type = {"classification": "single_label_classification", "regression": "regression"}.get(task.kind)
    transformers.set_seed(seed)
    if from_scratch:
        return auto.from_config(config).float()
    try:
        model, report = auto.from_pretrained(
            model_dir, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"model_dir {model_dir} does not load ({on_one_line(error)})") from None
    missing = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    missing = {name for name in missing if not name.startswith(("classifier.", "qa_outputs."))}
    pooler = {name for name in missing if ".pooler." in name}
    if missing != pooler:
        raise ConfigError(f"model_dir {model_dir} lacks weights, such as {min(missing - pooler)}; export it again")
    if pooler:
        log(f"{model_dir} has no pooler; it starts from random weights")
    return model
