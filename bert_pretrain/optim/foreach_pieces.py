"""How ``nvlamb_foreach`` takes layers together: in runs, which are cut into pieces on the CPU."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bert_pretrain.optim.layers import Layers, Work

SMALL = 1 << 14
"""On other devices: elements of a layer up to which a factor of its own is spread over them, so that one launch serves
all such layers. Most layers are biases and LayerNorms, in which a launch for each would take longer than its work."""


@dataclass
class Piece:
    """What is processed together: whole small layers, or one part of a large layer. Parallel lists."""

    w: list[Tensor]
    g: list[Tensor]
    m: list[Tensor]
    v: list[Tensor]
    u: list[Tensor]
    flat_u: Tensor
    """All of ``u`` as one vector."""
    small: int = 0
    """How many of the layers, in front, have ``owner``: those of at most ``SMALL`` elements, or none."""
    owner: Tensor | None = None
    """For each element of those, the number of its layer in the piece, on the device."""


def runs_of(sizes: list[int], limit: int) -> Iterator[list[int]]:
    """Yield runs of layer indices: a large layer alone, small layers together up to ``limit`` elements."""
    small: list[int] = []
    total = 0
    for i, size in enumerate(sizes):
        if size > limit:
            yield [i]
            continue
        if total + size > limit:
            yield small
            small, total = [], 0
        small.append(i)
        total += size
    if small:
        yield small


def pieces_of(layers: Layers, run: list[int], buffer: Tensor, cut: int | None) -> Iterator[Piece]:
    """Yield the pieces of a run. A layer of more than ``cut`` elements is cut if its weights are contiguous."""
    columns = (layers.weights, layers.grads, layers.exp_avgs, layers.exp_avg_sqs)
    first = layers.weights[run[0]]
    if cut is not None and first.numel() > cut and first.is_contiguous():
        flat_u = buffer[: first.numel()].split(cut)
        parts = [column[run[0]].reshape(-1).split(cut) for column in columns]
        for w, g, m, v, u in zip(*parts, flat_u, strict=True):
            yield Piece([w], [g], [m], [v], [u], u)
        return
    w, g, m, v = ([column[i] for i in run] for column in columns)
    flat = buffer[: sum(x.numel() for x in w)]
    u = [part.view(x.shape) for part, x in zip(flat.split([x.numel() for x in w]), w, strict=True)]
    yield Piece(w, g, m, v, u, flat)


def small_first(run: list[int], sizes: list[int]) -> list[int]:
    """``run`` with its small layers in front."""
    return sorted(run, key=lambda i: sizes[i] > SMALL)


def join_small(pieces: list[Piece], sizes: list[int], work: Work) -> None:
    """Set ``small`` and ``owner`` for a run of layers of these ``sizes``, small ones first, that is one piece."""
    small = sum(size <= SMALL for size in sizes)
    if not small or len(pieces) > 1:
        return
    own = tuple(u.numel() for u in pieces[0].u[:small])  # of slices, less
    key = f"owner {own} {work.device}"
    if key not in work.workspace:
        owner = torch.from_numpy(np.repeat(np.arange(small), own))
        pinned = owner.pin_memory() if work.device.type == "cuda" else owner
        work.workspace[key] = pinned.to(work.device, non_blocking=True)
    pieces[0].small, pieces[0].owner = small, work.workspace[key]


def by_layer(piece: Piece, values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """``piece.u`` with ``values``, (layers of the piece,): all small layers at once, the others one by one."""
    if piece.owner is not None:
        yield piece.flat_u[: len(piece.owner)], values.index_select(0, piece.owner)
    yield from zip(piece.u[piece.small :], values[piece.small :].unbind(), strict=True)
