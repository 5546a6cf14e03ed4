"""Model FLOPs and parameter count.

A multiply-add is two FLOPs and the backward pass costs twice the forward pass, so a weight costs six per token. Only
real tokens and predicted positions count, not padding and unused logits. A sample of S real tokens with M masked ones
costs, with width h, feed-forward width f, n layers and vocabulary V:

    6 S n (4 h^2 + 2 h f)  +  12 n h S^2  +  6 M (h^2 + h V)  +  6 (h^2 + 2 h)

for the encoder weights, the attention products, the masked-LM head, and the pooler with the next-sentence head, if the
model has them.

With frozen parameters there is less backward work: a third of the six, the gradient of the weight, is only there if the
weight is trained; another, the gradient of the input, if anything before it is. The attention products have both
gradients if any of what is before them is trained, else none.
"""

from collections.abc import Container, Iterable

from bert_pretrain.model.options import ModelConfig


def training_flops(
    model: ModelConfig,
    samples: float,
    tokens: float,
    squared_lengths: float,
    masked_tokens: float,
    frozen: Container[str] = (),
) -> float:
    """FLOPs of the forward and backward pass over ``samples`` samples with ``tokens`` real tokens in total.

    ``squared_lengths``: the sum over samples of the squared number of real tokens. ``frozen``: parameters that are not
    trained, by their names in ``transformers``.
    """
    h, f, v = model.hidden_size, model.intermediate_size, model.vocab_size
    embeddings = [f"{name}_embeddings.weight" for name in ("word", "position", "token_type")]
    below = _any_trained(
        "bert.embeddings.", [*embeddings, "LayerNorm.weight", "LayerNorm.bias"], frozen
    )  # whether the gradient of what comes now is needed
    encoder = attention = 0.0
    for number in range(model.num_hidden_layers):
        layer = f"bert.encoder.layer.{number}."
        inputs = [f"attention.self.{name}" for name in ("query", "key", "value")]
        encoder += sum(_weight_flops(h * h, f"{layer}{name}", below, frozen) for name in inputs)
        below = below or any(_trained_linear(f"{layer}{name}", frozen) for name in inputs)
        attention += 12.0 * h if below else 4.0 * h
        rest = ("attention.output.dense", h * h), ("intermediate.dense", h * f), ("output.dense", h * f)
        for name, size in rest:
            encoder += _weight_flops(size, f"{layer}{name}", below, frozen)
            norm = f"{layer}{name.removesuffix('dense')}LayerNorm"
            below = below or _trained_linear(f"{layer}{name}", frozen)
            below = below or (name != "intermediate.dense" and _trained_linear(norm, frozen))
    transform, head = (
        "cls.predictions.transform.",
        _weight_flops(h * h, "cls.predictions.transform.dense", below, frozen),
    )
    reached = below or any(_trained_linear(f"{transform}{name}", frozen) for name in ("dense", "LayerNorm"))
    tied = "bert.embeddings.word_embeddings"
    head += _weight_flops(h * v, tied, reached, frozen)
    next_sentence = 0.0
    if model.next_sentence:
        pooler = "bert.pooler.dense"
        next_sentence = _weight_flops(h * h, pooler, below, frozen)
        next_sentence += _weight_flops(2 * h, "cls.seq_relationship", below or _trained_linear(pooler, frozen), frozen)
    return tokens * encoder + squared_lengths * attention + masked_tokens * head + samples * next_sentence


def _weight_flops(size: int, name: str, below: bool, frozen: Container[str]) -> float:
    """FLOPs per row of the product with a weight of ``size`` elements; ``below``: its input needs a gradient."""
    return 2.0 * size * (1 + below + (f"{name}.weight" not in frozen))


def _trained_linear(name: str, frozen: Container[str]) -> bool:
    return _any_trained(f"{name}.", ("weight", "bias"), frozen)


def _any_trained(prefix: str, names: Iterable[str], frozen: Container[str]) -> bool:
    return any(prefix + name not in frozen for name in names)


def parameter_count(model: ModelConfig) -> int:
    """Parameters of ``BertForPreTraining``, or of ``BertForMaskedLM``; the tied decoder counts once."""
    h, f, v = model.hidden_size, model.intermediate_size, model.vocab_size
    embeddings = (v + model.max_position_embeddings + (model.type_vocab_size or 2)) * h + 2 * h
    layer = 4 * (h * h + h) + 2 * h * f + f + h + 4 * h
    masked_words = h * h + h + 2 * h + v
    next_sentence = (h * h + h) + (2 * h + 2) if model.next_sentence else 0  # the pooler and its head
    return embeddings + model.num_hidden_layers * layer + masked_words + next_sentence
