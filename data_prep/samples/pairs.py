"""Training samples by Google's algorithm (create_pretraining_data.py, 2018), as slices of one array of token ids.

A segment is a run of sentences, truncated by removing tokens at its front or back, so it is one slice of the corpus.
A sample is five integers, and no token is copied before the shards are written:

    a_start, a_length, b_start, b_length, is_random_next        (one row of int64)

The samples of a document depend on (seed, duplicate, number of the document) and on the other documents of its
bucket. Differences from the published code:

* The document of a random next segment is drawn uniformly from all other documents of the bucket. The published code
  tries ten times and, if all tries return the same document, uses its own text as the random segment.
* The documents are not shuffled, because :mod:`data_prep.samples.shuffle` shuffles the samples of the whole split.
* A sentence longer than a sample is first cut into equal pieces (:func:`cut_long_sentences`); truncation would discard
  the rest of it.

With sample_kind=single a sample is [CLS] A [SEP]: as many whole sentences of one document as fit, not truncated, with
b_length 0.
"""

import numpy as np

from bert_pretrain.data.masking import draw_below, draw_unit, set_key
from bert_pretrain.jit import cached_njit

COLUMNS = ("a_start", "a_length", "b_start", "b_length", "is_random_next")
SPECIALS = {"pair": 3, "single": 2}  # [CLS] A [SEP] B [SEP], [CLS] A [SEP]


def cut_long_sentences(sentences: np.ndarray, documents: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Cut sentences of more than ``limit`` tokens into as few pieces as possible, whose lengths differ by one at most.

    sentences (S+1,) are offsets into the ids, documents (D+1,) offsets into the sentences. Returns the new offsets of
    both, and the number of sentences that were cut.
    """
    lengths = np.diff(sentences)
    pieces = np.maximum(1, -(-lengths // limit))
    if not np.any(pieces > 1):
        return sentences, documents, 0
    first = np.concatenate([[0], np.cumsum(pieces)])
    owner = np.repeat(np.arange(len(lengths)), pieces)
    part = np.arange(first[-1]) - first[owner]
    cut = np.append(sentences[owner] + lengths[owner] * part // pieces[owner], sentences[-1])
    return cut, first[documents], int(np.count_nonzero(pieces > 1))


def build_samples(
    sentences: np.ndarray,
    documents: np.ndarray,
    numbers: np.ndarray,
    copies: np.ndarray,
    *,
    kind: str,
    sequence_length: int,
    short_seq_prob: float,
    seed: int,
    duplicate: int,
) -> tuple[np.ndarray, int]:
    """The samples of a bucket's documents, for one duplicate of the corpus.

    Offsets are as in :func:`cut_long_sentences`; no sentence and no document is empty. numbers (D,) are the random
    keys of the documents; a document is skipped if its copies (D,) are not more than ``duplicate``. Pairs need two
    documents. Returns the samples (n, 5), in the order of the documents, and the number of tokens truncated.
    """
    assert kind == "single" or len(numbers) >= 2, "a random next segment needs another document"
    samples = np.zeros((int(documents[-1]), len(COLUMNS)), dtype=np.int64)  # each uses at least one sentence
    tokens = sequence_length - SPECIALS[kind]
    build = _build_single if kind == "single" else _build_pairs
    count, truncated = build(sentences, documents, numbers, copies, tokens, short_seq_prob, seed, duplicate, samples)
    return samples[:count].copy(), truncated


def gather_samples(
    ids: np.ndarray, samples: np.ndarray, sequence_length: int, cls_id: int, sep_id: int, pad_id: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples as token ids (n, L) in the dtype of ``ids``, segment ids (n, L) int8 and lengths (n,) int64.

    [CLS] A [SEP] B [SEP], or [CLS] A [SEP] if b_length is 0; padded with ``pad_id`` (segment ids with 0).
    """
    rows = np.full((len(samples), sequence_length), pad_id, dtype=ids.dtype)
    segments = np.zeros((len(samples), sequence_length), dtype=np.int8)
    lengths = samples[:, 1] + samples[:, 3] + np.where(samples[:, 3] > 0, SPECIALS["pair"], SPECIALS["single"])
    _gather(ids, samples, cls_id, sep_id, rows, segments)
    return rows, segments, lengths


def count_unused(samples: np.ndarray, sentences: np.ndarray, documents: np.ndarray, copies: np.ndarray) -> int:
    """How many tokens of the documents with ``copies`` are in no sample."""
    starts, sizes = samples[:, [0, 2]].ravel(), samples[:, [1, 3]].ravel()
    order = np.argsort(starts, kind="stable")
    starts = starts[order]
    stops = starts + sizes[order]
    reached = np.maximum.accumulate(np.append(0, stops[:-1]))  # by the segments before
    fresh = np.maximum(0, stops - np.maximum(starts, reached))
    bounds, is_wanted = sentences[documents], copies > 0
    owners = np.searchsorted(bounds, starts, side="right") - 1
    return int(np.diff(bounds)[is_wanted].sum() - fresh[is_wanted[owners]].sum())


@cached_njit()
def _build_pairs(
    sentences: np.ndarray,
    documents: np.ndarray,
    numbers: np.ndarray,
    copies: np.ndarray,
    tokens: int,
    short_seq_prob: float,
    seed: int,
    duplicate: int,
    samples: np.ndarray,
) -> tuple[int, int]:
    """Fill ``samples``. Segments are [a_start, a_stop) and [b_start, b_stop) in the array of ids."""
    state = np.empty(1, dtype=np.uint64)
    count = truncated = 0
    for document in range(len(numbers)):
        if copies[document] <= duplicate:
            continue
        last = documents[document + 1]
        set_key(state, seed, duplicate, numbers[document])
        target = _draw_target(state, tokens, short_seq_prob)
        chunk = documents[document]  # the first sentence of the current chunk
        sentence = chunk
        while sentence < last:
            if sentence < last - 1 and sentences[sentence + 1] - sentences[chunk] < target:
                sentence += 1
                continue
            size = sentence + 1 - chunk
            in_a = 1 + draw_below(state, size - 1) if size >= 2 else 1  # sentences of segment A
            a_start, a_stop = sentences[chunk], sentences[chunk + in_a]
            is_random_next = size == 1 or draw_unit(state) < 0.5
            if is_random_next:
                b_start, b_stop = _random_next(state, sentences, documents, document, target - (a_stop - a_start))
                sentence = chunk + in_a - 1  # the unused sentences are in the next chunk
            else:
                b_start, b_stop = a_stop, sentences[sentence + 1]
            truncated += max(0, a_stop - a_start + b_stop - b_start - tokens)
            a_start, a_stop, b_start, b_stop = _truncate(state, a_start, a_stop, b_start, b_stop, tokens)
            samples[count, 0] = a_start
            samples[count, 1] = a_stop - a_start
            samples[count, 2] = b_start
            samples[count, 3] = b_stop - b_start
            samples[count, 4] = is_random_next
            count += 1
            sentence += 1
            chunk = sentence
    return count, truncated


@cached_njit()
def _draw_target(state: np.ndarray, tokens: int, short_seq_prob: float) -> int:
    """The wanted tokens of a document's samples: ``tokens``, or with short_seq_prob a random number from 2 on."""
    if draw_unit(state) < short_seq_prob:
        return 2 + draw_below(state, tokens - 1)
    return tokens


@cached_njit()
def _random_next(
    state: np.ndarray, sentences: np.ndarray, documents: np.ndarray, document: int, wanted: int
) -> tuple[int, int]:
    """Sentences from a random start in another document, up to ``wanted`` tokens or its end."""
    other = draw_below(state, len(documents) - 2)
    if other >= document:
        other += 1
    first, last = documents[other], documents[other + 1]
    start = first + draw_below(state, last - first)
    stop = start + 1
    while stop < last and sentences[stop] - sentences[start] < wanted:
        stop += 1
    return sentences[start], sentences[stop]


@cached_njit()
def _truncate(
    state: np.ndarray, a_start: int, a_stop: int, b_start: int, b_stop: int, tokens: int
) -> tuple[int, int, int, int]:
    """Remove tokens of the longer segment (B if equal), at the front or back with equal probability."""
    while a_stop - a_start + b_stop - b_start > tokens:
        front = draw_unit(state) < 0.5
        if a_stop - a_start > b_stop - b_start:
            if front:
                a_start += 1
            else:
                a_stop -= 1
        elif front:
            b_start += 1
        else:
            b_stop -= 1
    return a_start, a_stop, b_start, b_stop


@cached_njit()
def _build_single(
    sentences: np.ndarray,
    documents: np.ndarray,
    numbers: np.ndarray,
    copies: np.ndarray,
    tokens: int,
    short_seq_prob: float,
    seed: int,
    duplicate: int,
    samples: np.ndarray,
) -> tuple[int, int]:
    """As :func:`_build_pairs`, for single segments; truncates nothing. ``samples`` is zero."""
    state = np.empty(1, dtype=np.uint64)
    count = 0
    for document in range(len(numbers)):
        if copies[document] <= duplicate:
            continue
        set_key(state, seed, duplicate, numbers[document])
        target = _draw_target(state, tokens, short_seq_prob)
        sentence, last = documents[document], documents[document + 1]
        while sentence < last:
            start = sentences[sentence]
            sentence += 1
            while sentence < last and sentences[sentence + 1] - start <= target:
                sentence += 1
            samples[count, 0] = start
            samples[count, 1] = sentences[sentence] - start
            count += 1
    return count, 0


@cached_njit()
def _gather(
    ids: np.ndarray, samples: np.ndarray, cls_id: int, sep_id: int, rows: np.ndarray, segments: np.ndarray
) -> None:
    for row in range(len(samples)):
        a_start = samples[row, 0]
        a_length = samples[row, 1]
        b_start = samples[row, 2]
        b_length = samples[row, 3]
        rows[row, 0] = cls_id
        rows[row, 1 : 1 + a_length] = ids[a_start : a_start + a_length]
        rows[row, 1 + a_length] = sep_id
        if b_length == 0:
            continue
        rows[row, 2 + a_length : 2 + a_length + b_length] = ids[b_start : b_start + b_length]
        rows[row, 2 + a_length + b_length] = sep_id
        segments[row, 2 + a_length : 3 + a_length + b_length] = 1
