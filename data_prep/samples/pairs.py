"""Samples by Google's algorithm (create_pretraining_data.py, 2018), as slices of one flat array of token ids.

A segment is a run of sentences, truncated by tokens popped from its front or its back, so it stays one contiguous
slice of the corpus. A sample is therefore five whole numbers, and nothing is copied before the shards are written:

    a_start, a_length, b_start, b_length, is_random_next        (one row of int64)

The samples of a document depend on (seed, duplicate, number of the document) and on the documents of its bucket, a
random share of the corpus. Differences from the published code:

* The other document of a random next segment is drawn from all other documents of the bucket, uniformly. The
  published code tries ten times and, where all tries hit the same document, takes its own text for random.
* The final shuffle (:mod:`data_prep.samples.shuffle`) covers the whole split, so the documents need no shuffling.
* A sentence longer than a whole sample is cut into equal pieces first (:func:`cut_long_sentences`), because
  truncation would throw away all that does not fit.

Single-segment samples, [CLS] A [SEP], are runs of whole sentences of one document that fill a sample as far as they
fit; nothing is truncated. Their b_length is 0.
"""

import numpy as np

from bert_pretrain.data.masking import draw_below, draw_unit, set_key
from bert_pretrain.jit import cached_njit

COLUMNS = ("a_start", "a_length", "b_start", "b_length", "is_random_next")
SPECIALS = {"pair": 3, "single": 2}  # [CLS] A [SEP] B [SEP], [CLS] A [SEP]


def cut_long_sentences(sentences: np.ndarray, documents: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Cut sentences of more than ``limit`` tokens into the fewest pieces, equal to one token.

    sentences (S+1,) are offsets into the ids, documents (D+1,) offsets into the sentences. Returns both anew, and
    the number of sentences that were cut.
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
    """The samples of the documents of a bucket, for one duplicate of the corpus.

    Offsets as in :func:`cut_long_sentences`; no sentence and no document is empty. numbers (D,) are the documents'
    keys; those with copies (D,) of ``duplicate`` or less are passed over. Pairs need two documents or more.
    Returns the samples (n, 5), in the order of the documents, and the number of tokens that truncation popped.
    """
    assert kind == "single" or len(numbers) >= 2, "a random next segment needs another document"
    most = int(documents[-1])  # every sample uses up at least one sentence
    samples = np.empty((most, len(COLUMNS)), dtype=np.int64)
    tokens = sequence_length - SPECIALS[kind]
    if kind == "single":
        count = _build_single(sentences, documents, numbers, copies, tokens, short_seq_prob, seed, duplicate, samples)
        return samples[:count].copy(), 0
    count, popped = _build(sentences, documents, numbers, copies, tokens, short_seq_prob, seed, duplicate, samples)
    return samples[:count].copy(), popped


def gather_samples(
    ids: np.ndarray, samples: np.ndarray, sequence_length: int, cls_id: int, sep_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write out samples: token ids (n, L) in the dtype of ``ids``, segment ids (n, L) int8, lengths (n,) int64.

    [CLS] A [SEP] B [SEP], or [CLS] A [SEP] where there is no B, 0-padded.
    """
    rows = np.zeros((len(samples), sequence_length), dtype=ids.dtype)
    segments = np.zeros((len(samples), sequence_length), dtype=np.int8)
    lengths = samples[:, 1] + samples[:, 3] + np.where(samples[:, 3] > 0, SPECIALS["pair"], SPECIALS["single"])
    _gather(ids, samples, cls_id, sep_id, rows, segments)
    return rows, segments, lengths


def count_unused(samples: np.ndarray, sentences: np.ndarray, documents: np.ndarray, copies: np.ndarray) -> int:
    """How many tokens of the documents with ``copies`` are in no sample."""
    used = np.zeros(int(sentences[-1]) + 1, dtype=np.int32)
    _mark(used, samples)
    return int(_count_unused(used, sentences[documents], copies))


@cached_njit()
def _build(
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
    """Steps 3 and 4 of the algorithm. Segments are [a_start, a_stop) and [b_start, b_stop) in the flat ids."""
    state = np.empty(1, dtype=np.uint64)
    count = 0
    popped = 0
    for document in range(len(numbers)):
        if copies[document] <= duplicate:
            continue
        last = documents[document + 1]
        set_key(state, seed, duplicate, numbers[document])
        target = tokens
        if draw_unit(state) < short_seq_prob:  # once for a document, not for a sample
            target = 2 + draw_below(state, tokens - 1)
        chunk = documents[document]  # the first sentence of the current chunk
        sentence = chunk
        while sentence < last:
            if sentence < last - 1 and sentences[sentence + 1] - sentences[chunk] < target:
                sentence += 1
                continue
            size = sentence + 1 - chunk
            in_a = 1
            if size >= 2:
                in_a = 1 + draw_below(state, size - 1)
            a_start, a_stop = sentences[chunk], sentences[chunk + in_a]
            is_random_next = size == 1 or draw_unit(state) < 0.5
            if is_random_next:
                b_start, b_stop = _random_next(state, sentences, documents, document, target - (a_stop - a_start))
                sentence = chunk + in_a - 1  # what the chunk did not use goes back
            else:
                b_start, b_stop = a_stop, sentences[sentence + 1]
            popped += max(0, a_stop - a_start + b_stop - b_start - tokens)
            a_start, a_stop, b_start, b_stop = _truncate(state, a_start, a_stop, b_start, b_stop, tokens)
            samples[count, 0] = a_start
            samples[count, 1] = a_stop - a_start
            samples[count, 2] = b_start
            samples[count, 3] = b_stop - b_start
            samples[count, 4] = is_random_next
            count += 1
            sentence += 1
            chunk = sentence
    return count, popped


@cached_njit()
def _random_next(
    state: np.ndarray, sentences: np.ndarray, documents: np.ndarray, document: int, wanted: int
) -> tuple[int, int]:
    """Sentences from a random start in another document, until there are ``wanted`` tokens or it ends."""
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
    """Pop tokens off the longer segment (B where they are equal), front or back by the toss of a coin."""
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
) -> int:
    state = np.empty(1, dtype=np.uint64)
    count = 0
    for document in range(len(numbers)):
        if copies[document] <= duplicate:
            continue
        set_key(state, seed, duplicate, numbers[document])
        target = tokens
        if draw_unit(state) < short_seq_prob:
            target = 2 + draw_below(state, tokens - 1)
        sentence, last = documents[document], documents[document + 1]
        while sentence < last:
            start = sentences[sentence]
            sentence += 1
            while sentence < last and sentences[sentence + 1] - start <= target:
                sentence += 1
            samples[count, 0] = start
            samples[count, 1] = sentences[sentence] - start
            samples[count, 2:] = 0
            count += 1
    return count


@cached_njit()
def _gather(
    ids: np.ndarray, samples: np.ndarray, cls_id: int, sep_id: int, rows: np.ndarray, segments: np.ndarray
) -> None:
    for row in range(len(samples)):
        a_start, a_length, b_start, b_length = samples[row, 0], samples[row, 1], samples[row, 2], samples[row, 3]
        rows[row, 0] = cls_id
        rows[row, 1 : 1 + a_length] = ids[a_start : a_start + a_length]
        rows[row, 1 + a_length] = sep_id
        if b_length == 0:
            continue
        rows[row, 2 + a_length : 2 + a_length + b_length] = ids[b_start : b_start + b_length]
        rows[row, 2 + a_length + b_length] = sep_id
        segments[row, 2 + a_length : 3 + a_length + b_length] = 1


@cached_njit()
def _mark(used: np.ndarray, samples: np.ndarray) -> None:
    """Add 1 where a segment starts and take 1 where it ends: the running sum says how often a token is used."""
    for row in range(len(samples)):
        for column in (0, 2):
            used[samples[row, column]] += 1
            used[samples[row, column] + samples[row, column + 1]] -= 1


@cached_njit()
def _count_unused(used: np.ndarray, offsets: np.ndarray, copies: np.ndarray) -> int:
    unused = 0
    times = 0  # that the token at hand is used
    for document in range(len(copies)):
        for token in range(offsets[document], offsets[document + 1]):
            times += used[token]
            unused += times == 0 and copies[document] > 0
    return unused
