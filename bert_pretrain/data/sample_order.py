"""Which samples make up step s: a pure function of (seed, s, global batch size).

Step s takes the positions s*B to (s+1)*B of an endless stream that runs through the data once an epoch; a step may
straddle two epochs, so nothing is dropped. World size and micro-batch size do not appear. Finding a position costs
the same anywhere in the stream: there is no state but the position.

Samples were shuffled over all shards when they were written, so a contiguous read is a random draw. An epoch
therefore visits whole blocks of neighbouring samples: in a new order each epoch (a keyed bijection of the block
numbers), each block inside out in a new order, and cut at new places (the data are rotated by a keyed offset), so
that no two epochs compose the same batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from math import gcd

import numpy as np

_MASK64 = (1 << 64) - 1


def mixed(*keys: int) -> int:
    """A well-mixed 64-bit number of some integers (the finaliser of splitmix64, Steele et al. 2014, folded)."""
    state = 0x9E3779B97F4A7C15
    for key in keys:
        state = (state + (key & _MASK64) + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state


def permuted(index: int, size: int, *keys: int) -> int:
    """The image of ``index`` under a keyed bijection of ``range(size)``, without a table.

    A balanced Feistel network of four rounds over the next even number of bits; an image outside of the range is
    mapped again (cycle walking, Black and Rogaway 2002), fewer than four times on average.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for level in range(4):
            left, right = right, left ^ (mixed(*keys, level, right) & low)
        index = left << half | right
        if index < size:
            return index


@dataclass(frozen=True)
class BlockSlice:
    """A run of consecutive positions within one block of one epoch."""

    epoch: int
    block: int
    start: int
    """First position within the block's visiting order."""
    stop: int


@dataclass(frozen=True)
class SampleOrder:
    """The endless stream over ``samples`` samples."""

    seed: int
    samples: int
    block_size: int

    def slices(self, start: int, stop: int) -> Iterator[BlockSlice]:
        """The stream's positions ``start`` to ``stop`` as runs within blocks."""
        while start < stop:
            epoch, offset = divmod(start, self.samples)
            slot, within = divmod(offset, self.block_size)
            whole_blocks = self.samples // self.block_size
            is_whole = slot < whole_blocks
            size = self.block_size if is_whole else self.samples % self.block_size
            # The short block stays last; the rotation puts other samples into it every epoch.
            block = permuted(slot, whole_blocks, self.seed, epoch) if is_whole else slot
            take = min(stop - start, size - within)
            yield BlockSlice(epoch, block, within, within + take)
            start += take

    def block_start(self, epoch: int, block: int) -> int:
        """The sample at which a block's neighbours begin; they go on from there, past the end at sample 0."""
        # Cuts of the last block_size epochs all differ, and those of neighbouring epochs by more than a third of a
        # block: a stride near the golden section, coprime to the block size.
        stride = next(s for s in count(round(0.618 * self.block_size)) if gcd(s, self.block_size) == 1)
        rotation = mixed(self.seed, epoch, -1) * self.block_size + epoch * stride % self.block_size
        return (block * self.block_size + rotation) % self.samples

    def block_permutation(self, epoch: int, block: int) -> np.ndarray:
        """The order in which a block's neighbours are visited: (samples of the block,), a permutation."""
        size = min(self.block_size, self.samples - block * self.block_size)
        return np.random.Generator(np.random.Philox(key=mixed(self.seed, epoch, block))).permutation(size)
