"""``speed.packing``: samples laid end to end, so that next to no padding is computed.

A micro-batch is B rows of L tokens, and samples run across the ends of its rows: ``cu_seqlens`` says where each begins.
Tokens attend to those of their own sample only, and the positions of each sample start at 0. So the losses are those of
one sample a row, up to rounding.

B x L is a budget of tokens: the samples of a window fill as few micro-batches as hold them, which is fewer than without
packing, and all have the same shape but the last, which has the smallest of ``packed_shapes`` that holds it.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from bert_pretrain.data.collate import MicroBatch, Shape, dummy_batch, sample_lengths
from bert_pretrain.data.shards import Arrays, select
from bert_pretrain.jit import cached_njit

_SIZES = 32  # of a micro-batch: matrix libraries keep something for every shape they meet
_FIXED_SIZES = 8  # fewer, because each is compiled
_SHORTEST = 16  # tokens: samples may be this short on average and still fill the budget


def packed_shapes(samples: int, length: int, predictions: int, sizes: int = _FIXED_SIZES) -> list[Shape]:
    """All shapes of packed micro-batches with the tokens and masks of up to ``samples`` full ones, smallest first."""
    most = max(4, length // _SHORTEST)
    rows = sorted({-(-samples * part // sizes) for part in range(1, sizes + 1)})
    return [Shape(number, length, number * predictions, False, number * most) for number in rows]


def packed_micro_batches(arrays: Arrays, samples: int) -> Iterator[MicroBatch]:
    """Shard rows as packed micro-batches with the tokens of up to ``samples`` full ones, of any number of masks."""
    length = arrays["input_ids"].shape[1]
    predictions = arrays["masked_lm_positions"].shape[1]
    unit = max(1, samples * predictions // _SIZES)
    # With many masks short samples have more than their share of a full one's: twice that, so that tokens decide.
    for batch in fixed_packed_micro_batches(arrays, packed_shapes(samples, length, 2 * predictions, _SIZES)):
        masked = -(-int(torch.count_nonzero(batch.masked_positions)) // unit) * unit
        yield replace(
            batch, masked_positions=batch.masked_positions[:masked], masked_labels=batch.masked_labels[:masked]
        )


def fixed_packed_micro_batches(arrays: Arrays, shapes: list[Shape]) -> Iterator[MicroBatch]:
    """Shard rows as packed micro-batches, each in the smallest of ``shapes`` that holds its samples."""
    lengths = sample_lengths(arrays)
    masked = np.count_nonzero(arrays["masked_lm_positions"], axis=1)
    numbers = plan_micro_batches(lengths, masked, shapes[-1])
    for number in range(numbers.max() + 1):
        own = numbers == number
        needed = np.array([lengths[own].sum(), masked[own].sum(), np.count_nonzero(own)])
        yield _packed(select(arrays, own), next(shape for shape in shapes if (needed <= _capacity(shape)).all()))


def plan_micro_batches(lengths: np.ndarray, masked: np.ndarray, largest: Shape) -> np.ndarray:
    """The micro-batch of each sample, (n,) int64, by first-fit decreasing.

    ``lengths`` (n,) in tokens are at most L of ``largest``; ``masked`` (n,) are the numbers of masked tokens.
    """
    numbers = np.empty_like(lengths)
    sizes = np.stack([lengths, masked, np.ones_like(lengths)], axis=1)
    _first_fit(np.argsort(-lengths, kind="stable"), sizes, _capacity(largest), numbers)
    return numbers


def _capacity(shape: Shape) -> np.ndarray:
    """The most tokens, masked tokens and samples of ``shape``, (3,); its padding is up to B samples of their own."""
    return np.array([shape.samples * shape.length, shape.masked, shape.packed - shape.samples])


@cached_njit()
def _first_fit(order: np.ndarray, sizes: np.ndarray, capacity: np.ndarray, numbers: np.ndarray) -> None:
    used = np.zeros((len(order), 3), dtype=np.int64)
    for sample in order:
        number = 0
        while (
            used[number, 0] + sizes[sample, 0] > capacity[0]
            or used[number, 1] + sizes[sample, 1] > capacity[1]
            or used[number, 2] + sizes[sample, 2] > capacity[2]
        ):
            number += 1
        numbers[sample] = number
        for kind in range(3):
            used[number, kind] += sizes[sample, kind]


def _packed(arrays: Arrays, shape: Shape) -> MicroBatch:
    """The n samples of ``arrays`` in ``shape``."""
    batch, ends = dummy_batch(shape), np.cumsum(sample_lengths(arrays))
    assert batch.cu_seqlens is not None
    assert batch.position_ids is not None
    samples, columns = np.nonzero(arrays["input_mask"])  # sample after sample: in the order of the tokens
    tokens = slice(len(samples))
    batch.input_ids.view(-1)[tokens] = torch.from_numpy(arrays["input_ids"][samples, columns].astype(np.int64))
    batch.segment_ids.view(-1)[tokens] = torch.from_numpy(arrays["segment_ids"][samples, columns].astype(np.int64))
    batch.position_ids.view(-1)[tokens] = torch.from_numpy(columns)
    count = len(ends)
    pieces = np.arange(ends[-1] + shape.length, batch.input_ids.numel(), shape.length)
    batch.cu_seqlens[1:] = batch.input_ids.numel()
    batch.cu_seqlens.numpy()[1 : 1 + count] = ends
    batch.cu_seqlens.numpy()[1 + count : 1 + count + len(pieces)] = pieces
    predicted, places = np.nonzero(arrays["masked_lm_positions"])
    positions = (ends - sample_lengths(arrays))[predicted] + arrays["masked_lm_positions"][predicted, places]
    batch.masked_positions.numpy()[: len(predicted)] = positions
    batch.masked_labels.numpy()[: len(predicted)] = arrays["masked_lm_ids"][predicted, places]
    batch.next_sentence_labels.numpy()[:count] = arrays["next_sentence_labels"]
    return batch
