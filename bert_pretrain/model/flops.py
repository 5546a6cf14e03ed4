"""Model FLOPs by the stated convention, and parameters.

A multiply-add is two FLOPs, the backward pass costs twice the forward pass, so every weight used by a token costs
six. Only real tokens and predicted positions count: padding and unused logits are no work done. For a sample of S
real tokens with M masked ones, h the width, f the feed-forward width, n the layers, V the vocabulary:

    6 S n (4 h^2 + 2 h f)  +  12 n h S^2  +  6 M (h^2 + h V)  +  6 (h^2 + 2 h)

the weights of the encoder, the attention products, the masked-word head, the pooler and next-sentence head.
"""

from bert_pretrain.model.options import ModelConfig


def training_flops(
    model: ModelConfig, samples: float, tokens: float, squared_lengths: float, masked_tokens: float
) -> float:
    """FLOPs of forward and backward over ``samples`` with that many real ``tokens`` in all.

    ``squared_lengths`` is the sum over samples of the squared number of real tokens.
    """
    h, f, n, v = model.hidden_size, model.intermediate_size, model.num_hidden_layers, model.vocab_size
    encoder = 6.0 * tokens * n * (4 * h * h + 2 * h * f)
    attention = 12.0 * n * h * squared_lengths
    head = 6.0 * masked_tokens * (h * h + h * v)
    return encoder + attention + head + 6.0 * samples * (h * h + 2 * h)


def parameter_count(model: ModelConfig) -> int:
    """Parameters of ``BertForPreTraining``, the tied decoder counted once."""
    h, f, v = model.hidden_size, model.intermediate_size, model.vocab_size
    embeddings = (v + model.max_position_embeddings + 2) * h + 2 * h
    layer = 4 * (h * h + h) + 2 * h * f + f + h + 4 * h
    heads = (h * h + h) + (h * h + h + 2 * h + v) + (2 * h + 2)
    return embeddings + model.num_hidden_layers * layer + heads
