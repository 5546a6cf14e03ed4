"""Samples, compared with a simple implementation of Google's algorithm on lists of tokens."""

import numpy as np
import pytest

from data_prep.samples.pairs import build_samples, count_unused, cut_long_sentences, gather_samples
from data_prep.samples.shuffle import permuted
from tests.conftest import KeyedRandom


def make_corpus(documents: int, seed: int, longest: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids (all different, so that a segment shows its origin), sentence and document offsets."""
    rng = np.random.default_rng(seed)
    boundaries = np.concatenate([[0], np.cumsum(rng.integers(1, 25, documents))])
    sentences = np.concatenate([[0], np.cumsum(rng.integers(1, longest, boundaries[-1]))])
    return np.arange(sentences[-1], dtype=np.int32), sentences, boundaries


def plain_samples(
    corpus: list[list[list[int]]], numbers: list[int], length: int, short: float, seed: int, duplicate: int
) -> tuple[list[tuple[list[int], list[int], bool]], int]:
    """(A, B, is random next) of each sample, and the number of tokens truncated."""
    most = length - 3
    result = []
    popped = 0
    for place, document in enumerate(corpus):
        rng = KeyedRandom(seed, duplicate, numbers[place])
        target = 2 + rng.below(most - 1) if rng.unit() < short else most
        chunk: list[list[int]] = []
        i = 0
        while i < len(document):
            chunk.append(document[i])
            if i == len(document) - 1 or sum(map(len, chunk)) >= target:
                a_end = 1 + rng.below(len(chunk) - 1) if len(chunk) >= 2 else 1
                a = [token for sentence in chunk[:a_end] for token in sentence]
                b: list[int] = []
                is_random = len(chunk) == 1 or rng.unit() < 0.5
                if is_random:
                    others = [other for k, other in enumerate(corpus) if k != place]
                    other = others[rng.below(len(others))]
                    for sentence in other[rng.below(len(other)) :]:
                        b += sentence
                        if len(b) >= target - len(a):
                            break
                    i -= len(chunk) - a_end
                else:
                    b = [token for sentence in chunk[a_end:] for token in sentence]
                while len(a) + len(b) > most:
                    longer = a if len(a) > len(b) else b
                    longer.pop(0 if rng.unit() < 0.5 else -1)
                    popped += 1
                result.append((a, b, is_random))
                chunk = []
            i += 1
    return result, popped


@pytest.mark.parametrize(("length", "short"), [(16, 0.1), (64, 0.0), (64, 0.5), (128, 0.1), (512, 1.0)])
def test_equals_the_plain_implementation(length: int, short: float) -> None:
    ids, sentences, documents = make_corpus(120, length)
    numbers = np.arange(120) * 7 + 3
    lists = [
        [ids[sentences[s] : sentences[s + 1]].tolist() for s in range(documents[d], documents[d + 1])]
        for d in range(120)
    ]
    for duplicate in range(3):
        samples, popped = build_samples(
            sentences,
            documents,
            numbers,
            np.full(120, 3),
            kind="pair",
            sequence_length=length,
            short_seq_prob=short,
            seed=5,
            duplicate=duplicate,
        )
        expected, expected_popped = plain_samples(lists, numbers.tolist(), length, short, 5, duplicate)
        rows, segments, lengths = gather_samples(ids, samples, length, -2, -3)
        assert len(rows) == len(expected)
        assert popped == expected_popped
        for row, (a, b, is_random) in enumerate(expected):
            whole = [-2, *a, -3, *b, -3]
            assert rows[row].tolist() == whole + [0] * (length - len(whole))
            segment = [0] * (len(a) + 2) + [1] * (len(b) + 1)
            assert segments[row].tolist() == segment + [0] * (length - len(whole))
            assert lengths[row] == len(whole)
            assert bool(samples[row, 4]) == is_random


def build(sentences: np.ndarray, documents: np.ndarray, **changes: object) -> tuple[np.ndarray, int]:
    count = len(documents) - 1
    options: dict = {
        "numbers": np.arange(count),
        "copies": np.ones(count, dtype=int) * 9,
        "kind": "pair",
        "sequence_length": 64,
        "short_seq_prob": 0.1,
        "seed": 1,
        "duplicate": 0,
        **changes,
    }
    return build_samples(sentences, documents, **options)


def test_random_next_comes_from_another_document() -> None:
    _, sentences, documents = make_corpus(40, 1)
    samples, _ = build(sentences, documents)
    owner = np.searchsorted(sentences[documents], samples[:, [0, 2]], side="right") - 1
    is_random = samples[:, 4] == 1
    assert (owner[is_random, 0] != owner[is_random, 1]).all()
    assert (owner[~is_random, 0] == owner[~is_random, 1]).all()
    assert (samples[~is_random, 0] + samples[~is_random, 1] <= samples[~is_random, 2]).all()
    assert len(set(owner[is_random, 1])) > 35
    assert 0.45 < is_random.mean() < 0.75


def test_two_documents_are_enough() -> None:
    sentences, documents = np.array([0, 5, 9, 12]), np.array([0, 2, 3])
    samples, _ = build(sentences, documents, sequence_length=16, short_seq_prob=0.0)
    assert len(samples) >= 2


def test_unused_tokens_are_counted() -> None:
    ids, sentences, documents = make_corpus(60, 2)
    copies = np.ones(60, dtype=int)
    parts = [build(sentences, documents, duplicate=number)[0] for number in range(4)]
    unused = [count_unused(np.concatenate(parts[:count]), sentences, documents, copies) for count in (1, 2, 4)]
    seen: set[int] = set()
    for a_start, a_length, b_start, b_length, _ in parts[0].tolist():
        seen |= set(range(a_start, a_start + a_length)) | set(range(b_start, b_start + b_length))
    assert unused[0] == len(ids) - len(seen)
    assert unused[0] > unused[1] > unused[2]
    long, popped = build(sentences, documents, sequence_length=30_000, short_seq_prob=0.0)
    assert popped == 0
    assert count_unused(long, sentences, documents, copies) == 0


@pytest.mark.parametrize("short", [0.0, 0.5])
def test_single_segments_hold_the_whole_text_once(short: float) -> None:
    ids, sentences, documents = make_corpus(60, 4)
    samples, popped = build(sentences, documents, kind="single", short_seq_prob=short)
    assert popped == 0
    assert (samples[:, 2:] == 0).all()
    covered = [token for start, length, *_ in samples.tolist() for token in range(start, start + length)]
    assert covered == ids.tolist()
    assert set(samples[:, 0]) <= set(sentences.tolist())
    assert samples[:, 1].max() <= 62
    next_sentence = np.diff(sentences)[np.searchsorted(sentences, samples[:-1, 0] + samples[:-1, 1])]
    in_document = ~np.isin(samples[:-1, 0] + samples[:-1, 1], sentences[documents])
    if short == 0.0:  # as full as whole sentences can make them
        assert (samples[:-1, 1] + next_sentence > 62)[in_document].all()
    rows, segments, lengths = gather_samples(ids + 10, samples, 64, 2, 3)
    assert (lengths == samples[:, 1] + 2).all()
    assert (segments == 0).all()
    assert (rows[np.arange(len(rows)), lengths - 1] == 3).all()


def test_a_document_is_used_as_often_as_it_has_copies() -> None:
    _, sentences, documents = make_corpus(30, 3)
    copies = np.arange(30) % 3
    for duplicate in range(3):
        samples, _ = build(sentences, documents, copies=copies, duplicate=duplicate)
        owner = np.searchsorted(sentences[documents], samples[:, 0], side="right") - 1
        assert set(owner) == set(np.flatnonzero(copies > duplicate))


def test_samples_depend_on_the_number_of_their_document() -> None:
    _, sentences, documents = make_corpus(30, 3)
    whole, again = build(sentences, documents, duplicate=1)[0], build(sentences, documents, duplicate=1)[0]
    assert (whole == again).all()
    other = build(sentences, documents, duplicate=2)[0]
    assert len(other) != len(whole) or (other != whole).any()


def test_cut_long_sentences() -> None:
    sentences, documents = np.array([0, 3, 103, 110, 171, 171 + 61]), np.array([0, 2, 3, 5])
    cut, moved, count = cut_long_sentences(sentences, documents, 61)
    assert count == 1
    assert cut.tolist() == [0, 3, 53, 103, 110, 171, 232]
    assert cut[moved].tolist() == sentences[documents].tolist()
    cut, moved, count = cut_long_sentences(sentences, documents, 7)
    assert count == 3
    assert np.diff(cut).max() <= 7
    assert np.diff(cut).min() >= 3
    assert set(sentences) <= set(cut)
    assert cut[moved].tolist() == sentences[documents].tolist()
    assert cut_long_sentences(sentences, documents, 100)[2] == 0


@pytest.mark.parametrize("total", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_places_are_a_permutation_when_computed_in_parts(total: int) -> None:
    places = permuted(0, total, total, 3)
    assert sorted(places) == list(range(total))
    cut = total // 3
    parts = [permuted(0, cut, total, 3), permuted(cut, total - cut, total, 3)]
    assert (np.concatenate(parts) == places).all()
    if total >= 1000:
        assert (permuted(0, total, total, 4) != places).mean() > 0.99
        assert abs(np.corrcoef(places, np.arange(total))[0, 1]) < 0.1
        assert abs(np.corrcoef(places[1:], places[:-1])[0, 1]) < 0.1


def test_places_are_even_over_shards() -> None:
    """A run of samples is spread evenly over the shards, by a chi-squared test."""
    total, shards = 200_000, 20
    of_run = permuted(50_000, 20_000, total, 9) // (total // shards)
    counts = np.bincount(of_run, minlength=shards)
    chi_squared = ((counts - 1000.0) ** 2 / 1000.0).sum()
    assert 3 < chi_squared < 45  # 19 degrees of freedom: outside in fewer than 1 of 1,000 cases
