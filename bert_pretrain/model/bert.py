"""``transformers``' BERT for pretraining, returning sums of losses.

The weights are those of ``BertForPreTraining``, to the name; only the way through them differs:

- the vocabulary projection runs on the masked positions alone (15 % of all), which halves a small model's work;
- losses come back as sums, so that a step divides once by the counts of its global batch (a mean of means would
  weigh masked tokens by the micro-batch they happen to be in).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import BertConfig, BertForPreTraining

from bert_pretrain.model.cpu_vocabulary_loss import expressible, vocabulary_loss
from bert_pretrain.model.encoder import Product, embed, layer_weights, run_layer
from bert_pretrain.model.options import ModelConfig, SpeedConfig
from bert_pretrain.model.weight_cache import Join, WeightCache, joined_once

_VOCABULARY_MULTIPLE = 64  # rows of 128 bytes in bf16: what tensor cores and their loads are laid out for
_UNLIKELY = -65504.0  # the lowest number of fp16: its exponential is 0 in every type


class PretrainingSums(NamedTuple):
    """What one micro-batch adds to a step; each a 0-d tensor, the losses with gradient."""

    mlm_loss: torch.Tensor
    """Sum of the masked tokens' cross entropies, in nats."""
    nsp_loss: torch.Tensor
    """Sum of the samples' next-sentence cross entropies, in nats."""
    mlm_correct: torch.Tensor
    """Masked tokens whose most likely word is the right one."""
    nsp_correct: torch.Tensor
    """Samples whose next-sentence label is predicted."""


def decoder_weights(cls: Any, speed: SpeedConfig, stack: Join = joined_once) -> Product:
    """The vocabulary product, filled up to a good multiple where ``speed`` says so, by words that are never likely.

    The filling is no parameter: neither gradients nor trust ratios ever see it.
    """
    decoder = cls.predictions.decoder
    words = len(decoder.weight)
    rows = words + (-words % _VOCABULARY_MULTIPLE if speed.pad_vocabulary else 0)
    return stack([decoder.weight], rows, 0.0), stack([decoder.bias], rows, _UNLIKELY)


def run_heads(
    cls: Any,
    pooler: Any,
    decoder: Product | None,
    x: torch.Tensor,
    masked_labels: torch.Tensor,
    next_sentence_labels: torch.Tensor,
    speed: SpeedConfig,
) -> PretrainingSums:
    """Both heads and their losses on the last hidden states of the B [CLS] and the M masked positions: (B + M, H).

    ``decoder`` are the weights of the vocabulary product, made once for many micro-batches; None: made here.
    """
    samples = len(next_sentence_labels)
    decoder = decoder_weights(cls, speed) if decoder is None else decoder
    mlm_loss, mlm_correct = _masked_words(cls.predictions.transform(x[samples:]), decoder, masked_labels, speed)
    nsp_logits = cls.seq_relationship(pooler(x[:samples, None]))  # (B, 2); the pooler reads the first of its positions
    nsp_loss, nsp_correct = _sums(nsp_logits, next_sentence_labels)
    return PretrainingSums(mlm_loss, nsp_loss, mlm_correct, nsp_correct)


def _masked_words(
    x: torch.Tensor, decoder: Product, labels: torch.Tensor, speed: SpeedConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """The masked words' summed loss and how many are right, from (M, H)."""
    if speed.fused_loss and expressible(x, decoder[0]):
        return vocabulary_loss(x, *decoder, labels)
    return _sums(F.linear(x, *decoder), labels)  # (M, V)


def _sums(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    loss = F.cross_entropy(logits, labels, reduction="sum")
    with torch.no_grad():
        # amax vectorises on CPU where argmax does not; equal to the largest is the most likely word.
        right = logits.gather(1, labels.clamp(min=0)[:, None]).squeeze(1) == logits.amax(1)
    return loss, (right & (labels >= 0)).sum()


class Pieces(NamedTuple):
    """What the model runs one after the other, and ``compiling`` compiles one by one."""

    embed: Callable[..., torch.Tensor] = embed
    layer: Callable[..., torch.Tensor] = run_layer
    heads: Callable[..., PretrainingSums] = run_heads


class PretrainingModel(nn.Module):
    """``BertForPreTraining`` under the attribute ``bert``, run on masked positions only."""

    def __init__(self, bert: BertForPreTraining, speed: SpeedConfig) -> None:
        super().__init__()
        self.bert = bert
        self.speed = speed
        self.pieces = Pieces()
        """What runs while training; evaluation, in its own shapes and types, is never compiled."""
        self._weight_cache = WeightCache()

    def step(self) -> AbstractContextManager[None]:
        """The forward and backward passes of one step, between which no weight changes: those of the layers and of the
        vocabulary product are cast once.

        CUDA graphs cast in each replay: whatever is no parameter they would copy in each.
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
    ) -> PretrainingSums:
        """Run B samples of L tokens, M of them masked over the whole micro-batch.

        ``input_ids`` and ``segment_ids`` are (B, L); ``attention_mask`` is (B, L) or None where nothing is padded;
        ``masked_positions`` (M,) index the flattened (B * L,) tokens; ``masked_labels`` (M,) are -100 where nothing is
        to be predicted; M may be 0;
        ``next_sentence_labels`` is (B,), -100 where a sample is only filled up. All int64.
        """
        if self.speed.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # what the last micro-batch left may be overwritten
        samples, length = input_ids.shape
        attention: str = self.bert.config._attn_implementation
        mask = None if attention_mask is None else _key_mask(attention_mask, attention)
        first = torch.arange(0, samples * length, length, device=masked_positions.device)
        rows = torch.cat([first, masked_positions])
        pieces = self.pieces if self.training else Pieces()
        if self.speed.own_layers():
            x = self._encode(pieces, input_ids, segment_ids, mask, rows, attention)
        else:
            encoded = self.bert.bert(input_ids=input_ids, attention_mask=mask, token_type_ids=segment_ids)
            x = encoded.last_hidden_state.flatten(0, 1).index_select(0, rows)
        stack = self._stack()
        decoder = None if stack is None else decoder_weights(self.bert.cls, self.speed, stack)
        heads = self.bert.cls, self.bert.bert.pooler, decoder
        return pieces.heads(*heads, x, masked_labels, next_sentence_labels, self.speed)

    def _stack(self) -> Join | None:
        return self._weight_cache.stack if self._weight_cache.in_step else None

    def _encode(
        self,
        pieces: Pieces,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor,
        mask: torch.Tensor | None,
        rows: torch.Tensor,
        attention: str,
    ) -> torch.Tensor:
        """The last hidden states of ``rows`` (R,) of the flattened (B * L,): (R, H)."""
        bert: Any = self.bert.bert
        x = pieces.embed(bert.embeddings, input_ids, segment_ids, self.speed)
        stack = self._stack()
        for layer in bert.encoder.layer:
            weights = None if stack is None else layer_weights(layer, self.speed, stack)
            wanted = rows if self.speed.last_layer_rows and layer is bert.encoder.layer[-1] else None
            x = pieces.layer(layer, weights, x, mask, wanted, attention, self.speed)
        return x if self.speed.last_layer_rows else x.flatten(0, 1).index_select(0, rows)


def _key_mask(attention_mask: torch.Tensor, attention: str) -> torch.Tensor:
    """(B, L) ones and zeros as the (B, 1, 1, L) mask that the attention adds (eager) or selects by (sdpa).

    Given the (B, L) form, ``transformers`` looks whether it is all ones, which waits for the device.
    """
    allowed = attention_mask[:, None, None, :].bool()
    if attention == "sdpa":
        return allowed
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, torch.finfo(torch.float32).min)


def bert_config(config: ModelConfig, device: torch.device | None = None) -> BertConfig:
    """The ``transformers`` configuration; ``attention: auto`` is settled for ``device``."""
    shape: dict[str, Any] = asdict(config)
    attention = shape.pop("attention")
    if attention == "auto":
        attention = "sdpa" if device is not None and device.type == "cuda" else "eager"
    return BertConfig(**{**shape, "attn_implementation": attention})


def build_model(config: ModelConfig, speed: SpeedConfig, seed: int, device: torch.device) -> PretrainingModel:
    """A freshly initialised model on ``device``: the same weights for the same seed on every rank."""
    torch.manual_seed(seed)
    return PretrainingModel(BertForPreTraining(bert_config(config, device)), speed.on(device)).to(device)


def load_weights(model: PretrainingModel, folder: Path) -> None:
    """Load a ``transformers`` folder into ``model``, strictly: every name, every shape.

    Raises ``RuntimeError`` as torch does where they differ.
    """
    loaded: Any = BertForPreTraining.from_pretrained(folder, dtype=torch.float32)
    model.bert.load_state_dict(loaded.state_dict(), strict=True)


def silence_transformers() -> None:
    """No progress bars and warnings of ``transformers`` between the lines of an entry point."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
