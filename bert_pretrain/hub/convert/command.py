"""``bert-pretrain convert``: checkpoints of other programs as a folder that ``transformers`` loads."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_pretrain.errors import ConfigError, require
from bert_pretrain.files.directory_lock import lock_beside
from bert_pretrain.files.file_system import check_replaceable, new_folder, require_writable
from bert_pretrain.hub.card import CARD, converted_card
from bert_pretrain.hub.convert.files import (
    Checkpoint,
    check_vocabulary_size,
    find_checkpoint,
    find_tokenizer,
    read_config,
    read_vocabulary,
)
from bert_pretrain.options.entry_point import entry_point

if TYPE_CHECKING:
    from bert_pretrain.hub.convert.assemble import Converted

_ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "relu")


@dataclass
class ConvertConfig:
    """Options of ``bert-pretrain convert``."""

    source: str
    """A file of PyTorch, a TensorFlow checkpoint (its prefix, as in bert_model.ckpt), or a folder that holds one. Of
    several ckpt_N.pt in a folder, the last."""
    out_dir: str
    """Directory to write."""
    vocab: str
    """A vocab.txt, or a folder with a tokenizer; auto: the one beside source; none: write no tokenizer."""
    config: str
    """The model's bert_config.json or config.json; auto: the one beside source."""
    lowercase: bool | None
    """With a vocab.txt: whether text is put in lower case; null: unless the vocabulary has words with capitals."""
    hidden_act: str | None
    """The activation that the model was trained with: gelu, gelu_pytorch_tanh or relu; null: what the program that
    wrote the checkpoint computes under the name in its configuration."""
    licence: str | None
    """The licence of the model for its card, by the hub's name for it (apache-2.0, mit); null: unknown."""
    moments: bool
    """Keep the optimizer's moments of NVIDIA's checkpoints: out_dir then holds a checkpoint for init_from, with the
    folder for transformers in it."""
    overwrite: bool
    """Replace an earlier conversion in out_dir. Where out_dir is a link, the link itself is replaced: what it points to
    stays as it is."""

    def __post_init__(self) -> None:
        allowed = ", ".join(_ACTIVATIONS)
        require(self.hidden_act in (None, *_ACTIVATIONS), "hidden_act", self.hidden_act, allowed)


@entry_point("convert", ConvertConfig)
def main(config: ConvertConfig) -> None:
    """Write a BERT checkpoint of another program as a folder that transformers loads.

        bert-pretrain convert source=ckpt_7038.pt out_dir=my-bert vocab=vocab.txt config=bert_config.json

    Reads NVIDIA DeepLearningExamples, Google's TensorFlow 1 checkpoints and those of the TensorFlow 2 model garden
    (both need the extra convert), UER-py and TencentPretrain, and PyTorch files of transformers and its predecessors.
    Nothing in a file is run. Every weight is used once; what is left out is listed. The folder is loaded back and
    checked before it gets its final name.
    """
    checkpoint = find_checkpoint(config.source)
    config_path, values = read_config(config.config, checkpoint)
    tokenizer = find_tokenizer(config.vocab, checkpoint)
    tokens = read_vocabulary(tokenizer) if tokenizer is not None and tokenizer.is_file() else None
    if tokenizer is not None and tokens is None and config.lowercase is not None:
        raise ConfigError(
            f"lowercase is {str(config.lowercase).lower()}, but the tokenizer in {tokenizer} states it already; give "
            "vocab=FILE with a vocab.txt to make a new one"
        )
    out_dir = Path(config.out_dir).absolute()
    check_out_dir(out_dir, checkpoint, config.overwrite)

    from bert_pretrain.hub.convert.assemble import assemble  # imports torch
    from bert_pretrain.model.bert import silence_transformers

    silence_transformers()
    content: dict[str, Any] = {}
    if checkpoint.is_tensorflow:
        from bert_pretrain.hub.convert import tensorflow_file

        renamed = tensorflow_file.read(checkpoint.path)
    else:
        from bert_pretrain.hub.convert import torch_file

        renamed, content = torch_file.read(checkpoint.path)
    converted = assemble(renamed, values, config_path, config.hidden_act)
    if tokenizer is not None and tokens is not None:
        check_vocabulary_size(tokenizer, len(tokens), converted.config.vocab_size)
    origin = f"{checkpoint.path.name} ({renamed.title})"
    notes = write(config, converted, origin, tokenizer, content, out_dir)
    print(f"{checkpoint.path}: {renamed.title}, {len(converted.weights)} weights, {converted.architecture}")
    for line in [*converted.notes, *notes, *(f"left out: {name}" for name in converted.left_out)]:
        print(f"  {line}")
    use = "begin from it with init_from" if config.moments else "load it with the Auto classes of transformers"
    print(f"converted to {config.out_dir}; {use}")


def check_out_dir(out_dir: Path, checkpoint: Checkpoint, overwrite: bool) -> None:
    """Raise ``ConfigError`` if ``out_dir`` holds something else, or the source itself, or cannot be written."""
    if checkpoint.folder.resolve().is_relative_to(out_dir.resolve()):
        raise ConfigError(f"out_dir {out_dir} is the folder of source or above it; give another")
    check_replaceable(out_dir, overwrite, ("config.json", "checkpoints"), "conversion")
    require_writable(out_dir.parent, "the directory of out_dir,")


def write(
    config: ConvertConfig,
    converted: "Converted",
    origin: str,
    tokenizer: Path | None,
    content: dict[str, Any],
    out_dir: Path,
) -> list[str]:
    """Write everything under a temporary name beside ``out_dir`` and rename it. Returns notes for the user."""
    from bert_pretrain.hub.convert.moments import read_moments, write_checkpoint
    from bert_pretrain.hub.convert.write import write_model

    moments = read_moments(content, converted) if config.moments else None
    if moments is not None:
        converted.left_out[:] = [name for name in converted.left_out if not name.startswith("optimizer (")]
    with lock_beside(out_dir), new_folder(out_dir) as folder:
        model_folder = folder if moments is None else folder / "model"
        notes = write_model(converted, tokenizer, config.lowercase, model_folder)
        if moments is not None:
            saved = write_checkpoint(*moments, model_folder, origin, folder / "checkpoints")
            shutil.rmtree(model_folder)
            notes.append(f"moments of step {moments[1]:,} in checkpoints/{saved.name}; they fit optimizer=nvidia_code")
        else:
            parts = json.dumps(converted.config.to_diff_dict(), indent=2), converted.notes, converted.left_out
            card = converted_card(out_dir.name, config.licence, origin, converted.architecture, *parts)
            (folder / CARD).write_text(card, encoding="utf-8")
    return notes
