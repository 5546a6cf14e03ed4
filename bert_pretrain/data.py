"""Shards -> the micro-batches of this rank, step after step, resumable from the step's number alone.

    SampleOrder      which samples make up step s                                (sample_order.py)
    ShardSet         sample numbers -> rows of shards, read contiguously
    BlockReader      blocks of neighbouring samples, masked anew where asked, a few kept
    TrainingData     this rank's slice of every step, cut into micro-batches by a background thread

Before a step's first micro-batch the loader says the step's counts, so that losses can be divided by the counts of
the global batch. Memory does not grow with the batch: blocks are read, counted, dropped and read again.
"""

import hashlib
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bert_pretrain.batch_plan import BatchPlan
from bert_pretrain.batches import Counts, MicroBatch, StepBatch, count, to_micro_batch
from bert_pretrain.errors import ConfigError, require
from bert_pretrain.sample_order import SampleOrder
from bert_pretrain.shards import SHARD_FIELDS, Arrays, ShardReader, check_ids, data_fingerprint, shard_paths

_OPEN_SHARDS = 64  # bounds the open files
_KEPT_BLOCKS = 8  # bounds the memory: neighbouring steps share a block where batches are small

Remask = Callable[[Arrays, int, np.ndarray], Arrays]
"""(arrays, epoch, sample numbers) -> the same samples under the masks of that epoch."""


@dataclass
class DataConfig:
    """Options ``data.*``."""

    dir: str
    """The directory of the shards, as data_prep.prepare wrote it or in the published layout."""
    tokenizer: str
    """The tokenizer's folder; it is copied into every checkpoint."""
    sequence_length: int
    """L of the shards; asked for, so that phase 2 cannot run on the shards of phase 1."""
    masking: str
    """``static`` uses the masks in the shards, ``dynamic`` draws new ones for every epoch."""
    masked_lm_prob: float | None
    """Dynamic only: the share of tokens to predict; null is what the shards' header says."""
    check: str
    """``content`` reads every training shard once before the first step and compares ids and checksums;
    ``headers`` looks at names, shapes and headers only; ``auto`` is content up to 4 GiB of shards."""
    block_size: int
    """Samples read at once; the unit in which an epoch's order is drawn."""
    prefetch: int
    """Micro-batches prepared ahead."""

    def __post_init__(self) -> None:
        require(self.sequence_length >= 8, "data.sequence_length", self.sequence_length, "8 or more")
        require(self.masking in ("static", "dynamic"), "data.masking", self.masking, "static, dynamic")
        share = self.masked_lm_prob
        require(share is None or 0.0 < share < 1.0, "data.masked_lm_prob", share, "null, or between 0 and 1")
        require(self.check in ("auto", "content", "headers"), "data.check", self.check, "auto, content, headers")
        require(self.block_size >= 1, "data.block_size", self.block_size, "1 or more")
        require(self.prefetch >= 1, "data.prefetch", self.prefetch, "1 or more")


def _joined(parts: list[Arrays]) -> Arrays:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in SHARD_FIELDS}


class ShardSet:
    """The shards of one split as one sequence of samples. At most 64 files are open at a time."""

    def __init__(self, readers: list[ShardReader], vocab_size: int) -> None:
        self.paths = [reader.path for reader in readers]
        self.max_predictions = readers[0].max_predictions
        self.header = readers[0].header
        self.fingerprint = data_fingerprint(readers)
        self.ends = np.cumsum([reader.samples for reader in readers])
        self.samples = int(self.ends[-1])
        self.vocab_size = vocab_size
        self._open: OrderedDict[int, ShardReader] = OrderedDict()

    def read(self, start: int, stop: int) -> Arrays:
        """Samples ``start`` to ``stop``, past the end going on at the beginning."""
        parts = []
        while start < stop:
            at = start % self.samples
            shard = int(np.searchsorted(self.ends, at, side="right"))
            first = int(self.ends[shard - 1]) if shard else 0
            take = min(stop - start, int(self.ends[shard]) - at)
            parts.append(self._reader(shard).read(at - first, at - first + take))
            start += take
        arrays = _joined(parts)
        check_ids(arrays, self.vocab_size, self.paths[shard])
        return arrays

    def _reader(self, shard: int) -> ShardReader:
        if shard not in self._open:
            if len(self._open) >= _OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
            self._open[shard] = ShardReader(self.paths[shard])
        self._open.move_to_end(shard)
        return self._open[shard]


def open_split(
    config: DataConfig, split: str, vocab_size: int, report: Callable[[str], None] = lambda _: None
) -> ShardSet | None:
    """Open and check one split; None where the directory has no such shards.

    Raises ``ConfigError`` where a shard is unreadable, does not fit ``data.sequence_length`` or the model's
    vocabulary, or differs from its neighbours.
    """
    paths = shard_paths(Path(config.dir), split)
    if not paths:
        return None
    readers = [ShardReader(path) for path in paths]
    for reader in readers:
        _check_fit(reader, config, vocab_size, readers[0])
    small = sum(path.stat().st_size for path in paths) <= 4 << 30
    if config.check == "content" or (config.check == "auto" and small):
        for reader in readers:
            report(f"checking {reader.path.name}")
            reader.check_content(vocab_size)
    kept = [reader for reader in readers if reader.samples]
    shards = ShardSet(kept, vocab_size) if kept else None
    for reader in readers:
        reader.close()
    return shards


def _check_fit(reader: ShardReader, config: DataConfig, vocab_size: int, first: ShardReader) -> None:
    if reader.sequence_length != config.sequence_length:
        raise ConfigError(
            f"data.sequence_length is {config.sequence_length}, but shard {reader.path} has samples of "
            f"{reader.sequence_length} tokens; set data.sequence_length={reader.sequence_length} or data.dir to "
            "other shards"
        )
    if reader.max_predictions != first.max_predictions:
        raise ConfigError(
            f"shard {reader.path} has room for {reader.max_predictions} masked tokens a sample, {first.path.name} for "
            f"{first.max_predictions}; keep one set in a directory"
        )
    header = reader.header
    if header is None:
        return
    if header.vocab_size != vocab_size:
        raise ConfigError(
            f"model.vocab_size is {vocab_size}, but shard {reader.path} was made with a vocabulary of "
            f"{header.vocab_size}; set model.vocab_size={header.vocab_size} or data.dir to other shards"
        )
    if first.header is not None and header.vocab_hash != first.header.vocab_hash:
        raise ConfigError(
            f"shards {first.path.name} and {reader.path.name} in {reader.path.parent} were made with different "
            "vocabularies; keep one set in a directory"
        )


def check_vocabulary(config: DataConfig, splits: list[ShardSet], report: Callable[[str], None]) -> None:
    """Compare ``data.tokenizer`` with the vocabulary that the shards were made with. Raises ``ConfigError``."""
    path = Path(config.tokenizer) / "vocab.txt"
    if not path.is_file():
        report(f"no vocabulary at {path}: checkpoints will hold no tokenizer (data.tokenizer names its folder)")
        return
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    for shards in splits:
        if shards.header is not None and shards.header.vocab_hash != found:
            raise ConfigError(
                f"data.tokenizer is {config.tokenizer!r}, but {shards.paths[0]} was made with another vocabulary; "
                "give the tokenizer that data_prep.prepare wrote beside the shards"
            )


class BlockReader:
    """Decoded blocks of the sample order; the last few are kept."""

    def __init__(self, shards: ShardSet, order: SampleOrder, remask: Remask | None) -> None:
        self.shards, self.order, self.remask = shards, order, remask
        self._kept: OrderedDict[tuple[int, int], Arrays] = OrderedDict()

    def block(self, epoch: int, block: int) -> Arrays:
        """All samples of a block in visiting order."""
        key = (epoch, block)
        if key not in self._kept:
            if len(self._kept) >= _KEPT_BLOCKS:
                self._kept.popitem(last=False)
            self._kept[key] = self._read(epoch, block)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _read(self, epoch: int, block: int) -> Arrays:
        first = self.order.block_start(epoch, block)
        inner = self.order.block_permutation(epoch, block)
        arrays = self.shards.read(first, first + len(inner))
        arrays = {name: arrays[name][inner] for name in SHARD_FIELDS}
        return arrays if self.remask is None else self.remask(arrays, epoch, (first + inner) % self.order.samples)

    def runs(self, start: int, stop: int) -> Iterator[Arrays]:
        """The stream's positions ``start`` to ``stop``, in runs of at most a block."""
        for run in self.order.slices(start, stop):
            block = self.block(run.epoch, run.block)
            yield {name: block[name][run.start : run.stop] for name in SHARD_FIELDS}


class TrainingData:
    """This rank's share of every step, prepared by a background thread."""

    def __init__(
        self, shards: ShardSet, order: SampleOrder, plan: BatchPlan, rank: int, remask: Remask | None, prefetch: int
    ) -> None:
        self.plan, self.rank, self.prefetch = plan, rank, prefetch
        self._blocks = BlockReader(shards, order, remask)

    def counts(self, step: int) -> Counts:
        """What this rank's slice of ``step`` holds."""
        start, stop = self.plan.rank_slice(self.rank)
        base = step * self.plan.global_batch_size
        total = Counts(0, 0, 0, 0)
        for arrays in self._blocks.runs(base + start, base + stop):
            total += count(arrays)
        return total

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """This rank's micro-batches of ``step``."""
        base = step * self.plan.global_batch_size
        for start, stop in self.plan.micro_batches(self.rank):
            yield to_micro_batch(_joined(list(self._blocks.runs(base + start, base + stop))))

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
