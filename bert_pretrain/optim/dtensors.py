"""Layers that are cut into slices over ranks, as FSDP2's ``fully_shard`` leaves them (DTensors).

A kernel computes on the slices that lie here, uneven and empty ones too; what has to be known of whole layers are
norms alone, and those are completed here by adding up squares over the ranks that share a layer.
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
    """The process groups over which layers are cut."""

    groups: list[dist.ProcessGroup]

    def whole(self, norms: Tensor) -> Tensor:
        """L2 norms of whole layers from those of the slices, any shape; every rank calls it, and gets the same."""
        squares = norms.square()
        for group in self.groups:
            dist.all_reduce(squares, group=group)
        return squares.sqrt()

    def any(self, flag: Tensor) -> Tensor:
        """Whether a 0-d bool is set on any of the ranks."""
        return self.whole(flag.double()) > 0


def is_cut(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a DTensor."""
    return isinstance(tensor, DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """What lies on this rank: the tensor itself, or a DTensor's slice (the same memory)."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def divided_as(value: Tensor, param: Tensor) -> Tensor:
    """``value`` cut as ``param`` where that is a DTensor and ``value`` is not: a whole state goes into slices."""
    if isinstance(param, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value.to(param.device), param.device_mesh, param.placements, src_data_rank=None)
    return value


def shards_of(params: Sequence[Tensor]) -> Shards | None:
    """How ``params`` are cut; None where they are ordinary tensors.

    Raises ``ConfigError`` where some are cut otherwise than others: the norms would need other sums for each.
    """
    cut = [param for param in params if isinstance(param, DTensor)]
    if not cut:
        return None
    if len(cut) < len(params):
        raise ConfigError("parameters are DTensors and ordinary tensors; allowed: one kind, so fully_shard all of them")
    mesh, over = cut[0].device_mesh, [placement.is_shard() for placement in cut[0].placements]
    everything: list[Any] = [*cut, *(param.grad for param in cut if param.grad is not None)]
    for tensor in everything:
        fits = isinstance(tensor, DTensor) and tensor.device_mesh == mesh
        if not fits or [placement.is_shard() for placement in tensor.placements] != over:
            raise ConfigError("DTensors (parameters and gradients) lie on several meshes or placements; allowed: one")
        if any(placement.is_partial() for placement in tensor.placements):
            raise ConfigError("a DTensor is a partial sum; allowed: sharded or replicated")
    return Shards([mesh.get_group(i) for i, is_cut in enumerate(over) if is_cut])
