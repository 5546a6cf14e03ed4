"""Shuffles the samples of a split over all its shards, through files, with bounded memory.

``make_samples``: one bucket of documents -> a table of samples for each sequence length. ``scatter``: once the
samples of all buckets are counted, each sample gets a place in a pseudo-random permutation of the split, and a
bucket's samples are written in the order of their places. ``read_shard_samples``: a shard reads its range of places
from the files of all buckets. Each step holds one bucket or one shard in memory.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bert_pretrain.data.masking import next_random, set_key
from bert_pretrain.errors import ConfigError
from bert_pretrain.files.file_system import new_file
from bert_pretrain.jit import cached_njit
from data_prep.options import PrepareConfig
from data_prep.samples.pairs import COLUMNS, SPECIALS, build_samples, count_unused, cut_long_sentences
from data_prep.samples.tokenised import Encoded, read_bucket

_PLACES = 1 << 62  # random stream of the permutation; those of the samples have the duplicate's number here
_ROUNDS = 6
_LENGTH_BINS = 32


def make_samples(
    path: Path, parts: list[tuple[Path, int]], split: str, bucket: int, buckets: tuple[int, int], config: PrepareConfig
) -> dict[str, Any]:
    """Write one bucket's token ids and, for each length, its samples (n, 6) to ``path``; return counts by length.

    The columns are those of :mod:`data_prep.samples.pairs`, and the number of the corpus that segment A is from.
    ``parts`` as in :func:`data_prep.samples.tokenised.read_bucket`.
    """
    corpus = read_bucket(parts, split, bucket, buckets)
    if config.sample_kind == "pair" and len(corpus.numbers) < 2:
        raise ConfigError(
            f"bucket {path.stem} has {len(corpus.numbers)} documents, but a random next segment needs another "
            "document: give another seed or a larger piece_mb"
        )
    tables, counts = {}, {}
    for length in config.sequence_lengths:
        tables[str(length)], counts[str(length)] = _samples_of_length(corpus, length, config)

    with new_file(path) as temporary, h5py.File(temporary, "w") as file:
        file["ids"] = corpus.ids
        for name, table in tables.items():
            file[name] = table
    return counts


def _samples_of_length(corpus: Encoded, length: int, config: PrepareConfig) -> tuple[np.ndarray, dict[str, Any]]:
    """The samples (n, 6) of all duplicates, and their counts."""
    specials = SPECIALS[config.sample_kind]
    sentences, documents, cut = cut_long_sentences(corpus.sentences, corpus.documents, length - specials)
    tables = [np.zeros((0, len(COLUMNS)), dtype=np.int64)]
    truncated = 0
    for duplicate in range(int(corpus.copies.max(initial=0))):
        table, tokens = build_samples(
            sentences,
            documents,
            corpus.numbers,
            corpus.copies,
            kind=config.sample_kind,
            sequence_length=length,
            short_seq_prob=config.short_seq_prob,
            seed=config.seed,
            duplicate=duplicate,
        )
        tables.append(table)
        truncated += tokens
    samples = np.concatenate(tables)
    lengths = samples[:, 1] + samples[:, 3] + specials
    assert corpus.corpora is not None
    owner = np.searchsorted(sentences[documents], samples[:, 0], side="right") - 1  # no document is empty
    return np.column_stack([samples, corpus.corpora[owner]]), {
        "samples": len(samples),
        "sentences_cut_in_pieces": cut,
        "tokens_popped_by_truncation": truncated,
        "tokens_in_no_sample": count_unused(samples, sentences, documents, corpus.copies),
        "random_next": int(samples[:, 4].sum()),
        "real_tokens": int(lengths.sum()),
        "documents": int(np.count_nonzero(corpus.copies > 0)),
        "lengths": np.histogram(lengths, bins=_LENGTH_BINS, range=(0, length))[0].tolist(),
    }


def scatter(path: Path, source: Path, length: int, first: int, total: int, config: PrepareConfig) -> dict[str, Any]:
    """Write one bucket's samples of one sequence length to ``path``, in the order of their places.

    ``first``: number of the bucket's first sample in its split of ``total``. The file has ids (T,), segments A and B of
    one sample after the other; sizes (n, 2) of A and B; is_random (n,); corpora (n,); places (n,); and shards
    (shards + 1, 2): where the samples of each shard start in places, and in ids.
    """
    with h5py.File(source, "r") as file:
        ids = file["ids"][:]
        samples = file[str(length)][:]
    places = permuted(first, len(samples), total, config.seed)
    order = np.argsort(places)
    samples, places = samples[order], places[order]
    sizes = samples[:, [1, 3]]
    stops = np.concatenate([[0], np.cumsum(sizes.sum(axis=1))])
    tokens = np.empty(int(stops[-1]), dtype=ids.dtype)
    _copy_tokens(ids, samples, tokens)
    shards = -(-total // config.samples_per_shard)
    starts = np.searchsorted(places, np.arange(shards + 1) * config.samples_per_shard)
    with new_file(path) as temporary, h5py.File(temporary, "w") as file:
        file["ids"] = tokens
        file["sizes"] = sizes.astype(np.uint16)
        file["is_random"] = samples[:, 4].astype(np.int8)
        file["corpora"] = samples[:, 5].astype(np.uint16)
        file["places"] = places
        file["shards"] = np.stack([starts, stops[starts]], axis=1)
    return {}


def read_shard_samples(
    sources: Sequence[Path], shard: int, first_place: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The samples at the places from ``first_place`` to ``first_place + count``: ids (T,) and samples (count, 6)."""
    samples = np.zeros((count, len(COLUMNS) + 1), dtype=np.int64)
    found: list[np.ndarray] = []
    base = 0
    for path in sources:
        with h5py.File(path, "r") as file:
            (start, token), (stop, token_end) = file["shards"][shard : shard + 2]
            sizes = file["sizes"][start:stop].astype(np.int64)
            ids = file["ids"][token:token_end]
            rows = file["places"][start:stop] - first_place
            samples[rows, 4] = file["is_random"][start:stop]
            samples[rows, 5] = file["corpora"][start:stop]
        begins = base + np.concatenate([[0], np.cumsum(sizes.sum(axis=1))])[:-1]
        samples[rows, 0], samples[rows, 1] = begins, sizes[:, 0]
        samples[rows, 2], samples[rows, 3] = begins + sizes[:, 0], sizes[:, 1]
        found.append(ids)
        base += len(ids)
    return np.concatenate(found), samples


def permuted(first: int, count: int, total: int, seed: int) -> np.ndarray:
    """The places (count,) int64 of the samples from ``first`` on, in a permutation of 0 to ``total`` - 1.

    A Feistel network over the next even power of two; a value of ``total`` or more is permuted again (cycle walking).
    Any part of the permutation can be computed without the rest.
    """
    half = 1
    while 1 << (2 * half) < total:
        half += 1
    places = np.empty(count, dtype=np.int64)
    _permute(first, total, half, seed, places)
    return places


@cached_njit()
def _permute(first: int, total: int, half: int, seed: int, places: np.ndarray) -> None:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    state = np.empty(1, dtype=np.uint64)
    keys = np.empty(_ROUNDS, dtype=np.uint64)
    set_key(state, seed, _PLACES, 0)
    for number in range(_ROUNDS):
        keys[number] = next_random(state)
    for number in range(len(places)):
        value = np.uint64(first + number)
        while True:
            left, right = value >> shift, value & mask
            for key in keys:
                state[0] = right ^ key
                left, right = right, left ^ (next_random(state) & mask)
            value = (left << shift) | right
            if value < np.uint64(total):
                break
        places[number] = np.int64(value)


@cached_njit()
def _copy_tokens(ids: np.ndarray, samples: np.ndarray, tokens: np.ndarray) -> None:
    """Copy the segments of ``samples`` from ``ids`` to ``tokens``, one after the other."""
    place = 0
    for row in range(len(samples)):
        for column in (0, 2):
            start, size = samples[row, column], samples[row, column + 1]
            tokens[place : place + size] = ids[start : start + size]
            place += size
