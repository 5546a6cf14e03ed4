"""Loads a pretrained folder, or a model from the hub, with the head of a task."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from tokenizers.normalizers import Prepend, Sequence
from transformers import AutoConfig, AutoTokenizer

from bert_pretrain.data.tokenizer_files import pre_tokenizer_steps
from bert_pretrain.errors import ConfigError, on_one_line
from bert_pretrain.files.hub_download import local_model
from bert_pretrain.finetune.options import TaskConfig
from bert_pretrain.finetune.tasks import Log

_SPACE_BEFORE = {"type": "Prepend", "prepend": " "}
_HEADS: dict[str, tuple[Any, str | None]] = {
    "classification": (transformers.AutoModelForSequenceClassification, "single_label_classification"),
    "regression": (transformers.AutoModelForSequenceClassification, "regression"),
    "squad": (transformers.AutoModelForQuestionAnswering, None),
    "tags": (transformers.AutoModelForTokenClassification, None),
}
"""By kind of task: the class of its model, and the loss that ``transformers`` shall take."""
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


@dataclass(frozen=True)
class Pretrained:
    """A model on this machine, of any architecture that ``transformers`` has."""

    name: str
    """As the user wrote it: a folder, or a name on the hub."""
    folder: Path
    """Holds ``config.json``."""


def find_model(name: str) -> Pretrained:
    """The model that ``model_dir`` names. Raises ``ConfigError`` if there is none."""
    folder = local_model(name, "model_dir")
    if (folder / "config.json").is_file():
        return Pretrained(name, folder)
    if not folder.exists():
        raise ConfigError(
            f"model_dir is {name!r}, which is neither a folder written by bert-pretrain export nor a name on the hub"
        )
    is_run = (folder / "checkpoints").is_dir()
    hint = f"; it is a run: export it with bert-pretrain export run_dir={folder}" if is_run else ""
    raise ConfigError(f"model_dir is {name!r}, which is no exported folder (no config.json){hint}")


def load_tokenizer(source: Pretrained, kind: str, max_length: int) -> Any:
    """The tokenizer of ``source`` for a ``kind`` of task.

    Raises ``ConfigError`` if it is missing or does not fit the model.
    """
    config = load_config(source)
    try:
        if not any(any(source.folder.glob(pattern)) for pattern in _TOKENIZERS):
            raise OSError("no tokenizer.json")  # transformers would make an empty one
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model_dir {source.name} has no tokenizer that loads ({on_one_line(error)}); give a model with "
            "tokenizer.json or vocab.txt: export writes that of the run's data.tokenizer"
        ) from None
    if not tokenizer.is_fast:
        raise ConfigError(f"model_dir {source.name} has no fast tokenizer; give a folder with tokenizer.json")
    if len(tokenizer) > config.vocab_size:
        raise ConfigError(
            f"model_dir {source.name}: its tokenizer has {len(tokenizer)} tokens, its model only {config.vocab_size}; "
            "export it again"
        )
    if tokenizer.pad_token is None:
        raise ConfigError(
            f"model_dir {source.name}: its tokenizer has no padding token, which batches need; name one of its tokens "
            'as "pad_token" in tokenizer_config.json, for GPT-2 "<|endoftext|>"'
        )
    if kind == "tags":
        tokenizer = _with_spaces(source, tokenizer)
    if kind in ("tags", "squad"):  # whose positions are counted from the first token; XLNet pads on the left
        tokenizer.padding_side = "right"
    positions = getattr(config, "max_position_embeddings", max_length)
    if 0 <= positions < max_length:  # XLNet has -1, no limit
        raise ConfigError(f"training.max_length is {max_length}; allowed: up to {positions}, the model's positions")
    return tokenizer


def _with_spaces(source: Pretrained, tokenizer: Any) -> Any:
    """``tokenizer`` of ``source``; a byte-level one reads each of a list of words as behind a space, as in a text.

    Where a pattern splits the text before its bytes are mapped, each part would get the space. The normalizer has each
    word whole, so it adds it there.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if all(step.get("type") != "ByteLevel" for step in pre_tokenizer_steps(state)):
        return tokenizer
    if state["pre_tokenizer"]["type"] == "ByteLevel":
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False, add_prefix_space=True)
        tokenizer.backend_tokenizer.pre_tokenizer.add_prefix_space = True  # ModernBERT's class ignores the option
        return tokenizer
    normalizer = state["normalizer"] or {}
    if _SPACE_BEFORE not in normalizer.get("normalizers", [normalizer])[-1:]:
        own = [tokenizer.backend_tokenizer.normalizer] if normalizer else []
        tokenizer.backend_tokenizer.normalizer = Sequence([*own, Prepend(" ")])
    return tokenizer


def load_config(source: Pretrained) -> Any:
    """The model's configuration. Raises ``ConfigError`` if transformers does not have its architecture."""
    try:
        return AutoConfig.from_pretrained(source.folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model_dir is {source.name!r}, which transformers does not load ({on_one_line(error)}); give another model"
        ) from None


def new_model(source: Pretrained, task: TaskConfig, from_scratch: bool, seed: int, log: Log) -> Any:
    """The model with a new head, initialised from ``seed``; if ``from_scratch``, all weights are.

    Raises ``ConfigError`` if ``source`` lacks encoder weights, which would otherwise be random. All weights outside the
    encoder, and its pooler, are the head's: which of them are new is logged.
    """
    config = load_config(source)
    auto, config.problem_type = _HEADS[task.kind]
    if task.kind == "squad":
        config.num_labels = 2  # start and end, whatever head was trained before
    else:
        config.num_labels = max(1, len(task.labels))
        config.id2label = dict(enumerate(task.labels or ["score"]))
        config.label2id = {label: number for number, label in config.id2label.items()}
    transformers.set_seed(seed)
    if from_scratch:
        return auto.from_config(config).float()
    try:
        model, report = auto.from_pretrained(
            source.folder, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"model_dir {source.name} does not load ({on_one_line(error)})") from None
    encoder = model.base_model_prefix + "."
    new = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    if lost := sorted(name for name in new if name.startswith(encoder) and ".pooler." not in name):
        raise ConfigError(
            f"model_dir {source.name} lacks weights of the encoder, such as {lost[0]}; give a whole model"
        )
    if heads := sorted({name.removeprefix(encoder).partition(".")[0] for name in new}):
        log(f"{source.name}: new, with random weights: {', '.join(heads)}")
    return model
