"""Attention of samples laid end to end (``speed.packing``), by torch's variable-length flash kernel.

It gets the tokens of all samples and where each sample begins, and neither stores nor computes a score between two
samples. What torch 2.11 to 2.13 offers, and what a BERT needs: dropout of attention weights, gradients, torch.compile
and CUDA graphs, fp16 and bf16, heads of 64 dimensions.

- ``aten._flash_attention_forward`` with cumulative lengths: all of it, from compute capability 8.0 on. It is the kernel
  behind ``scaled_dot_product_attention``, and torch has its derivative.
- ``torch.nn.attention.varlen.varlen_attn`` calls it, always without dropout.
- ``aten._efficient_attention_forward`` with cumulative lengths: slower, in float32 and on older GPUs too. But torch
  2.13's description of its derivative lacks an argument, so that it cannot be compiled.
- FlexAttention has no dropout, and its mask of documents is built anew for each micro-batch.
- Jagged nested tensors call the same two operators, and read lengths back from the device.

So the flash operator is called directly, and where it does not run, samples are grouped by length and padded. It leaves
tokens outside of every sample undefined: padding is samples of its own. On CPUs, and with ``model.attention=eager``,
attention runs sample after sample, which is exact, and on CPUs faster than on a padded batch: the scores of one sample
stay in the cache.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FLASH, EACH_SAMPLE = "flash", "each sample"
"""Ways to compute the attention of samples laid end to end."""

_HEAD_SIZES = range(8, 193, 8)  # larger ones have no backward pass on some devices


def has_kernel(bert: Any, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the flash kernel runs on ``device`` in ``dtype``, for a model with the ``BertConfig`` ``bert``."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    fits = bert._attn_implementation == "sdpa" and bert.hidden_size // bert.num_attention_heads in _HEAD_SIZES
    return bool(fits) and torch.cuda.get_device_capability(device) >= (8, 0)


def choose(bert: Any, dtype: torch.dtype, device: torch.device) -> str:
    """FLASH where it runs, else EACH_SAMPLE. Arguments as for ``has_kernel``."""
    return FLASH if has_kernel(bert, dtype, device) else EACH_SAMPLE


def flash(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, p: float, scale: float) -> Tensor:
    """Attention of (T, heads, D) within each sample, with dropout of probability ``p``: (T, heads, D).

    ``cu_seqlens`` (S + 1,) int32 begin with 0, end with T and are at most ``longest`` apart; equal ones are no sample.
    """
    found: Tensor = torch.ops.aten._flash_attention_forward(
        q, k, v, cu_seqlens, cu_seqlens, longest, longest, p, False, False, scale=scale
    )[0]
    return found


def each_sample(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, attention: Callable[..., Tensor]) -> Tensor:
    """The same by ``attention`` of one sample's q, k, v (heads, L, D) and no mask. Waits for the device."""
    lengths = [length for length in cu_seqlens.diff().tolist() if length]
    samples = zip(*(part.split(lengths) for part in (q, k, v)), strict=True)
    found = [attention(*(part.transpose(0, 1) for part in own), None).transpose(0, 1) for own in samples]
    return torch.cat(found)
