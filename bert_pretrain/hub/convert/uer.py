"""UER-py and TencentPretrain (https://github.com/dbiir/UER-py, https://github.com/Tencent/TencentPretrain).

The names until 2022 and those since. The targets ``bert`` (masked words and next sentence) and ``mlm``. The pooler is
the first layer of the sentence-pair target. Segment 0 is padding there: real segments are 1 and 2, so the first row of
the segment embeddings is dropped, as the projects' own converters do.

Their LayerNorm divides by the unbiased standard deviation plus 1e-6, ``transformers`` by the biased one: with H hidden
units the normalised values differ by the factor sqrt(1 - 1/H), 0.07 % for H = 768.
"""

from bert_pretrain.hub.convert.layout import LAYER_NORM, Layout, Rules

_SEGMENTS = "bert.embeddings.token_type_embeddings.weight"
_EMBEDDINGS: Rules = (
    (r"^embedding\.(word\.embedding|word_embedding)\.", "bert.embeddings.word_embeddings."),
    (r"^embedding\.(pos\.embedding|position_embedding)\.", "bert.embeddings.position_embeddings."),
    (r"^embedding\.(seg\.embedding|segment_embedding)\.", "bert.embeddings.token_type_embeddings."),
    (r"^embedding\.layer_norm\.", "bert.embeddings.LayerNorm."),
)
_ENCODER: Rules = (
    (r"^encoder\.transformer\.(\d+)\.", r"bert.encoder.layer.\1."),
    (r"\.self_attn\.linear_layers\.0\.", ".attention.self.query."),
    (r"\.self_attn\.linear_layers\.1\.", ".attention.self.key."),
    (r"\.self_attn\.linear_layers\.2\.", ".attention.self.value."),
    (r"\.self_attn\.final_linear\.", ".attention.output.dense."),
    (r"\.layer_norm_1\.", ".attention.output.LayerNorm."),
    (r"\.feed_forward\.linear_1\.", ".intermediate.dense."),
    (r"\.feed_forward\.linear_2\.", ".output.dense."),
    (r"\.layer_norm_2\.", ".output.LayerNorm."),
)
_HEADS: Rules = (
    (r"^target\.(mlm\.|mlm_)linear_1\.", "cls.predictions.transform.dense."),
    (r"^target\.(mlm\.)?layer_norm\.", "cls.predictions.transform.LayerNorm."),
    (r"^target\.(mlm\.|mlm_)linear_2\.weight$", "cls.predictions.decoder.weight"),
    (r"^target\.(mlm\.|mlm_)linear_2\.bias$", "cls.predictions.bias"),
    (r"^target\.(sp\.|sp_|nsp_)linear_1\.", "bert.pooler.dense."),
    (r"^target\.(sp\.|sp_|nsp_)linear_2\.", "cls.seq_relationship."),
)

UER = Layout(
    title="UER-py or TencentPretrain",
    mark=r"^(module\.)?encoder\.transformer\.\d+\.self_attn\.linear_layers\.0\.weight$",
    rules=((r"^(module\.)+", ""), *_EMBEDDINGS, *_ENCODER, *_HEADS, *LAYER_NORM),
    reshape=lambda _, target, tensor: tensor[1:] if target == _SEGMENTS else tensor,
)

CONFIG_NAMES = {
    "emb_size": "embedding_size",
    "feedforward_size": "intermediate_size",
    "heads_num": "num_attention_heads",
    "layers_num": "num_hidden_layers",
    "max_seq_length": "max_position_embeddings",
    "dropout": "hidden_dropout_prob",
}
"""The names of their configuration, and those of ``transformers``."""
