"""Writes a converted model as a folder of ``transformers``, and checks the folder by loading it."""

import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoTokenizer, BertTokenizer

from bert_pretrain.checkpoint.tokenizer_files import copy_files
from bert_pretrain.data.tokenizer_files import is_lowercase
from bert_pretrain.errors import ConfigError
from bert_pretrain.files.file_system import open_to_umask
from bert_pretrain.hub.convert.assemble import Converted
from bert_pretrain.hub.convert.files import check_vocabulary_size, read_vocabulary


def write_model(converted: Converted, tokenizer: Path | None, lowercase: bool | None, folder: Path) -> list[str]:
    """Write ``config.json``, ``model.safetensors`` and the tokenizer; load all of it back. Returns notes for the user.

    ``tokenizer`` is a ``vocab.txt`` or a folder. Raises ``ConfigError`` if it does not fit the model.
    """
    folder.mkdir(parents=True)
    prefix = "bert." if converted.architecture == "BertModel" else ""
    weights = {name.removeprefix(prefix): tensor.clone() for name, tensor in converted.weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    open_to_umask(folder)
    converted.config.dtype = torch.float32
    converted.config.save_pretrained(folder)
    note = [] if tokenizer is None else [write_tokenizer(tokenizer, lowercase, folder)]
    check_folder(converted, folder, tokenizer)
    return note


def write_tokenizer(source: Path, lowercase: bool | None, folder: Path) -> str:
    """Copy the tokenizer files of the folder ``source``, or make them from a ``vocab.txt``. Returns a sentence."""
    if source.is_dir():
        copy_files(source, folder)
        return f"tokenizer files copied from {source}"
    tokens = read_vocabulary(source)
    lower = is_lowercase(tokens) if lowercase is None else lowercase
    why = "" if lowercase is not None else ", by its tokens; lowercase=true or false overrules that"
    ids = {token: place for place, token in enumerate(tokens)}
    BertTokenizer(vocab=ids, do_lower_case=lower).save_pretrained(folder)
    shutil.copyfile(source, folder / "vocab.txt")
    return f"tokenizer made from {source}, {'lower case' if lower else 'cased'}{why}"


def check_folder(converted: Converted, folder: Path, tokenizer: Path | None) -> None:
    """Load ``folder`` with transformers: no missing or unexpected weight, each one equal, every token with its id.

    Raises ``ConfigError``.
    """
    loader = getattr(transformers, converted.architecture)
    model, report = loader.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if faults := {key: found for key, found in report.items() if found}:
        raise ConfigError(f"{folder} does not load as {converted.architecture}: {faults}")
    prefix = "bert." if converted.architecture == "BertModel" else ""
    state = model.state_dict()
    for name, tensor in converted.weights.items():
        assert torch.equal(state[name.removeprefix(prefix)], tensor), name
    if tokenizer is None:
        return
    loaded = AutoTokenizer.from_pretrained(folder)
    rows = converted.config.vocab_size
    check_vocabulary_size(tokenizer, len(loaded), rows)
    if (folder / "vocab.txt").is_file():
        tokens = read_vocabulary(folder / "vocab.txt")
        if loaded.convert_tokens_to_ids(tokens) != list(range(len(tokens))):
            raise ConfigError(f"vocab {tokenizer}: the tokenizer gives tokens other ids than their lines in vocab.txt")
