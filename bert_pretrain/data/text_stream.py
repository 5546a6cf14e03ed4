"""``data.kind=streamed``: text that is tokenised while training, in an order that no number of ranks changes.

The files are dealt into ``data.streams`` streams, and every stream fills the same places of every global batch:

    place j of a global batch of B  ->  stream v with B*v//V <= j < B*(v+1)//V

So a rank, whose samples are neighbours, reads only the streams that fill its own places. A stream is a pure function of
(seed, its files): in every epoch the files come in another order, their rows in the order of the file; rows become
samples, and ``data.shuffle_buffer`` samples at a time are permuted. An epoch of a stream ends with its last row.

A position is a number of samples. To begin at one in the middle of a file, a stream goes on from the nearest earlier
bookmark, which states the rows that it had read when a buffer was full. Checkpoints keep these. Without any bookmark
the stream is read again from its beginning, with the same result.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from bert_pretrain.data.dataset import concatenated
from bert_pretrain.data.masking import DynamicMasking
from bert_pretrain.data.prefetch import Prefetched
from bert_pretrain.data.row_source import TextFiles
from bert_pretrain.data.sample_order import hash64
from bert_pretrain.data.samples import is_held_out
from bert_pretrain.data.shards import Arrays, select
from bert_pretrain.errors import ConfigError

_ROWS_MASKED = 1024  # at once

Tokenise = Callable[[list[str]], list[np.ndarray]]
"""Texts -> the ids of all their samples, without padding, in order."""


@dataclass(frozen=True)
class Bookmark:
    """A place in a stream between two buffers."""

    position: int
    """Samples before it."""
    buffer: int = 0
    """Buffers before it."""
    epoch: int = 0
    file: int = 0
    """Files of this epoch that were read to their end."""
    row: int = 0
    """Rows that were read of the file after those."""

    def after(self, samples: int, epoch: int, file: int, row: int) -> "Bookmark":
        """The bookmark behind the next buffer, of ``samples`` samples."""
        return Bookmark(self.position + samples, self.buffer + 1, epoch, file, row)


class Stream:
    """Some of the files, as an endless sequence of samples."""

    def __init__(
        self, number: int, files: list[int], text: TextFiles, tokenise: Tokenise, seed: int, buffer: int, stride: int
    ) -> None:
        """``files``: their numbers; ``buffer``: samples shuffled together; every ``stride``-th row is held out."""
        self.number = number
        self.files = files
        self.seed = seed
        self.buffer = buffer
        self.stride = stride
        self._text, self._tokenise = text, tokenise
        self.bookmarks = {0: Bookmark(0)}
        self._buffers: Prefetched[tuple[list[np.ndarray], Bookmark]] | None = None
        self._kept: list[np.ndarray] = []
        self._first = 0
        """The position of the first sample that is kept."""

    def samples(self, start: int, stop: int) -> list[np.ndarray]:
        """The samples ``start`` to ``stop``. They are kept until ``forget``; going back further reads them again."""
        if self._buffers is None or start < self._first:
            self.close()
            mark = self.bookmark(start)
            self._buffers = Prefetched(self._read(mark), 1)
            self._kept = []
            self._first = mark.position
        while self._first + len(self._kept) < stop:
            samples, mark = next(self._buffers)
            self.bookmarks[mark.position] = mark
            self._kept += samples
            self.forget(start)
        return self._kept[start - self._first : stop - self._first]

    def forget(self, before: int) -> None:
        """Keep no sample ``before`` this position."""
        count = min(max(0, before - self._first), len(self._kept))
        del self._kept[:count]
        self._first += count

    def bookmark(self, position: int) -> Bookmark:
        """The last one at or before ``position``."""
        known = list(self.bookmarks)  # a copy: the loader's thread adds to them
        return self.bookmarks[max(place for place in known if place <= position)]

    def close(self) -> None:
        """Stop reading ahead; the next ``samples`` begins at a bookmark."""
        if self._buffers is not None:
            self._buffers.close()
        self._buffers = None

    def _read(self, mark: Bookmark) -> Iterator[tuple[list[np.ndarray], Bookmark]]:
        """From ``mark`` on: the samples of a buffer in their order, and the bookmark behind it."""
        while True:
            begins, found = (mark.file, mark.row) == (0, 0), mark.position
            held: list[np.ndarray] = []
            for file, row, samples in self._epoch(mark.epoch, mark.file, mark.row):
                held += samples
                if len(held) >= self.buffer:
                    mark = mark.after(len(held), mark.epoch, file, row)
                    yield self._permuted(held, mark.buffer), mark
                    held = []
            mark = mark.after(len(held), mark.epoch + 1, 0, 0)
            if held:
                yield self._permuted(held, mark.buffer), mark
            elif begins and mark.position == found:
                raise ConfigError(f"{self._text.where}: there is no text in its files, or all of it is held out")

    def _epoch(self, epoch: int, done: int, row: int) -> Iterator[tuple[int, int, list[np.ndarray]]]:
        """The samples of an epoch, some rows at a time, from ``row`` of the file after ``done`` files on.

        With them the number of files before this one, and of its rows that were read.
        """
        shuffled = np.random.Generator(np.random.Philox(key=hash64(self.seed, self.number, epoch)))
        order = shuffled.permutation(len(self.files))
        for place in range(done, len(order)):
            for rows, texts in self._text.read(self.files[order[place]], row if place == done else 0):
                kept = np.flatnonzero(~is_held_out(rows, self.stride))
                yield place, int(rows[-1]) + 1, self._tokenise([texts[number] for number in kept])

    def _permuted(self, samples: list[np.ndarray], buffer: int) -> list[np.ndarray]:
        shuffled = np.random.Generator(np.random.Philox(key=hash64(self.seed, self.number, buffer, -1)))
        return [samples[place] for place in shuffled.permutation(len(samples))]


class StreamReader:
    """The samples of all streams by their positions in the global order: what ``BlockReader`` is for shards."""

    samples = 0

    def __init__(
        self,
        streams: list[Stream],
        batch: int,
        rows: Callable[[list[np.ndarray]], Arrays],
        masking: DynamicMasking,
        max_predictions: int,
        fingerprint: str,
    ) -> None:
        """``batch``: samples of a global batch; ``rows`` pads samples, ``masking`` gets their positions as numbers."""
        self.streams = streams
        self._batch = batch
        self._rows = rows
        self._masking = masking
        self.max_predictions, self.fingerprint = max_predictions, fingerprint
        self._starts = [batch * number // len(streams) for number in range(len(streams) + 1)]
        self._slice = (0, 0)
        self._held: Arrays | None = None

    def read(self, start: int, stop: int) -> Iterator[Arrays]:
        """The positions ``start`` to ``stop``, masked."""
        first, end = self._slice
        if first <= start and stop <= end:
            if self._held is None:
                self._held = self._load(first, end)
            yield select(self._held, slice(start - first, stop - first))
        else:
            yield self._load(start, stop)

    def drop_others(self, start: int, stop: int) -> None:
        """Keep the positions ``start`` to ``stop`` only, a rank's part of one step, once they are read."""
        self._slice, self._held = (start, stop), None
        for number, first, _ in self._parts(start, stop):
            self.streams[number].forget(first)

    def prefetch(self, start: int) -> None:
        """Nothing: every stream reads ahead by itself."""

    def close(self) -> None:
        """Stop the threads that read ahead."""
        for stream in self.streams:
            stream.close()

    def bookmarks(self, step: int) -> list[list[int]]:
        """For each stream its number and its last bookmark at or before the global batch ``step``, where it has one."""
        sizes = np.diff(self._starts).tolist()
        found = ((number, self.streams[number].bookmark(step * size)) for number, size in enumerate(sizes))
        return [[number, *vars(mark).values()] for number, mark in found if mark.position]

    def restore(self, bookmarks: list[list[int]]) -> None:
        """Take over the bookmarks of a checkpoint."""
        for number, *values in bookmarks:
            mark = Bookmark(*values)
            self.streams[number].bookmarks[mark.position] = mark

    def _parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The streams of the positions ``start`` to ``stop``, in order: each with its start and stop in the stream."""
        while start < stop:
            step, place = divmod(start, self._batch)
            number = bisect_right(self._starts, place) - 1
            begin, end = self._starts[number : number + 2]
            size = min(stop - start, end - place)
            first = step * (end - begin) + place - begin
            yield number, first, first + size
            start += size

    def _load(self, start: int, stop: int) -> Arrays:
        samples = [
            sample for number, *part in self._parts(start, stop) for sample in self.streams[number].samples(*part)
        ]
        numbers = np.arange(start, stop)
        parts = range(0, stop - start, _ROWS_MASKED)
        slices = [slice(first, first + _ROWS_MASKED) for first in parts]
        return concatenated([self._masking(self._rows(samples[part]), 0, numbers[part]) for part in slices])
