"""Layers concatenated in one vector: an operation on all of them, or on all small ones, is one launch on a GPU.

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

from bert_pretrain.optim.layers import upload

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
    """How many of the layers, in front, are taken together: those of at most ``SMALL`` elements, or none."""
    layer_of: Tensor | None = None
    """For each element of those, the number of its layer, on the device."""

    @classmethod
    def of(cls, flat: Tensor, like: Sequence[Tensor]) -> "Joined":
        """Layers with the shapes of ``like`` in all of ``flat``."""
        parts = flat.split([x.numel() for x in like])
        return cls(flat, [part.view(x.shape) for part, x in zip(parts, like, strict=True)])

    def with_flat(self, flat: Tensor) -> "Joined":
        """The same layers in another vector."""
        other = Joined.of(flat, self.each)
        other.small, other.layer_of = self.small, self.layer_of
        return other

    def join_small(self, small: int, workspace: dict[str, Any]) -> None:
        """Take the first ``small`` layers together; ``workspace`` keeps ``layer_of`` between steps."""
        if not small:
            return
        own = tuple(x.numel() for x in self.each[:small])
        device = self.flat.device
        key = f"layer_of {own} {device}"
        if key not in workspace:
            workspace[key] = upload(np.repeat(np.arange(small), own), device)
        self.small, self.layer_of = small, workspace[key]

    def by_layer(self, values: Tensor | float) -> Iterator[tuple[Tensor, Tensor | float]]:
        """Layers with their ``values``, (layers,): small ones at once, others one by one. A number: all at once."""
        if not isinstance(values, Tensor):
            yield self.flat, values
            return
        values = values.to(self.flat.dtype)
        if self.layer_of is not None:
            yield self.flat[: len(self.layer_of)], values.index_select(0, self.layer_of)
        yield from zip(self.each[self.small :], values[self.small :].unbind(), strict=True)

    def copy_(self, tensors: list[Tensor]) -> "Joined":
        """Overwrite the layers; returns itself."""
        torch._foreach_copy_(self.each, tensors)
        return self

    def scale_(self, factors: Tensor | float) -> None:
        """Multiply each layer by its factor, as ``by_layer`` gives them."""
        for layer, factor in self.by_layer(factors):
            layer.mul_(factor)

    def increase_(self, numbers: Tensor | float) -> None:
        """Add its number to each layer, likewise."""
        for layer, number in self.by_layer(numbers):
            layer.add_(number)

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
