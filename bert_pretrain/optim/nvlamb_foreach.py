"""NVLAMB with torch's multi-tensor operations: the equations of ``nvlamb`` in few launches and few passes over memory.

Differences from the reference, in rounding only:

- Bias correction is folded into k and e of each layer.
- Layers are processed in runs: a large layer alone and, on CPU, in pieces; small layers together. All passes over a
  piece find it in the cache. g, m, v, w are read from memory once, and u and w once more to apply the update, since
  the trust ratio needs the norm of the whole u: about 44 bytes per parameter.
- u is kept in one buffer as large as the largest layer, which is reused at every step: allocating new pages costs more
  than the arithmetic.

On CPU the host reads whether the step is skipped, which costs nothing there. On other devices it does not: in a skipped
step the factors become 1 and what is added becomes -0.0, which leaves every number unchanged, bit for bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from bert_pretrain.optim.joined import Joined, is_small
from bert_pretrain.optim.layers import Decision, Layers, Outcome, Work, on_device
from bert_pretrain.optim.masters import copy_masters
from bert_pretrain.optim.norms import layer_norms

CPU_RUN = 1 << 20
"""Elements of a run of small layers, and of a piece of a large one: five float32 arrays of it fit a last-level cache.
Smaller pieces would fit a faster cache, but starting an operation on all threads costs more than that saves."""
DEVICE_RUN = 1 << 25
"""The same on other devices, where few launches matter and no layer is cut."""
HOST_DECIDES = ("cpu",)
"""Devices on which the host reads whether a step is skipped."""


@dataclass
class Piece:
    """What is processed together: whole small layers, or one part of a large layer. Parallel lists."""

    w: list[Tensor]
    g: list[Tensor]
    m: list[Tensor]
    v: list[Tensor]
    u: Joined
    """Where their update is computed."""


@dataclass
class Scalars:
    """The scalars of a step: numbers where the host reads them, else 0-d tensors, so that it never waits."""

    masked: bool
    """Whether the host does not know if the step is skipped, so that ``skipped`` must mask it."""
    skipped: Tensor
    grad_factor: float | Tensor
    keep1: float | Tensor
    """b1, or 1 if the step is skipped."""
    keep2: float | Tensor
    """b2, likewise."""
    add1: float
    """1 - b1."""
    add2: float
    """1 - b2."""
    decay: float
    k: float | Tensor
    """Of each layer, (layers,), or one number for all of them: t differs only if a layer once had no gradient."""
    e: float | Tensor
    """Likewise."""


def foreach_step(work: Work) -> Outcome:
    """Update all layers. Never waits for the device; on CPU a skipped step returns at once.

    The workspace keeps the buffer for u.
    """
    host_decides = work.device.type in HOST_DECIDES
    decision = work.decide()
    if host_decides and bool(decision.skipped):
        return Outcome.of_skipped(work, decision)
    found = []
    for layers in work.parts:
        found.append(_update_part(layers, work, decision, host_decides))
        copy_masters(layers)
    weight_norms, update_norms = torch.cat([norms for norms, _ in found], 1)
    finite = torch.stack([of_run for _, of_runs in found for of_run in of_runs]).all()
    return Outcome(decision, ~finite, weight_norms, update_norms)


def _update_part(layers: Layers, work: Work, decision: Decision, host_decides: bool) -> tuple[Tensor, list[Tensor]]:
    """Update ``layers``; returns ||w|| and ||u||, (2, layers), and of each run whether norms and moments are finite."""
    on_cpu = work.device.type == "cpu"
    limit = CPU_RUN if on_cpu else DEVICE_RUN
    scalars = _scalars(layers, decision, work.rules.bias_correction, host_decides)
    lr = on_device(layers.group["lr"], work.device)
    decay = layers.group["weight_decay"]
    buffer = _buffer(work.workspace, max(limit, *(w.numel() for w in layers.weights)), layers.weights[0])
    sizes = [owner.numel() for owner in layers.owners]
    runs = list(runs_of(sizes, limit))  # the same on every rank
    if not host_decides:
        runs = [sorted(run, key=lambda i: not is_small(sizes[i])) for run in runs]
    visited = torch.tensor([i for run in runs for i in run])
    places = visited if host_decides else visited.to(work.device, non_blocking=True)
    of_runs, finite = [], []
    for run, own in zip(runs, _of_runs(scalars, runs, places), strict=True):
        pieces = list(pieces_of(layers, run, buffer, limit if on_cpu else None))
        if not host_decides and len(pieces) == 1:
            pieces[0].u.join_small(sum(is_small(sizes[i]) for i in run), work.workspace)
        of_pieces, peaks = [], []
        for piece in pieces:
            peaks.append(_set_update(piece, own))
            of_pieces.append(layer_norms(piece.w + piece.u.each).view(2, -1))  # (2, layers of the piece)
        norm = of_pieces[0]
        if len(pieces) > 1:
            norm = torch.linalg.vector_norm(torch.cat(of_pieces, 1), dim=1, keepdim=True)
        norm = work.whole_norms(norm, [layers.owners[i] for i in run])
        ratio = work.rules.trust_ratio.of(norm[0], norm[1], decay)
        _descend(pieces, lr * ratio, scalars)
        finite.append(torch.isfinite(norm).all() & torch.isfinite(torch.stack(peaks)).all())
        of_runs.append(norm)
    if host_decides:
        torch._foreach_add_(layers.steps, 1.0)
    else:
        applied = (~decision.skipped).to(torch.float32)
        torch._foreach_add_(layers.steps, [applied] * len(layers.steps))  # given one 0-d tensor, torch reads it
    in_order = visited.argsort().to(work.device, non_blocking=True)
    return torch.cat(of_runs, 1).index_select(1, in_order), finite


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


def _scalars(layers: Layers, decision: Decision, bias_correction: bool, host_decides: bool) -> Scalars:
    dtype = layers.weights[0].dtype
    beta1, beta2 = layers.group["betas"]
    t = torch.stack(layers.steps).double() + 1
    correction1 = 1 - beta1**t if bias_correction else torch.ones_like(t)
    root2 = torch.sqrt(1 - beta2**t) if bias_correction else torch.ones_like(t)
    factor: float | Tensor
    k: Any = root2 / correction1  # a number, or one for each layer
    e: Any = layers.group["eps"] * root2
    if host_decides:
        factor, keep1, keep2 = decision.grad_factor.item(), beta1, beta2
        if len(set(t.tolist())) == 1:
            k, e = k[0].item(), e[0].item()
    else:
        one = torch.ones((), dtype=dtype, device=t.device)
        keep1, keep2 = (torch.where(decision.skipped, one, beta) for beta in (beta1, beta2))
        factor, k, e = (values.to(dtype) for values in (decision.grad_factor, k, e))
    return Scalars(
        masked=not host_decides,
        skipped=decision.skipped,
        grad_factor=factor,
        keep1=keep1,
        keep2=keep2,
        add1=1 - beta1,
        add2=1 - beta2,
        decay=layers.group["weight_decay"],
        k=k,
        e=e,
    )


def _of_runs(scalars: Scalars, runs: list[list[int]], places: Tensor) -> Iterator[Scalars]:
    """The scalars of each run, those of each layer in its order. ``places``: all layers in the order of the runs."""
    if not (isinstance(scalars.k, Tensor) and isinstance(scalars.e, Tensor)):
        return repeat(scalars, len(runs))
    lengths = [len(run) for run in runs]
    of_runs = (values.index_select(0, places).split(lengths) for values in (scalars.k, scalars.e))
    return (replace(scalars, k=k, e=e) for k, e in zip(*of_runs, strict=True))


def _buffer(workspace: dict[str, Tensor], size: int, like: Tensor) -> Tensor:
    """Return the kept buffer, of at least ``size`` elements, with the type and device of ``like``."""
    key = f"update {like.dtype} {like.device}"
    if key not in workspace or workspace[key].numel() < size:
        workspace[key] = torch.empty(size, dtype=like.dtype, device=like.device)
    return workspace[key]


def _set_update(piece: Piece, scalars: Scalars) -> Tensor:
    """Equations (2) to (5): advance m and v, write u to ``piece.u``. Returns max sqrt(v), 0-d.

    The maximum reveals an infinite v, which u would hide (m / inf = 0).
    """
    _set_gradient(piece, scalars.grad_factor)  # (1), (2)
    if scalars.masked:  # (3)
        piece.u.flat.masked_fill_(scalars.skipped, -0.0)
        torch._foreach_mul_(piece.m, scalars.keep1)
        torch._foreach_add_(piece.m, piece.u.each, alpha=scalars.add1)
    else:
        torch._foreach_lerp_(piece.m, piece.u.each, scalars.add1)
    torch._foreach_mul_(piece.v, scalars.keep2)
    torch._foreach_addcmul_(piece.v, piece.u.each, piece.u.each, value=scalars.add2)
    _set_root(piece)  # (4), (5)
    peak = piece.u.flat.amax() if piece.u.flat.numel() else piece.u.flat.new_zeros(())  # an empty slice
    piece.u.increase_(scalars.e)
    _divide_into(piece)
    piece.u.scale_(scalars.k)
    if scalars.decay:
        torch._foreach_add_(piece.u.each, piece.w, alpha=scalars.decay)
    return peak


# u <- factor g; u <- sqrt(v); u <- m / u. A piece of one tensor, which most of a model consists of, saves a pass.


def _set_gradient(piece: Piece, factor: float | Tensor) -> None:
    if len(piece.u.each) == 1 and piece.g[0].dtype == piece.u.each[0].dtype:
        torch.mul(piece.g[0], factor, out=piece.u.each[0])
    else:
        torch._foreach_copy_(piece.u.each, piece.g)
        piece.u.flat.mul_(factor)


def _set_root(piece: Piece) -> None:
    if len(piece.u.each) == 1:
        torch.sqrt(piece.v[0], out=piece.u.each[0])
    else:
        torch._foreach_copy_(piece.u.each, piece.v)
        piece.u.flat.sqrt_()


def _divide_into(piece: Piece) -> None:
    if len(piece.u.each) == 1:
        torch.div(piece.m[0], piece.u.each[0], out=piece.u.each[0])
    else:
        piece.u.flat.reciprocal_()
        torch._foreach_mul_(piece.u.each, piece.m)


def _descend(pieces: list[Piece], step_size: Tensor, scalars: Scalars) -> None:
    """Equation (7): w <- w - step_size u, with step_size = lr r for each layer of the run."""
    if not scalars.masked:
        sizes = step_size.tolist()
        for piece in pieces:
            for w, u, size in zip(piece.w, piece.u.each, sizes, strict=True):
                w.add_(u, alpha=-size)
        return
    for piece in pieces:
        piece.u.scale_(-step_size)
        piece.u.add_to(piece.w, scalars.skipped)
