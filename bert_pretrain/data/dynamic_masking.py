"""``data.masking=dynamic``: the shard's masks taken off, new ones drawn for every epoch."""

from pathlib import Path

import numpy as np

from bert_pretrain.data.dataset import DataConfig, ShardSet
from bert_pretrain.data.loader import DynamicMasking
from bert_pretrain.data.masking import MaskingRule, mask_samples, restore_ids
from bert_pretrain.data.shards import Arrays
from bert_pretrain.errors import ConfigError


def dynamic_masking(config: DataConfig, shards: ShardSet, seed: int) -> DynamicMasking | None:
    """The function that masks a block anew, or None where the static masks are used.

    The masks depend on (seed, epoch, sample) alone, and follow the rule in the shards' header. Raises
    ``ConfigError`` where the vocabulary is not at hand or is another one than the shards'.
    """
    if config.masking == "static":
        return None
    header = shards.header
    probability = (
        config.masked_lm_prob if header is None or config.masked_lm_prob is not None else header.masked_lm_prob
    )
    if probability is None:
        raise ConfigError(
            f"data.masked_lm_prob is null, but the shards in {config.dir} do not say it themselves; set it (BERT: 0.15)"
        )
    tokens = read_vocabulary(Path(config.tokenizer), shards.vocab_size)
    whole_word = header is not None and header.whole_word_masking
    rule = MaskingRule.of_vocabulary(tokens, probability, shards.max_predictions, whole_word)

    def mask_anew(arrays: Arrays, epoch: int, samples: np.ndarray) -> Arrays:
        lengths = arrays["input_mask"].sum(1, dtype=np.int64)
        ids, positions, labels = mask_samples(restore_ids(arrays), lengths, rule, seed, epoch, samples)
        return {**arrays, "input_ids": ids, "masked_lm_positions": positions, "masked_lm_ids": labels}

    return mask_anew


def read_vocabulary(folder: Path, vocab_size: int) -> list[str]:
    """The words of ``folder/vocab.txt`` in the order of their ids; ``vocab_size`` of them."""
    path = folder / "vocab.txt"
    try:
        tokens = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"data.tokenizer is {str(folder)!r}, but its vocab.txt cannot be read ({error}); "
            "data.masking=dynamic draws random words from it: give the tokenizer's folder, or use data.masking=static"
        ) from None
    tokens = tokens[:-1] if tokens[-1] == "" else tokens
    if len(tokens) != vocab_size:
        raise ConfigError(f"{path} has {len(tokens)} words, but the shards and the model have {vocab_size}")
    return tokens
