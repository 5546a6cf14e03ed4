"""Samples in their final order -> shards: special tokens, static masks, HDF5 files."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bert_pretrain.data.masking import mask_samples
from bert_pretrain.data.masking_rule import MaskingRule
from bert_pretrain.data.shards import ShardHeader, write_shard
from bert_pretrain.data.tokenizer_files import masking_rule
from data_prep.array_files import read_arrays
from data_prep.samples.pairs import gather_samples
from data_prep.samples.shuffle import read_shard_samples
from data_prep.samples.tokenizer import load_vocabulary

STATIC_EPOCH = 0  # the epoch that keys the random numbers of static masks
_HELDOUT_SEED = 1 << 62  # added to the seed, which is smaller: each split has random numbers of its own


@dataclass(frozen=True)
class ShardPart:
    """The samples of one shard among those of its split."""

    number: int
    """Of the shard, among those that are written."""
    first_place: int
    """In the shuffled order of the samples that are written."""
    size: int
    first_sample: int
    """Its number in the split, by which its masks are drawn: ``first_place``, and in an append the samples before."""


def write_one_shard(
    path: Path,
    counts: Path,
    part: ShardPart,
    sources: Sequence[Path],
    tokenizer: Path,
    header: ShardHeader,
    corpora: int,
) -> dict[str, Any]:
    """Write the shard with the samples of ``part``, from all buckets in ``sources``; return its row for the manifest.

    ``counts`` (.npy) gets the counts (vocab_size,) of the masked tokens. With several ``corpora``, each sample is
    written with the number of its own.
    """
    ids, samples = read_shard_samples(sources, part.number, part.first_place, part.size)
    rule, roles = _rule(tokenizer, header)
    length = header.sequence_length
    original, segments, lengths = gather_samples(ids, samples, length, roles["cls"], roles["sep"], roles["pad"])
    seed = header.seed + (_HELDOUT_SEED if header.split == "heldout" else 0)
    indexes = np.arange(part.first_sample, part.first_sample + part.size)
    masked, positions, labels = mask_samples(original, lengths, rule, seed, STATIC_EPOCH, indexes)
    np.save(counts, np.bincount(labels[positions > 0], minlength=header.vocab_size))
    arrays = {
        "input_ids": masked,
        "input_mask": (np.arange(length) < lengths[:, None]).astype(np.int8),
        "segment_ids": segments,
        "masked_lm_positions": positions,
        "masked_lm_ids": labels,
        "next_sentence_labels": samples[:, 4].astype(np.int8),
    }
    return {"row": write_shard(path, arrays, header, samples[:, 5] if corpora > 1 else None)}


@functools.lru_cache(maxsize=4)
def _rule(tokenizer: Path, header: ShardHeader) -> tuple[MaskingRule, dict[str, int]]:
    """How to mask, and the ids of the special tokens by role. Cached; the header has the tokenizer's hash."""
    table = load_vocabulary(tokenizer).table
    most, whole_word = header.max_predictions, header.whole_word_masking
    rule = masking_rule(table, header.masked_lm_prob, most, whole_word, header.vocab_size, tokenizer)
    rule = replace(rule, mask_share=header.mask_share, random_share=header.random_share)
    return rule, table.roles


def unigram_entropy(counts: Iterable[Path]) -> float:
    """The entropy in nats of the masked tokens of shards, from their counts; 0 if there are none."""
    totals = sum((read_arrays(path)[0] for path in counts), start=np.zeros(1, dtype=np.int64))
    shares = totals[totals > 0] / max(1, totals.sum())
    return float(-np.sum(shares * np.log(shares)))
