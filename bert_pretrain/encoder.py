"""BERT's layers, run faster than ``transformers`` runs them on the same weights.

What pretraining lets one leave out or join, each an option so that it can be measured alone:

- ``group_by_length``: nothing is computed for padding that a micro-batch shares (``data`` and ``batches`` do this).
- ``last_layer_rows``: the heads read [CLS] and the masked positions only, so behind the last attention everything
  runs on those rows: half of that layer's work is never asked for.
- ``fused_qkv``: query, key and value as one matrix product. The three weights stay three parameters.
- ``fast_dropout``: on CPU, random numbers that cost next to nothing (``dropout``).

With the last three off, ``transformers``' own forward runs. Parity with it is a test, for each option and for all.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert_pretrain.dropout import dropout


@dataclass(frozen=True)
class _Attended:
    """How rows of a micro-batch see each other."""

    samples: int
    length: int
    mask: Tensor | None
    """(B, 1, 1, L): added to the scores (eager), or True where a key may be seen (sdpa)."""
    implementation: str


@dataclass
class SpeedConfig:
    """Options ``speed.*``: ways to the same weights in less time."""

    group_by_length: bool
    """Put samples of like length into a micro-batch, and cut off the padding that they share."""
    last_layer_rows: bool
    """Behind the last attention, compute only the rows that the losses read."""
    fused_qkv: bool
    """Query, key and value of a layer as one matrix product."""
    fast_dropout: bool
    """CPU: dropout by vectorised random numbers; another draw than torch's, of the same distribution."""

    def own_layers(self) -> bool:
        """Whether the layers run here; otherwise ``transformers``' own forward does."""
        return self.last_layer_rows or self.fused_qkv or self.fast_dropout


def encode(
    bert: Any, input_ids: Tensor, mask: Tensor | None, segment_ids: Tensor, positions: Tensor, speed: SpeedConfig
) -> tuple[Tensor, Tensor]:
    """Run a ``transformers`` ``BertModel`` (any of its float dtypes) on B samples of L tokens.

    ``input_ids`` and ``segment_ids`` (B, L) int64; ``mask`` (B, 1, 1, L) as the attention takes it, or None;
    ``positions`` (M,) into the flattened (B * L,). Returns the last hidden states of [CLS], (B, H), and of the
    positions, (M, H).
    """
    config: Any = bert.config
    samples, length = input_ids.shape
    seen = _Attended(samples, length, mask, config._attn_implementation)
    rows = torch.cat([torch.arange(0, samples * length, length, device=positions.device), positions])
    x = _embed(bert.embeddings, input_ids, segment_ids, speed).flatten(0, 1)  # (B * L, H)
    layers = bert.encoder.layer
    for index, layer in enumerate(layers):
        attended = _attend(layer.attention.self, x, seen, speed)
        if speed.last_layer_rows and index == len(layers) - 1:
            attended, x = attended.index_select(0, rows), x.index_select(0, rows)
        x = _block(layer.attention.output, attended, x, speed)
        inner = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(x))
        x = _block(layer.output, inner, x, speed)
    if not speed.last_layer_rows:
        x = x.index_select(0, rows)
    return x[:samples], x[samples:]


def _embed(embeddings: Any, input_ids: Tensor, segment_ids: Tensor, speed: SpeedConfig) -> Tensor:
    """(B, L, H): words, segments and places, normalised."""
    places = embeddings.position_embeddings.weight[: input_ids.shape[1]]
    x = embeddings.word_embeddings(input_ids) + embeddings.token_type_embeddings(segment_ids) + places
    x = embeddings.LayerNorm(x)
    return _dropout(x, _probability(embeddings.dropout), speed)


def _attend(attention: Any, x: Tensor, seen: _Attended, speed: SpeedConfig) -> Tensor:
    """Multi-head attention of (B * L, H) rows, before its output projection: (B * L, H)."""
    query, key, value = attention.query, attention.key, attention.value
    if speed.fused_qkv:
        weight = torch.cat([query.weight, key.weight, value.weight])
        joined = F.linear(x, weight, torch.cat([query.bias, key.bias, value.bias]))
        parts = joined.view(seen.samples, seen.length, 3, attention.num_attention_heads, -1).unbind(2)
    else:
        parts = tuple(
            linear(x).view(seen.samples, seen.length, attention.num_attention_heads, -1)
            for linear in (query, key, value)
        )
    q, k, v = (part.transpose(1, 2) for part in parts)  # (B, heads, L, H / heads)
    p = _probability(attention.dropout)
    if seen.implementation == "sdpa":
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=seen.mask, dropout_p=p)
    else:
        scores = (q * attention.scaling) @ k.transpose(2, 3)  # (B, heads, L, L)
        if seen.mask is not None:
            scores = scores + seen.mask
        context = _dropout(scores.softmax(-1), p, speed).to(v.dtype) @ v
    return context.transpose(1, 2).reshape(len(x), -1)


def _block(output: Any, x: Tensor, residual: Tensor, speed: SpeedConfig) -> Tensor:
    """Projection, dropout, residual and normalisation: the end of an attention and of a feed-forward."""
    x = output.dense(x)
    x = _dropout(x, _probability(output.dropout), speed, residual)
    return output.LayerNorm(x)


def _probability(module: nn.Dropout) -> float:
    return module.p if module.training else 0.0


def _dropout(x: Tensor, p: float, speed: SpeedConfig, residual: Tensor | None = None) -> Tensor:
    if speed.fast_dropout:
        return dropout(x, p, residual)
    x = F.dropout(x, p)
    return x if residual is None else x + residual
