"""``pytorch_model.bin`` of ``transformers`` and its predecessors, ``pytorch-pretrained-bert`` since 2018.

Today's names, but for LayerNorm's gamma and beta in old files, no prefix in a bare ``BertModel``, and ``module.`` where
``DataParallel`` was saved.
"""

from bert_pretrain.hub.convert.layout import HEADLESS, LAYER_NORM, Layout

PYTORCH = Layout(
    title="PyTorch, names of transformers or older",
    mark=r"(^|\.)encoder\.layer\.\d+\.attention\.self\.query\.weight$",
    rules=((r"^(module\.)+", ""), *HEADLESS, *LAYER_NORM),
    skipped=r"(^|\.)embeddings\.(position_ids|token_type_ids)$",  # buffers that old versions saved
)
