"""The tokenizer's files beside a model's weights."""

import shutil
from pathlib import Path

from bert_pretrain.data.tokenizer_files import FILES
from bert_pretrain.files.file_system import read_json, write_json


def copy_tokenizer(tokenizer: Path, folder: Path, positions: int) -> None:
    """Copy the tokenizer's files into ``folder``, that of a model with ``positions`` position embeddings."""
    copy_files(tokenizer, folder)
    set_max_length(folder, positions)


def copy_files(tokenizer: Path, folder: Path) -> None:
    """Copy the tokenizer's files, those that there are, into ``folder``."""
    for name in FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)


def set_max_length(folder: Path, positions: int) -> None:
    """Make ``truncation=True`` cut at ``positions`` tokens: otherwise a long text crashes the model.

    Changes nothing else in the file. Raises ``ConfigError`` if it cannot be read.
    """
    path = folder / "tokenizer_config.json"
    if not path.is_file() and not any((folder / name).is_file() for name in FILES):
        return
    default = {"tokenizer_class": "BertTokenizer"}
    config = read_json(path, "restore the tokenizer's file") if path.is_file() else default
    if config.get("model_max_length") != positions:
        write_json(path, {**config, "model_max_length": positions})
