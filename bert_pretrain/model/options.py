"""Options ``model.*``, ``speed.*`` and ``precision.*``."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from bert_pretrain.errors import require

if TYPE_CHECKING:
    import torch


@dataclass
class ModelConfig:
    """Options ``model.*``: the shape of the BERT, named as in ``transformers``."""

    hidden_size: int
    """Width of the hidden states, a multiple of ``num_attention_heads``."""
    num_hidden_layers: int
    """Encoder layers."""
    num_attention_heads: int
    """Attention heads of a layer."""
    intermediate_size: int
    """Width of the feed-forward part of a layer."""
    max_position_embeddings: int
    """Position embeddings: the longest sequence that the model can read, in tokens."""
    vocab_size: int
    """Entries of the vocabulary; must be those of the shards' tokenizer."""
    hidden_act: str
    """Activation function: ``gelu``, ``gelu_pytorch_tanh`` or ``relu``."""
    hidden_dropout_prob: float
    """Dropout of embeddings and layer outputs, in [0, 1)."""
    attention_probs_dropout_prob: float
    """Dropout of attention weights, in [0, 1)."""
    initializer_range: float
    """Standard deviation of the initial weights."""
    attention: str
    """Implementation of attention: ``eager``, ``sdpa`` (torch's fused kernels), or ``auto``: sdpa on GPUs, eager on
    CPUs, where it is faster."""
    next_sentence: bool
    """Next-sentence prediction beside masked words. false: no label is read, the model has no pooler and no such head,
    and is saved as ``BertForMaskedLM``."""

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self) if field.type is int):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "1 or more")
        allowed = f"a multiple of model.num_attention_heads ({self.num_attention_heads})"
        require(self.hidden_size % self.num_attention_heads == 0, "model.hidden_size", self.hidden_size, allowed)
        activations = ("gelu", "gelu_pytorch_tanh", "relu")
        require(self.hidden_act in activations, "model.hidden_act", self.hidden_act, ", ".join(activations))
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            require(0.0 <= getattr(self, name) < 1.0, f"model.{name}", getattr(self, name), "0 up to, not including, 1")
        require(self.attention in ("auto", "eager", "sdpa"), "model.attention", self.attention, "auto, eager, sdpa")


@dataclass
class SpeedConfig:
    """Options ``speed.*``: faster ways to compute the same update."""

    group_by_length: bool
    """Put samples of similar length into one micro-batch and cut off their common padding."""
    packing: bool
    """Instead: lay samples end to end in rows of data.sequence_length tokens, without attention between them. The same
    losses."""
    last_layer_rows: bool
    """In the last layer, after attention, compute only the positions that the losses read."""
    fused_qkv: bool
    """Compute query, key and value of a layer in one matrix product."""
    fast_dropout: bool
    """CPU: draw dropout masks with vectorised random numbers. Same distribution as torch's, other masks."""
    fused_loss: bool
    """CPU, float32: compute the cross entropy of the vocabulary logits in one pass instead of torch's ten."""
    pad_vocabulary: bool | None
    """Pad the vocabulary product to a multiple of 64, which tensor cores prefer. Weights, gradients and files keep
    their size. null: on GPUs."""
    compile: bool | None
    """torch.compile, layer by layer, for a few fixed shapes that are compiled before the first step. null: on GPUs; it
    gains nothing on CPUs."""
    cuda_graphs: bool
    """With ``compile``: replay CUDA graphs instead of launching kernels. Gains below about 8,192 tokens per
    micro-batch."""

    def own_layers(self) -> bool:
        """Whether this project's layers run; otherwise ``transformers``' forward does."""
        return any((self.last_layer_rows, self.fused_qkv, self.fast_dropout, self.pad_vocabulary, self.compile))

    def on(self, device: "torch.device") -> "SpeedConfig":
        """These options with every null resolved for ``device``, and options for other devices off.

        Raises ``ConfigError`` for CUDA graphs without a GPU or without ``compile``.
        """
        gpu = device.type == "cuda"
        compiled = gpu if self.compile is None else self.compile
        allowed = not self.cuda_graphs or (gpu and compiled)
        require(allowed, "speed.cuda_graphs", True, "false, unless the device is a GPU and speed.compile is on")
        padded = gpu if self.pad_vocabulary is None else self.pad_vocabulary
        on_cpu = {name: getattr(self, name) and not gpu for name in ("fast_dropout", "fused_loss")}
        return replace(self, compile=compiled, pad_vocabulary=padded, **on_cpu)


@dataclass
class PrecisionConfig:
    """Options ``precision.*``."""

    compute: str
    """Type of the matrix products: ``bf16``, ``fp16`` (GPUs only), ``fp32``, or ``auto``: bf16 if the device has
    instructions for it, else fp16 on GPUs and fp32 on CPUs. Weights stay float32."""
    initial_loss_scale: float
    """fp16: initial loss scale, above 0."""
    growth_interval: int
    """fp16: the loss scale doubles after this many applied steps in a row."""
    tf32: bool
    """GPUs: let float32 matrix products round their inputs to TF32 (10 bits of mantissa)."""
    deterministic: bool
    """GPUs: use only deterministic kernels, which are slower. CPU kernels are always deterministic."""

    def __post_init__(self) -> None:
        allowed = ("auto", "bf16", "fp16", "fp32")
        require(self.compute in allowed, "precision.compute", self.compute, ", ".join(allowed))
        scale = self.initial_loss_scale
        require(scale > 0, "precision.initial_loss_scale", scale, "a number above 0")
        require(self.growth_interval >= 1, "precision.growth_interval", self.growth_interval, "1 or more")
