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

_SIZES = 32  # of a micro-batch's rows, samples and masks: matrix libraries keep something for every shape they meet
_FIXED_SIZES = 8  # fewer, because each is compiled


def packed_micro_batches(arrays: Arrays, count: int, shapes: list[Shape] | None = None) -> Iterator[MicroBatch]:
    """Shard rows as ``count`` packed micro-batches of nearly the same number of rows. One may be of padding only.

    ``shapes``: those of ``packed_shapes``, for a compiled model; None: any.
    """
    size = -(-len(arrays["input_ids"]) // count)
    length, predictions = arrays["input_ids"].shape[1], arrays["masked_lm_positions"].shape[1]
    rows, starts = plan_rows(sample_lengths(arrays), (arrays["masked_lm_positions"] > 0).sum(1), length, predictions)
    for number in range(count):
        own = rows % count == number
        masked = int(np.count_nonzero(arrays["masked_lm_positions"][own]))
        needed = max(1, len(np.unique(rows[own])))
        if shapes is None:
            steps = max(1, size // _SIZES), max(1, size * predictions // _SIZES)
            samples = _rounded(max(1, int(np.count_nonzero(own))), steps[0])
            shape = Shape(_rounded(needed, steps[0]), length, _rounded(masked, steps[1]), True, samples)
        else:
            shape = next(shape for shape in shapes if shape.samples >= needed)
        yield _packed(select(arrays, own), rows[own] // count, starts[own], shape)


def packed_shapes(samples: int, length: int, predictions: int) -> list[Shape]:
    """All shapes of packed micro-batches that hold up to ``samples`` unpacked samples of ``length``, smallest first."""
    most = most_in_a_row(length, predictions)
    rows = sorted({-(-samples * part // _FIXED_SIZES) for part in range(1, _FIXED_SIZES + 1)})
    return [Shape(number, length, number * most[1], True, number * most[0]) for number in rows]


def most_in_a_row(length: int, predictions: int) -> tuple[int, int]:
    """The most samples and masked tokens of a row of ``length`` tokens; ``predictions``: the most of one sample.

    So that the shapes of a compiled model hold every row. Each sample's number of masks is rounded to a whole one.
    """
    samples = max(4, length // 8)
    return samples, predictions + samples // 2


def plan_rows(
    lengths: np.ndarray, masked: np.ndarray, row_length: int, predictions: int
) -> tuple[np.ndarray, np.ndarray]:
    """The row of each sample, and its first token there, both (n,) int64, by first-fit decreasing.

    ``lengths`` (n,) are at most ``row_length``, ``masked`` (n,), the numbers of masked tokens, at most ``predictions``.
    """
    rows, starts = np.empty_like(lengths), np.empty_like(lengths)
    order, most = np.argsort(-lengths, kind="stable"), most_in_a_row(row_length, predictions)
    _first_fit(order, lengths, masked, row_length, *most, rows, starts)
    return rows, starts


@cached_njit()
def _first_fit(
    order: np.ndarray,
    lengths: np.ndarray,
    masked: np.ndarray,
    row_length: int,
    most_samples: int,
    most_masked: int,
    rows: np.ndarray,
    starts: np.ndarray,
) -> None:
    used = np.zeros((len(order), 3), dtype=np.int64)  # of each row: tokens, samples, masked tokens
    for sample in order:
        row = 0
        while (
            used[row, 0] + lengths[sample] > row_length
            or used[row, 1] == most_samples
            or used[row, 2] + masked[sample] > most_masked
        ):
            row += 1
        rows[sample], starts[sample] = row, used[row, 0]
        used[row, 0] += lengths[sample]
        used[row, 1] += 1
        used[row, 2] += masked[sample]


def _packed(arrays: Arrays, rows: np.ndarray, starts: np.ndarray, shape: Shape) -> MicroBatch:
    """A micro-batch of ``shape``, of samples at ``starts`` (n,) of ``rows`` (n,)."""
    samples, columns = np.nonzero(arrays["input_mask"])
    predicted, places = np.nonzero(arrays["masked_lm_positions"])
    batch, first = dummy_batch(shape), rows * shape.length + starts
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
    return -(-number // step) * step
