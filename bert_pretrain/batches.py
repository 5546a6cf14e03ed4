"""What the model runs at once, and what it counts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from bert_pretrain.shards import Arrays

IGNORED = -100
"""The label of a position that is not predicted, as in torch and transformers."""
_MASKED_SIZES = 16
_LENGTHS = 8


@dataclass(frozen=True)
class Counts:
    """What a set of samples holds: the denominators of the losses and the work to do."""

    samples: int
    masked_tokens: int
    tokens: int
    """Real tokens, padding not counted."""
    squared_lengths: int
    """Sum over samples of the squared number of real tokens (attention's work)."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.samples + other.samples,
            self.masked_tokens + other.masked_tokens,
            self.tokens + other.tokens,
            self.squared_lengths + other.squared_lengths,
        )


@dataclass(frozen=True)
class MicroBatch:
    """What the model runs at once: B samples of L tokens, M of them masked. All int64.

    M is filled up to one of about sixteen sizes: with as many shapes as micro-batches the caches of the matrix
    libraries grow without end on CPU, and a compiled model would compile again and again.
    """

    input_ids: torch.Tensor  # (B, L)
    attention_mask: torch.Tensor | None  # (B, L), None where nothing is padded
    segment_ids: torch.Tensor  # (B, L)
    masked_positions: torch.Tensor  # (M,) into the flattened (B * L,); 0 where only filled up
    masked_labels: torch.Tensor  # (M,), IGNORED where only filled up
    next_sentence_labels: torch.Tensor  # (B,)

    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """The fields in the order of the model's arguments."""
        return (
            self.input_ids,
            self.attention_mask,
            self.segment_ids,
            self.masked_positions,
            self.masked_labels,
            self.next_sentence_labels,
        )

    def to(self, device: torch.device) -> "MicroBatch":
        """On ``device``; from pinned memory the copy does not wait for the device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "MicroBatch":
        """In page-locked memory, from where the GPU copies by itself."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "MicroBatch":
        return MicroBatch(
            change(self.input_ids),
            None if self.attention_mask is None else change(self.attention_mask),
            change(self.segment_ids),
            change(self.masked_positions),
            change(self.masked_labels),
            change(self.next_sentence_labels),
        )


@dataclass(frozen=True)
class StepBatch:
    """This rank's part of one global batch: its counts first, then its micro-batches, each once."""

    counts: Counts
    micro_batches: Iterator[MicroBatch]


def to_micro_batch(arrays: Arrays, trim: bool = False) -> MicroBatch:
    """Rows of a shard as tensors. A masked position of 0 is padding: [CLS] stands there.

    ``trim``: padding that all rows share is cut off, to one of eight lengths.
    """
    positions = arrays["masked_lm_positions"].astype(np.int64)  # (B, P)
    rows, columns = np.nonzero(positions)
    step = max(1, positions.size // _MASKED_SIZES)
    filled = -(-len(rows) // step) * step - len(rows)
    length = arrays["input_ids"].shape[1]
    if trim:
        unit = -(-length // _LENGTHS)
        length = min(length, -(-int(sample_lengths(arrays).max()) // unit) * unit)
    labels = arrays["masked_lm_ids"][rows, columns].astype(np.int64)
    mask = arrays["input_mask"][:, :length]
    return MicroBatch(
        input_ids=_int64(arrays["input_ids"][:, :length]),
        attention_mask=None if mask.all() else _int64(mask),
        segment_ids=_int64(arrays["segment_ids"][:, :length]),
        masked_positions=_int64(np.pad(rows * length + positions[rows, columns], (0, filled))),
        masked_labels=_int64(np.pad(labels, (0, filled), constant_values=IGNORED)),
        next_sentence_labels=_int64(arrays["next_sentence_labels"]),
    )


def _int64(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64))


def sample_lengths(arrays: Arrays) -> np.ndarray:
    """Real tokens of each row of a shard, (N,) int64."""
    return arrays["input_mask"].sum(1, dtype=np.int64)


def count(arrays: Arrays) -> Counts:
    """The counts of some rows of a shard."""
    lengths = sample_lengths(arrays)
    return Counts(
        samples=len(lengths),
        masked_tokens=int(np.count_nonzero(arrays["masked_lm_positions"])),
        tokens=int(lengths.sum()),
        squared_lengths=int((lengths * lengths).sum()),
    )
