"""How the global batch is cut into micro-batches.

The user states the global batch; the number of ranks and the micro-batch size only decide how it is cut. The cut need
not be even: ranks differ by at most one sample, and a rank's last micro-batch may be smaller. A compiled model has few
shapes, so there it is padded with samples that add nothing; ``even_size`` bounds how many.
"""

from dataclasses import dataclass
from typing import Any

from bert_pretrain.errors import ConfigError, require

AUTO = "auto"
_MOST_WORK = 1.05  # of a rank, with padding, over what its samples need
_MOST_SAMPLES = 1 << 24  # in a step: 256 times the largest batch that BERT was trained with
_CPU_TOKENS = 2048  # the demo on one core: 16,300 tokens/s at 1,024, 18,200 at 2,048, 17,500 at 4,096


@dataclass
class BatchConfig:
    """Options ``batch.*``."""

    global_batch_size: int
    """Samples in one optimizer step, over all ranks."""
    micro_batch_size: Any  # int or "auto"; OmegaConf 2.3 fails on a nested union
    """Samples in one forward pass of a rank. ``auto``: the fewest equal micro-batches that fit into the free memory of
    a GPU, or 2,048 tokens on CPU."""

    def __post_init__(self) -> None:
        batch = self.global_batch_size
        require(1 <= batch <= _MOST_SAMPLES, "batch.global_batch_size", batch, f"1 to {_MOST_SAMPLES:,}")
        size = self.micro_batch_size
        allowed = size == AUTO or (isinstance(size, int) and size >= 1)
        require(allowed, "batch.micro_batch_size", size, "1 or more, or auto")

    def samples_at_once(self, length: int) -> int:
        """``micro_batch_size`` as a number; ``auto`` as on a CPU, for samples of ``length`` tokens."""
        return max(1, _CPU_TOKENS // length) if self.micro_batch_size == AUTO else int(self.micro_batch_size)


def even_size(share: int, most: int) -> int:
    """The size s of the n equal micro-batches that a rank's ``share`` of samples is cut into, if ``most`` fit at once.

    The fewest n, from ceil(share / most) on, for which s = ceil(share / n) gives n s <= 1.05 share: then padding the
    last one to s adds at most 5 %. There always is one: n = share pads nothing. ``share``: that of the rank with most
    samples, for which the others wait.
    """
    count = -(-share // most)
    while (size := -(-share // count)) * -(-share // size) > _MOST_WORK * share:
        count += 1
    return size


@dataclass(frozen=True)
class BatchPlan:
    """The cut of one global batch over ``world_size`` ranks."""

    global_batch_size: int
    micro_batch_size: int
    world_size: int

    def __post_init__(self) -> None:
        if self.global_batch_size < self.world_size:
            raise ConfigError(
                f"batch.global_batch_size is {self.global_batch_size}, but there are {self.world_size} ranks and "
                "each needs a sample; use a larger batch or fewer processes"
            )

    @property
    def largest_micro_batch(self) -> int:
        """Samples of the largest micro-batch of any rank."""
        return min(self.micro_batch_size, -(-self.global_batch_size // self.world_size))

    def rank_slice(self, rank: int) -> tuple[int, int]:
        """Start and stop of ``rank``'s samples in the global batch; the slices are contiguous and cover it."""
        return self.global_batch_size * rank // self.world_size, self.global_batch_size * (rank + 1) // self.world_size

    def micro_batches(self, rank: int) -> list[tuple[int, int]]:
        """Start and stop of each of ``rank``'s micro-batches in the global batch."""
        start, stop = self.rank_slice(rank)
        size = self.micro_batch_size
        return [(first, min(first + size, stop)) for first in range(start, stop, size)]

    def accumulation(self, rank: int) -> int:
        """Micro-batches of ``rank`` per step."""
        start, stop = self.rank_slice(rank)
        return -(-(stop - start) // self.micro_batch_size)
