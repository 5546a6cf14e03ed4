"""Cache of the large weights of matrix products: joined, padded and cast once per step instead of once per use.

Autocast has a cache of cast weights too, but not in compiled code, and not of joined or padded weights. Also, from the
second micro-batch on, backward casts the gradients of its cached weights back only at its very end, too late to
all-reduce them during the backward pass. Here only the data is shared; each use is a node of its own in the graph.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Join = Callable[[Sequence[Tensor], int, float], Tensor]
"""(parts, rows, fill) -> the parts concatenated, and padded with ``fill`` to ``rows`` rows."""


def join_uncached(parts: Sequence[Tensor], rows: int, fill: float) -> Tensor:
    """A ``Join`` without cache."""
    joined = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
    missing = rows - len(joined)
    return F.pad(joined, (0, 0) * (joined.dim() - 1) + (0, missing), value=fill) if missing else joined


class WeightCache:
    """Keeps joined weights for all uses within a step, in which no weight may change."""

    def __init__(self) -> None:
        self.in_step = False
        # The buffers are kept between steps: allocating new pages costs as much as the cast.
        self._kept: dict[tuple[object, ...], tuple[Sequence[Tensor], Tensor]] = {}
        self._of_this_step: set[tuple[object, ...]] = set()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Context of the micro-batches of one step; the cached values are invalid after it."""
        self._of_this_step.clear()
        self.in_step = True
        try:
            yield
        finally:
            self.in_step = False

    def join(self, parts: Sequence[Tensor], rows: int, fill: float) -> Tensor:
        """A ``Join`` with cache, in autocast's type if autocast is on. Gradients flow to ``parts``, in their own type.

        A single vector without padding is returned as it is: autocast casts it.
        """
        first = parts[0]
        device = first.device.type
        cast = torch.is_autocast_enabled(device) and first.dtype != torch.float64  # autocast does not cast float64
        dtype = torch.get_autocast_dtype(device) if cast else first.dtype
        if rows == len(first) and (dtype == first.dtype or first.dim() == 1):
            return first
        key = (*map(id, parts), rows, dtype, first.device)
        if key not in self._kept:  # keeps the parts alive, so that no other tensor gets their ids
            self._kept[key] = parts, first.new_full((rows, *first.shape[1:]), fill, dtype=dtype)
        _, whole = self._kept[key]
        if key not in self._of_this_step:
            with torch.no_grad():
                sizes = [len(part) for part in parts]
                for part, place in zip(parts, whole[: sum(sizes)].split(sizes), strict=True):
                    place.copy_(part)
            self._of_this_step.add(key)
        used: Tensor = _UseCached.apply(whole, *parts)
        return used

    def __deepcopy__(self, _: object) -> "WeightCache":
        return WeightCache()


class _UseCached(torch.autograd.Function):
    """Use ``joined`` in the forward pass; split its gradient over the ``parts`` in the backward pass."""

    @staticmethod
    def forward(ctx: Any, joined: Tensor, *parts: Tensor) -> Tensor:
        ctx.rows, ctx.dtype = [len(part) for part in parts], parts[0].dtype
        return joined.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        own = gradient[: sum(ctx.rows)].to(ctx.dtype)
        return None, *own.split(ctx.rows)
