"""The large weights of matrix products, joined, filled up and in the products' type, once a step instead of once a use.

Autocast keeps what it has cast, too, but not in compiled code, and nothing that is joined or filled up. Besides, from
the second micro-batch on a gradient through what autocast has kept is cast back only when backward is through with
everything else, too late to travel between ranks in the meantime. Here the data alone is shared; each use has its own
place in the graph.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Join = Callable[[Sequence[Tensor], int, float], Tensor]
"""(parts, rows, fill) -> the parts one below the other, and rows of ``fill`` up to the number of ``rows``."""


def joined_once(parts: Sequence[Tensor], rows: int, fill: float) -> Tensor:
    """A ``Join`` for one use."""
    joined = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
    missing = rows - len(joined)
    return F.pad(joined, (0, 0) * (joined.dim() - 1) + (0, missing), value=fill) if missing else joined


class WeightCache:
    """A ``Join`` for all uses within a step, in which no weight may change."""

    def __init__(self) -> None:
        self.in_step = False
        # Between steps, too: fresh pages cost as much as the cast.
        self._kept: dict[tuple[object, ...], tuple[Sequence[Tensor], Tensor]] = {}
        self._of_this_step: set[tuple[object, ...]] = set()

    @contextmanager
    def step(self) -> Iterator[None]:
        """The micro-batches of one step; what is made in it is of no use behind it."""
        self._of_this_step.clear()
        self.in_step = True
        try:
            yield
        finally:
            self.in_step = False

    def stack(self, parts: Sequence[Tensor], rows: int, fill: float) -> Tensor:
        """In autocast's type where it is on; a vector that is used as it is, autocast's own work, stays.

        Gradients flow to ``parts``, in their own type.
        """
        first = parts[0]
        device = first.device.type
        cast = torch.is_autocast_enabled(device) and first.dtype != torch.float64  # which autocast leaves alone, too
        dtype = torch.get_autocast_dtype(device) if cast else first.dtype
        if rows == len(first) and (dtype == first.dtype or first.dim() == 1):
            return first
        key = (*map(id, parts), rows, dtype, first.device)
        if key not in self._kept:  # with the parts, so that nothing else gets their ids
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
    """``stack`` instead of the ``parts`` that it was made of."""

    @staticmethod
    def forward(ctx: Any, stack: Tensor, *parts: Tensor) -> Tensor:
        ctx.rows, ctx.dtype = [len(part) for part in parts], parts[0].dtype
        return stack.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        own = gradient[: sum(ctx.rows)].to(ctx.dtype)
        return None, *own.split(ctx.rows)
