"""Model FLOPs and parameter count.

A multiply-add is two FLOPs and the backward pass costs twice the forward pass, so a weight costs six per token. Only
real tokens and predicted positions count, not padding and unused logits. A sample of S real tokens with M masked ones
costs, with width h, feed-forward width f, n layers and vocabulary V:

    6 S n (4 h^2 + 2 h f)  +  12 n h S^2  +  6 M (h^2 + h V)  +  6 (h^2 + 2 h)

for the encoder weights, the attention products, the masked-LM head, and the pooler with the next-sentence head, if the
model has them.
"""

from bert_pretrain.model.options import ModelConfig


def training_flops(
    model: ModelConfig, samples: float, tokens: float, squared_lengths: float, masked_tokens: float
) -> float:
    """FLOPs of the forward and backward pass over ``samples`` samples with ``tokens`` real tokens in total.

    ``squared_lengths``: the sum over samples of the squared number of real tokens.
    """
    h, f, n, v = model.hidden_size, model.intermediate_size, model.num_hidden_layers, model.vocab_size
    encoder = 6.0 * tokens * n * (4 * h * h + 2 * h * f)
    attention = 12.0 * n * h * squared_lengths
    head = 6.0 * masked_tokens * (h * h + h * v)
    next_sentence = 6.0 * samples * (h * h + 2 * h) if model.next_sentence else 0.0
    return encoder + attention + head + next_sentence


def parameter_count(model: ModelConfig) -> int:
    """Parameters of ``BertForPreTraining``, or of ``BertForMaskedLM``; the tied decoder counts once."""
    h, f, v = model.hidden_size, model.intermediate_size, model.vocab_size
    embeddings = (v + model.max_position_embeddings + (model.type_vocab_size or 2)) * h + 2 * h
    layer = 4 * (h * h + h) + 2 * h * f + f + h + 4 * h
    masked_words = h * h + h + 2 * h + v
    next_sentence = (h * h + h) + (2 * h + 2) if model.next_sentence else 0  # the pooler and its head
    return embeddings + model.num_hidden_layers * layer + masked_words + next_sentence
