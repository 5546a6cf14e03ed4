"""Finds the files of a checkpoint: weights, configuration, vocabulary. Needs no torch."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_pretrain.data.masking_rule import SPECIAL_TOKENS
from bert_pretrain.data.tokenizer_files import read_vocab_text
from bert_pretrain.errors import ConfigError
from bert_pretrain.files.file_system import read_json

AUTO, NONE = "auto", "none"
_TORCH = re.compile(r"\.(pt|pth|bin|ckpt|safetensors)(-\d+)?$")
"""UER appends the step: ``model.bin-10000``."""
_DATA = re.compile(r"\.data-\d{5}-of-\d{5}$")
_PADDING = 128
"""A model's vocabulary is padded by less than this: NVIDIA pads to multiples of 8, others to 64 or 128."""


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one checkpoint."""

    path: Path
    """A PyTorch or safetensors file, or the prefix of a TensorFlow checkpoint."""
    is_tensorflow: bool

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.path.parent


def find_checkpoint(source: str) -> Checkpoint:
    """The checkpoint that ``source`` names, or the one in that folder. Raises ``ConfigError`` if there is not one."""
    path = Path(source)
    if path.is_dir():
        return _in_folder(path)
    prefix = Path(_DATA.sub("", str(path).removesuffix(".index")))
    if prefix.with_name(f"{prefix.name}.index").is_file():
        if not list(prefix.parent.glob(f"{prefix.name}.data-*")):
            raise ConfigError(
                f"source {path}: there is no {prefix.name}.data-* beside the .index; it holds the weights"
            )
        return Checkpoint(prefix, True)
    if prefix != path or list(path.parent.glob(f"{path.name}.data-*")):
        raise ConfigError(f"source {path}: there is no {prefix.name}.index, without which it cannot be read")
    if path.is_file() and _TORCH.search(path.name):
        return Checkpoint(path, False)
    allowed = "a file of PyTorch (.pt, .bin, .pth, .safetensors), a TensorFlow checkpoint (PREFIX.index), or a folder"
    raise ConfigError(
        f"source is {source!r}, which is {'no checkpoint' if path.is_file() else 'not there'}; give {allowed}"
    )


def _in_folder(folder: Path) -> Checkpoint:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return Checkpoint(folder / name, False)
    numbered = {
        int(match[1]): path for path in folder.glob("*.pt") if (match := re.fullmatch(r"ckpt_(\d+)", path.stem))
    }
    if numbered:
        return Checkpoint(numbered[max(numbered)], False)
    found = [find_checkpoint(str(path)) for path in sorted(folder.glob("*.index"))]
    found += [Checkpoint(path, False) for path in sorted(folder.iterdir()) if _TORCH.search(path.name)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(checkpoint.path.name for checkpoint in found[:5])
    raise ConfigError(
        f"source {folder} holds {f'{len(found)} checkpoints ({names})' if found else 'no checkpoint'}; give one file "
        "with source=FILE"
    )


def read_config(option: str, checkpoint: Checkpoint) -> tuple[Path, dict[str, Any]]:
    """The configuration file that ``option`` names, or the one beside the checkpoint, and what it says."""
    path = Path(option)
    if option == AUTO:
        beside = [checkpoint.folder / name for name in ("bert_config.json", "config.json")]
        path = next((file for file in beside if file.is_file()), beside[0])
        if not path.is_file():
            raise ConfigError(f"no bert_config.json or config.json lies beside {checkpoint.path}; give config=FILE")
    if not path.is_file():
        raise ConfigError(f"config is {option!r}, which is no file; give the model's bert_config.json or config.json")
    return path, read_json(path, "give the model's bert_config.json as config")


def find_tokenizer(option: str, checkpoint: Checkpoint) -> Path | None:
    """A ``vocab.txt``, or a folder with tokenizer files: as ``option`` says, or beside the checkpoint."""
    if option == NONE:
        return None
    path = checkpoint.folder if option == AUTO else Path(option)
    if path.is_dir():
        if (path / "tokenizer.json").is_file() or (path / "tokenizer_config.json").is_file():
            return path
        path = path / "vocab.txt"
    if path.is_file():
        return path
    if option == AUTO:
        raise ConfigError(
            f"no vocab.txt or tokenizer.json lies beside {checkpoint.path}; give vocab=FILE, or vocab=none for a model "
            "without a tokenizer"
        )
    raise ConfigError(f"vocab is {option!r}, which is no vocab.txt and no folder with a tokenizer")


def read_vocabulary(path: Path) -> list[str]:
    """The tokens of a ``vocab.txt``, one a line. Raises ``ConfigError`` if it is not BERT's."""
    tokens = list(read_vocab_text(path))
    if missing := [token for token in SPECIAL_TOKENS if token not in tokens]:
        raise ConfigError(f"vocab {path} has no {', '.join(missing)}; BERT needs {' '.join(SPECIAL_TOKENS)}")
    return tokens


def check_vocabulary_size(path: Path, tokens: int, rows: int) -> None:
    """Raise ``ConfigError`` unless ``tokens`` tokens fit a model with embeddings for ``rows``, padding included."""
    if not 0 <= rows - tokens < _PADDING:
        raise ConfigError(
            f"vocab {path} has {tokens:,} tokens, the model has embeddings for {rows:,}; give the vocabulary that the "
            "model was trained with"
        )
