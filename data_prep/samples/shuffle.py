"""Samples -> their places in a random order over all shards of a split, through disk, in bounded memory.

Three stages. ``make_samples``: a bucket of documents -> its table of samples for each sequence length, counted.
``scatter``: with the counts of all buckets known, every sample gets its place, a pseudo-random permutation of its
number, and the tokens are written in the order of the places. Then a shard (:mod:`data_prep.samples.write`) reads its
run of places from every bucket. No stage holds more than one bucket or one shard.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bert_pretrain.data.masking import next_random, set_key
from bert_pretrain.errors import ConfigError
from bert_pretrain.jit import cached_njit
from data_prep.options import SampleOptions
from data_prep.samples.pairs import COLUMNS, SPECIALS, build_samples, count_unused, cut_long_sentences
from data_prep.samples.tokenised import read_bucket
from data_prep.text.text_parts import write_whole

_PLACES = 1 << 62  # a key apart from those of the duplicates
_ROUNDS = 6
_LENGTH_BINS = 32


@dataclass(frozen=True)
class SampleJob:
    """One bucket of documents of one split, for all sequence lengths."""

    split: str
    bucket: int
    buckets: tuple[int, int]
    size: int
    parts: tuple[Path, ...] = field(repr=False)
    folder: Path
    options: SampleOptions

    @property
    def name(self) -> str:
        """Of the file too."""
        return f"{self.split}_{self.bucket:05d}"


@dataclass(frozen=True)
class ScatterJob:
    """The samples of one bucket for one sequence length; the first is number ``first`` of ``total`` in its split."""

    split: str
    bucket: int
    size: int
    samples: Path
    folder: Path
    sequence_length: int
    first: int
    total: int
    samples_per_shard: int
    seed: int

    @property
    def name(self) -> str:
        """Of the file too."""
        return f"{self.split}_{self.bucket:05d}"


def make_samples(job: SampleJob) -> dict[str, Any]:
    """Write ``<name>.h5``: ids, and for each length its samples (n, 5); returns what was counted for each length."""
    corpus = read_bucket(list(job.parts), job.split, job.bucket, job.buckets)
    if job.options.kind == "pair" and len(corpus.numbers) < 2:
        raise ConfigError(
            f"bucket {job.name} got {len(corpus.numbers)} documents, and a random next segment comes from another one: "
            "give another seed, or a larger piece_mb"
        )
    counts: dict[str, Any] = {}
    tables: dict[str, np.ndarray] = {}
    for length in job.options.sequence_lengths:
        limit = length - SPECIALS[job.options.kind]
        sentences, documents, cut = cut_long_sentences(corpus.sentences, corpus.documents, limit)
        made = [np.zeros((0, len(COLUMNS)), dtype=np.int64)]
        popped = 0
        for duplicate in range(int(corpus.copies.max(initial=0))):
            part, lost = build_samples(
                sentences,
                documents,
                corpus.numbers,
                corpus.copies,
                kind=job.options.kind,
                sequence_length=length,
                short_seq_prob=job.options.short_seq_prob,
                seed=job.options.seed,
                duplicate=duplicate,
            )
            made.append(part)
            popped += lost
        samples = np.concatenate(made)
        tables[str(length)] = samples
        lengths = samples[:, 1] + samples[:, 3] + SPECIALS[job.options.kind]
        counts[str(length)] = {
            "samples": len(samples),
            "sentences_cut_in_pieces": cut,
            "tokens_popped_by_truncation": popped,
            "tokens_in_no_sample": count_unused(samples, sentences, documents, corpus.copies),
            "random_next": int(samples[:, 4].sum()),
            "real_tokens": int(lengths.sum()),
            "documents": int(np.count_nonzero(corpus.copies > 0)),
            "lengths": np.histogram(lengths, bins=_LENGTH_BINS, range=(0, length))[0].tolist(),
        }

    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            file["ids"] = corpus.ids
            for length, table in tables.items():
                file[length] = table

    write_whole(job.folder / f"{job.name}.h5", write)
    return counts


def scatter(job: ScatterJob) -> dict[str, Any]:
    """Write ``<name>.h5``, the samples in the order of their places.

    ids (T,) of segments A and B, one sample after the other; sizes (n, 2) of A and B; is_random (n,); places (n,);
    shards (shards + 1, 2): where the samples of each shard start in places, and in ids.
    """
    with h5py.File(job.samples, "r") as file:
        ids = file["ids"][:]
        samples = file[str(job.sequence_length)][:]
    places = permuted(job.first, len(samples), job.total, job.seed)
    order = np.argsort(places)
    samples, places = samples[order], places[order]
    sizes = samples[:, [1, 3]]
    stops = np.concatenate([[0], np.cumsum(sizes.sum(axis=1))])
    tokens = np.empty(int(stops[-1]), dtype=ids.dtype)
    _collect(ids, samples, tokens)
    shards = -(-job.total // job.samples_per_shard)
    starts = np.searchsorted(places, np.arange(shards + 1) * job.samples_per_shard)

    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            file["ids"] = tokens
            file["sizes"] = sizes.astype(np.uint16)
            file["is_random"] = samples[:, 4].astype(np.int8)
            file["places"] = places
            file["shards"] = np.stack([starts, stops[starts]], axis=1)

    write_whole(job.folder / f"{job.name}.h5", write)
    return {}


def read_shard_samples(
    sources: Sequence[Path], shard: int, first_place: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The samples with the places ``first_place`` to ``first_place + count``: ids (T,), and samples (count, 5)."""
    samples = np.zeros((count, len(COLUMNS)), dtype=np.int64)
    found: list[np.ndarray] = []
    base = 0
    for path in sources:
        with h5py.File(path, "r") as file:
            (start, token), (stop, token_end) = file["shards"][shard : shard + 2]
            sizes = file["sizes"][start:stop].astype(np.int64)
            ids = file["ids"][token:token_end]
            rows = file["places"][start:stop] - first_place
            samples[rows, 4] = file["is_random"][start:stop]
        begins = base + np.concatenate([[0], np.cumsum(sizes.sum(axis=1))])[:-1]
        samples[rows, 0], samples[rows, 1] = begins, sizes[:, 0]
        samples[rows, 2], samples[rows, 3] = begins + sizes[:, 0], sizes[:, 1]
        found.append(ids)
        base += len(ids)
    return np.concatenate(found), samples


def permuted(first: int, count: int, total: int, seed: int) -> np.ndarray:
    """The places (count,) int64 of the samples from ``first`` on, under a permutation of 0 to ``total`` - 1.

    A Feistel network over the next even power of two; what falls outside goes round again (cycle walking), so that
    any part of the permutation is known without the rest.
    """
    half = 1
    while 1 << (2 * half) < total:
        half += 1
    keys = np.zeros(_ROUNDS, dtype=np.uint64)
    _round_keys(keys, seed)
    places = np.empty(count, dtype=np.int64)
    _permute(first, total, half, keys, places)
    return places


@cached_njit()
def _round_keys(keys: np.ndarray, seed: int) -> None:
    state = np.empty(1, dtype=np.uint64)
    set_key(state, seed, _PLACES, 0)
    for number in range(len(keys)):
        keys[number] = next_random(state)


@cached_njit()
def _permute(first: int, total: int, half: int, keys: np.ndarray, places: np.ndarray) -> None:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    state = np.empty(1, dtype=np.uint64)
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
def _collect(ids: np.ndarray, samples: np.ndarray, tokens: np.ndarray) -> None:
    place = 0
    for row in range(len(samples)):
        for column in (0, 2):
            start = samples[row, column]
            for source in range(start, start + samples[row, column + 1]):
                tokens[place] = ids[source]
                place += 1
