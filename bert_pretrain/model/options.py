"""Options ``model.*``, ``speed.*`` and ``precision.*``."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from bert_pretrain.errors import require, require_choice, require_least, require_positive

if TYPE_CHECKING:
    import torch

    # null is "as in init_from". hub/shape.py replaces every null when a command starts; all later code sees values.
    Number = int
    Share = float
    Name = str
else:
    Number = int | None
    Share = float | None
    Name = str | None

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


@dataclass
class ModelConfig:
    """Options ``model.*``: the shape of the BERT, named as in ``transformers``. null: as in the model of init_from."""

    hidden_size: Number
    """Width of the hidden states, a multiple of ``num_attention_heads``."""
    num_hidden_layers: Number
    """Encoder layers."""
    num_attention_heads: Number
    """Attention heads of a layer."""
    intermediate_size: Number
    """Width of the feed-forward part of a layer."""
    max_position_embeddings: Number
    """Position embeddings: the longest sequence that the model can read, in tokens."""
    vocab_size: Number
    """Entries of the vocabulary, at least those of the shards' tokenizer. null: as in the model of init_from, or more
    if that tokenizer has more."""
    hidden_act: Name
    """Activation function: ``gelu``, ``gelu_new``, ``gelu_pytorch_tanh``, ``relu`` or ``silu``."""
    hidden_dropout_prob: Share
    """Dropout of embeddings and layer outputs, in [0, 1)."""
    attention_probs_dropout_prob: Share
    """Dropout of attention weights, in [0, 1)."""
    initializer_range: Share
    """Standard deviation of the initial weights."""
    attention: str
    """Implementation of attention: ``eager``, ``sdpa`` (torch's fused kernels), or ``auto``: sdpa on GPUs, eager on
    CPUs, where it is faster."""
    next_sentence: bool
    """Next-sentence prediction beside masked words. false: no label is read, the model has no pooler and no such head,
    and is saved as ``BertForMaskedLM``."""
    layer_norm_eps: float | None = None
    """Added to the variance in LayerNorm. null: as in the model of init_from, without one 1e-12."""
    type_vocab_size: int | None = None
    """Kinds of segments, 2 or more. null: as in the model of init_from, without one 2."""
    pad_token_id: int | None = None
    """The token of padding. Its embedding is trained through the decoder alone, whose weights are the same. null: as
    in the model of init_from, without one 0."""

    def __post_init__(self) -> None:
        given = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
        require_least(1, self, *SIZES, "max_position_embeddings", "vocab_size", prefix="model.")
        require_least(2, self, "type_vocab_size", prefix="model.")
        require_least(0, self, "initializer_range", prefix="model.")
        require_positive(self, "layer_norm_eps", prefix="model.")
        heads = given.get("num_attention_heads", 1)
        width = given.get("hidden_size", 0)
        require(width % heads == 0, "model.hidden_size", width, f"a multiple of model.num_attention_heads ({heads})")
        activations = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")
        require_choice("model.hidden_act", given.get("hidden_act", "gelu"), activations)
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            share = given.get(name, 0.0)
            require(0.0 <= share < 1.0, f"model.{name}", share, "0 up to, not including, 1")
        pad = given.get("pad_token_id", 0)
        words = given.get("vocab_size", 1 << 31)
        require(0 <= pad < words, "model.pad_token_id", pad, "a token of the vocabulary")
        require_choice("model.attention", self.attention, ("auto", "eager", "sdpa"))


@dataclass
class SpeedConfig:
    """Options ``speed.*``: faster ways to compute the same update."""

    group_by_length: bool
    """Put samples of similar length into one micro-batch and cut off their common padding."""
    packing: bool | None
    """Instead: lay samples end to end, without attention between them, and fill micro-batches by tokens:
    ``batch.micro_batch_size`` times ``data.sequence_length``. The same losses. null: on GPUs from compute
    capability 8.0 on, in fp16 or bf16."""
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
        own = self.packing, self.last_layer_rows, self.fused_qkv, self.fast_dropout, self.pad_vocabulary, self.compile
        return any(own)

    def on(self, device: "torch.device") -> "SpeedConfig":
        """These options with every null resolved for ``device``, and options for other devices off.

        ``packing=null`` is off here: whether a kernel serves is not a matter of these options alone.

        Raises ``ConfigError`` for CUDA graphs without a GPU or without ``compile``.
        """
        gpu = device.type == "cuda"
        compiled = gpu if self.compile is None else self.compile
        allowed = not self.cuda_graphs or (gpu and compiled)
        require(allowed, "speed.cuda_graphs", True, "false, unless the device is a GPU and speed.compile is on")
        padded = gpu if self.pad_vocabulary is None else self.pad_vocabulary
        on_cpu = {name: getattr(self, name) and not gpu for name in ("fast_dropout", "fused_loss")}
        return replace(self, compile=compiled, pad_vocabulary=padded, packing=bool(self.packing), **on_cpu)


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
        require_choice("precision.compute", self.compute, ("auto", "bf16", "fp16", "fp32"))
        require_positive(self, "initial_loss_scale", prefix="precision.")
        require_least(1, self, "growth_interval", prefix="precision.")
