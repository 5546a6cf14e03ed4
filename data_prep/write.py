"""Tokenised corpus -> shards of both splits: samples, their order over all shards, static masks, files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bert_pretrain.masking import MaskingRule, mask_samples
from bert_pretrain.shards import SPLITS, Arrays, ShardHeader, write_shard
from data_prep.samples import (
    SPECIALS_PER_SAMPLE,
    build_samples,
    count_unused,
    cut_long_sentences,
    gather_samples,
    shuffled,
)
from data_prep.tokenised import TokenisedCorpus
from data_prep.tokenizer import Vocabulary

STATIC_EPOCH = 0  # static masks are those of this epoch
_HELDOUT_SEED = 1 << 62  # added to the seed (which is smaller), so that the splits do not share their random numbers


@dataclass(frozen=True)
class SampleConfig:
    """The options that decide what a sample is."""

    sequence_length: int
    max_predictions: int
    masked_lm_prob: float
    short_seq_prob: float
    dupe_factor: int
    whole_word_masking: bool
    samples_per_shard: int
    seed: int


def write_splits(
    corpus: TokenisedCorpus, vocabulary: Vocabulary, config: SampleConfig, out_dir: Path
) -> dict[str, Any]:
    """Write ``train_*.hdf5`` and ``heldout_*.hdf5``; the held-out split holds each document once.

    Returns the manifest's ``rows``, the ``counts`` of the stage, and the ``unigram_entropy`` in nats of the masked
    words of the training split: the loss of the best model that looks at no context.
    """
    limit = config.sequence_length - SPECIALS_PER_SAMPLE
    sentences, documents, cut = cut_long_sentences(np.asarray(corpus.sentences), np.asarray(corpus.documents), limit)
    counts: dict[str, Any] = {"sentences_cut_in_pieces": cut}
    rows: list[dict[str, Any]] = []
    targets = np.zeros(len(vocabulary.tokens), dtype=np.int64)
    for split in SPLITS:
        chosen = np.flatnonzero(np.asarray(corpus.heldout) == (split == "heldout"))
        if len(chosen) == 0:
            continue
        samples, popped = _split_samples(sentences, documents, chosen, config, split)
        counts[f"{split}_samples"] = len(samples)
        counts[f"{split}_tokens_popped_by_truncation"] = popped
        counts[f"{split}_tokens_in_no_sample"] = count_unused(samples, sentences, documents, chosen)
        counts[f"{split}_random_next_share"] = round(float(samples[:, 4].mean()), 4)
        real = int(samples[:, 1].sum() + samples[:, 3].sum()) + SPECIALS_PER_SAMPLE * len(samples)
        counts[f"{split}_padding_share"] = round(1 - real / (len(samples) * config.sequence_length), 4)
        rows += _write_split(corpus.ids, samples, vocabulary, config, split, out_dir, targets)
    counts["shards"] = len(rows)
    return {"rows": rows, "counts": counts, "unigram_entropy": entropy(targets)}


def _split_samples(
    sentences: np.ndarray, documents: np.ndarray, chosen: np.ndarray, config: SampleConfig, split: str
) -> tuple[np.ndarray, int]:
    parts = []
    popped = 0
    for duplicate in range(config.dupe_factor if split == "train" else 1):
        part, lost = build_samples(
            sentences,
            documents,
            chosen,
            sequence_length=config.sequence_length,
            short_seq_prob=config.short_seq_prob,
            seed=config.seed,
            duplicate=duplicate,
        )
        parts.append(part)
        popped += lost
    return shuffled(np.concatenate(parts), config.seed), popped


def _write_split(
    ids: np.ndarray,
    samples: np.ndarray,
    vocabulary: Vocabulary,
    config: SampleConfig,
    split: str,
    out_dir: Path,
    targets: np.ndarray,
) -> list[dict[str, Any]]:
    """Write the shards of one split; adds the masked words of the training split to ``targets`` (vocab_size,)."""
    header = _header(vocabulary, config, split)
    rule = MaskingRule.of_vocabulary(
        vocabulary.tokens, config.masked_lm_prob, config.max_predictions, config.whole_word_masking
    )
    rows = []
    starts = range(0, len(samples), config.samples_per_shard)
    for number, start in enumerate(tqdm(starts, unit=" shards", desc=split, disable=None)):
        part = samples[start : start + config.samples_per_shard]
        arrays = masked_arrays(ids, part, vocabulary, rule, config, split, start)
        if split == "train":
            predicted = arrays["masked_lm_ids"][arrays["masked_lm_positions"] > 0]
            targets += np.bincount(predicted, minlength=len(targets))
        rows.append(write_shard(out_dir / f"{split}_{number:05d}.hdf5", arrays, header))
    return rows


def masked_arrays(
    ids: np.ndarray,
    samples: np.ndarray,
    vocabulary: Vocabulary,
    rule: MaskingRule,
    config: SampleConfig,
    split: str,
    first_index: int,
) -> Arrays:
    """The six data sets of a shard whose samples (n, 5) are number ``first_index`` and on of their split."""
    cls_id, sep_id = vocabulary.tokens.index("[CLS]"), vocabulary.tokens.index("[SEP]")
    original, segments, lengths = gather_samples(ids, samples, config.sequence_length, cls_id, sep_id)
    indexes = np.arange(first_index, first_index + len(samples))
    seed = config.seed + (_HELDOUT_SEED if split == "heldout" else 0)
    masked, positions, labels = mask_samples(original, lengths, rule, seed, STATIC_EPOCH, indexes)
    return {
        "input_ids": masked,
        "input_mask": (np.arange(config.sequence_length) < lengths[:, None]).astype(np.int8),
        "segment_ids": segments,
        "masked_lm_positions": positions,
        "masked_lm_ids": labels,
        "next_sentence_labels": samples[:, 4].astype(np.int8),
    }


def _header(vocabulary: Vocabulary, config: SampleConfig, split: str) -> ShardHeader:
    return ShardHeader(
        sequence_length=config.sequence_length,
        max_predictions=config.max_predictions,
        vocab_size=len(vocabulary.tokens),
        vocab_hash=vocabulary.vocab_hash,
        tokenizer_hash=vocabulary.tokenizer_hash,
        masked_lm_prob=config.masked_lm_prob,
        whole_word_masking=config.whole_word_masking,
        short_seq_prob=config.short_seq_prob,
        dupe_factor=config.dupe_factor if split == "train" else 1,
        seed=config.seed,
        split=split,
    )


def entropy(counts: np.ndarray) -> float:
    """The entropy in nats of the distribution with these counts; 0 where there are none."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(-np.sum(shares * np.log(shares)))
