"""The micro-batches of this rank for every step, resumable from the step's number alone.

By kind of data, from its samples to the reader of a step's samples:

    shards               ShardSet (dataset.py)           SampleOrder    BlockReader
    a mixture of shards  MixedShards (mixture.py)        MixedOrder     MixedReader, a BlockReader for each set
    rows of token ids    TokenSamples (pretokenised.py)  SampleOrder    BlockReader
    rows of text         Stream (text_stream.py)         its own        StreamReader

``SampleOrder`` says which samples make up a step (sample_order.py). A ``BlockReader`` holds decoded, possibly re-masked
blocks of them. ``TrainingData`` cuts this rank's slice into micro-batches in a background thread. Held-out samples are
in the same sets; those of rows of text in ``MaskedSamples`` (samples.py).

The loader gives a step's counts before its first micro-batch, so that losses can be divided by the counts of the global
batch. Memory does not grow with the batch: blocks are read for counting, and read again if the slice is too large for
the cache.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count as numbers
from itertools import islice
from typing import Any

import numpy as np

from bert_pretrain.data.batch_plan import BatchPlan
from bert_pretrain.data.collate import (
    Counts,
    MicroBatch,
    Shape,
    StepBatch,
    count,
    sample_lengths,
    to_fixed_micro_batch,
    to_micro_batch,
)
from bert_pretrain.data.dataset import SampleSet, ShardSet, concatenated
from bert_pretrain.data.masking import DynamicMasking
from bert_pretrain.data.mixture import MixedShards
from bert_pretrain.data.packing import fixed_packed_micro_batches, packed_micro_batches
from bert_pretrain.data.prefetch import Prefetched
from bert_pretrain.data.sample_order import MixedOrder, SampleOrder
from bert_pretrain.data.shards import Arrays, select
from bert_pretrain.data.text_stream import StreamReader

_CACHE_BYTES = 64 << 20  # a step's slice that fits is read and masked once
_WINDOW = 1024  # samples sorted by length, or packed, together: bounds the memory for any batch size
_PACKED_TOGETHER = 8  # least micro-batches packed together, of which one is not full


class BlockReader:
    """Decoded blocks of the sample order, in a cache."""

    def __init__(
        self, shards: SampleSet, order: SampleOrder, masking: DynamicMasking | None, first: int = 0, share: int = 1
    ) -> None:
        """``first``: number of the first sample for ``masking``; ``share``: readers that share the bytes to cache."""
        self.shards, self.order, self.masking = shards, order, masking
        self._first, self._most = first, _CACHE_BYTES // share
        self._cache: dict[tuple[int, int], Arrays] = {}

    def block(self, epoch: int, block: int) -> Arrays:
        """All samples of a block in visiting order."""
        key = (epoch, block)
        if key not in self._cache:
            first = self.order.block_start(epoch, block)
            permutation = self.order.block_permutation(epoch, block)
            arrays = select(self.shards.read(first, first + len(permutation)), permutation)
            if self.masking is not None:
                arrays = self.masking(arrays, epoch, self._first + (first + permutation) % self.order.samples)
            size = sum(array.nbytes for array in arrays.values())  # the same for all blocks, but for the last
            while self._cache and (len(self._cache) + 1) * size > self._most:
                self._cache.pop(next(iter(self._cache)))
            self._cache[key] = arrays
        return self._cache[key]

    def read(self, start: int, stop: int) -> Iterator[Arrays]:
        """The stream's positions ``start`` to ``stop``, in parts of at most a block."""
        for part in self.order.slices(start, stop):
            yield select(self.block(part.epoch, part.block), slice(part.start, part.stop))

    def drop_others(self, start: int, stop: int) -> None:
        """Drop the cached blocks without any of the positions ``start`` to ``stop``."""
        needed = {(part.epoch, part.block) for part in self.order.slices(start, stop)}
        self._cache = {key: arrays for key, arrays in self._cache.items() if key in needed}

    def prefetch(self, start: int) -> None:
        """Of shards at an address, download those of the window of position ``start`` and of the next one."""
        if isinstance(self.shards, ShardSet):
            self.shards.prefetch(islice(self.order.windows(start), 2))

    def close(self) -> None:
        """Drop all blocks."""
        self._cache = {}


class MixedReader:
    """The samples of several sets in the order of a mixture."""

    def __init__(self, shards: MixedShards, order: MixedOrder, masking: DynamicMasking | None) -> None:
        firsts = np.cumsum([0, *(part.samples for part in shards.sets)]).tolist()
        self._order = order
        self._readers = [
            BlockReader(part, of_part, masking, first, len(shards.sets))
            for part, of_part, first in zip(shards.sets, order.parts, firsts, strict=False)
        ]

    def read(self, start: int, stop: int) -> Iterator[Arrays]:
        """The stream's positions ``start`` to ``stop``."""
        for part in self._order.slices(start, stop):
            ranges = zip(self._readers, part.starts.tolist(), part.stops.tolist(), strict=True)
            yield select(concatenated([rows for reader, *bounds in ranges for rows in reader.read(*bounds)]), part.rows)

    def drop_others(self, start: int, stop: int) -> None:
        """Drop the cached blocks without any of the positions ``start`` to ``stop``."""
        bounds = self._order.positions(start).tolist(), self._order.positions(stop).tolist()
        for reader, first, last in zip(self._readers, *bounds, strict=True):
            reader.drop_others(first, last)

    def prefetch(self, start: int) -> None:
        """As ``BlockReader.prefetch``, for each set."""
        for reader, first in zip(self._readers, self._order.positions(start).tolist(), strict=True):
            reader.prefetch(first)

    def close(self) -> None:
        """Drop all blocks."""
        for reader in self._readers:
            reader.close()


class StepReader(Iterator[StepBatch]):
    """Endless steps, computed ahead by a thread. No generator, as ``Prefetched`` is none."""

    def __init__(self, items: Prefetched[Any], blocks: BlockReader | MixedReader | StreamReader) -> None:
        """``items``: of each step its counts, its micro-batches, and None; ``blocks`` are what they are read from."""
        self._items, self._blocks = items, blocks

    def __next__(self) -> StepBatch:
        return StepBatch(next(self._items), iter(partial(next, self._items), None))

    def close(self) -> None:
        """Stop the thread, and close what it reads."""
        with closing(self._blocks):
            self._items.close()


@dataclass
class TrainingData:
    """This rank's slice of every step."""

    shards: SampleSet | StreamReader
    order: SampleOrder | MixedOrder
    plan: BatchPlan
    rank: int
    masking: DynamicMasking | None
    prefetch: int
    group_by_length: bool
    shapes: list[Shape] | None = None
    """The only shapes that micro-batches may have, for a compiled model."""
    packing: bool | None = False
    """Lay samples end to end; then they are not grouped by length."""

    def __post_init__(self) -> None:
        self._blocks: BlockReader | MixedReader | StreamReader
        if isinstance(self.shards, StreamReader):
            self._blocks = self.shards
        elif isinstance(self.order, MixedOrder):
            assert isinstance(self.shards, MixedShards)
            self._blocks = MixedReader(self.shards, self.order, self.masking)
        else:
            self._blocks = BlockReader(self.shards, self.order, self.masking)

    def counts(self, step: int) -> Counts:
        """The counts of this rank's slice of ``step``."""
        start, stop = (step * self.plan.global_batch_size + bound for bound in self.plan.rank_slice(self.rank))
        self._blocks.drop_others(start, stop)
        self._blocks.prefetch(start)
        return sum((count(arrays) for arrays in self._blocks.read(start, stop)), Counts(0, 0, 0, 0))

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """This rank's micro-batches of ``step``.

        Grouped by length, the samples of a window are sorted before they are cut, so that short ones share a
        micro-batch and its common padding is cut off; the number of micro-batches stays the same. Packed, there are as
        many as the tokens of the window fill.
        """
        base = step * self.plan.global_batch_size
        cuts = self.plan.micro_batches(self.rank)
        together = self.group_by_length or self.packing
        least = _PACKED_TOGETHER if self.packing else 1
        per_window = max(least, _WINDOW // self.plan.micro_batch_size) if together else 1
        for first in range(0, len(cuts), per_window):
            window = cuts[first : first + per_window]
            start, stop = window[0][0], window[-1][1]
            arrays = concatenated(list(self._blocks.read(base + start, base + stop)))
            if self.packing:
                if self.shapes is None:
                    yield from packed_micro_batches(arrays, self.plan.largest_micro_batch)
                else:
                    yield from fixed_packed_micro_batches(arrays, self.shapes)
                continue
            if self.group_by_length:
                arrays = select(arrays, np.argsort(sample_lengths(arrays), kind="stable"))
            for begin, end in window:
                part = select(arrays, slice(begin - start, end - start))
                if self.shapes is None:
                    yield to_micro_batch(part, trim=self.group_by_length)
                else:
                    yield to_fixed_micro_batch(part, self.shapes)

    def steps(self, first_step: int, pin: bool = False) -> StepReader:
        """Steps from ``first_step`` on. ``pin`` copies the micro-batches to pinned memory."""
        return StepReader(Prefetched(self._items(first_step, pin), self.prefetch), self._blocks)

    def bookmarks(self, step: int, gather: Callable[[list[list[int]]], list[list[list[int]]]]) -> list[list[int]]:
        """Where the streams of text of all ranks are opened to give the batches from ``step`` on; else empty.

        ``gather``: a list of all ranks' values, on each.
        """
        if not isinstance(self._blocks, StreamReader):
            return []
        return [mark for marks in gather(self._blocks.bookmarks(step)) for mark in marks]

    def _items(self, first_step: int, pin: bool) -> Iterator[Any]:
        """Of each step its counts, its micro-batches, and None."""
        for step in numbers(first_step):
            yield self.counts(step)
            for micro_batch in self.micro_batches(step):
                yield micro_batch.pinned() if pin else micro_batch
            yield None


def heldout_batches(
    shards: SampleSet, micro_batch_size: int, rank: int, world_size: int, pin: bool = False
) -> Iterator[MicroBatch]:
    """This rank's contiguous part of a split in file order, with the masks of the shards; ``pin`` as for ``steps``."""
    first, last = (shards.samples * r // world_size for r in (rank, rank + 1))
    for start in range(first, last, micro_batch_size):
        batch = to_micro_batch(shards.read(start, min(start + micro_batch_size, last)))
        yield batch.pinned() if pin else batch
