"""Samples -> the micro-batches of this rank, step after step, resumable from the step's number alone.

    SampleOrder      which samples make up step s                                (sample_order.py)
    ShardSet         sample numbers -> rows of shards, read contiguously         (data.py)
    BlockReader      blocks of neighbouring samples, masked anew where asked, a few kept
    TrainingData     this rank's slice of every step, cut into micro-batches by a background thread

Before a step's first micro-batch the loader says the step's counts, so that losses can be divided by the counts of
the global batch. Memory does not grow with the batch: blocks are read, counted, and read again where the slice is
too large to keep.
"""

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress

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
from bert_pretrain.data.dataset import ShardSet, joined
from bert_pretrain.data.sample_order import SampleOrder
from bert_pretrain.data.shards import SHARD_FIELDS, Arrays

_KEPT_BYTES = 64 << 20  # of decoded blocks: the slice of a step that fits is read and masked once
_WINDOW = 1024  # samples sorted by length together: bounds the memory, whatever the batch

DynamicMasking = Callable[[Arrays, int, np.ndarray], Arrays]
"""(arrays, epoch, sample numbers) -> the same samples under the masks of that epoch."""


class BlockReader:
    """Decoded blocks of the sample order; those of one step are kept, as far as they fit."""

    def __init__(self, shards: ShardSet, order: SampleOrder, mask_anew: DynamicMasking | None) -> None:
        self.shards, self.order, self.mask = shards, order, mask_anew
        self._kept: OrderedDict[tuple[int, int], Arrays] = OrderedDict()
        self._bytes = 0

    def block(self, epoch: int, block: int) -> Arrays:
        """All samples of a block in visiting order."""
        key = (epoch, block)
        if key not in self._kept:
            arrays = self._read(epoch, block)
            self._bytes += _size(arrays)
            while self._kept and self._bytes > _KEPT_BYTES:
                self._bytes -= _size(self._kept.popitem(last=False)[1])
            self._kept[key] = arrays
        self._kept.move_to_end(key)
        return self._kept[key]

    def _read(self, epoch: int, block: int) -> Arrays:
        first = self.order.block_start(epoch, block)
        inner = self.order.block_permutation(epoch, block)
        arrays = self.shards.read(first, first + len(inner))
        arrays = {name: arrays[name][inner] for name in SHARD_FIELDS}
        return arrays if self.mask is None else self.mask(arrays, epoch, (first + inner) % self.order.samples)

    def runs(self, start: int, stop: int) -> Iterator[Arrays]:
        """The stream's positions ``start`` to ``stop``, in runs of at most a block."""
        for run in self.order.slices(start, stop):
            block = self.block(run.epoch, run.block)
            yield {name: block[name][run.start : run.stop] for name in SHARD_FIELDS}

    def keep_only(self, start: int, stop: int) -> None:
        """Let go of the blocks that hold none of the positions ``start`` to ``stop``: they are not read again."""
        needed = {(run.epoch, run.block) for run in self.order.slices(start, stop)}
        for key in self._kept.keys() - needed:
            self._bytes -= _size(self._kept.pop(key))


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())


class TrainingData:
    """This rank's share of every step, prepared by a background thread."""

    def __init__(
        self,
        shards: ShardSet,
        order: SampleOrder,
        plan: BatchPlan,
        rank: int,
        mask_anew: DynamicMasking | None,
        prefetch: int,
        group_by_length: bool,
        shapes: list[Shape] | None = None,
    ) -> None:
        """``shapes``: all shapes that micro-batches may have, for a model that is compiled for them."""
        self.plan, self.rank, self.prefetch, self.group_by_length = plan, rank, prefetch, group_by_length
        self.shapes = shapes
        self._blocks = BlockReader(shards, order, mask_anew)

    def counts(self, step: int) -> Counts:
        """What this rank's slice of ``step`` holds."""
        start, stop = self.plan.rank_slice(self.rank)
        base = step * self.plan.global_batch_size
        self._blocks.keep_only(base + start, base + stop)
        total = Counts(0, 0, 0, 0)
        for arrays in self._blocks.runs(base + start, base + stop):
            total += count(arrays)
        return total

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """This rank's micro-batches of ``step``.

        Grouped by length, samples of a window are sorted before they are cut, so that the short ones share a
        micro-batch and its padding is cut off. Which samples the step has, and how many micro-batches, stays.
        """
        base = step * self.plan.global_batch_size
        cuts = self.plan.micro_batches(self.rank)
        together = max(1, _WINDOW // self.plan.micro_batch_size) if self.group_by_length else 1
        for first in range(0, len(cuts), together):
            window = cuts[first : first + together]
            start, stop = window[0][0], window[-1][1]
            arrays = joined(list(self._blocks.runs(base + start, base + stop)))
            if self.group_by_length:
                order = np.argsort(sample_lengths(arrays), kind="stable")
                arrays = {name: arrays[name][order] for name in SHARD_FIELDS}
            for begin, end in window:
                part = {name: arrays[name][begin - start : end - start] for name in SHARD_FIELDS}
                if self.shapes is None:
                    yield to_micro_batch(part, trim=self.group_by_length)
                else:
                    yield to_fixed_micro_batch(part, self.shapes)

    def steps(self, first_step: int, pin: bool = False) -> Iterator[StepBatch]:
        """Steps from ``first_step`` on, without end. Close the iterator to end the thread behind it."""
        ready: queue.Queue[Counts | MicroBatch | BaseException] = queue.Queue(maxsize=self.prefetch)
        closed = threading.Event()
        thread = threading.Thread(target=self._prepare, args=(first_step, pin, ready, closed), daemon=True)
        thread.start()
        accumulation = self.plan.accumulation(self.rank)
        try:
            while True:
                counts = _take(ready)
                assert isinstance(counts, Counts)
                yield StepBatch(counts, (_micro_batch(_take(ready)) for _ in range(accumulation)))
        finally:
            closed.set()
            thread.join(timeout=10)  # at the interpreter's exit the thread no longer runs

    def _prepare(self, step: int, pin: bool, ready: queue.Queue, closed: threading.Event) -> None:
        try:
            while True:
                _put(ready, self.counts(step), closed)
                for micro_batch in self.micro_batches(step):
                    _put(ready, micro_batch.pinned() if pin else micro_batch, closed)
                step += 1
        except _ClosedError:
            return
        except BaseException as error:  # handed over: the consumer raises it where it waits
            with suppress(_ClosedError):
                _put(ready, error, closed)


class _ClosedError(Exception):
    """The consumer has left."""


def _put(ready: queue.Queue, item: Counts | MicroBatch | BaseException, closed: threading.Event) -> None:
    while not closed.is_set():
        try:
            return ready.put(item, timeout=0.1)
        except queue.Full:
            continue
    raise _ClosedError


def _take(ready: queue.Queue) -> Counts | MicroBatch:
    item = ready.get()
    if isinstance(item, BaseException):
        raise item
    return item


def _micro_batch(item: Counts | MicroBatch) -> MicroBatch:
    assert isinstance(item, MicroBatch)
    return item


def heldout_batches(shards: ShardSet, micro_batch_size: int, rank: int, world_size: int) -> Iterator[MicroBatch]:
    """This rank's contiguous part of a split in file order, masks as they stand in the shards."""
    first, last = (shards.samples * r // world_size for r in (rank, rank + 1))
    for start in range(first, last, micro_batch_size):
        yield to_micro_batch(shards.read(start, min(start + micro_batch_size, last)))
