"""Layers that lie in one vector: what is done to all of them, or to all small ones, takes one launch on a GPU.

torch's multi-tensor operations take few launches only where the tensors of their lists agree in shape: with a number
for each layer they take one a layer. Most layers are biases and LayerNorms, whose work takes less time than a launch,
so their numbers are spread over their elements. A large layer has a launch of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

SMALL = 1 << 14
"""Elements of a layer up to which it is small."""


@dataclass
class Joined:
    """A vector and the layers in it."""

    flat: Tensor
    """1-d."""
    each: list[Tensor]
    """Views of it, in order."""
    small: int = 0
    """How many of the layers, in front, have ``owner``: those of at most ``SMALL`` elements, or none."""
    owner: Tensor | None = None
    """For each element of those, the number of its layer, on the device."""

    @classmethod
    def of(cls, flat: Tensor, like: Sequence[Tensor]) -> "Joined":
        """Layers with the shapes of ``like`` in all of ``flat``."""
        parts = flat.split([x.numel() for x in like])
        return cls(flat, [part.view(x.shape) for part, x in zip(parts, like, strict=True)])

    def with_flat(self, flat: Tensor) -> "Joined":
        """The same layers in another vector."""
        other = Joined.of(flat, self.each)
        other.small, other.owner = self.small, self.owner
        return other

    def join_small(self, small: int, workspace: dict[str, Any]) -> None:
        """Take the first ``small`` layers together; ``workspace`` keeps ``owner`` between steps."""
        if not small:
            return
        own, device = tuple(x.numel() for x in self.each[:small]), self.flat.device
        key = f"owner {own} {device}"
        if key not in workspace:
            owner = torch.from_numpy(np.repeat(np.arange(small), own))
            workspace[key] = (owner.pin_memory() if device.type == "cuda" else owner).to(device, non_blocking=True)
        self.small, self.owner = small, workspace[key]

    def by_layer(self, values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Layers with their ``values``, (layers,): all small ones at once, the others one by one."""
        if self.owner is not None:
            yield self.flat[: len(self.owner)], values.index_select(0, self.owner)
        yield from zip(self.each[self.small :], values[self.small :].unbind(), strict=True)

    def copy_(self, tensors: list[Tensor]) -> "Joined":
        """Overwrite the layers; returns itself."""
        torch._foreach_copy_(self.each, tensors)
        return self

    def scale_(self, factors: Tensor) -> None:
        """Multiply each layer by its factor; ``factors``: 1-d."""
        for layer, factor in self.by_layer(factors.to(self.flat.dtype)):
            layer.mul_(factor)

    def add_to(self, tensors: list[Tensor], skipped: Tensor) -> None:
        """Add the layers to ``tensors``; in a skipped step they become -0.0, which changes no number."""
        self.flat.masked_fill_(skipped, -0.0)
        torch._foreach_add_(tensors, self.each)


def is_small(size: int) -> bool:
    """Whether a layer of ``size`` elements is small."""
    return size <= SMALL


def small_first(tensors: Sequence[Tensor]) -> list[Tensor]:
    """``tensors`` with the small ones in front."""
    return sorted(tensors, key=lambda tensor: not is_small(tensor.numel()))


def joined_gradients(params: list[Tensor], factor: Tensor, workspace: dict[str, Any]) -> Joined:
    """The gradients of ``params``, which are of one type and ``small_first``, times ``factor``, in new memory."""
    flat = torch.empty(sum(p.numel() for p in params), dtype=params[0].dtype, device=params[0].device)
    grads = Joined.of(flat, params).copy_([p.grad for p in params if p.grad is not None])
    flat.mul_(factor.to(flat.dtype))
    grads.join_small(sum(is_small(p.numel()) for p in params), workspace)
    return grads
