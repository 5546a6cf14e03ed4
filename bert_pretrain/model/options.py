"""Options ``model.*``, ``speed.*`` and ``precision.*``."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bert_pretrain.errors import require

if TYPE_CHECKING:
    import torch


@dataclass
class ModelConfig:
    """Options ``model.*``: the shape of the BERT, in ``transformers``' words."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    vocab_size: int
    hidden_act: str
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    initializer_range: float
    attention: str
    """``auto`` (eager on CPU, where it is faster, sdpa on GPUs), ``eager`` or ``sdpa``."""

    def __post_init__(self) -> None:
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "vocab_size",
        ):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "1 or more")
        require(
            self.hidden_size % self.num_attention_heads == 0,
            "model.hidden_size",
            self.hidden_size,
            f"a multiple of model.num_attention_heads ({self.num_attention_heads})",
        )
        activations = ("gelu", "gelu_pytorch_tanh", "relu")
        require(self.hidden_act in activations, "model.hidden_act", self.hidden_act, ", ".join(activations))
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            require(0.0 <= getattr(self, name) < 1.0, f"model.{name}", getattr(self, name), "0 up to, not including, 1")
        require(self.attention in ("auto", "eager", "sdpa"), "model.attention", self.attention, "auto, eager, sdpa")


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

    def on(self, device: "torch.device") -> "SpeedConfig":
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


@dataclass
class PrecisionConfig:
    """Options ``precision.*``."""

    compute: str
    """``auto``, ``bf16``, ``fp16`` or ``fp32``: the type of the matrix products. Weights stay float32.
    ``auto`` is bf16 where the device has instructions for it, fp16 on older GPUs, fp32 on other CPUs."""
    initial_loss_scale: float
    """fp16 only: where the loss scale starts."""
    growth_interval: int
    """fp16 only: applied steps in a row before the loss scale doubles."""
    tf32: bool
    """GPUs: products that remain in float32 round their factors to TF32's 10 bits."""
    deterministic: bool
    """GPUs: only kernels that give the same bits every time, which are slower. CPUs have no others."""

    def __post_init__(self) -> None:
        allowed = ("auto", "bf16", "fp16", "fp32")
        require(self.compute in allowed, "precision.compute", self.compute, ", ".join(allowed))
        require(
            self.initial_loss_scale > 0, "precision.initial_loss_scale", self.initial_loss_scale, "a number above 0"
        )
        require(self.growth_interval >= 1, "precision.growth_interval", self.growth_interval, "1 or more")
