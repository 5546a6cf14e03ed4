"""Samples in their final order -> shards: special tokens, static masks, HDF5 files."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bert_pretrain.data.masking import MaskingRule, mask_samples
from bert_pretrain.data.shards import Arrays, ShardHeader, write_shard
from data_prep.samples.pairs import gather_samples
from data_prep.samples.shuffle import read_shard_samples
from data_prep.samples.tokenizer import load_vocabulary

STATIC_EPOCH = 0  # static masks are those of this epoch
_HELDOUT_SEED = 1 << 62  # added to the seed (which is smaller), so that the splits do not share their random numbers


@dataclass(frozen=True)
class ShardJob:
    """One shard: the samples with the places from ``first_place`` on, from all buckets of its split."""

    number: int
    size: int  # samples
    first_place: int
    sources: tuple[Path, ...] = field(repr=False)
    tokenizer: Path
    lowercase: bool
    out_dir: Path
    counts: Path  # folder for the counts of the masked words
    header: ShardHeader

    @property
    def name(self) -> str:
        """Of the file, without its ending."""
        return f"{self.header.split}_{self.number:05d}"


def write_one_shard(job: ShardJob) -> dict[str, Any]:
    """Write ``<name>.hdf5``; returns its row for the manifest. ``<name>.npy`` counts masked words, (vocab_size,)."""
    header = job.header
    ids, samples = read_shard_samples(job.sources, job.number, job.first_place, job.size)
    rule, cls_id, sep_id = _rule(job.tokenizer, job.lowercase, header)
    indexes = np.arange(job.first_place, job.first_place + job.size)
    arrays = masked_arrays(ids, samples, rule, (cls_id, sep_id), header, indexes)
    predicted = arrays["masked_lm_ids"][arrays["masked_lm_positions"] > 0]
    np.save(job.counts / f"{job.name}.npy", np.bincount(predicted, minlength=header.vocab_size))
    return {"row": write_shard(job.out_dir / f"{job.name}.hdf5", arrays, header)}


@functools.lru_cache(maxsize=4)
def _rule(tokenizer: Path, lowercase: bool, header: ShardHeader) -> tuple[MaskingRule, int, int]:
    """How samples are masked, and the ids of [CLS] and [SEP]; the header holds the hash of the tokenizer."""
    tokens = load_vocabulary(tokenizer, lowercase).tokens
    rule = MaskingRule.of_vocabulary(tokens, header.masked_lm_prob, header.max_predictions, header.whole_word_masking)
    return rule, tokens.index("[CLS]"), tokens.index("[SEP]")


def masked_arrays(
    ids: np.ndarray,
    samples: np.ndarray,
    rule: MaskingRule,
    special: tuple[int, int],
    header: ShardHeader,
    indexes: np.ndarray,
) -> Arrays:
    """The six data sets of samples (n, 5) that have the numbers ``indexes`` (n,) in their split."""
    length = header.sequence_length
    original, segments, lengths = gather_samples(ids, samples, length, *special)
    seed = header.seed + (_HELDOUT_SEED if header.split == "heldout" else 0)
    masked, positions, labels = mask_samples(original, lengths, rule, seed, STATIC_EPOCH, indexes)
    return {
        "input_ids": masked,
        "input_mask": (np.arange(length) < lengths[:, None]).astype(np.int8),
        "segment_ids": segments,
        "masked_lm_positions": positions,
        "masked_lm_ids": labels,
        "next_sentence_labels": samples[:, 4].astype(np.int8),
    }


def unigram_entropy(counts: Iterable[Path]) -> float:
    """The entropy in nats of the masked words of shards, from their counts; 0 where there are none."""
    totals = sum((np.load(path) for path in counts), start=np.zeros(1, dtype=np.int64))
    shares = totals[totals > 0] / max(1, totals.sum())
    return float(-np.sum(shares * np.log(shares)))
