"""Which samples make up step s: a pure function of (seed, s, global batch size).

Step s takes the positions s*B to (s+1)*B of an endless stream with every sample once per epoch. A step may span two
epochs, so that nothing is dropped. World size and micro-batch size play no role. Finding a position takes constant
time: there is no state but the position.

Samples were shuffled over all shards when they were written, so a contiguous read is a random draw. An epoch therefore
reads blocks of consecutive samples. Every epoch permutes the blocks (a keyed bijection of the block numbers), permutes
the samples within each block, and cuts the blocks at another offset (the data are rotated by a keyed number), so that
no two epochs have the same batches.

With a window, an epoch permutes windows of consecutive blocks, and the blocks within each window, so that it reads one
part of the data after the other.

A mixture of several sets has an endless stream of each. It is a sequence of periods of 65,536 positions, of which every
part has the same number in every period, at keyed random places; a part's stream goes on from period to period.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from math import gcd

import numpy as np

_MASK64 = (1 << 64) - 1
PERIOD = 1 << 16
"""Positions in a period of a mixture: shares are multiples of 1 / PERIOD."""
_AT_ONCE = 1024  # positions of a mixture that are read together


def hash64(*keys: int) -> int:
    """A 64-bit hash of some integers: the finaliser of splitmix64 (Steele et al. 2014), applied key by key."""
    state = 0x9E3779B97F4A7C15
    for key in keys:
        state = (state + (key & _MASK64) + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state


def permute(index: int, size: int, *keys: int) -> int:
    """The image of ``index`` under a keyed permutation of ``range(size)``, without a table.

    A balanced Feistel network of four rounds over the next even number of bits; an image outside the range is mapped
    again (cycle walking, Black and Rogaway 2002), fewer than four times on average.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for level in range(4):
            left, right = right, left ^ (hash64(*keys, level, right) & low)
        index = left << half | right
        if index < size:
            return index


@dataclass(frozen=True)
class BlockSlice:
    """Consecutive positions within one block of one epoch."""

    epoch: int
    block: int
    start: int
    """First position within the permuted block."""
    stop: int


@dataclass(frozen=True)
class SampleOrder:
    """The order of ``samples`` samples over all epochs."""

    seed: int
    samples: int
    block_size: int
    window: int | None = None
    """Samples that are shuffled together; None: all."""

    @property
    def _together(self) -> int:
        """Blocks of a window."""
        full_blocks = max(1, self.samples // self.block_size)
        return min(full_blocks, self.window // self.block_size) if self.window else full_blocks

    def slices(self, start: int, stop: int) -> Iterator[BlockSlice]:
        """The stream's positions ``start`` to ``stop``, block by block."""
        while start < stop:
            epoch, offset = divmod(start, self.samples)
            slot, within = divmod(offset, self.block_size)
            full_blocks = self.samples // self.block_size
            is_full = slot < full_blocks
            size = self.block_size if is_full else self.samples % self.block_size
            # The incomplete block stays last; the rotation puts other samples into it every epoch.
            block = self._block(epoch, slot, full_blocks) if is_full else slot
            take = min(stop - start, size - within)
            yield BlockSlice(epoch, block, within, within + take)
            start += take

    def _block(self, epoch: int, slot: int, full_blocks: int) -> int:
        together = self._together
        if together == full_blocks:
            return permute(slot, full_blocks, self.seed, epoch)
        window, within = self._window(epoch, slot // together), slot % together
        return window * together + permute(
            within, min(together, full_blocks - window * together), self.seed, epoch, window
        )

    def _window(self, epoch: int, place: int) -> int:
        """The window that an epoch visits at a place; the incomplete one stays last."""
        windows = self.samples // self.block_size // self._together
        return permute(place, windows, self.seed, epoch, -2) if place < windows else place

    def windows(self, start: int) -> Iterator[tuple[int, int]]:
        """First sample and number of samples of each window from the one with the stream's position ``start`` on."""
        together = self._together
        size = together * self.block_size
        for epoch in count(start // self.samples):
            first = start % self.samples // size if epoch == start // self.samples else 0
            for place in range(first, -(-self.samples // size)):
                window = self._window(epoch, place)
                yield self.block_start(epoch, window * together), min(size, self.samples - window * size)

    def block_start(self, epoch: int, block: int) -> int:
        """A block's first sample; the others follow, past the end from sample 0 on."""
        # A stride near the golden section, coprime to the block size: the offsets of block_size consecutive epochs all
        # differ, those of neighbouring epochs by more than a third of a block.
        stride = next(s for s in count(round(0.618 * self.block_size)) if gcd(s, self.block_size) == 1)
        rotation = hash64(self.seed, epoch, -1) * self.block_size + epoch * stride % self.block_size
        return (block * self.block_size + rotation) % self.samples

    def block_permutation(self, epoch: int, block: int) -> np.ndarray:
        """The permutation of a block's samples: (samples of the block,)."""
        size = min(self.block_size, self.samples - block * self.block_size)
        return np.random.Generator(np.random.Philox(key=hash64(self.seed, epoch, block))).permutation(size)


@dataclass(frozen=True)
class MixedSlice:
    """Consecutive positions of a mixture, n of them, and where their samples are in the streams of the P parts."""

    starts: np.ndarray
    """(P,) first position in the stream of each part."""
    stops: np.ndarray
    """(P,)"""
    rows: np.ndarray
    """(n,) of each position, its row among the samples of all parts, those of the first part first."""


@dataclass(frozen=True)
class MixedOrder:
    """The order of the samples of several sets, each with an order of its own."""

    seed: int
    parts: tuple[SampleOrder, ...]
    quotas: tuple[int, ...]
    """Positions of each part in a period; together PERIOD."""

    def positions(self, position: int) -> np.ndarray:
        """(P,) how many of the first ``position`` positions are of each part: its position in its own stream."""
        period, offset = divmod(position, PERIOD)
        owners = _owners(self.seed, period, self.quotas)[:offset]
        return period * np.array(self.quotas) + np.bincount(owners, minlength=len(self.quotas))

    def slices(self, start: int, stop: int) -> Iterator[MixedSlice]:
        """The stream's positions ``start`` to ``stop``, at most 1,024 at once."""
        while start < stop:
            period, offset = divmod(start, PERIOD)
            size = min(stop - start, PERIOD - offset, _AT_ONCE)
            owners = _owners(self.seed, period, self.quotas)[offset : offset + size]
            by_part = np.argsort(owners, kind="stable")
            rows = np.empty(size, dtype=np.int64)
            rows[by_part] = np.arange(size)
            starts = self.positions(start)
            yield MixedSlice(starts, starts + np.bincount(owners, minlength=len(self.quotas)), rows)
            start += size


@lru_cache(maxsize=4)
def _owners(seed: int, period: int, quotas: tuple[int, ...]) -> np.ndarray:
    """(PERIOD,) the part of each position of a period."""
    generator = np.random.Generator(np.random.Philox(key=hash64(seed, period, -2)))
    return generator.permutation(np.repeat(np.arange(len(quotas)), quotas))
