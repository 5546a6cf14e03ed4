"""Schedule-Free AdamW: the averaged weights are evaluated, so that the learning rate need not decay.

Provenance: Defazio, Yang, Mehta, Mishchenko, Khaled and Cutkosky, "The Road Less Scheduled" (arXiv 2405.15682, 2024),
algorithm 1, with the bias correction inside the root as in the authors' code. Written from those equations.

One update with the gradient g at the trained weights y, at the t-th applied update with the rate lr(t):

    (1)  v <- b2 v + (1 - b2) g*g
    (2)  d = g / (sqrt(v / (1 - b2^t)) + eps) + decay y
    (3)  z <- z - lr d
    (4)  x <- x + c (z - x)                  c = lr(t)^2 / (lr(1)^2 + ... + lr(t)^2)
    (5)  y <- (1 - b1) z + b1 x              z = x = y before the first update

The parameters are y in training and x, the average, inside ``evaluation_weights``: what is evaluated, saved and
exported. x and z are kept, and y is always computed from them by (5), so that a resumed run has the same y, bit for
bit; the authors' code keeps y and z and recovers x, which saves a tensor and rounds. Use it with a constant rate after
the warm-up.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bert_pretrain.optim.joined import Joined
from bert_pretrain.optim.layers import on_device
from bert_pretrain.optim.layerwise import LayerwiseOptimizer, average, count_steps, norm_of, root_of
from bert_pretrain.optim.norms import layer_norms
from bert_pretrain.optim.state import Group, State, StateFormat, States, Tensors


class ScheduleFreeAdamW(LayerwiseOptimizer):
    """Schedule-Free AdamW.

    Args:
        params, lr, weight_decay: as for ``NVLamb``.
        betas: b1, the share of the average in the trained weights, and b2.
        options: as for ``LayerwiseOptimizer``.
    """

    _format = StateFormat(("x", "z", "exp_avg_sq"), scalars=("weight_sum",))
    averages_weights = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, **options)

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Inside, the parameters are x."""
        with torch.no_grad():
            for param in self._params():
                if self.state.get(param):
                    param.copy_(self.state[param]["x"])
        try:
            yield
        finally:
            self._forget()

    @torch.no_grad()
    def _restore(self, params: Tensors, states: States, group: Group) -> None:
        """(5). Always by this operation, so that weights are the same bit for bit after a step and after loading."""
        zs, xs = ([own[key] for own in states] for key in ("z", "x"))
        torch._foreach_copy_(params, torch._foreach_lerp(zs, xs, group["betas"][0]))

    def _forget(self) -> None:
        for group in self.param_groups:
            params = [param for param in group["params"] if self.state.get(param)]
            if params:
                self._restore(params, [self.state[param] for param in params], group)

    def _new_state(self, param: Tensor) -> State:
        state = self._format.start(param)
        state["x"].copy_(param)
        state["z"].copy_(param)
        return state

    def _update(self, group: Group, w: Tensor, g: Tensor, own: State) -> tuple[float, float, float]:
        lr = float(group["lr"])
        b2 = group["betas"][1]
        v = own["exp_avg_sq"]
        w_norm = norm_of(w)
        own["step"] += 1
        v.mul_(b2).addcmul_(g, g, value=1 - b2)  # (1)
        root = (v / (1 - b2 ** own["step"].item())).sqrt()
        d = g / (root + group["eps"]) + group["weight_decay"] * w  # (2)
        own["z"].sub_(lr * d)  # (3)
        own["weight_sum"] += lr**2
        total = own["weight_sum"].item()
        own["x"].add_(own["z"] - own["x"], alpha=lr**2 / total if total else 0.0)  # (4)
        self._restore([w], [own], group)
        return 1.0, w_norm, norm_of(d)

    def _update_all(self, group: Group, params: Tensors, grads: Joined, states: States, skipped: Tensor) -> Tensor:
        lr, b2 = on_device(group["lr"], skipped.device), group["betas"][1]
        xs, zs, vs, sums = ([own[key] for own in states] for key in (*self._format.moments, *self._format.scalars))
        squares = grads.with_flat(grads.flat.square())
        average(vs, squares, b2, skipped)
        t = count_steps(states, skipped)
        grads.flat.div_(root_of(vs, 1 - b2**t, group["eps"], squares))
        if group["weight_decay"]:
            torch._foreach_add_(grads.each, params, alpha=group["weight_decay"])
        norms = torch.stack([torch.ones_like(t), layer_norms(params), layer_norms(grads.each)])
        grads.flat.mul_((-lr).to(grads.flat.dtype))
        grads.add_to(zs, skipped)
        torch._foreach_add_(sums, [torch.where(skipped, 0.0, lr * lr)] * len(sums))
        total = torch.stack(sums)
        torch._foreach_sub_(grads.copy_(zs).each, xs)
        grads.scale_(torch.where(total == 0, 0.0, lr * lr / total))
        grads.add_to(xs, skipped)
        self._restore(params, states, group)
        return norms
