"""BERT's layers, run faster than ``transformers`` runs them on the same weights.

What pretraining lets one leave out or join, each an option so that it can be measured alone:

- ``group_by_length``: nothing is computed for padding that a micro-batch shares (``data`` and ``batches`` do this).
- ``last_layer_rows``: the heads read [CLS] and the masked positions only, so behind the last attention everything
  runs on those rows: half of that layer's work is never asked for.
- ``fused_qkv``: query, key and value as one matrix product. The three weights stay three parameters.
- ``fast_dropout``: on CPU, random numbers that cost next to nothing (``dropout``).
- ``fused_loss``: on CPU, one pass of exponentials over the logits (``vocabulary_loss``).
- ``pad_vocabulary``: the vocabulary product in a width that matrix units like (``model`` does this).
- ``compile``, ``cuda_graphs``: what lies between the matrix products as few kernels (``compiling`` does this).

With all but the first off, ``transformers``' own forward runs. Parity with it is a test, for each option and for all.

The functions that take a module of ``transformers`` are what ``compiling`` compiles, each by itself: twelve layers are
one piece of compiled code, and gradients set out on their way between ranks layer by layer.
"""

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from bert_pretrain.model.cpu_dropout import dropout
from bert_pretrain.model.options import SpeedConfig
from bert_pretrain.model.weight_cache import Join, joined_once

Product = tuple[Tensor, Tensor]
"""Weight (O, I) and bias (O,) of x @ weight.T + bias."""


class LayerWeights(NamedTuple):
    """The matrix products of an encoder layer."""

    attention: tuple[Product, ...]
    """Query, key and value, joined or one by one."""
    projection: Product
    intermediate: Product
    output: Product


def layer_weights(layer: Any, speed: SpeedConfig, stack: Join = joined_once) -> LayerWeights:
    """What ``run_layer`` multiplies by."""

    def product(*linears: Any) -> Product:
        rows = sum(linear.out_features for linear in linears)
        weights, biases = [linear.weight for linear in linears], [linear.bias for linear in linears]
        return stack(weights, rows, 0.0), stack(biases, rows, 0.0)

    attention = layer.attention.self
    three = attention.query, attention.key, attention.value
    return LayerWeights(
        (product(*three),) if speed.fused_qkv else tuple(product(linear) for linear in three),
        product(layer.attention.output.dense),
        product(layer.intermediate.dense),
        product(layer.output.dense),
    )


def embed(embeddings: Any, input_ids: Tensor, segment_ids: Tensor, speed: SpeedConfig) -> Tensor:
    """Words, segments and places of (B, L) int64, normalised: (B, L, H)."""
    places = embeddings.position_embeddings.weight[: input_ids.shape[1]]
    x = embeddings.word_embeddings(input_ids) + embeddings.token_type_embeddings(segment_ids) + places
    x = embeddings.LayerNorm(x)
    return _dropout(x, _probability(embeddings.dropout), speed)


def run_layer(
    layer: Any,
    weights: LayerWeights | None,
    x: Tensor,
    mask: Tensor | None,
    rows: Tensor | None,
    attention: str,
    speed: SpeedConfig,
) -> Tensor:
    """One encoder layer on (B, L, H); behind its attention only the ``rows`` (R,) of the flattened (B * L,), if given.

    ``weights`` are the layer's, made once for many micro-batches; None: made here.
    ``mask`` (B, 1, 1, L) is added to the scores where ``attention`` is eager, and True where a key may be seen where
    it is sdpa. Returns (B, L, H), or (R, H).
    """
    weights = layer_weights(layer, speed) if weights is None else weights
    attended = _attend(layer.attention.self, weights.attention, x, mask, attention, speed)
    if rows is not None:
        attended, x = attended.flatten(0, 1).index_select(0, rows), x.flatten(0, 1).index_select(0, rows)
    x = _block(layer.attention.output, weights.projection, attended, x, speed)
    inner = layer.intermediate.intermediate_act_fn(F.linear(x, *weights.intermediate))
    return _block(layer.output, weights.output, inner, x, speed)


def _attend(
    attention: Any,
    products: tuple[Product, ...],
    x: Tensor,
    mask: Tensor | None,
    implementation: str,
    speed: SpeedConfig,
) -> Tensor:
    """Multi-head attention of (B, L, H), before its output projection: (B, L, H)."""
    samples, length, _ = x.shape
    heads = attention.num_attention_heads
    parts = [
        part
        for product in products
        for part in F.linear(x, *product).view(samples, length, 3 // len(products), heads, -1).unbind(2)
    ]
    q, k, v = (part.transpose(1, 2) for part in parts)  # (B, heads, L, H / heads)
    p = _probability(attention.dropout)
    if implementation == "sdpa":
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
    else:
        scores = (q * attention.scaling) @ k.transpose(2, 3)  # (B, heads, L, L)
        if mask is not None:
            scores = scores + mask
        context = _dropout(scores.softmax(-1), p, speed).to(v.dtype) @ v
    return context.transpose(1, 2).reshape(samples, length, -1)


def _block(output: Any, product: Product, x: Tensor, residual: Tensor, speed: SpeedConfig) -> Tensor:
    """Projection, dropout, residual and normalisation: the end of an attention and of a feed-forward."""
    x = F.linear(x, *product)
    x = _dropout(x, _probability(output.dropout), speed, residual)
    return output.LayerNorm(x)


def _probability(module: nn.Dropout) -> float:
    return module.p if module.training else 0.0


def _dropout(x: Tensor, p: float, speed: SpeedConfig, residual: Tensor | None = None) -> Tensor:
    if speed.fast_dropout:
        return dropout(x, p, residual)
    x = F.dropout(x, p)
    return x if residual is None else x + residual
