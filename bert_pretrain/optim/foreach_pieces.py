"""How ``nvlamb_foreach`` takes layers together: in runs, which are cut into pieces on the CPU."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from bert_pretrain.optim.joined import Joined
from bert_pretrain.optim.layers import Layers


@dataclass
class Piece:
    """What is processed together: whole small layers, or one part of a large layer. Parallel lists."""

    w: list[Tensor]
    g: list[Tensor]
    m: list[Tensor]
    v: list[Tensor]
    u: Joined
    """Where their update is computed."""


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
            yield Piece([w], [g], [m], [v], Joined(u, [u]))
        return
    w, g, m, v = ([column[i] for i in run] for column in columns)
    yield Piece(w, g, m, v, Joined.of(buffer[: sum(x.numel() for x in w)], w))
