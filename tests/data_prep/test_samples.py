"""Samples, against a slow implementation of Google's algorithm on lists of tokens."""

import numpy as np
import pytest

from data_prep.samples import build_samples, count_unused, cut_long_sentences, gather_samples, shuffled
from tests.conftest import KeyedRandom


def make_corpus(documents: int, seed: int, longest: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids (all different, so that a segment tells where it is from), sentence and document offsets."""
    rng = np.random.default_rng(seed)
    boundaries = np.concatenate([[0], np.cumsum(rng.integers(1, 25, documents))])
    sentences = np.concatenate([[0], np.cumsum(rng.integers(1, longest, boundaries[-1]))])
    return np.arange(sentences[-1], dtype=np.int32), sentences, boundaries


def plain_samples(
    corpus: list[list[list[int]]], chosen: list[int], length: int, short: float, seed: int, duplicate: int
) -> tuple[list[tuple[list[int], list[int], bool]], int]:
    """Steps 3 and 4 of the description, on lists; (A, B, is random next) of each sample, and the tokens popped."""
    most = length - 3
    result = []
    popped = 0
    for place, number in enumerate(chosen):
        document = corpus[number]
        rng = KeyedRandom(seed, duplicate, number)
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
                    others = [other for k, other in enumerate(chosen) if k != place]
                    other = corpus[others[rng.below(len(others))]]
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
    chosen = np.flatnonzero(np.arange(120) % 7 != 3)
    lists = [
        [ids[sentences[s] : sentences[s + 1]].tolist() for s in range(documents[d], documents[d + 1])]
        for d in range(120)
    ]
    for duplicate in range(3):
        samples, popped = build_samples(
            sentences, documents, chosen, sequence_length=length, short_seq_prob=short, seed=5, duplicate=duplicate
        )
        expected, expected_popped = plain_samples(lists, chosen.tolist(), length, short, 5, duplicate)
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


def test_random_next_comes_from_another_document_of_the_split() -> None:
    _, sentences, documents = make_corpus(40, 1)
    chosen = np.arange(0, 40, 2)
    samples, _ = build_samples(
        sentences, documents, chosen, sequence_length=64, short_seq_prob=0.1, seed=1, duplicate=0
    )
    owner = np.searchsorted(sentences[documents], samples[:, [0, 2]], side="right") - 1
    is_random = samples[:, 4] == 1
    assert (owner % 2 == 0).all()
    assert (owner[is_random, 0] != owner[is_random, 1]).all()
    assert (owner[~is_random, 0] == owner[~is_random, 1]).all()
    assert (samples[~is_random, 0] + samples[~is_random, 1] <= samples[~is_random, 2]).all()
    assert len(set(owner[is_random, 1])) == len(chosen)
    assert 0.45 < is_random.mean() < 0.75


def test_two_documents_are_enough() -> None:
    sentences, documents = np.array([0, 5, 9, 12]), np.array([0, 2, 3])
    samples, _ = build_samples(
        sentences, documents, np.array([0, 1]), sequence_length=16, short_seq_prob=0.0, seed=0, duplicate=0
    )
    assert len(samples) >= 2


def test_no_text_is_lost_uncounted() -> None:
    ids, sentences, documents = make_corpus(60, 2)
    chosen = np.arange(60)
    parts = [
        build_samples(sentences, documents, chosen, sequence_length=64, short_seq_prob=0.1, seed=1, duplicate=number)[0]
        for number in range(4)
    ]
    unused = [count_unused(np.concatenate(parts[:count]), sentences, documents, chosen) for count in (1, 2, 4)]
    seen: set[int] = set()
    for a_start, a_length, b_start, b_length, _ in parts[0].tolist():
        seen |= set(range(a_start, a_start + a_length)) | set(range(b_start, b_start + b_length))
    assert unused[0] == len(ids) - len(seen)
    assert unused[0] > unused[1] > unused[2]
    long, popped = build_samples(
        sentences, documents, chosen, sequence_length=30_000, short_seq_prob=0.0, seed=1, duplicate=0
    )
    assert popped == 0
    assert count_unused(long, sentences, documents, chosen) == 0


def test_samples_depend_on_their_document_only() -> None:
    """As if the documents were shared out to workers: no state passes from one to the next."""
    _, sentences, documents = make_corpus(30, 3)
    options = {"sequence_length": 32, "short_seq_prob": 0.2, "seed": 4}
    whole, _ = build_samples(sentences, documents, np.arange(30), duplicate=1, **options)  # type: ignore[arg-type]
    again, _ = build_samples(sentences, documents, np.arange(30), duplicate=1, **options)  # type: ignore[arg-type]
    assert (whole == again).all()
    other, _ = build_samples(sentences, documents, np.arange(30), duplicate=2, **options)  # type: ignore[arg-type]
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


def test_shuffle() -> None:
    samples = np.arange(5 * 1000).reshape(1000, 5)
    mixed = shuffled(samples, 3)
    assert sorted(mixed[:, 0]) == samples[:, 0].tolist()
    assert (mixed == shuffled(samples, 3)).all()
    assert (mixed != shuffled(samples, 4)).any()
    assert abs(np.corrcoef(mixed[:, 0], samples[:, 0])[0, 1]) < 0.15
    generator, order = KeyedRandom(3, 1 << 62, 0), list(range(1000))
    for place in range(999, 0, -1):
        other = generator.below(place + 1)
        order[place], order[other] = order[other], order[place]
    assert (mixed == samples[order]).all()
