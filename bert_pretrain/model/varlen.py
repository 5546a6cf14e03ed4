"""Attention of samples laid end to end (``speed.packing``), by torch's variable-length kernels.

They get the tokens of all samples and where each sample begins, and neither store nor compute a score between two
samples. What torch 2.11 to 2.13 offers, and what a BERT needs: dropout of attention weights, gradients, torch.compile
and CUDA graphs, fp16 and bf16.

- ``aten._flash_attention_forward`` with cumulative lengths: all of it, for heads of up to 192 dimensions from compute
  capability 8.0 on. The kernels behind ``scaled_dot_product_attention``, with torch's own derivative.
- ``aten._efficient_attention_forward`` with cumulative lengths: the same, slower, in float32 and on older GPUs too.
- ``torch.nn.attention.varlen.varlen_attn`` calls the first of them, always without dropout.
- FlexAttention has no dropout, and its mask of documents is built anew for each micro-batch.
- Jagged nested tensors call the same two operators, and read lengths back from the device.

So the two operators are called directly: flash where it runs, else the other. Both leave tokens outside of every sample
undefined, so padding is samples of its own. Without such a kernel (a CPU, or ``model.attention=eager``) the layer
computes sample after sample, which is exact, and faster than a padded batch on CPUs: the scores stay in the cache.
"""

from collections.abc import Callable

import torch
from torch import Tensor

FLASH, EFFICIENT, EAGER = "flash", "efficient", "sample after sample"
"""Ways to compute the attention of samples laid end to end."""

_FLASH_HEAD = 192  # dimensions of a head; the backward pass of larger ones runs on few devices


def has_kernel(device: torch.device, implementation: str, head_size: int) -> bool:
    """Whether one of torch's kernels serves; else the layer can be neither compiled nor run without waiting."""
    return device.type == "cuda" and implementation == "sdpa" and head_size % 8 == 0


def choose(device: torch.device, implementation: str, head_size: int, dtype: torch.dtype) -> str:
    """The way for heads of ``head_size`` in ``dtype``; ``implementation`` is that of the model, eager or sdpa."""
    if not has_kernel(device, implementation, head_size) or dtype == torch.float64:
        return EAGER
    half = dtype in (torch.float16, torch.bfloat16)
    flash = half and head_size <= _FLASH_HEAD and torch.cuda.get_device_capability(device) >= (8, 0)
    return FLASH if flash else EFFICIENT


def attend(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, p: float, scale: float, kernel: str
) -> Tensor:
    """Attention of (T, heads, D) within each sample, by ``kernel``, FLASH or EFFICIENT: (T, heads, D).

    ``cu_seqlens`` (S + 1,) int32 begin with 0, end with T and are at most ``longest`` apart; equal ones are no sample.
    """
    ends = cu_seqlens, cu_seqlens, longest, longest
    if kernel == FLASH:
        found: Tensor = torch.ops.aten._flash_attention_forward(q, k, v, *ends, p, False, False, scale=scale)[0]
        return found
    batch = q[None], k[None], v[None], None  # no bias
    found = torch.ops.aten._efficient_attention_forward(*batch, *ends, p, 0, torch.is_grad_enabled(), scale=scale)[0]
    return found[0]


def sample_after_sample(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, attention: Callable[..., Tensor]
) -> Tensor:
    """``attend`` by ``attention`` of one sample's q, k, v (heads, L, D) and no mask. Waits for the device."""
    lengths = [length for length in cu_seqlens.diff().tolist() if length]
    samples = zip(*(part.split(lengths) for part in (q, k, v)), strict=True)
    found = [attention(*(part.transpose(0, 1) for part in own), None).transpose(0, 1) for own in samples]
    return torch.cat(found)
