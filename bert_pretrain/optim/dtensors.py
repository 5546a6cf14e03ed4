"""Parameters that are sliced over ranks by FSDP2's ``fully_shard`` or by tensor parallelism (DTensors).

A kernel updates the slices on this rank, which may be uneven or empty. Only the norms need the whole layers: they are
completed here by all-reducing squares over the ranks that share a layer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, distribute_tensor

from bert_pretrain.errors import ConfigError


@dataclass(frozen=True)
class Shards:
    """The process groups over which layers are sliced."""

    groups: list[dist.ProcessGroup]
    """Each over which at least one layer is sliced."""
    copies: dict[Tensor, int]
    """For layers that are not sliced over all groups: how many ranks of the groups hold the same slice."""

    def whole_norms(self, norms: Tensor, layers: Sequence[Tensor]) -> Tensor:
        """L2 norms of whole layers from those of the slices: (..., layers). Collective; the same on every rank."""
        squares = norms.square()
        if self.copies:  # every slice is counted once
            counts = [self.copies.get(layer, 1) for layer in layers]
            squares /= torch.tensor(counts, dtype=squares.dtype, device=squares.device)
        return self._sum(squares).sqrt()

    def global_norm(self, norms: Tensor, layers: Sequence[Tensor]) -> Tensor:
        """The L2 norm of all layers together, 0-d."""
        if self.copies:
            return torch.linalg.vector_norm(self.whole_norms(norms, layers))
        return self._sum(torch.linalg.vector_norm(norms).square()).sqrt()

    def any(self, flag: Tensor) -> Tensor:
        """Whether a 0-d bool is set on any of the ranks."""
        return self._sum(flag.double()) > 0

    def _sum(self, values: Tensor) -> Tensor:
        for group in self.groups:
            dist.all_reduce(values, group=group)
        return values


def local_part(tensor: Tensor) -> Tensor:
    """The slice of a DTensor on this rank (the same memory), or the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_like(value: Tensor, param: Tensor) -> Tensor:
    """``value`` sharded like ``param`` if that is a DTensor and ``value``, from a saved state, is not."""
    if isinstance(param, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value.to(param.device), param.device_mesh, param.placements, src_data_rank=None)
    return value


def local_gradient(param: Tensor) -> Tensor:
    """The gradient of this rank's slice. One that is laid out otherwise (a partial sum) is redistributed: collective.

    Raises ``ConfigError`` if the parameter is a DTensor and its gradient is not.
    """
    grad = param.grad
    assert grad is not None
    if isinstance(param, DTensor):
        if not isinstance(grad, DTensor):
            raise ConfigError("the gradient of a DTensor is 'an ordinary tensor'; allowed: a DTensor on the same mesh")
        if grad.placements != param.placements:
            grad = grad.redistribute(param.device_mesh, param.placements)
    return local_part(grad)


def shards_of(params: Sequence[Tensor]) -> Shards | None:
    """How ``params`` are sliced; None if they are ordinary tensors.

    Layers may be sliced differently (FSDP2 with tensor parallelism): a layer counts as replicated over the groups that
    slice other layers only. Raises ``ConfigError`` for DTensors beside ordinary tensors and for partial sums.
    """
    sliced = [param for param in params if isinstance(param, DTensor)]
    if not sliced:
        return None
    if len(sliced) < len(params):
        raise ConfigError("parameters are DTensors and ordinary tensors; allowed: one kind, so fully_shard all")
    layouts = {(param.device_mesh, param.placements) for param in sliced}
    groups_of = {layout: _sliced_over(*layout) for layout in layouts}
    # Every rank must reduce in the same order: that of the first layer that needs each group.
    groups: dict[dist.ProcessGroup, int] = {}
    for param in sliced:
        groups |= {group: group.size() for group in groups_of[param.device_mesh, param.placements]}
    copies: dict[Tensor, int] = {}
    for param in sliced:
        own = groups_of[param.device_mesh, param.placements]
        count = math.prod(size for group, size in groups.items() if group not in own)
        if count > 1:
            copies[param] = count
    return Shards(list(groups), copies)


def _sliced_over(mesh: DeviceMesh, placements: tuple[Placement, ...]) -> list[dist.ProcessGroup]:
    """The process groups over which a layer is cut, in whichever way: every rank holds other elements of it."""
    if any(placement.is_partial() for placement in placements):
        raise ConfigError(f"a parameter is a DTensor of partial sums, {placements}; allowed: sharded or replicated")
    return [mesh.get_group(i) for i, placement in enumerate(placements) if not placement.is_replicate()]
