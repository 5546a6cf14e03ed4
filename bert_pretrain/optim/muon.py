"""Muon: momentum whose update of a matrix is orthogonalised.

Provenance: Jordan, Jin, Boza, You, Cesista, Newhouse and Bernstein, "Muon: An optimizer for hidden layers in neural
networks" (2024); Liu et al., "Muon is Scalable for LLM Training" (arXiv 2502.16982, 2025), for the decay and the scale
``match_rms_adamw``; ``hyperball`` for MuonH. Written from their equations.

One update of a matrix w (rows x columns) with gradient g, momentum buffer b:

    (1)  b <- mu b + (1 - mu) g
    (2)  o = NS(mu b + (1 - mu) g)                      Nesterov momentum
    (3)  w <- w - lr (k o + decay w)                    k: original          sqrt(max(1, rows / columns))
                                                           match_rms_adamw   0.2 sqrt(max(rows, columns))
         hyperball: (3) of ``hyperball`` with u = o

    NS(x): x <- x / ||x||;  five times  x <- a x + (b s + c s s) x  with s = x x^T, a, b, c = 3.4445, -4.775, 2.0315

NS brings the singular values of x near 1. ``match_rms_adamw`` makes the elements of the update about as large as those
of AdamW (root mean square 0.2), so that AdamW's learning rates and decays can be used.

Differences: NS is computed in the type of the parameter. Jordan's code and ``torch.optim.Muon`` compute it in bfloat16,
which changes the update by about one percent; that class also reads the rate on the host and has neither a skipped step
nor a measured gradient, so it is not used here. The gradient's scale cancels in (2) but for the weight of one step in
the buffer, which ``pre_normalization`` decides. Only hidden matrices: embeddings, biases, normalisation and output
layers need another optimizer (``paired``).
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bert_pretrain.errors import require
from bert_pretrain.optim.hyperball import radius_of, rotate, rotate_all
from bert_pretrain.optim.joined import Joined
from bert_pretrain.optim.layers import on_device
from bert_pretrain.optim.layerwise import LayerwiseOptimizer, average, check_matrices, norm_of
from bert_pretrain.optim.norms import layer_norms
from bert_pretrain.optim.ranges import check_ranges
from bert_pretrain.optim.state import Group, State, StateFormat, States, Tensors

COEFFICIENTS = (3.4445, -4.775, 2.0315)
ITERATIONS = 5
_LEAST = 1e-7  # of ||x||, as in the published code: a gradient of zeros gives an update of zeros


def orthogonalise(matrix: Tensor) -> Tensor:
    """NS of a matrix, in its type. The product with the smaller side is computed: x^T for a tall matrix."""
    tall = matrix.size(0) > matrix.size(1)
    x = matrix.T if tall else matrix
    x = x / layer_norms([x])[0].clamp(min=_LEAST).to(x.dtype)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        s = x @ x.T
        x = torch.addmm(x, torch.addmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(LayerwiseOptimizer):
    """Muon, and MuonH with ``update_scale="hyperball"``.

    Args:
        params, lr, weight_decay: as for ``NVLamb``; every parameter is a matrix.
        momentum: mu.
        update_scale: k in (3).
        options: as for ``LayerwiseOptimizer``.
    """

    _kept = (*LayerwiseOptimizer._kept, "update_scale", "_format")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        *,
        update_scale: str = "match_rms_adamw",
        **options: Any,
    ) -> None:
        check_ranges(update_scale=update_scale)
        self.update_scale = update_scale
        scalars = ("radius",) if update_scale == "hyperball" else ()
        self._format = StateFormat(("momentum_buffer",), counts_steps=False, scalars=scalars)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults, **options)

    def _check_group(self, group: Group) -> None:
        check_matrices(group)
        decay, fixed = group["weight_decay"], self.update_scale == "hyperball"
        require(not (fixed and decay), "weight_decay", decay, "0: the norm of a matrix is fixed")

    def _new_state(self, param: Tensor) -> State:
        state = self._format.start(param)
        return state | {"radius": radius_of(param)} if self._format.scalars else state

    def _factor(self, shape: torch.Size) -> float:
        """k in (3)."""
        rows, columns = shape
        return math.sqrt(max(1, rows / columns)) if self.update_scale == "original" else 0.2 * math.sqrt(max(shape))

    def _update(self, group: Group, w: Tensor, g: Tensor, own: State) -> tuple[float, float, float]:
        lr = float(group["lr"])
        mu = group["momentum"]
        decay = group["weight_decay"]
        b = own["momentum_buffer"]
        b.mul_(mu).add_(g, alpha=1 - mu)  # (1)
        o = orthogonalise(mu * b + (1 - mu) * g)  # (2)
        if self.update_scale == "hyperball":
            return rotate(w, o, lr, own["radius"].item())
        w_norm, k = norm_of(w), self._factor(w.shape)
        w.sub_(lr * (k * o + decay * w))  # (3)
        return k, w_norm, norm_of(o)

    def _update_all(self, group: Group, params: Tensors, grads: Joined, states: States, skipped: Tensor) -> Tensor:
        lr = on_device(group["lr"], skipped.device)
        mu = group["momentum"]
        decay = group["weight_decay"]
        buffers = [own["momentum_buffer"] for own in states]
        average(buffers, grads, mu, skipped)  # leaves (1 - mu) g in grads
        torch._foreach_add_(grads.each, buffers, alpha=mu)
        # One by one: a batched product may round otherwise with another number of matrices, as under sharding.
        for x in grads.each:
            x.copy_(orthogonalise(x))
        if self.update_scale == "hyperball":
            return rotate_all(params, grads, lr, [own["radius"] for own in states], skipped)
        factors = torch.tensor([self._factor(param.shape) for param in params], dtype=torch.float64)
        factors = factors.to(skipped.device, non_blocking=True)
        rows = torch.stack([factors, layer_norms(params), layer_norms(grads.each)])
        grads.scale_(-lr * factors)
        if decay:
            torch._foreach_add_(grads.each, torch._foreach_mul(params, (-lr * decay).to(params[0].dtype)))
        grads.add_to(params, skipped)
        return rows
