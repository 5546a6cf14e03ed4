"""From renamed weights to a model of ``transformers``: its class, its configuration, and every weight once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import BertConfig

from bert_pretrain.errors import ConfigError
from bert_pretrain.hub.convert.layout import Renamed
from bert_pretrain.hub.convert.uer import CONFIG_NAMES

ARCHITECTURES = {
    (True, True): "BertForPreTraining",
    (True, False): "BertForMaskedLM",
    (False, True): "BertForNextSentencePrediction",
    (False, False): "BertModel",
}
"""By whether there is a masked-word head and a next-sentence head."""
_WORDS = "bert.embeddings.word_embeddings.weight"
_DECODER = "cls.predictions.decoder.weight"
_BIAS = "cls.predictions.bias"
_DECODER_BIAS = "cls.predictions.decoder.bias"
_SIZES = {
    "vocab_size": _WORDS,
    "max_position_embeddings": "bert.embeddings.position_embeddings.weight",
    "type_vocab_size": "bert.embeddings.token_type_embeddings.weight",
}
"""Numbers of rows, read from the weights where the configuration does not state them."""
_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_OPTIONAL = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
    "hidden_act",
)
_PADDED_TO = 8  # NVIDIA's code pads the vocabulary of the configuration to a multiple of this


@dataclass(frozen=True)
class Converted:
    """A model, ready to be written."""

    architecture: str
    """The class of ``transformers``."""
    config: BertConfig
    weights: dict[str, Tensor]
    """float32, by the names of ``BertForPreTraining``; tied ones once."""
    left_out: list[str]
    """What the checkpoint has and the model has not, by its name in the checkpoint."""
    notes: list[str]
    """What else was decided, in sentences."""


def assemble(renamed: Renamed, values: dict[str, Any], config_path: Path, hidden_act: str | None) -> Converted:
    """Choose the class by the heads that there are, and check names and shapes of all its weights.

    ``values``: what ``config_path`` says. Raises ``ConfigError`` for a weight that is missing, of another shape, or of
    a layer that the configuration does not have.
    """
    weights = {name: tensor.to(torch.float32) for name, tensor in renamed.weights.items()}
    tied, notes = _merge_tied(weights)
    heads = tuple(any(name.startswith(prefix) for name in weights) for prefix in ("cls.predictions.", "cls.seq_"))
    architecture = ARCHITECTURES[heads[0], heads[1]]
    config = bert_config(values, config_path, weights, renamed.gelu, hidden_act, notes)
    config.architectures, config.tie_word_embeddings = [architecture], tied
    expected = expected_shapes(architecture, config, config_path)
    if missing := [name for name in expected if name not in weights]:
        raise ConfigError(
            f"source lacks {len(missing)} of the {len(expected)} weights of {architecture}: {_few(missing)}; it is not "
            f"whole, or {config_path} is not its configuration"
        )
    extra = [name for name in weights if name not in expected]
    if layers := [name for name in extra if name.startswith("bert.encoder.layer.")]:
        raise ConfigError(
            f"source has {_few([renamed.origin[name] for name in layers])}, but {config_path} says num_hidden_layers="
            f"{config.num_hidden_layers}; give the configuration of this model"
        )
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise ConfigError(
                f"source: {renamed.origin.get(name, name)} has shape {tuple(weights[name].shape)}, {config_path} asks "
                f"for {tuple(shape)}; give the configuration of this model"
            )
        if not weights[name].isfinite().all():
            raise ConfigError(f"source: {renamed.origin.get(name, name)} has values that are not finite; it diverged")
    if renamed.heads not in (None, config.num_attention_heads):
        raise ConfigError(
            f"source has {renamed.heads} attention heads, {config_path} says num_attention_heads="
            f"{config.num_attention_heads}; give the configuration of this model"
        )
    if lacking := [head for head, there in zip(("masked-word", "next-sentence"), heads, strict=True) if not there]:
        notes.append(f"no {' and no '.join(lacking)} head: the model is a {architecture}")
    left_out = renamed.left_out + [renamed.origin[name] for name in extra]
    return Converted(architecture, config, {name: weights[name].contiguous() for name in expected}, left_out, notes)


def expected_shapes(architecture: str, config: BertConfig, config_path: Path) -> dict[str, torch.Size]:
    """The names and shapes of the weights of the class ``architecture``, tied ones once."""
    try:
        with torch.device("meta"):
            model = getattr(transformers, architecture)(config)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ConfigError(f"config {config_path} makes no BERT: {str(error).splitlines()[0]}") from None
    prefix = "bert." if architecture == "BertModel" else ""
    return {prefix + name: parameter.shape for name, parameter in model.named_parameters()}


def bert_config(
    values: dict[str, Any],
    path: Path,
    weights: dict[str, Tensor],
    gelu: str | None,
    hidden_act: str | None,
    notes: list[str],
) -> BertConfig:
    """The configuration in ``transformers``' names; sizes that ``values`` does not state are those of the weights."""
    values = {CONFIG_NAMES.get(name, name): value for name, value in values.items()}
    kind = values.get("model_type", "bert")
    if kind != "bert" or values.get("position_embedding_type", "absolute") != "absolute":
        found = kind if kind != "bert" else f"position_embedding_type={values['position_embedding_type']}"
        raise ConfigError(f"config {path} is of another architecture ({found}); allowed: BERT, absolute positions")
    if absent := [name for name in _REQUIRED if not isinstance(values.get(name), int)]:
        raise ConfigError(f"config {path} does not state {', '.join(absent)}; give the model's bert_config.json")
    known = {name: values[name] for name in (*_REQUIRED, *_OPTIONAL) if values.get(name) is not None}
    for name, weight in _SIZES.items():
        rows = len(weights[weight]) if weight in weights else None
        known[name] = values.get(name, rows)
    stated = known["vocab_size"]
    rows = len(weights[_WORDS]) if _WORDS in weights else 0
    if isinstance(stated, int) and rows != stated and rows == -(-stated // _PADDED_TO) * _PADDED_TO:
        notes.append(f"the vocabulary is padded from {stated:,} to {rows:,} rows, which are kept")
        known["vocab_size"] = rows
    act = known.get("hidden_act", "gelu")
    if hidden_act is not None:
        known["hidden_act"] = hidden_act
    elif act == "gelu" and gelu is not None:
        known["hidden_act"] = gelu
        notes.append(f"hidden_act is {gelu}: the code of this checkpoint computes that under the name gelu")
    return BertConfig(**{name: value for name, value in known.items() if value is not None})


def _merge_tied(weights: dict[str, Tensor]) -> tuple[bool, list[str]]:
    """Remove copies of tied weights from ``weights``. Returns whether the decoder is tied, and what to say if not."""
    if _BIAS not in weights and _DECODER_BIAS in weights:
        weights[_BIAS] = weights[_DECODER_BIAS]
    decoder = weights.pop(_DECODER, None)
    bias = weights.pop(_DECODER_BIAS, None)
    if bias is not None and not torch.equal(bias, weights[_BIAS]):
        raise ConfigError(f"source: {_BIAS} and {_DECODER_BIAS} are two names of one weight and differ")
    if decoder is None or (_WORDS in weights and torch.equal(decoder, weights[_WORDS])):
        return True, []
    weights[_DECODER] = decoder
    if _BIAS in weights:
        weights[_DECODER_BIAS] = weights[_BIAS]
    note = "the decoder's weights are not the word embeddings: tie_word_embeddings=false, which pretrain cannot train"
    return False, [note]


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
