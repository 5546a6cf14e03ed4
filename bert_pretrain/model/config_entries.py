"""Entries of ``config.json`` that do not change what is computed: kept from ``init_from`` to the export."""

from collections.abc import Mapping
from typing import Any

from transformers import BertConfig

# What this program or transformers writes itself, and what belongs to the head of a task.
_NOT_KEPT = {
    "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "id2label", "label2id", "num_labels",
    "problem_type", "finetuning_task", "output_past", "output_attentions", "output_hidden_states", "return_dict",
    "attn_implementation",
}  # fmt: skip
_SHAPE = {
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings",
    "vocab_size", "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range",
    "layer_norm_eps", "type_vocab_size", "pad_token_id",
}  # fmt: skip


def keep_entries(config: BertConfig, entries: Mapping[str, Any]) -> None:
    """Set the ``entries`` of another ``config.json`` in ``config``, but for what ``model.*`` decides."""
    for name, value in entries.items():
        if name not in _NOT_KEPT | _SHAPE and not name.startswith("_"):
            setattr(config, name, value)
