"""LARS and LARC: momentum with a learning rate for each layer.

Provenance: You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks" (arXiv 1708.03888, 2017),
algorithm 1; LARC is NVIDIA's variant of it in apex (``apex.parallel.LARC`` around SGD). Written from those formulas.

One update of a layer with weights w, gradient g, momentum buffer b:

    (1)  r = eta ||w|| / (||g|| + decay ||w|| + eps)     1 if ||w|| or ||g|| is 0
    (2)  LARS:  b <- momentum b + lr r (g + decay w)                    w <- w - b
         LARC:  b <- momentum b + min(r / lr, 1) (g + decay w)          w <- w - lr b

So ``clip=True`` takes the smaller of the layer's rate and lr and applies the learning rate outside the buffer, like
apex. Differences: if ||g|| is 0, so that r = 1, the decay is still applied (apex drops it). ``trust_ratio="decayed"``
leaves layers without decay (biases, LayerNorm) at r = 1, as most codes do; the paper adapts every layer.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from bert_pretrain.errors import require
from bert_pretrain.optim.base import MeasuredOptimizer, eager_step, loss_of
from bert_pretrain.optim.joined import Joined, joined_gradients
from bert_pretrain.optim.layers import on_device
from bert_pretrain.optim.norms import layer_norms
from bert_pretrain.optim.options import TRUST_RATIOS
from bert_pretrain.optim.state import StateFormat
from bert_pretrain.optim.trust import layer_table


class LARS(MeasuredOptimizer):
    """LARS, and LARC with ``clip=True``.

    Args:
        params: as for ``NVLamb``, in float32 or float64.
        lr: as for ``NVLamb``.
        weight_decay: as for ``NVLamb``.
        trust_coefficient: eta, above 0.
        trust_ratio: ``all`` | ``decayed``: the layers that (1) applies to; r = 1 for the others (LARC: min(1 / lr, 1),
            so plain momentum if lr is at most 1).

    Raises ``ConfigError`` as ``NVLamb`` does, and for bf16 or fp16 parameters.
    """

    _kept = ("trust_coefficient", "clip", "trust_ratio")
    _format = StateFormat(("momentum_buffer",), counts_steps=False)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
        clip: bool = False,
        trust_ratio: str = "all",
    ) -> None:
        found = trust_coefficient
        require(0 < found < math.inf, "trust_coefficient", found, "a finite number above 0")
        require(trust_ratio in TRUST_RATIOS, "trust_ratio", trust_ratio, " | ".join(TRUST_RATIOS))
        self.trust_coefficient, self.clip, self.trust_ratio = trust_coefficient, clip, trust_ratio
        self._updated: list[tuple[list[Tensor], Tensor]] = []
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eps": eps})

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and deepcopy keep."""
        return super().__getstate__() | {"_updated": []}

    def layer_report(self) -> Tensor:
        """As ``NVLamb.layer_report``, with the layer's rate (r, or min(r, lr) for LARC) as its trust ratio.

        The third row is ||g|| + decay ||w|| + eps, the denominator of (1).
        """
        return layer_table(self.param_groups, self._updated)

    @eager_step
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply one update, or skip it on the device; returns what ``closure`` returns."""
        loss = loss_of(closure)
        self._check_step()
        decision = self._decide("none", 1.0)
        self._updated = []
        if not (decision.skipped.device.type == "cpu" and bool(decision.skipped)):
            for group, params in self._parts():
                grads = joined_gradients(params, decision.grad_factor, self.workspace)
                self._update(group, params, grads, decision.skipped)
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor], updates: Joined, skipped: Tensor) -> None:
        """Equations (1) and (2); ``updates`` are the gradients. ``skipped`` masks what is added."""
        decay, lr = group["weight_decay"], on_device(group["lr"], skipped.device)
        dtype = params[0].dtype
        for param in params:
            if "momentum_buffer" not in self.state[param]:
                self.state[param]["momentum_buffer"] = self._format.zeros(param)
        buffers = [self.state[param]["momentum_buffer"] for param in params]
        weight_norms, grad_norms = layer_norms(params), layer_norms(updates.each)
        length = grad_norms + decay * weight_norms + group["eps"]
        ratio = self.trust_coefficient * weight_norms / length
        plain = (weight_norms == 0) | (grad_norms == 0)
        if self.trust_ratio == "decayed" and decay == 0:
            plain = torch.ones_like(plain)
        ratio = torch.where(plain, 1.0, ratio)
        inside, outside = (torch.clamp(ratio / lr, max=1.0), lr) if self.clip else (lr * ratio, torch.ones_like(lr))
        rate = torch.minimum(ratio, lr) if self.clip else ratio
        self._updated.append((params, torch.stack([rate, weight_norms, length])))
        if decay:
            torch._foreach_add_(updates.each, params, alpha=decay)
        updates.scale_(inside)
        momentum = on_device(group["momentum"], skipped.device).masked_fill(skipped, 1.0)
        torch._foreach_mul_(buffers, momentum.to(dtype))
        updates.add_to(buffers, skipped)
        updates.copy_(buffers).flat.mul_(-outside.to(dtype))
        updates.add_to(params, skipped)
