"""``data.masking=dynamic``: remove the shards' masks and draw new ones for every epoch."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from bert_pretrain.data.dataset import DataConfig, ShardSet
from bert_pretrain.data.loader import DynamicMasking
from bert_pretrain.data.masking import MaskingRule, mask_samples, restore_ids
from bert_pretrain.data.shards import Arrays
from bert_pretrain.errors import ConfigError


def dynamic_masking(config: DataConfig, shards: ShardSet, seed: int) -> DynamicMasking | None:
    """The function that masks samples anew, or None for static masks.

    Masks depend on (seed, epoch, sample) only, and follow the rule in the shards' header. Raises ``ConfigError`` if the
    vocabulary is missing or does not fit the shards.
    """
    if config.masking == "static":
        return None
    header, probability = shards.header, config.masked_lm_prob
    if probability is None and header is not None:
        probability = header.masked_lm_prob
    if probability is None:
        raise ConfigError(
            f"data.masked_lm_prob is null, but the shards in {config.dir} do not state it; set it (BERT: 0.15)"
        )
    tokens = _read_vocabulary(Path(config.tokenizer), shards.vocab_size)
    whole_word = header is not None and header.whole_word_masking
    rule = MaskingRule.of_vocabulary(tokens, probability, shards.max_predictions, whole_word)
    shares = {"mask_share": config.mask_share, "random_share": config.random_share}
    known = {} if header is None else {name: getattr(header, name) for name in shares}
    rule = replace(rule, **known | {name: share for name, share in shares.items() if share is not None})

    def mask(arrays: Arrays, epoch: int, samples: np.ndarray) -> Arrays:
        lengths = arrays["input_mask"].sum(1, dtype=np.int64)
        ids, positions, labels = mask_samples(restore_ids(arrays), lengths, rule, seed, epoch, samples)
        return {**arrays, "input_ids": ids, "masked_lm_positions": positions, "masked_lm_ids": labels}

    return mask


def _read_vocabulary(folder: Path, vocab_size: int) -> list[str]:
    """The tokens, up to ``vocab_size``, of ``folder/vocab.txt`` in the order of their ids."""
    path = folder / "vocab.txt"
    try:
        tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"data.tokenizer is {str(folder)!r}, but its vocab.txt cannot be read ({error}); data.masking=dynamic "
            "draws random words from it: give the tokenizer's folder, or use data.masking=static"
        ) from None
    if len(tokens) > vocab_size:
        raise ConfigError(f"{path} has {len(tokens)} tokens, but the model has only {vocab_size}")
    return tokens
