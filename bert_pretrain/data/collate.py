"""Shard rows -> micro-batches of tensors, and the counts that the losses are divided by."""

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
import torch

from bert_pretrain.data.shards import Arrays

IGNORED = -100
"""The label of a position that is not predicted, as in torch and transformers."""
_MASKED_SIZES = 16
_LENGTHS = 8
_FIXED_LENGTHS = 4  # fewer, because each is compiled


@dataclass(frozen=True)
class Counts:
    """Sizes of a set of samples: the denominators of the losses, and what FLOPs are counted from."""

    samples: int
    masked_tokens: int
    tokens: int
    """Real tokens, without padding."""
    squared_lengths: int
    """Sum over samples of the squared number of real tokens (attention's work)."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class MicroBatch:
    """The input of one forward pass: B samples of L tokens, M of them masked. All int64 but ``cu_seqlens``.

    M is padded to one of about sixteen sizes: on CPU, the caches of the matrix libraries grow with every new shape. A
    compiled model gets a few shapes that are known in advance (``fixed_shapes``).
    """

    input_ids: torch.Tensor  # (B, L)
    attention_mask: torch.Tensor | None  # (B, L), 0 for padding; None if there is none
    segment_ids: torch.Tensor  # (B, L)
    masked_positions: torch.Tensor  # (M,) into the flattened (B * L,); 0 for padding
    masked_labels: torch.Tensor  # (M,), IGNORED for padding
    next_sentence_labels: torch.Tensor  # (B,)
    # Packed, S samples lie end to end in the flattened (B * L,), next_sentence_labels is (S,) and there is no mask.
    cu_seqlens: torch.Tensor | None = None  # (S + 1,) int32: where each begins, and B * L; none is longer than L
    position_ids: torch.Tensor | None = None  # (B, L), from 0 in each sample

    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """The fields in the order of the model's arguments."""
        return tuple(vars(self).values())

    def to(self, device: torch.device) -> "MicroBatch":
        """Copy to ``device``; from pinned memory without waiting for the device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "MicroBatch":
        """Copy to pinned (page-locked) memory."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "MicroBatch":
        tensors: list[Any] = [None if tensor is None else function(tensor) for tensor in self.tensors()]
        return MicroBatch(*tensors)


class HostToDeviceStream:
    """Copies micro-batches to ``device`` on a stream of its own, while the device computes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def copy(self, micro_batch: MicroBatch) -> MicroBatch:
        """The copy, for use on the current stream. The host does not wait if ``micro_batch`` is pinned."""
        if self._stream is None:
            return micro_batch.to(self.device)
        with torch.cuda.stream(self._stream):
            copied = micro_batch.to(self.device)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        for tensor in copied.tensors():
            if tensor is not None:
                tensor.record_stream(current)  # allocated on the copy stream, used on this one: not to be freed early
        return copied


@dataclass(frozen=True)
class StepBatch:
    """This rank's part of one global batch: its counts, and an iterator over its micro-batches."""

    counts: Counts
    micro_batches: Iterator[MicroBatch]


def with_last(micro_batches: Iterator[MicroBatch]) -> Iterator[tuple[MicroBatch, bool]]:
    """Each of ``micro_batches``, and whether it is the last. Packed, their number depends on the samples."""
    held = next(micro_batches)
    for following in micro_batches:
        yield held, False
        held = following
    yield held, True


@dataclass(frozen=True)
class Shape:
    """The shape of a micro-batch: ``samples`` = B, ``length`` = L, ``masked`` = M, ``packed`` = S, 0 if it is not."""

    samples: int
    length: int
    masked: int
    has_mask: bool
    packed: int = 0


def fixed_shapes(samples: int, length: int, predictions: int, trim: bool) -> list[Shape]:
    """All shapes that ``to_fixed_micro_batch`` may use for up to ``samples`` samples of ``length``, shortest first.

    ``trim`` adds shorter lengths; M is in proportion to the length.
    """
    lengths = [-(-length * part // _FIXED_LENGTHS) for part in range(1, _FIXED_LENGTHS + 1)] if trim else [length]
    padded = [Shape(samples, cut, -(-samples * predictions * cut // length), True) for cut in sorted(set(lengths))]
    return [*padded, replace(padded[-1], has_mask=False)]


def dummy_batch(shape: Shape) -> MicroBatch:
    """A micro-batch of padding only; it adds nothing to the losses."""
    ids = torch.zeros((shape.samples, shape.length), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    mask[:, 0] = 1  # some attention kernels return NaN for a row without any key
    positions = torch.zeros(shape.masked, dtype=torch.int64)
    ends = torch.arange(shape.packed + 1, dtype=torch.int32) * shape.length
    return MicroBatch(
        input_ids=ids,
        attention_mask=mask if shape.has_mask else None,
        segment_ids=ids.clone(),
        masked_positions=positions,
        masked_labels=torch.full_like(positions, IGNORED),
        next_sentence_labels=torch.full((shape.packed or shape.samples,), IGNORED),
        cu_seqlens=ends.clamp(max=ids.numel()) if shape.packed else None,
        position_ids=ids.clone() if shape.packed else None,
    )


def to_fixed_micro_batch(arrays: Arrays, shapes: list[Shape]) -> MicroBatch:
    """Shard rows in the first of ``shapes`` that holds them; missing samples are padding."""
    masked = np.count_nonzero(arrays["masked_lm_positions"])
    longest = int(sample_lengths(arrays).max())
    if len(arrays["input_ids"]) == shapes[-1].samples and arrays["input_mask"].all():
        return _filled(arrays, shapes[-1])
    return _filled(arrays, next(shape for shape in shapes if shape.length >= longest and shape.masked >= masked))


def to_micro_batch(arrays: Arrays, trim: bool = False) -> MicroBatch:
    """Shard rows as a micro-batch. ``trim`` cuts off padding common to all rows, to one of eight lengths."""
    samples, length = arrays["input_ids"].shape
    step = max(1, arrays["masked_lm_positions"].size // _MASKED_SIZES)
    masked = -(-int(np.count_nonzero(arrays["masked_lm_positions"])) // step) * step
    if trim:
        unit = -(-length // _LENGTHS)
        length = min(length, -(-int(sample_lengths(arrays).max()) // unit) * unit)
    return _filled(arrays, Shape(samples, length, masked, not arrays["input_mask"][:, :length].all()))


def _filled(arrays: Arrays, shape: Shape) -> MicroBatch:
    """Shard rows in ``shape``. A masked position of 0 is padding: that is [CLS], which is never masked."""
    batch, samples = dummy_batch(shape), len(arrays["input_ids"])
    batch.input_ids[:samples] = _int64(arrays["input_ids"][:, : shape.length])
    batch.segment_ids[:samples] = _int64(arrays["segment_ids"][:, : shape.length])
    if batch.attention_mask is not None:
        batch.attention_mask[:samples] = _int64(arrays["input_mask"][:, : shape.length])
    rows, columns = np.nonzero(arrays["masked_lm_positions"])
    positions = rows * shape.length + arrays["masked_lm_positions"][rows, columns].astype(np.int64)
    batch.masked_positions[: len(rows)] = _int64(positions)
    batch.masked_labels[: len(rows)] = _int64(arrays["masked_lm_ids"][rows, columns])
    batch.next_sentence_labels[:samples] = _int64(arrays["next_sentence_labels"])
    return batch


def _int64(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64))


def sample_lengths(arrays: Arrays) -> np.ndarray:
    """Real tokens of each shard row, (N,) int64."""
    return arrays["input_mask"].sum(1, dtype=np.int64)


def count(arrays: Arrays) -> Counts:
    """The counts of some shard rows."""
    lengths = sample_lengths(arrays)
    return Counts(
        samples=len(lengths),
        masked_tokens=int(np.count_nonzero(arrays["masked_lm_positions"])),
        tokens=int(lengths.sum()),
        squared_lengths=int((lengths * lengths).sum()),
    )
