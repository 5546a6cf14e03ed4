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

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert_pretrain.errors import require
from bert_pretrain.model.cpu_dropout import dropout
from bert_pretrain.model.weight_cache import Stack, stacked


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
    fused_loss: bool
    """CPU, in float32: vocabulary product and cross entropy in one piece."""
    pad_vocabulary: bool | None
    """Fill the vocabulary up to a multiple of 64 for its product; weights, gradients and files keep their size.
    null: on GPUs."""
    compile: bool | None
    """torch.compile, a layer at a time, in a few fixed shapes that are compiled before the first step.
    null: on GPUs; on CPUs it gains nothing."""
    cuda_graphs: bool
    """With ``compile``: replay kernels instead of launching them. Pays below some 8,192 tokens a micro-batch."""

    def own_layers(self) -> bool:
        """Whether the layers run here; otherwise ``transformers``' own forward does."""
        return any((self.last_layer_rows, self.fused_qkv, self.fast_dropout, self.pad_vocabulary, self.compile))

    def on(self, device: torch.device) -> "SpeedConfig":
        """These options with null settled for ``device``, and what it has no use for off.

        Raises ``ConfigError`` for graphs that cannot be.
        """
        gpu = device.type == "cuda"
        compiled = gpu if self.compile is None else self.compile
        allowed = not self.cuda_graphs or (gpu and compiled)
        require(allowed, "speed.cuda_graphs", True, "false, unless the device is a GPU and speed.compile is on")
        padded = gpu if self.pad_vocabulary is None else self.pad_vocabulary
        kept = {name: getattr(self, name) and not gpu for name in ("fast_dropout", "fused_loss")}
        return replace(self, compile=compiled, pad_vocabulary=padded, **kept)


Product = tuple[Tensor, Tensor]
"""Weight (O, I) and bias (O,) of x @ weight.T + bias."""


class LayerWeights(NamedTuple):
    """The matrix products of an encoder layer."""

    attention: tuple[Product, ...]
    """Query, key and value, joined or one by one."""
    projection: Product
    intermediate: Product
    output: Product


def layer_weights(layer: Any, speed: SpeedConfig, stack: Stack = stacked) -> LayerWeights:
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
