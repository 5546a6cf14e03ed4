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

from collections.abc import Container

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

    def trained(*modules: str) -> bool:
        return any(f"{name}.{param}" not in frozen for name in modules for param in ("weight", "bias"))

    def product(size: int, name: str, below: bool) -> float:
        """FLOPs per row of the product with a weight of ``size`` elements; ``below``: its input needs a gradient."""
        return 2.0 * size * (1 + below + (f"{name}.weight" not in frozen))

    tables = [f"bert.embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")]
    below = any(table not in frozen for table in tables) or trained("bert.embeddings.LayerNorm")
    encoder = attention = 0.0
    for number in range(model.num_hidden_layers):
        layer = f"bert.encoder.layer.{number}"
        inputs = [f"{layer}.attention.self.{name}" for name in ("query", "key", "value")]
        encoder += sum(product(h * h, name, below) for name in inputs)
        below = below or trained(*inputs)
        attention += 12.0 * h if below else 4.0 * h
        encoder += product(h * h, f"{layer}.attention.output.dense", below)
        below = below or trained(f"{layer}.attention.output.dense", f"{layer}.attention.output.LayerNorm")
        encoder += product(h * f, f"{layer}.intermediate.dense", below)
        below = below or trained(f"{layer}.intermediate.dense")
        encoder += product(h * f, f"{layer}.output.dense", below)
        below = below or trained(f"{layer}.output.dense", f"{layer}.output.LayerNorm")
    transform = "cls.predictions.transform"
    head = product(h * h, f"{transform}.dense", below)
    tied = "bert.embeddings.word_embeddings"  # the decoder's weight
    head += product(h * v, tied, below or trained(f"{transform}.dense", f"{transform}.LayerNorm"))
    next_sentence = 0.0
    if model.next_sentence:
        next_sentence = product(h * h, "bert.pooler.dense", below)
        next_sentence += product(2 * h, "cls.seq_relationship", below or trained("bert.pooler.dense"))
    return tokens * encoder + squared_lengths * attention + masked_tokens * head + samples * next_sentence


def parameter_count(model: ModelConfig) -> int:
    """Parameters of ``BertForPreTraining``, or of ``BertForMaskedLM``; the tied decoder counts once."""
    h, f, v = model.hidden_size, model.intermediate_size, model.vocab_size
    embeddings = (v + model.max_position_embeddings + (model.type_vocab_size or 2)) * h + 2 * h
    layer = 4 * (h * h + h) + 2 * h * f + f + h + 4 * h
    masked_words = h * h + h + 2 * h + v
    next_sentence = (h * h + h) + (2 * h + 2) if model.next_sentence else 0  # the pooler and its head
    return embeddings + model.num_hidden_layers * layer + masked_words + next_sentence
