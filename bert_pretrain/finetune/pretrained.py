"""A pretrained folder, or a name on the hub, under the head of a task."""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer

from bert_pretrain.errors import ConfigError
from bert_pretrain.finetune.options import TaskConfig
from bert_pretrain.finetune.tasks import Say


def load_tokenizer(model_dir: str, max_length: int) -> Any:
    """The tokenizer of ``model_dir``. Raises ``ConfigError`` where it and the model do not fit each other."""
    config, folder = load_config(model_dir), Path(model_dir)
    try:
        if folder.is_dir() and not any((folder / name).exists() for name in ("tokenizer.json", "vocab.txt")):
            raise OSError("no tokenizer.json")  # transformers would make an empty one
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model_dir {model_dir} has no tokenizer that loads ({_first_line(error)}); export the run again with its "
            "data.tokenizer in place"
        ) from None
    if not tokenizer.is_fast:
        raise ConfigError(f"model_dir {model_dir} has a tokenizer without offsets; give one with tokenizer.json")
    if len(tokenizer) > config.vocab_size:
        raise ConfigError(
            f"model_dir {model_dir} has {len(tokenizer)} words in its tokenizer and {config.vocab_size} in its model; "
            "export it again"
        )
    positions = getattr(config, "max_position_embeddings", max_length)
    if max_length > positions:
        raise ConfigError(f"training.max_length is {max_length}; allowed: up to {positions}, the model's positions")
    return tokenizer


def load_config(model_dir: str) -> Any:
    """The model's configuration. Raises ``ConfigError`` where ``model_dir`` is no model."""
    folder = Path(model_dir)
    if folder.exists() and not (folder / "config.json").exists():
        is_run = (folder / "checkpoints").is_dir()
        hint = f"; it is a run: bert_pretrain.hub.export run_dir={folder} makes a folder of it" if is_run else ""
        raise ConfigError(f"model_dir is {model_dir!r}, which is no exported folder (no config.json){hint}")
    try:
        return AutoConfig.from_pretrained(model_dir)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model_dir is {model_dir!r}, which is neither a folder that `bert-pretrain export` wrote nor a model on "
            f"the hub that can be reached ({_first_line(error)})"
        ) from None


def new_model(model_dir: str, task: TaskConfig, from_scratch: bool, seed: int, say: Say) -> Any:
    """The model of ``model_dir`` under a new head, whose weights ``seed`` decides; all are new where ``from_scratch``.

    Raises ``ConfigError`` where ``model_dir`` lacks weights of the model itself, which would be random.
    """
    config = load_config(model_dir)
    auto: Any = transformers.AutoModelForSequenceClassification
    if task.kind == "squad":
        auto = transformers.AutoModelForQuestionAnswering
        config.num_labels = 2  # a start and an end, whatever head was trained before
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
        raise ConfigError(f"model_dir {model_dir} does not load ({_first_line(error)})") from None
    absent = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    absent = {name for name in absent if not name.startswith(("classifier.", "qa_outputs."))}
    pooler = {name for name in absent if ".pooler." in name}
    if absent != pooler:
        raise ConfigError(f"model_dir {model_dir} lacks weights, such as {min(absent - pooler)}; export it again")
    if pooler:
        say(f"{model_dir} has no pooler: that layer begins with random weights")
    return model


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
