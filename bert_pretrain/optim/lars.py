"""LARS and LARC: momentum with a learning rate for each layer.

Provenance: You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks" (arXiv 1708.03888, 2017),
algorithm 1; LARC is NVIDIA's variant of it in apex (``apex.parallel.LARC`` around SGD). Written from those formulas.

One update of a layer with weights w, gradient g, momentum buffer b:

    (1)  r = eta ||w|| / (||g|| + decay ||w|| + eps)     1 where ||w|| or ||g|| is 0
    (2)  LARS:  b <- momentum b + lr r (g + decay w)                    w <- w - b
         LARC:  b <- momentum b + min(r / lr, 1) (g + decay w)          w <- w - lr b

So ``clip=True`` takes the smaller of the layer's rate and lr, and has the learning rate outside the buffer, as apex
has. Differences from both: the decay stays where r = 1 because ||g|| is 0 (apex drops it there). ``trust_ratio``
leaves layers without decay (biases, LayerNorm) at r = 1, as most codes do; the paper adapts every layer.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from bert_pretrain.errors import require
from bert_pretrain.optim.layers import check_plain, decide, gradients_of_model, prepare_group
from bert_pretrain.optim.norms import global_norm, layer_norms
from bert_pretrain.optim.options import TRUST_RATIOS
from bert_pretrain.optim.trust import LayerReport


class LARS(torch.optim.Optimizer):
    """LARS, and LARC with ``clip=True``; the surface of ``NVLamb``.

    Args:
        params: parameters, named parameters or groups, float32 or float64.
        lr: the global rate, a float or a 0-d tensor.
        momentum: in [0, 1).
        weight_decay: at least 0.
        trust_coefficient: eta, above 0.
        eps: in the denominator of (1), above 0.
        clip: LARC.
        trust_ratio: ``all`` | ``decayed``: the layers that (1) applies to; r = 1 for the others (and min(1 / lr, 1),
            so plain momentum wherever lr is at most 1).

    After each step ``grad_norm``, ``skipped`` and, in ``layer_report``, the norms (||g|| + decay ||w|| + eps as the
    update's), as ``NVLamb``. Raises ``ConfigError`` as it does, and for bf16 or fp16 parameters.
    """

    _step_supports_amp_scaling = True

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
        self.norm_params: list[Tensor] | None = None
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eps": eps})
        device = self.param_groups[0]["params"][0].device
        self.grad_norm = torch.zeros((), dtype=torch.float64, device=device)
        self.skipped = torch.zeros((), dtype=torch.float32, device=device)
        self._report = LayerReport()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle and deepcopy keep the options too."""
        keys = ("trust_coefficient", "clip", "trust_ratio", "norm_params", "grad_norm", "skipped")
        return super().__getstate__() | {key: self.__dict__[key] for key in keys} | {"_report": LayerReport()}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch; raises ``ConfigError`` for its options or parameters."""
        group = prepare_group(param_group, self.defaults, self.param_groups)
        check_plain(group["params"])
        super().add_param_group(group)

    def layer_report(self) -> Tensor:
        """As ``NVLamb.layer_report``; the trust ratio is the layer's rate: r, or min(r, lr) for LARC."""
        return self._report.table(self.param_groups)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply one update, or skip it on the device; returns what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        norm = global_norm(gradients_of_model(self.norm_params, self.param_groups)).to(self.grad_norm.device)
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        decision = decide(norm, "none", 1.0, scale, found_inf)
        self.grad_norm, self.skipped = decision.grad_norm, decision.skipped.to(torch.float32)
        self._report = LayerReport()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None and param.numel()]
            if params and not (norm.device.type == "cpu" and bool(decision.skipped)):
                self._update(group, params, decision.grad_factor, decision.skipped)
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor], grad_factor: Tensor, skipped: Tensor) -> None:
        """Equations (1) and (2); nothing here waits for the device, where ``skipped`` masks what is added."""
        decay, lr = group["weight_decay"], _on_device(group["lr"], skipped.device)
        dtype = params[0].dtype
        for param in params:
            if "momentum_buffer" not in self.state[param]:
                self.state[param]["momentum_buffer"] = torch.zeros_like(param)
        buffers = [self.state[param]["momentum_buffer"] for param in params]
        updates = [param.grad.to(param.dtype) * grad_factor.to(param.dtype) for param in params]  # type: ignore[union-attr]
        weight_norms, grad_norms = layer_norms(params), layer_norms(updates)
        length = grad_norms + decay * weight_norms + group["eps"]
        ratio = self.trust_coefficient * weight_norms / length
        plain = (weight_norms == 0) | (grad_norms == 0)
        if self.trust_ratio == "decayed" and decay == 0:
            plain = torch.ones_like(plain)
        ratio = torch.where(plain, 1.0, ratio)
        inside, outside = (torch.clamp(ratio / lr, max=1.0), lr) if self.clip else (lr * ratio, torch.ones_like(lr))
        self._report.add(params, torch.minimum(ratio, lr) if self.clip else ratio, weight_norms, length)
        if decay:
            torch._foreach_add_(updates, params, alpha=decay)
        torch._foreach_mul_(updates, list(inside.to(dtype).unbind()))
        for update in updates:
            update.masked_fill_(skipped, 0.0)
        kept = _on_device(group["momentum"], skipped.device).masked_fill(skipped, 1.0)
        torch._foreach_mul_(buffers, kept.to(dtype))
        torch._foreach_add_(buffers, updates)
        torch._foreach_copy_(updates, buffers)
        torch._foreach_mul_(updates, -outside.to(dtype))
        for update in updates:
            update.masked_fill_(skipped, -0.0)
        torch._foreach_add_(params, updates)


def _on_device(number: float | Tensor, device: torch.device) -> Tensor:
    """``number`` as 0-d float64, filled in on the device: a copy would wait for it."""
    return number.double() if isinstance(number, Tensor) else torch.full((), number, dtype=torch.float64, device=device)
