"""NVLAMB with torch's multi-tensor operations: the equations of ``nvlamb`` in few launches and few passes over memory.

Differences from the reference, in rounding only:

- Bias correction is two numbers per layer: m'/(sqrt(v') + eps) = k m / (sqrt(v) + e), k = sqrt(1-b2^t) / (1-b1^t),
  e = eps sqrt(1-b2^t).
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

import torch
from torch import Tensor

from bert_pretrain.optim.foreach_pieces import Piece, pieces_of, runs_of
from bert_pretrain.optim.joined import is_small
from bert_pretrain.optim.layers import Decision, Layers, Outcome, Work, copy_masters, on_device
from bert_pretrain.optim.norms import layer_norms

CPU_RUN = 1 << 20
"""Elements of a run of small layers, and of a piece of a large one: five float32 arrays of it fit a last-level cache.
Smaller pieces would fit a faster cache, but starting an operation on all threads costs more than that saves."""
DEVICE_RUN = 1 << 25
"""The same on other devices, where few launches matter and no layer is cut."""
HOST_DECIDES = ("cpu",)
"""Devices on which the host reads whether a step is skipped."""


@dataclass
class Scalars:
    """The scalars of a step: floats on CPU; elsewhere 0-d tensors on the device, so that the host never waits."""

    masked: bool
    """Whether the host does not know if the step is skipped, so that ``skipped`` must mask it."""
    skipped: Tensor
    grad_factor: float | Tensor
    keep1: float | Tensor
    """b1, or 1 if the step is skipped."""
    keep2: float | Tensor
    add1: float
    add2: float
    decay: float
    eps: float | list[float] | Tensor
    """e of each layer, (layers,), or one float for all of them: t differs only if a layer once had no gradient."""
    gain: float | list[float] | Tensor
    """k, likewise."""


def foreach_step(work: Work) -> Outcome:
    """Update all layers. Never waits for the device; on CPU a skipped step returns at once.

    The workspace keeps the buffer for u.
    """
    host_decides = work.device.type in HOST_DECIDES
    decision = work.decide()
    if host_decides and bool(decision.skipped):
        return Outcome.of_skipped(work, decision)
    norms: list[Tensor] = []
    healthy: list[Tensor] = []
    for layers in work.parts:
        _apply_part(layers, work, decision, host_decides, norms, healthy)
        copy_masters(layers)
    weight_norms, update_norms = torch.cat(norms, 1)
    return Outcome(decision, ~torch.stack(healthy).all(), weight_norms, update_norms)


def _apply_part(
    layers: Layers, work: Work, decision: Decision, host_decides: bool, norms: list[Tensor], healthy: list[Tensor]
) -> None:
    """Update ``layers``; append their norms, (2, layers), and whether norms and moments are finite."""
    on_cpu = work.device.type == "cpu"
    limit = CPU_RUN if on_cpu else DEVICE_RUN
    scalars = _scalars(layers, decision, work.rules.bias_correction, host_decides)
    lr, decay = on_device(layers.group["lr"], work.device), layers.group["weight_decay"]
    buffer = _buffer(work.workspace, max(limit, *(w.numel() for w in layers.weights)), layers.weights[0])
    sizes = [owner.numel() for owner in layers.owners]
    runs = list(runs_of(sizes, limit))  # the same on every rank
    if not host_decides:
        runs = [sorted(run, key=lambda i: not is_small(sizes[i])) for run in runs]
    visited = torch.tensor([i for run in runs for i in run])
    of_runs = []
    for run, own in zip(runs, _of_runs(scalars, runs, visited, work.device), strict=True):
        pieces = list(pieces_of(layers, run, buffer, limit if on_cpu else None))
        if not host_decides and len(pieces) == 1:
            pieces[0].u.join_small(sum(is_small(sizes[i]) for i in run), work.workspace)
        of_pieces, peaks = [], []
        for piece in pieces:
            peaks.append(_direction(piece, own))
            of_pieces.append(layer_norms(piece.w + piece.u.each).view(2, -1))  # (2, layers of the piece)
        norm = of_pieces[0]
        if len(pieces) > 1:
            norm = torch.linalg.vector_norm(torch.cat(of_pieces, 1), dim=1, keepdim=True)
        norm = work.whole(norm, [layers.owners[i] for i in run])
        ratio = work.rules.adaptation.ratio(norm[0], norm[1], decay)
        _descend(pieces, lr * ratio, scalars)
        healthy.append(torch.isfinite(norm).all() & torch.isfinite(torch.stack(peaks)).all())
        of_runs.append(norm)
    if host_decides:
        torch._foreach_add_(layers.steps, 1.0)
    else:
        applied = (~decision.skipped).to(torch.float32)
        torch._foreach_add_(layers.steps, [applied] * len(layers.steps))  # given one 0-d tensor, torch reads it
    places = visited.argsort().to(work.device, non_blocking=True)
    norms.append(torch.cat(of_runs, 1).index_select(1, places))


def _scalars(layers: Layers, decision: Decision, bias_correction: bool, host_decides: bool) -> Scalars:
    dtype = layers.weights[0].dtype
    beta1, beta2 = layers.group["betas"]
    t = torch.stack(layers.steps).double() + 1
    correction1 = 1 - beta1**t if bias_correction else torch.ones_like(t)
    root2 = torch.sqrt(1 - beta2**t) if bias_correction else torch.ones_like(t)
    eps, gain = layers.group["eps"] * root2, root2 / correction1
    decay = layers.group["weight_decay"]
    if host_decides:
        factor = decision.grad_factor.item()
        each = [values[0] if len(set(values)) == 1 else values for values in (eps.tolist(), gain.tolist())]
        return Scalars(False, decision.skipped, factor, beta1, beta2, 1 - beta1, 1 - beta2, decay, *each)
    one = torch.ones((), dtype=dtype, device=t.device)
    return Scalars(
        True,
        decision.skipped,
        decision.grad_factor.to(dtype),
        torch.where(decision.skipped, one, beta1),
        torch.where(decision.skipped, one, beta2),
        1 - beta1,
        1 - beta2,
        decay,
        eps.to(dtype),
        gain.to(dtype),
    )


def _of_runs(scalars: Scalars, runs: list[list[int]], visited: Tensor, device: torch.device) -> Iterator[Scalars]:
    """The scalars of each run, those of each layer in its order. ``visited``: all layers in the order of the runs."""
    places = visited.to(device, non_blocking=True) if isinstance(scalars.eps, Tensor) else visited
    lengths, each = [len(run) for run in runs], []
    for values in (scalars.eps, scalars.gain):
        if isinstance(values, Tensor):
            each.append(values.index_select(0, places).split(lengths))
        else:
            each.append([[values[i] for i in run] if isinstance(values, list) else values for run in runs])
    return (replace(scalars, eps=eps, gain=gain) for eps, gain in zip(*each, strict=True))


def _buffer(workspace: dict[str, Tensor], size: int, like: Tensor) -> Tensor:
    """Return the kept buffer, of at least ``size`` elements, with the type and device of ``like``."""
    key = f"update {like.dtype} {like.device}"
    if key not in workspace or workspace[key].numel() < size:
        workspace[key] = torch.empty(size, dtype=like.dtype, device=like.device)
    return workspace[key]


def _direction(piece: Piece, scalars: Scalars) -> Tensor:
    """Equations (2) to (5): advance m and v, write u to ``piece.u``. Returns max sqrt(v), 0-d.

    The maximum reveals an infinite v, which u would hide (m / inf = 0).
    """
    _set_scaled(piece, scalars.grad_factor)
    if scalars.masked:
        piece.u.flat.masked_fill_(scalars.skipped, -0.0)
        torch._foreach_mul_(piece.m, scalars.keep1)
        torch._foreach_add_(piece.m, piece.u.each, alpha=scalars.add1)
    else:
        torch._foreach_lerp_(piece.m, piece.u.each, scalars.add1)
    torch._foreach_mul_(piece.v, scalars.keep2)
    torch._foreach_addcmul_(piece.v, piece.u.each, piece.u.each, value=scalars.add2)
    _set_root(piece)
    peak = piece.u.flat.amax() if piece.u.flat.numel() else piece.u.flat.new_zeros(())  # an empty slice
    if isinstance(scalars.eps, Tensor):
        for u, eps in piece.u.by_layer(scalars.eps):
            u.add_(eps)
    elif isinstance(scalars.eps, float):
        piece.u.flat.add_(scalars.eps)
    else:
        torch._foreach_add_(piece.u.each, scalars.eps)
    _divide_into(piece)
    if isinstance(scalars.gain, Tensor):
        for u, gain in piece.u.by_layer(scalars.gain):
            u.mul_(gain)
    elif isinstance(scalars.gain, float):
        piece.u.flat.mul_(scalars.gain)
    else:
        torch._foreach_mul_(piece.u.each, scalars.gain)
    if scalars.decay:
        torch._foreach_add_(piece.u.each, piece.w, alpha=scalars.decay)
    return peak


# u <- factor g; u <- sqrt(v); u <- m / u. A piece of one tensor, which most of a model consists of, saves a pass.


def _set_scaled(piece: Piece, factor: float | Tensor) -> None:
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
        for u, size in piece.u.by_layer((-step_size).to(piece.u.flat.dtype)):
            u.mul_(size)
        piece.u.flat.masked_fill_(scalars.skipped, -0.0)
        torch._foreach_add_(piece.w, piece.u.each)
