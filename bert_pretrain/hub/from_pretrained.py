"""Fills a new model with the weights of an existing BERT.

Names of every kind of BERT folder become those of ``BertForPreTraining``. Weights that the source lacks stay as they
were initialised, weights that the model has no place for are left; both are reported. A missing weight of the encoder
is an error.
"""

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bert_pretrain.data.tokenizer_files import read_ids
from bert_pretrain.errors import ConfigError, on_one_line
from bert_pretrain.hub.convert.layout import HEADLESS, LAYER_NORM, new_name
from bert_pretrain.hub.new_embeddings import RowMap, extended_positions, map_rows
from bert_pretrain.hub.source import Source, weight_files
from bert_pretrain.model.bert import PretrainingModel
from bert_pretrain.model.config_entries import keep_entries

WORDS = "bert.embeddings.word_embeddings.weight"
PLACES = "bert.embeddings.position_embeddings.weight"
WORD_BIAS = "cls.predictions.bias"
_DECODER = "cls.predictions.decoder"
_BUFFERS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")
_ENCODER = re.compile(r"bert\.(?!pooler\.)")

Report = Callable[[str], None]


def load_pretrained(
    model: PretrainingModel, source: Source, tokenizer: Path, report: Report, positions: str | None = None
) -> list[str]:
    """Fill ``model`` in place with the weights of ``source``; report what it lacks and what is left over.

    ``tokenizer`` is the folder of the shards' tokenizer, ``positions`` the option ``init_positions``. Returns what is
    not as in the source, one sentence each: none if all weights are.
    Raises ``ConfigError`` if a weight of the encoder is missing, or if a shape does not fit.
    """
    found = read_weights(source)
    own = dict(model.bert.state_dict(keep_vars=True))
    tied = {f"{_DECODER}.weight", f"{_DECODER}.bias"}
    wanted = [name for name in own if name not in tied and name not in _BUFFERS]
    lacking = [name for name in wanted if name not in found]
    where = f"init_from is {source.name!r}"
    if missing := [name for name in lacking if _ENCODER.match(name)]:
        raise ConfigError(f"{where}, which lacks weights of the encoder, such as {missing[0]}; give a whole model")
    left = sorted(found.keys() - set(wanted))
    changes = _resize(found, own, source, tokenizer, positions)
    fill({name: own[name] for name in wanted if name in found}, found, where, "model.* asks for")
    keep_entries(model.bert.config, source.config)
    if lacking:
        changes.append(f"not in {source.name}, so they start from random weights: {', '.join(lacking)}")
    if left:
        changes.append(f"in {source.name} but not used: {', '.join(left)}")
    for line in changes:
        report(line)
    return changes


@torch.no_grad()
def fill(own: dict[str, Tensor], found: dict[str, Tensor], where: str, stated: str) -> None:
    """Copy the weights ``found`` into those of the same name in ``own``. Raises ``ConfigError`` if a shape differs."""
    for name, weight in own.items():
        if found[name].shape != weight.shape:
            shapes = tuple(found[name].shape), tuple(weight.shape)
            raise ConfigError(f"{where}, whose {name} has shape {shapes[0]}; {stated} {shapes[1]}")
    for name, weight in own.items():
        weight.copy_(found[name])


def read_weights(source: Source, option: str = "init_from") -> dict[str, Tensor]:
    """The weights of ``source`` in float32, named as in ``BertForPreTraining``, without the decoder's tied weight.

    Weights of other heads keep their names. Raises ``ConfigError``, which names ``option``, if a file is damaged or
    wants to run code.
    """
    weights: dict[str, Tensor] = {}
    for path in weight_files(source, option):
        weights |= _read_file(path, f"{option} is {source.name!r}, whose {path.name}")
    rules = *HEADLESS, *LAYER_NORM
    named = {new_name(name, rules): value.float() for name, value in weights.items() if value.is_floating_point()}
    bias = named.pop(f"{_DECODER}.bias", None)
    if bias is not None:
        named.setdefault(WORD_BIAS, bias)
    decoder = named.get(f"{_DECODER}.weight")
    if decoder is not None and WORDS in named and torch.equal(decoder, named[WORDS]):
        del named[f"{_DECODER}.weight"]  # another one is left over, and reported: BERT ties it to the embeddings
    return named


def _read_file(path: Path, where: str) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = on_one_line(error)
        raise ConfigError(
            f"{where} is not read, because it holds more than weights ({reason}); nothing of it was executed: save it "
            "as safetensors where you trust it"
        ) from None
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, SafetensorError) as error:
        raise ConfigError(f"{where} cannot be read ({on_one_line(error)}); download or copy it again") from None
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"{where} holds no weights by name; make a folder with bert-pretrain convert")
    return content


def _resize(
    found: dict[str, Tensor], own: dict[str, Tensor], source: Source, tokenizer: Path, positions: str | None
) -> list[str]:
    """Change embeddings, decoder bias and positions in ``found`` to the model's; returns what was changed."""
    changes = []
    new, old = read_ids(tokenizer), read_ids(source.folder)
    words, size = found[WORDS], len(own[WORDS])
    if new and max(new.values()) >= size:
        raise ConfigError(
            f"model.vocab_size is {size}, but data.tokenizer {str(tokenizer)!r} has {max(new.values()) + 1} tokens; "
            "leave it out (model.vocab_size=null)"
        )
    if new is None or old is None:
        lacks = "data.tokenizer" if new is None else source.name
        changes += [] if len(words) == size else [f"vocabulary: {size} entries, {len(words)} in {source.name}"]
        if size > len(words):
            raise ConfigError(
                f"model.vocab_size is {size}, but init_from {source.name!r} has {len(words)}, and {lacks} has no "
                "tokenizer to make the new tokens of; put it there"
            )
        rows = RowMap.unchanged(min(size, len(words)))
    else:
        rows = map_rows(new, old, source.folder, len(words), size)
        changes += rows.description(source.name, len(words), size)
    if not rows.is_identity(len(words), size):
        found[WORDS] = rows.means(words)
        if WORD_BIAS in found:
            found[WORD_BIAS] = rows.means(found[WORD_BIAS], padding="lowest")
    learned, places = len(found[PLACES]), len(own[PLACES])
    if places != learned:
        found[PLACES] = extended_positions(found[PLACES], places, positions)
        how = f"the first {places} of {learned} are kept" if places < learned else f"{learned} became {places}"
        changes.append(f"position embeddings: {how}" + (f", init_positions={positions}" if places > learned else ""))
    return changes
