"""Parameters that are sliced over ranks by FSDP2's ``fully_shard`` (DTensors).

A kernel updates the slices on this rank, which may be uneven or empty. Only the norms need the whole layers: they are
completed here by all-reducing squares over the ranks that share a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from bert_pretrain.errors import ConfigError


@dataclass(frozen=True)
class Shards:
    """The process groups over which layers are sliced."""

    groups: list[dist.ProcessGroup]

    def whole(self, norms: Tensor) -> Tensor:
        """L2 norms of whole layers from the norms of the slices, any shape. Collective; the same on every rank."""
        squares = norms.square()
        for group in self.groups:
            dist.all_reduce(squares, group=group)
        return squares.sqrt()

    def any(self, flag: Tensor) -> Tensor:
        """Whether a 0-d bool is set on any of the ranks."""
        return self.whole(flag.double()) > 0


def local_part(tensor: Tensor) -> Tensor:
    """The slice of a DTensor on this rank (the same memory), or the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_like(value: Tensor, param: Tensor) -> Tensor:
    """``value`` sharded like ``param`` if that is a DTensor and ``value``, from a saved state, is not."""
    if isinstance(param, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value.to(param.device), param.device_mesh, param.placements, src_data_rank=None)
    return value


def shards_of(params: Sequence[Tensor]) -> Shards | None:
    """How ``params`` are sliced; None if they are ordinary tensors.

    Raises ``ConfigError`` if they are not all sliced alike: their norms would need different all-reduces.
    """
    sliced = [param for param in params if isinstance(param, DTensor)]
    if not sliced:
        return None
    if len(sliced) < len(params):
        raise ConfigError("parameters are DTensors and ordinary tensors; allowed: one kind, so fully_shard all")
    mesh, over = sliced[0].device_mesh, [placement.is_shard() for placement in sliced[0].placements]
    everything: list[Any] = [*sliced, *(param.grad for param in sliced if param.grad is not None)]
    for tensor in everything:
        fits = isinstance(tensor, DTensor) and tensor.device_mesh == mesh
        if not fits or [placement.is_shard() for placement in tensor.placements] != over:
            raise ConfigError("DTensors (parameters and gradients) have several meshes or placements; allowed: one")
        if any(placement.is_partial() for placement in tensor.placements):
            raise ConfigError("a DTensor is a partial sum; allowed: sharded or replicated")
    return Shards([mesh.get_group(i) for i, is_sharded in enumerate(over) if is_sharded])
