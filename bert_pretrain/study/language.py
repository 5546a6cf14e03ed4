"""Shards of a synthetic language that a tiny model learns in tens of steps, for toy studies.

A sample is two segments of words. Each segment has a topic: the same for both, or different ones if the next-sentence
label is 1. With probability 0.8 a word is the fixed successor of the word before it; otherwise it is drawn from the
topic's Zipf distribution (the k-th word has probability proportional to 1/k, in an order of words that each topic has
for itself). A model learns three things at three speeds: word frequencies, topics, successors.
"""

import hashlib
from dataclasses import asdict
from pathlib import Path

import numpy as np

from bert_pretrain.data.masking import mask_samples
from bert_pretrain.data.masking_rule import SPECIAL_TOKENS, MaskingRule
from bert_pretrain.data.shard_directory import read_manifest, write_manifest
from bert_pretrain.data.shards import Arrays, ShardHeader, write_shard
from bert_pretrain.errors import ConfigError
from bert_pretrain.study.options import LanguageConfig

_SUCCESSION = 0.8
_MASKED_SHARE = 0.15
_ROWS = 65_536  # per shard; bounds the memory
_CLS, _SEP = SPECIAL_TOKENS.index("[CLS]"), SPECIAL_TOKENS.index("[SEP]")


class Language:
    """The distributions of the language, drawn from ``config.seed``."""

    def __init__(self, config: LanguageConfig) -> None:
        rng = np.random.default_rng([config.seed, 0])
        words = config.vocab_size - len(SPECIAL_TOKENS)
        shares = 1.0 / np.arange(1, words + 1)
        self.config = config
        self.cumulative = np.cumsum(shares / shares.sum())  # (words,), by rank
        self.ranked = np.stack([rng.permutation(words) for _ in range(config.topics)])  # (topics, words)
        cycle = rng.permutation(words)
        self.successor = np.empty(words, np.int64)  # one cycle through all words: no word follows itself
        self.successor[cycle] = np.roll(cycle, -1)

    def words(self, topics: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
        """Word numbers from 0, (n, length), for the topics (n,)."""
        ranks = np.searchsorted(self.cumulative, rng.random((len(topics), length)))
        drawn = self.ranked[topics[:, None], np.minimum(ranks, len(self.cumulative) - 1)]
        follows = rng.random((len(topics), length)) < _SUCCESSION
        for i in range(1, length):
            drawn[:, i] = np.where(follows[:, i], self.successor[drawn[:, i - 1]], drawn[:, i])
        return drawn

    def samples(self, number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids (number, L), segment ids (number, L) and next-sentence labels (number,)."""
        length = self.config.sequence_length
        first = (length - 3) // 2
        label = rng.integers(0, 2, number)
        topic = rng.integers(0, self.config.topics, number)
        other = (topic + rng.integers(1, self.config.topics, number)) % self.config.topics
        ids = np.full((number, length), _SEP)
        ids[:, 0] = _CLS
        ids[:, 1 : 1 + first] = len(SPECIAL_TOKENS) + self.words(topic, first, rng)
        second = np.where(label == 1, other, topic)
        ids[:, 2 + first : -1] = len(SPECIAL_TOKENS) + self.words(second, length - 3 - first, rng)
        segments = np.broadcast_to(np.arange(length) >= 2 + first, ids.shape)
        return ids, segments.astype(np.int64), label


def write_corpus(directory: Path, config: LanguageConfig) -> None:
    """Write the shards of both splits and the manifest, unless they exist.

    Raises ``ConfigError`` if ``directory`` holds a corpus made with other options.
    """
    manifest, made_with = read_manifest(directory) if directory.is_dir() else None, asdict(config)
    if manifest is not None:
        if manifest.get("language") != made_with:
            raise ConfigError(f"{directory} holds a corpus made with other options; give another out_dir")
        return
    directory.mkdir(parents=True, exist_ok=True)
    language, rows = Language(config), []
    for split, total in (("train", config.samples), ("heldout", config.heldout_samples)):
        header = _header(config, split)
        for number, start in enumerate(range(0, total, _ROWS)):
            arrays = _arrays(language, header, start, min(_ROWS, total - start))
            rows.append(write_shard(directory / f"{split}_{number:05d}.hdf5", arrays, header))
    write_manifest(directory, {"shards": rows, "language": made_with})


def _header(config: LanguageConfig, split: str) -> ShardHeader:
    """The vocabulary is the five special tokens and numbers. There is no text, hence no tokenizer."""
    name = hashlib.sha256(f"synthetic {config.vocab_size} {config.topics} {config.seed}".encode()).hexdigest()
    return ShardHeader(
        sequence_length=config.sequence_length,
        max_predictions=max(1, round(_MASKED_SHARE * config.sequence_length)),
        vocab_size=config.vocab_size,
        vocab_hash=name,
        tokenizer_hash=name,
        masked_lm_prob=_MASKED_SHARE,
        whole_word_masking=False,
        short_seq_prob=0.0,
        dupe_factor=1,
        seed=config.seed,
        split=split,
    )


def _arrays(language: Language, header: ShardHeader, start: int, number: int) -> Arrays:
    """Masked samples ``start`` to ``start + number`` of a split."""
    config, is_train = language.config, header.split == "train"
    rng = np.random.default_rng([config.seed, 1 if is_train else 2, start])
    ids, segments, labels = language.samples(number, rng)
    tokens = [*SPECIAL_TOKENS, *map(str, range(config.vocab_size - len(SPECIAL_TOKENS)))]
    rule = MaskingRule.of_vocabulary(tokens, header.masked_lm_prob, header.max_predictions, False)
    lengths = np.full(number, ids.shape[1])
    masked, positions, words = mask_samples(
        ids, lengths, rule, config.seed, int(not is_train), start + np.arange(number)
    )
    return {
        "input_ids": masked,
        "input_mask": np.ones_like(ids),
        "segment_ids": segments,
        "masked_lm_positions": positions,
        "masked_lm_ids": words,
        "next_sentence_labels": labels,
    }
