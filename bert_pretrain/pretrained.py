"""A pretrained folder, or a name on the hub, under the head of a task."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer

from bert_pretrain.errors import ConfigError
from bert_pretrain.tasks import Say, TaskConfig


def load_tokenizer(model_dir: str, max_length: int) -> Any:
    """The tokenizer of ``model_dir``. Raises ``ConfigError`` where it and the model do not fit each other."""
    config = load_config(model_dir)
    try:
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
    if max_length > config.max_position_embeddings:
        raise ConfigError(
            f"training.max_length is {max_length}; the model in {model_dir} has {config.max_position_embeddings} "
            f"positions: give that or less"
        )
    return tokenizer


def load_config(model_dir: str) -> Any:
    """The model's configuration. Raises ``ConfigError`` where ``model_dir`` is no model."""
    folder = Path(model_dir)
    if folder.exists() and not (folder / "config.json").exists():
        hint = (
            f"; it is a run: export it with bert_pretrain.export run_dir={folder}" * (folder / "checkpoints").is_dir()
        )
        raise ConfigError(f"model_dir is {model_dir!r}, which is no exported folder (no config.json){hint}")
    try:
        return AutoConfig.from_pretrained(model_dir)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model_dir is {model_dir!r}, which is neither a folder that bert_pretrain.export wrote nor a model on the "
            f"hub that can be reached ({_first_line(error)})"
        ) from None


def new_model(model_dir: str, task: TaskConfig, from_scratch: bool, seed: int, say: Say) -> Any:
    """The model of ``model_dir`` under a new head, whose weights ``seed`` decides; all are new where ``from_scratch``.

    Raises ``ConfigError`` where ``model_dir`` lacks weights of the model itself, which would be random.
    """
    config = load_config(model_dir)
    auto: Any = transformers.AutoModelForSequenceClassification
    if task.kind == "squad":
        auto = transformers.AutoModelForQuestionAnswering
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
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"model_dir {model_dir} does not load ({_first_line(error)})") from None
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(("classifier.", "qa_outputs.")))
    pooler = [name for name in missing if ".pooler." in name]
    if missing != pooler or any(not name.startswith("classifier.") for name, *_ in report["mismatched_keys"]):
        raise ConfigError(
            f"model_dir {model_dir} lacks weights of the model, such as {(set(missing) - set(pooler) or missing).pop()}"
        )
    if pooler:
        say(f"{model_dir} has no pooler: that layer begins with random weights")
    return model


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
