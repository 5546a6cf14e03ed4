"""``transformers``' BERT for pretraining, with summed losses.

The weights are those of ``BertForPreTraining`` or, without next-sentence prediction, of ``BertForMaskedLM``, under the
same names. Only the forward pass differs:

- The vocabulary projection runs on the masked positions only (15 % of all), which halves the work of a small model.
- Losses are sums, so that a step divides once by the counts of its global batch. A mean of means would weight a masked
  token by the micro-batch it is in.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining

from bert_pretrain.errors import ConfigError, require
from bert_pretrain.model import varlen
from bert_pretrain.model.cpu_vocabulary_loss import supported, vocabulary_loss
from bert_pretrain.model.encoder import Product, embed, layer_weights, run_layer
from bert_pretrain.model.flops import parameter_count
from bert_pretrain.model.options import ModelConfig, SpeedConfig
from bert_pretrain.model.weight_cache import Join, WeightCache, join_uncached

_VOCABULARY_MULTIPLE = 64  # 128 bytes in bf16: the alignment that tensor cores and their loads are made for
_PAD_LOGIT = -65504.0  # the lowest number of fp16: its exponential is 0 in every type


class PretrainingSums(NamedTuple):
    """The sums over one micro-batch; each a 0-d tensor, the losses with gradient."""

    mlm_loss: torch.Tensor
    """Sum of the masked tokens' cross entropies, in nats."""
    nsp_loss: torch.Tensor
    """Sum of the samples' next-sentence cross entropies, in nats; 0 without that head, as ``nsp_correct``."""
    mlm_correct: torch.Tensor
    """Masked tokens that are predicted correctly."""
    nsp_correct: torch.Tensor
    """Samples whose next-sentence label is predicted correctly."""


def decoder_weights(cls: Any, speed: SpeedConfig, join: Join = join_uncached) -> Product:
    """Weight and bias of the vocabulary product, padded with words of probability 0 if ``speed`` asks for it.

    The padding is not part of a parameter: gradients and trust ratios do not include it.
    """
    decoder = cls.predictions.decoder
    words = len(decoder.weight)
    rows = words + (-words % _VOCABULARY_MULTIPLE if speed.pad_vocabulary else 0)
    return join([decoder.weight], rows, 0.0), join([decoder.bias], rows, _PAD_LOGIT)


def run_heads(
    cls: Any,
    pooler: Any,
    decoder: Product | None,
    x: torch.Tensor,
    masked_labels: torch.Tensor,
    next_sentence_labels: torch.Tensor,
    speed: SpeedConfig,
) -> PretrainingSums:
    """Both heads and their losses, on the last hidden states of the B [CLS] and the M masked positions: (B + M, H).

    ``pooler``: None without the next-sentence head; then ``x`` is (M, H). ``decoder``: weight and bias of the
    vocabulary product from the weight cache; None: made here.
    """
    samples = 0 if pooler is None else len(next_sentence_labels)
    decoder = decoder_weights(cls, speed) if decoder is None else decoder
    words = cls.predictions.transform(x[samples:])  # (M, H)
    if speed.fused_loss and supported(words, decoder[0]):
        mlm_loss, mlm_correct = vocabulary_loss(words, *decoder, masked_labels)
    else:
        mlm_loss, mlm_correct = _sums(F.linear(words, *decoder), masked_labels)  # (M, V)
    if pooler is None:
        return PretrainingSums(mlm_loss, mlm_loss.new_zeros(()), mlm_correct, torch.zeros_like(mlm_correct))
    nsp_logits = cls.seq_relationship(pooler(x[:samples, None]))  # (B, 2); the pooler reads the first of its positions
    nsp_loss, nsp_correct = _sums(nsp_logits, next_sentence_labels)
    return PretrainingSums(mlm_loss, nsp_loss, mlm_correct, nsp_correct)


def _sums(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    loss = F.cross_entropy(logits, labels, reduction="sum")
    with torch.no_grad():
        # amax vectorises on CPU, argmax does not: a label is predicted if its logit equals the largest.
        right = logits.gather(1, labels.clamp(min=0)[:, None]).squeeze(1) == logits.amax(1)
    return loss, (right & (labels >= 0)).sum()


class Pieces(NamedTuple):
    """The functions that the model calls in turn. ``compile`` compiles each of them separately."""

    embed: Callable[..., torch.Tensor] = embed
    layer: Callable[..., torch.Tensor] = run_layer
    heads: Callable[..., PretrainingSums] = run_heads


class PretrainingModel(nn.Module):
    """``BertForPreTraining`` or ``BertForMaskedLM`` (the attribute ``bert``), with the forward pass described above."""

    def __init__(self, bert: BertForPreTraining | BertForMaskedLM, speed: SpeedConfig) -> None:
        super().__init__()
        self.bert = bert
        self.next_sentence = isinstance(bert, BertForPreTraining)
        self.speed = speed
        self.pieces = Pieces()
        """Used in training. Evaluation has other shapes and types and is never compiled."""
        self._weight_cache = WeightCache()

    def step(self) -> AbstractContextManager[None]:
        """Context of the forward and backward passes of one step, in which no weight may change: each large weight is
        joined and cast once.

        Not with CUDA graphs, which would copy the cached weights in every replay: they cast in every replay instead.
        """
        return nullcontext() if self.speed.cuda_graphs else self._weight_cache.step()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        segment_ids: torch.Tensor,
        masked_positions: torch.Tensor,
        masked_labels: torch.Tensor,
        next_sentence_labels: torch.Tensor,
        cu_seqlens: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> PretrainingSums:
        """Run B samples of L tokens, M of them masked over the whole micro-batch.

        ``input_ids`` and ``segment_ids`` are (B, L); ``attention_mask`` is (B, L), or None without padding.
        ``masked_positions`` (M,) index the flattened (B * L,) tokens; ``masked_labels`` (M,) are -100 for padding; M
        may be 0. ``next_sentence_labels`` (B,) are -100 for padding samples; not read without that head. All int64.

        Packed, S samples of up to L tokens lie end to end in the flattened tokens: ``cu_seqlens`` (S + 1,) int32 says
        where each begins, ``position_ids`` (B, L) start at 0 in each, and ``next_sentence_labels`` are (S,).
        """
        x = self.hidden_states(input_ids, attention_mask, segment_ids, masked_positions, cu_seqlens, position_ids)
        return self.losses(x, masked_labels, next_sentence_labels)

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        segment_ids: torch.Tensor,
        masked_positions: torch.Tensor,
        cu_seqlens: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What ``losses`` reads: the last hidden states of the B (packed: S) [CLS] and the M masked positions,
        (B + M, H); without the next-sentence head (M, H). Arguments as for ``forward``.
        """
        if self.speed.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # tensors of the last micro-batch may be overwritten
        samples, length = input_ids.shape
        attention: str = self.bert.config._attn_implementation
        mask = cu_seqlens
        if cu_seqlens is not None:
            attention = varlen.choose(self.bert.config, self._dtype(input_ids.device.type), input_ids.device)
        elif attention_mask is not None:
            mask = _additive_or_boolean(attention_mask[:, None, None, :].bool(), attention)
        bert: Any = self.bert.bert
        rows = masked_positions  # those that the heads read
        if self.next_sentence:
            if cu_seqlens is None:
                first = torch.arange(0, samples * length, length, device=masked_positions.device)
            else:
                first = cu_seqlens[:-1].clamp(max=samples * length - 1)  # past the last sample there is no token
            rows = torch.cat([first, masked_positions])
        pieces, join = self._in_use()
        if self.speed.own_layers():
            x = pieces.embed(bert.embeddings, input_ids, segment_ids, position_ids, self.speed)
            for layer in bert.encoder.layer:
                weights = None if join is None else layer_weights(layer, self.speed, join)
                wanted = rows if self.speed.last_layer_rows and layer is bert.encoder.layer[-1] else None
                x = pieces.layer(layer, weights, x, mask, wanted, attention, self.speed)
        else:
            x = bert(input_ids=input_ids, attention_mask=mask, token_type_ids=segment_ids).last_hidden_state
        if not self.speed.last_layer_rows:
            x = x.flatten(0, 1).index_select(0, rows)
        return x

    def _in_use(self) -> tuple[Pieces, Join | None]:
        """The functions to compute with, and within a step what joins weights."""
        join = self._weight_cache.join if self._weight_cache.in_step else None
        return self.pieces if self.training else Pieces(), join

    def _dtype(self, device: str) -> torch.dtype:
        """The type of the matrix products."""
        dtype: torch.dtype = self.bert.dtype
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype

    def losses(
        self, x: torch.Tensor, masked_labels: torch.Tensor, next_sentence_labels: torch.Tensor
    ) -> PretrainingSums:
        """The sums of the losses, from ``hidden_states``."""
        pieces, join = self._in_use()
        decoder = None if join is None else decoder_weights(self.bert.cls, self.speed, join)
        return pieces.heads(
            self.bert.cls, self.bert.bert.pooler, decoder, x, masked_labels, next_sentence_labels, self.speed
        )


def _additive_or_boolean(allowed: torch.Tensor, attention: str) -> torch.Tensor:
    """The mask that eager adds and sdpa selects by.

    Given the (B, L) form, ``transformers`` tests whether it is all ones, which waits for the device.
    """
    if attention == "sdpa":
        return allowed
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, torch.finfo(torch.float32).min)


def bert_config(config: ModelConfig, device: torch.device | None = None) -> BertConfig:
    """The ``transformers`` configuration, with ``attention=auto`` resolved for ``device``."""
    shape: dict[str, Any] = {name: value for name, value in asdict(config).items() if value is not None}
    attention = shape.pop("attention")
    del shape["next_sentence"]  # decides between two classes of the same configuration
    if attention == "auto":
        attention = "sdpa" if device is not None and device.type == "cuda" else "eager"
    return BertConfig(**{**shape, "attn_implementation": attention})


def build_model(config: ModelConfig, speed: SpeedConfig, seed: int, device: torch.device) -> PretrainingModel:
    """A newly initialised model on ``device``: the same weights for the same seed on every rank.

    Raises ``ConfigError`` for one that is larger than the memory of this machine.
    """
    count = parameter_count(config)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * count > memory:
        raise ConfigError(
            f"the options model.* make {count:,} parameters, {count / 2**28:,.0f} GiB of weights, and this machine has "
            f"{memory / 2**30:,.0f} GiB of memory; give a smaller model"
        )
    torch.manual_seed(seed)
    architecture = BertForPreTraining if config.next_sentence else BertForMaskedLM
    return PretrainingModel(architecture(bert_config(config, device)), speed.on(device)).to(device)


def resolve_packing(speed: SpeedConfig, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> SpeedConfig:
    """``speed`` with ``packing=null`` resolved for products in ``dtype``: on where a kernel serves, see ``varlen``.

    Raises ``ConfigError`` for packing in compiled code without one.
    """
    kernel = varlen.has_kernel(bert_config(config, device), dtype, device)
    allowed = "false with speed.compile, unless on a GPU as of compute capability 8.0, in fp16 or bf16, with sdpa"
    require(not speed.packing or kernel or not speed.on(device).compile, "speed.packing", True, allowed)
    return replace(speed, packing=kernel if speed.packing is None else speed.packing)


def load_weights(model: PretrainingModel, folder: Path) -> None:
    """Load a ``transformers`` folder into ``model``. Raises ``RuntimeError`` if a name or shape differs."""
    architecture: Any = type(model.bert)
    loaded, report = architecture.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if lacking := sorted(report["missing_keys"]):  # transformers draws them at random
        raise RuntimeError(f"it lacks weights, such as {lacking[0]}")
    model.bert.load_state_dict(loaded.state_dict(), strict=True)


def silence_transformers() -> None:
    """Turn off the progress bars and warnings of ``transformers``."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
