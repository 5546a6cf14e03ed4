"""L2 norms that are accurate for layers of any size.

On CPU, torch sums the squares of a float32 tensor in a few float32 accumulators. For an embedding matrix (23 million
elements) the result is off by 1e-3 (pytorch issues 68326 and 151761), and so would be every trust ratio. Here float32
sums cover at most ``BLOCK`` elements and are added in float64, in a fixed order that depends neither on the number of
threads nor on the other layers. This is as fast, and accurate to 1e-7.

CUDA sums in trees, so torch's own kernel is accurate there and needs fewer launches.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 4096


def layer_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of each tensor: float64, shape ``(len(tensors),)``, on their device.

    All tensors must be on one device; they may differ in shape, layout and floating-point type. An empty tensor has
    norm 0. NaN or infinity gives a norm that is not finite. Float64 tensors are summed in float64.
    """
    if not tensors:
        return torch.zeros(0, dtype=torch.float64)
    dtypes = {_accumulator(tensor.dtype) for tensor in tensors}
    if tensors[0].device.type != "cpu" and len(dtypes) == 1:
        return torch.stack(torch._foreach_norm(list(tensors), 2, dtype=dtypes.pop())).double()
    short = [i for i, tensor in enumerate(tensors) if tensor.numel() <= BLOCK]
    long = [i for i, tensor in enumerate(tensors) if tensor.numel() > BLOCK]
    norms = []
    if short:
        norms.append(_short_norms([tensors[i] for i in short]))
    if long:
        norms.append(torch.stack(torch._foreach_norm([_block_norms(tensors[i]) for i in long], 2, dtype=torch.float64)))
    if len(norms) == 1:
        return norms[0]
    order = torch.empty(len(tensors), dtype=torch.long)
    order[torch.tensor(short + long)] = torch.arange(len(tensors))
    return torch.cat(norms)[order.to(norms[0].device)]


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of all tensors together, as if concatenated: float64, 0-d. Of no tensors: 0, on the CPU."""
    return torch.linalg.vector_norm(layer_norms(tensors))


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _short_norms(tensors: list[Tensor]) -> Tensor:
    """Norms of tensors of at most one block, float64, shape (len(tensors),)."""
    if all(tensor.dtype == torch.float32 for tensor in tensors):
        return torch.stack(torch._foreach_norm(tensors, 2)).double()
    each = [torch.linalg.vector_norm(tensor, dtype=_accumulator(tensor.dtype)).double() for tensor in tensors]
    return torch.stack(each)


def _block_norms(tensor: Tensor) -> Tensor:
    """Norms of consecutive blocks of a tensor, shape (ceil(numel / BLOCK),)."""
    flat = tensor.reshape(-1)
    dtype = _accumulator(flat.dtype)
    whole = flat.numel() // BLOCK * BLOCK
    if whole == flat.numel():
        return torch.linalg.vector_norm(flat.view(-1, BLOCK), dim=1, dtype=dtype)
    norms = torch.linalg.vector_norm(flat[:whole].view(-1, BLOCK), dim=1, dtype=dtype)
    return torch.cat([norms, torch.linalg.vector_norm(flat[whole:], dtype=dtype).view(1)])
