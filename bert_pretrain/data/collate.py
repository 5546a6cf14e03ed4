"""What the model runs at once, and what it counts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from bert_pretrain.data.shards import Arrays

IGNORED = -100
"""The label of a position that is not predicted, as in torch and transformers."""
_MASKED_SIZES = 16
_LENGTHS = 8
_FIXED_LENGTHS = 4  # each is compiled by itself


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
    libraries grow without end on CPU. A compiled model gets a few shapes that are known before (``fixed_shapes``).
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


class HostToDeviceStream:
    """Micro-batches on their way to ``device``, on a stream of their own: they cross while the device computes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def copy(self, micro_batch: MicroBatch) -> MicroBatch:
        """On the device, for what the current stream does next. Nobody waits on the host, if it is pinned."""
        if self._stream is None:
            return micro_batch.to(self.device)
        with torch.cuda.stream(self._stream):
            there = micro_batch.to(self.device)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        for tensor in there.tensors():
            if tensor is not None:
                tensor.record_stream(current)  # its memory is the other stream's, and must outlive the use in this one
        return there


@dataclass(frozen=True)
class StepBatch:
    """This rank's part of one global batch: its counts first, then its micro-batches, each once."""

    counts: Counts
    micro_batches: Iterator[MicroBatch]


@dataclass(frozen=True)
class Shape:
    """Of a micro-batch whose shape does not follow from what is in it."""

    samples: int
    length: int
    masked: int
    has_mask: bool

    def text(self) -> str:
        """In words."""
        return f"{self.samples} x {self.length} tokens, {'padded' if self.has_mask else 'all real'}"


def fixed_shapes(samples: int, length: int, predictions: int, trim: bool) -> list[Shape]:
    """The shapes in which ``to_fixed_micro_batch`` gives up to ``samples`` of ``length``, the shortest first.

    A shorter length has room for its share of the masked tokens.
    """
    lengths = [-(-length * part // _FIXED_LENGTHS) for part in range(1, _FIXED_LENGTHS + 1)] if trim else [length]
    padded = [Shape(samples, cut, -(-samples * predictions * cut // length), True) for cut in sorted(set(lengths))]
    return [*padded, replace(padded[-1], has_mask=False)]


def dummy_batch(shape: Shape) -> MicroBatch:
    """A micro-batch of that shape that holds nothing but [CLS], and adds nothing to the losses."""
    ids = torch.zeros((shape.samples, shape.length), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    mask[:, 0] = 1  # a row without any key to see is not a number in some attentions
    positions = torch.zeros(shape.masked, dtype=torch.int64)
    labels = torch.full_like(ids[:, 0], IGNORED)
    return MicroBatch(
        ids, mask if shape.has_mask else None, ids.clone(), positions, torch.full_like(positions, IGNORED), labels
    )


def to_fixed_micro_batch(arrays: Arrays, shapes: list[Shape]) -> MicroBatch:
    """Rows of a shard in the first of ``shapes`` that holds them, filled up with samples of nothing."""
    rows, columns = np.nonzero(arrays["masked_lm_positions"])
    samples, longest = len(arrays["input_ids"]), int(sample_lengths(arrays).max())
    if samples == shapes[-1].samples and arrays["input_mask"].all():
        shape = shapes[-1]
    else:
        shape = next(shape for shape in shapes if shape.length >= longest and shape.masked >= len(rows))
    batch = dummy_batch(shape)
    batch.input_ids[:samples] = _int64(arrays["input_ids"][:, : shape.length])
    batch.segment_ids[:samples] = _int64(arrays["segment_ids"][:, : shape.length])
    if batch.attention_mask is not None:
        batch.attention_mask[:samples] = _int64(arrays["input_mask"][:, : shape.length])
    positions = rows * shape.length + arrays["masked_lm_positions"][rows, columns].astype(np.int64)
    batch.masked_positions[: len(rows)] = _int64(positions)
    batch.masked_labels[: len(rows)] = _int64(arrays["masked_lm_ids"][rows, columns])
    batch.next_sentence_labels[:samples] = _int64(arrays["next_sentence_labels"])
    return batch


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
