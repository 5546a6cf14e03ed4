"""A faster forward pass of BERT's embeddings and layers, on the modules and weights of ``transformers``.

Each speed-up is an option of ``SpeedConfig``, so that it can be measured alone. With all of them off but
``group_by_length``, ``transformers``' own forward runs. Tests compare both, for each option and all.

``last_layer_rows`` saves half of the last layer's work: the heads read only [CLS] and the masked positions, so after
the attention only those rows are computed. ``fused_qkv`` joins three weights, which stay three parameters.
"""

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from bert_pretrain.model import varlen
from bert_pretrain.model.cpu_dropout import dropout
from bert_pretrain.model.options import SpeedConfig
from bert_pretrain.model.weight_cache import Join, join_uncached

Product = tuple[Tensor, Tensor]
"""Weight (O, I) and bias (O,) of a matrix product x @ weight.T + bias."""


class LayerWeights(NamedTuple):
    """Weights and biases of an encoder layer."""

    attention: tuple[Product, ...]
    """Query, key and value: joined into one, or three."""
    projection: Product
    intermediate: Product
    output: Product


def layer_weights(layer: Any, speed: SpeedConfig, join: Join = join_uncached) -> LayerWeights:
    """The weights of ``layer``, joined and cast by ``join``."""

    def product(*linears: Any) -> Product:
        rows = sum(linear.out_features for linear in linears)
        weights = [linear.weight for linear in linears]
        biases = [linear.bias for linear in linears]
        return join(weights, rows, 0.0), join(biases, rows, 0.0)

    attention = layer.attention.self
    three = attention.query, attention.key, attention.value
    return LayerWeights(
        (product(*three),) if speed.fused_qkv else tuple(product(linear) for linear in three),
        product(layer.attention.output.dense),
        product(layer.intermediate.dense),
        product(layer.output.dense),
    )


def embed(
    embeddings: Any, input_ids: Tensor, segment_ids: Tensor, position_ids: Tensor | None, speed: SpeedConfig
) -> Tensor:
    """Sum of word, segment and position embeddings of (B, L) int64, with LayerNorm and dropout: (B, L, H).

    ``position_ids`` None: 0 to L - 1 in each row.
    """
    places = embeddings.position_embeddings
    places = places.weight[: input_ids.shape[1]] if position_ids is None else places(position_ids)
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
    """One encoder layer on (B, L, H); after attention only on the ``rows`` (R,) of the flattened (B * L,), if given.

    ``weights``: the layer's from the weight cache; None: made here. ``mask`` (B, 1, 1, L) is added to scores if
    ``attention`` is eager; if it is sdpa, it is True for the keys to attend to. Otherwise ``attention`` is of
    ``varlen``, and ``mask`` (S + 1,) says where the samples begin that lie end to end. Returns (B, L, H), or (R, H).
    """
    weights = layer_weights(layer, speed) if weights is None else weights
    attended = _attend(layer.attention.self, weights.attention, x, mask, attention, speed)
    if rows is not None:
        attended = attended.flatten(0, 1).index_select(0, rows)
        x = x.flatten(0, 1).index_select(0, rows)
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
    """Multi-head attention on (B, L, H), without the output projection: (B, L, H)."""
    samples, length, _ = x.shape
    heads = attention.num_attention_heads
    parts = [
        part
        for product in products
        for part in F.linear(x, *product).view(samples, length, 3 // len(products), heads, -1).unbind(2)
    ]
    scaling, p = attention.scaling, _probability(attention.dropout)

    def eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:  # (..., L, H / heads)
        scores = (q * scaling) @ k.transpose(-2, -1)  # (..., L, L)
        if mask is not None:
            scores = scores + mask
        return _dropout(scores.softmax(-1), p, speed).to(v.dtype) @ v

    if implementation in ("eager", "sdpa"):
        q, k, v = (part.transpose(1, 2) for part in parts)  # (B, heads, L, H / heads)
        if implementation == "sdpa":
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        else:
            context = eager(q, k, v, mask)
        return context.transpose(1, 2).reshape(samples, length, -1)
    assert mask is not None
    q, k, v = (part.flatten(0, 1) for part in parts)  # (T, heads, H / heads)
    if implementation == varlen.FLASH:
        context = varlen.flash(q, k, v, mask, length, p, scaling)
    else:
        context = varlen.each_sample(q, k, v, mask, eager)
    return context.reshape(samples, length, -1)


def _block(output: Any, product: Product, x: Tensor, residual: Tensor, speed: SpeedConfig) -> Tensor:
    """Projection, dropout, residual and LayerNorm: the end of an attention and of a feed-forward block."""
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
