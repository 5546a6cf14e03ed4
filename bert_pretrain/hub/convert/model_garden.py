"""TensorFlow 2 checkpoints of the model garden, https://github.com/tensorflow/models, official/nlp.

Such a checkpoint names a variable by its path in the graph of objects: ``BertEncoderV2`` and ``BertPretrainerV2`` by
attributes (``_transformer_layers/0``), ``BertEncoder`` and ``BertPretrainer`` by the number of a layer among those with
weights: 0 to 2 embeddings, 3 their norm, then the encoder, last the pooler. Query, key and value kernels are (H, heads,
H / heads), the attention's output is (heads, H / heads, H). A shared variable has one of its names: with a head, the
word embeddings may be the head's ``embedding_table``.
"""

import re
from collections.abc import Iterable

from torch import Tensor

from bert_pretrain.hub.convert.layout import KERNEL, LAYER_NORM, Layout, Rules

SUFFIX = r"/\.ATTRIBUTES/VARIABLE_VALUE$"
_QUERY = r"^(.*?)(_transformer_layers/|layer_with_weights-)(\d+)/_attention_layer/_query_dense/kernel" + SUFFIX
MARK = _QUERY

_IN_LAYER: Rules = (
    (r"/_attention_layer/_(query|key|value)_dense/", r".attention.self.\1."),
    (r"/(_attention_layer/_output_dense|_attention_output_dense)/", ".attention.output.dense."),
    (r"/_attention_layer_norm/", ".attention.output.LayerNorm."),
    (r"/_intermediate_dense/", ".intermediate.dense."),
    (r"/_output_dense/", ".output.dense."),
    (r"/_output_layer_norm/", ".output.LayerNorm."),
)
_BY_ATTRIBUTE = (
    ("_embedding_layer/embeddings$", "bert.embeddings.word_embeddings.weight"),
    ("_position_embedding_layer/(_position_)?embeddings$", "bert.embeddings.position_embeddings.weight"),
    ("_type_embedding_layer/embeddings$", "bert.embeddings.token_type_embeddings.weight"),
    ("_embedding_norm_layer/", "bert.embeddings.LayerNorm."),
    ("_pooler_layer/", "bert.pooler.dense."),
)
_BY_NUMBER = (
    ("layer_with_weights-0/embeddings$", "bert.embeddings.word_embeddings.weight"),
    ("layer_with_weights-1/(_position_)?embeddings$", "bert.embeddings.position_embeddings.weight"),
    ("layer_with_weights-2/embeddings$", "bert.embeddings.token_type_embeddings.weight"),
    ("layer_with_weights-3/", "bert.embeddings.LayerNorm."),
)
_FIRST = 4  # the number of the first encoder layer


def garden_layout(names: Iterable[str]) -> Layout:
    """The layout of a checkpoint with ``names``, of which one matches ``MARK``."""
    names = list(names)
    found = [match for name in names if (match := re.match(_QUERY, name))]
    prefix, kind = re.escape(found[0][1]), found[0][2]
    if kind == "_transformer_layers/":
        outside = _BY_ATTRIBUTE
        layers = [(f"_transformer_layers/{number}/", number) for number in range(len(found))]
    else:
        pooler = f"layer_with_weights-{_FIRST + len(found)}/"
        outside = (*_BY_NUMBER, (pooler, "bert.pooler.dense."))
        layers = [(f"layer_with_weights-{_FIRST + number}/", number) for number in range(len(found))]
    encoder: Rules = (
        *((rf"^{prefix}{pattern}", target) for pattern, target in outside),
        *((rf"^{prefix}{pattern}", rf"bert.encoder.layer.{number}/") for pattern, number in layers),
    )
    return Layout(
        title="TensorFlow 2, model garden",
        mark=MARK,
        rules=(
            (SUFFIX, ""),
            *_masked_words(names),
            *_next_sentence(names, prefix),
            *encoder,
            *_IN_LAYER,
            KERNEL,
            *LAYER_NORM,
        ),
        reshape=_as_matrix,
        gelu="gelu_pytorch_tanh",
    )


def _masked_words(names: list[str]) -> Rules:
    """The rules for the head with the output bias, an attribute called ``output_bias/bias``."""
    for name in names:
        if match := re.match(rf"^(.*/)output_bias\.Sbias{SUFFIX}", name):
            head = re.escape(match[1])
            return (
                (rf"^{head}dense/", "cls.predictions.transform.dense."),
                (rf"^{head}layer_norm/", "cls.predictions.transform.LayerNorm."),
                (rf"^{head}output_bias\.Sbias$", "cls.predictions.bias"),
                (rf"^{head}embedding_table$", "bert.embeddings.word_embeddings.weight"),
            )
    return ()


def _next_sentence(names: list[str], encoder: str) -> Rules:
    """The rules for the head with the next-sentence logits.

    ``BertPretrainerV2`` has one with a dense tanh layer of its own, which ``transformers`` calls the pooler; the
    encoder's pooler is not used there, so it is left out. ``BertPretrainer`` has one layer above the encoder's pooler.
    """
    heads = {match[1] for name in names if (match := re.match(r"^(.*/?classification_heads/\d+/)dense/kernel", name))}
    if len(heads) == 1:
        head = re.escape(heads.pop())
        return (
            (rf"^{encoder}_pooler_layer/", "unused/"),
            (rf"^{head}dense/", "bert.pooler.dense."),
            (rf"^{head}out_proj/", "cls.seq_relationship."),
        )
    outer = r"^(.*/)?layer_with_weights-\d+/layer_with_weights-0/kernel" + SUFFIX
    found = [name for name in names if re.match(outer, name) and not re.match(rf"^{encoder}layer_with", name)]
    if len(found) != 1:
        return ()
    return ((rf"^{re.escape(found[0].partition('kernel')[0])}", "cls.seq_relationship."),)


def _as_matrix(name: str, target: str, tensor: Tensor) -> Tensor:
    """Joins the heads and transposes kernels: (in, out) there, (out, in) in PyTorch."""
    if "/kernel/" in name:
        joined = tensor.flatten(0, -2) if ".attention.output." in target else tensor.flatten(1)
        return joined.T
    return tensor.flatten() if target.endswith(".bias") else tensor
