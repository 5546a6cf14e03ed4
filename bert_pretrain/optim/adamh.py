"""AdamH: Adam whose update of a matrix turns the weights on the sphere of their initial norm.

Provenance: Hyperball (``hyperball``) around Adam (Kingma and Ba, arXiv 1412.6980). Written from those equations.

One update of a matrix w with gradient g, at its t-th applied update:

    (1)  m <- b1 m + (1 - b1) g              v <- b2 v + (1 - b2) g*g
    (2)  u = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)
    (3)  w <- R N(w - lr R N(u))             as in ``hyperball``

Against NVLAMB: the trust ratio R / ||u|| has the norm of the initial weights, the norm of w is restored after each
update, and there is no weight decay. Only hidden matrices, as published: a bias that starts at zero would stay there.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from bert_pretrain.errors import require
from bert_pretrain.optim.hyperball import radius_of, rotate, rotate_all
from bert_pretrain.optim.joined import Joined
from bert_pretrain.optim.layers import on_device
from bert_pretrain.optim.layerwise import LayerwiseOptimizer, average, check_matrices, count_steps, root_of
from bert_pretrain.optim.state import Group, State, StateFormat, States, Tensors


class AdamH(LayerwiseOptimizer):
    """AdamH.

    Args:
        params: as for ``NVLamb``; every parameter is a matrix.
        lr: the angle of an update, about: its length relative to the norm of the matrix.
        weight_decay: 0; here because every optimizer of this package has it.
        options: as for ``LayerwiseOptimizer``.
    """

    _format = StateFormat(("exp_avg", "exp_avg_sq"), scalars=("radius",))

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, **options)

    def _check_group(self, group: Group) -> None:
        check_matrices(group)
        require(group["weight_decay"] == 0, "weight_decay", group["weight_decay"], "0: the norm of a matrix is fixed")

    def _new_state(self, param: Tensor) -> State:
        return self._format.start(param) | {"radius": radius_of(param)}

    def _update(self, group: Group, w: Tensor, g: Tensor, own: State) -> tuple[float, float, float]:
        (b1, b2), m, v = group["betas"], own["exp_avg"], own["exp_avg_sq"]
        own["step"] += 1
        t = own["step"].item()
        m.mul_(b1).add_(g, alpha=1 - b1)  # (1)
        v.mul_(b2).addcmul_(g, g, value=1 - b2)
        u = m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + group["eps"])  # (2)
        return rotate(w, u, float(group["lr"]), own["radius"].item())  # (3)

    def _update_all(self, group: Group, params: Tensors, grads: Joined, states: States, skipped: Tensor) -> Tensor:
        (b1, b2), lr = group["betas"], on_device(group["lr"], skipped.device)
        ms, vs = ([own[key] for own in states] for key in ("exp_avg", "exp_avg_sq"))
        squares = grads.with_flat(grads.flat.square())
        average(vs, squares, b2, skipped)
        average(ms, grads, b1, skipped)
        t, updates = count_steps(states, skipped), grads.copy_(ms)
        updates.scale_(1 / (1 - b1**t))
        updates.flat.div_(root_of(vs, 1 - b2**t, group["eps"], squares))
        return rotate_all(params, updates, lr, [own["radius"] for own in states], skipped)
