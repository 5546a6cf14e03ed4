"""``speed.packing``: samples laid end to end in rows of L tokens, so that little padding is computed.

Tokens attend to those of their own sample only, and the positions of each sample start at 0. So the losses are those of
one sample a row, up to rounding. The samples of several micro-batches are packed together and their rows dealt out to
the same number of micro-batches: more samples fill the rows better, and no micro-batch has more rows than unpacked.
"""

from collections.abc import Iterator

import numpy as np

from bert_pretrain.data.collate import MicroBatch, Shape, dummy_batch, sample_lengths
from bert_pretrain.data.shards import Arrays, select
from bert_pretrain.jit import cached_njit

_SIZES = 32  # of a micro-batch's rows, and of its samples: matrix libraries keep something for every shape they meet


def packed_micro_batches(arrays: Arrays, count: int) -> Iterator[MicroBatch]:
    """Shard rows as ``count`` packed micro-batches of nearly the same number of rows. One may be of padding only."""
    size = -(-len(arrays["input_ids"]) // count)
    rows, starts = plan_rows(sample_lengths(arrays), arrays["input_ids"].shape[1])
    for number in range(count):
        own = np.flatnonzero(rows % count == number)
        yield _packed(select(arrays, own), rows[own] // count, starts[own], size)


def plan_rows(lengths: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """The row of each sample, and its first token there, both (n,) int64, by first-fit decreasing.

    ``lengths`` (n,) are at most ``row_length``. At most 11/9 of the fewest possible rows (Johnson 1973), plus one.
    """
    rows, starts = np.empty_like(lengths), np.empty_like(lengths)
    _first_fit(np.argsort(-lengths, kind="stable"), lengths, row_length, rows, starts)
    return rows, starts


@cached_njit()
def _first_fit(order: np.ndarray, lengths: np.ndarray, row_length: int, rows: np.ndarray, starts: np.ndarray) -> None:
    used = np.zeros(len(order), dtype=np.int64)
    for sample in order:
        row = 0
        while used[row] + lengths[sample] > row_length:
            row += 1
        rows[sample], starts[sample] = row, used[row]
        used[row] += lengths[sample]


def _packed(arrays: Arrays, rows: np.ndarray, starts: np.ndarray, size: int) -> MicroBatch:
    """A micro-batch of samples at ``starts`` (n,) of ``rows`` (n,); ``size``: samples of an unpacked one."""
    length = arrays["input_ids"].shape[1]
    samples, columns = np.nonzero(arrays["input_mask"])
    predicted, places = np.nonzero(arrays["masked_lm_positions"])
    shape = Shape(
        samples=_rounded(int(rows.max(initial=0)) + 1, size // _SIZES),
        length=length,
        masked=_rounded(len(predicted), size * arrays["masked_lm_positions"].shape[1] // _SIZES),
        has_mask=True,
        packed=_rounded(max(1, len(rows)), size // _SIZES),
    )
    batch, first = dummy_batch(shape), rows * length + starts
    assert batch.attention_mask is not None
    assert batch.position_ids is not None
    assert batch.first_positions is not None
    tokens = first[samples] + columns
    batch.input_ids.view(-1).numpy()[tokens] = arrays["input_ids"][samples, columns]
    batch.segment_ids.view(-1).numpy()[tokens] = arrays["segment_ids"][samples, columns]
    batch.position_ids.view(-1).numpy()[tokens] = columns
    batch.attention_mask.zero_().view(-1).numpy()[tokens] = starts[samples] + 1
    positions = first[predicted] + arrays["masked_lm_positions"][predicted, places]
    batch.masked_positions.numpy()[: len(predicted)] = positions
    batch.masked_labels.numpy()[: len(predicted)] = arrays["masked_lm_ids"][predicted, places]
    batch.next_sentence_labels.numpy()[: len(rows)] = arrays["next_sentence_labels"]
    batch.first_positions.numpy()[: len(rows)] = first
    return batch


def _rounded(number: int, step: int) -> int:
    return -(-number // max(1, step)) * max(1, step)
