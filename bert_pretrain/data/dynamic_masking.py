"""``data.masking=dynamic``: remove the shards' masks and draw new ones for every epoch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bert_pretrain.data.dataset import ShardSet, check_size
from bert_pretrain.data.masking import DynamicMasking, mask_samples
from bert_pretrain.data.masking_rule import MaskingRule, restore_ids
from bert_pretrain.data.options import DataConfig
from bert_pretrain.data.shards import Arrays
from bert_pretrain.data.tokenizer_files import masking_rule, read_tokenizer
from bert_pretrain.errors import ConfigError


def dynamic_masking(
    config: DataConfig, shards: ShardSet, seed: int, report: Callable[[str], None] = lambda _: None
) -> DynamicMasking | None:
    """The function that masks samples anew, or None for static masks.

    Masks depend on (seed, epoch, sample) only, and follow the rule in the shards' header, but for what ``config``
    states. ``report`` gets a line if ``data.masked_lm_prob`` is not what the samples get. Raises ``ConfigError`` if the
    vocabulary is missing or does not fit the shards.
    """
    _report_other_share(config, shards, report)
    if config.masking == "static":
        return None
    header, probability = shards.header, config.masked_lm_prob
    if probability is None and header is not None:
        probability = header.masked_lm_prob
    if probability is None:
        raise ConfigError(
            f"data.masked_lm_prob is null, but the shards in {config.dir} do not state it; set it (BERT: 0.15)"
        )
    folder = Path(config.tokenizer)
    try:
        table = read_tokenizer(folder)
    except ConfigError as error:
        raise ConfigError(
            f"data.tokenizer is {str(folder)!r}: {error}; data.masking=dynamic draws random words from it: give the "
            "tokenizer's folder, or use data.masking=static"
        ) from None
    check_size(table, folder, shards.vocab_size)
    whole_word = config.whole_word_masking or (header is not None and header.whole_word_masking)
    rule = masking_rule(table, probability, shards.max_predictions, whole_word, shards.vocab_size, folder)
    known = {} if header is None else {name: getattr(header, name) for name in ("mask_share", "random_share")}
    return masked_by(replace(rule, **known | stated_shares(config)), seed)


def _report_other_share(config: DataConfig, shards: ShardSet, report: Callable[[str], None]) -> None:
    """Report a stated ``data.masked_lm_prob`` that the masks in the shards, or their size, overrule."""
    stated, header, room = config.masked_lm_prob, shards.header, shards.max_predictions
    if stated is None:
        return
    if config.masking == "static":
        if header is None or header.masked_lm_prob != stated:
            report(
                f"data.masked_lm_prob={stated} has no effect with data.masking=static: the masks are those of the "
                f"shards{'' if header is None else f' ({header.masked_lm_prob})'}"
            )
        return
    wanted = round(stated * config.sequence_length)
    if wanted > room:
        report(
            f"data.masked_lm_prob={stated} asks for {wanted} of {config.sequence_length} tokens, but the shards in "
            f"{config.dir} have room for {room}: no sample gets more; for all, prepare them with "
            f"max_predictions=[{wanted}]"
        )


def stated_shares(config: DataConfig) -> dict[str, Any]:
    """``mask_share`` and ``random_share``, as far as ``config`` states them."""
    shares = {"mask_share": config.mask_share, "random_share": config.random_share}
    return {name: share for name, share in shares.items() if share is not None}


def masked_by(rule: MaskingRule, seed: int) -> DynamicMasking:
    """Masks samples anew by ``rule``: the masks depend on (seed, epoch, sample) only."""

    def mask(arrays: Arrays, epoch: int, samples: np.ndarray) -> Arrays:
        lengths = arrays["input_mask"].sum(1, dtype=np.int64)
        ids, positions, labels = mask_samples(restore_ids(arrays), lengths, rule, seed, epoch, samples)
        return {**arrays, "input_ids": ids, "masked_lm_positions": positions, "masked_lm_ids": labels}

    return mask
