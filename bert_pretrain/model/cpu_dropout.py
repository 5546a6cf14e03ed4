"""Dropout with cheap random numbers on CPU.

On CPU torch draws one Bernoulli variable per element from a serial generator: 6 ns each, a tenth or more of a small
model's step. Here each element's mask is a hash of its index and of one 64-bit draw from torch's generator, so the loop
vectorises and ``torch.manual_seed`` still determines the result. On other devices and in compiled code torch's own
dropout runs, which is also a hash of the index. The hash is the 32-bit finalizer of Wellons' prospector ("lowbias32").
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bert_pretrain.jit import cached_njit
from bert_pretrain.threads import parallel_for

_LEAST = 1 << 17  # least elements for a thread
_INTEGERS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}


def dropout(x: Tensor, p: float, residual: Tensor | None = None) -> Tensor:
    """Set each element of ``x`` to 0 with probability ``p``, divide the others by 1 - p, and add ``residual`` if given.

    ``p`` in [0, 1). Gradients flow to ``x`` through the kept elements, and to ``residual``.
    """
    if p == 0.0:
        return x if residual is None else x + residual
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        dropped = F.dropout(x, p)
        return dropped if residual is None else dropped + residual
    kept = noise(x.shape, p, x.dtype)
    return x * kept if residual is None else torch.addcmul(residual, x, kept)


def noise(shape: torch.Size, p: float, dtype: torch.dtype) -> Tensor:
    """A CPU tensor of 0 (with probability ``p``) and 1 / (1 - p), seeded by torch's default generator."""
    out = torch.empty(shape, dtype=dtype)
    key = int(torch.empty((), dtype=torch.int64).random_(-(2**63), None))
    threshold = np.uint32(min(round(p * 2**32), 2**32 - 1))
    low, high = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32 & 0xFFFFFFFF)
    flat = out.view(-1).view(_INTEGERS[dtype]).numpy()
    kept = _bits(1.0 / (1.0 - p), dtype)
    parallel_for(
        lambda start, stop: _fill(flat, threshold, low, high, kept, start, stop),
        flat.size,
        _LEAST,
        torch.get_num_threads(),
    )
    return out


@functools.cache
def _bits(value: float, dtype: torch.dtype) -> np.integer:
    """The bit pattern of ``value`` as an integer of the same size."""
    return torch.tensor([value], dtype=dtype).view(_INTEGERS[dtype]).numpy()[0]


@cached_njit()
def _fill(
    out: np.ndarray, threshold: np.uint32, low: np.uint32, high: np.uint32, kept: np.integer, start: int, stop: int
) -> None:
    """Write ``kept`` or 0, as bit patterns, to the elements from ``start`` to ``stop``."""
    zero = kept ^ kept
    for i in range(start, stop):
        # Numba widens every operation to 64 bits; the casts keep the loop at 32.
        h = np.uint32(np.uint32(i * 0x9E3779B9) + low)
        h = np.uint32(np.uint32(h ^ np.uint32(h >> 16)) * np.uint32(0x7FEB352D)) ^ high
        h = np.uint32(np.uint32(h ^ np.uint32(h >> 15)) * np.uint32(0x846CA68B))
        h = np.uint32(h ^ np.uint32(h >> 16))
        out[i] = kept if h >= threshold else zero
