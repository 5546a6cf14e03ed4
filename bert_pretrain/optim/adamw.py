"""AdamW beside NVLAMB: torch's own, fused, with the same surface.

The update is torch's (Loshchilov and Hutter, arXiv 1711.05101: ``w <- (1 - lr decay) w - lr m'/(sqrt(v') + eps)``,
no trust ratio). Added here: ``||G||`` and whether the step was skipped, and clipping of the global norm, for which
no extra pass is made: the fused kernel divides gradients by ``grad_scale``, and that is loss scale times clip.

Known difference from NVLAMB: where it divides, torch's kernel also writes the divided gradient back. So after a
step with loss scaling or ``max_grad_norm``, ``param.grad`` holds the unscaled, clipped gradient (not where the step
was skipped). With neither, gradients are left alone.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from bert_pretrain.errors import require
from bert_pretrain.optim.layers import LOW_PRECISION, check_gradient, check_options, decide, prepare_group
from bert_pretrain.optim.norms import global_norm


class AdamW(torch.optim.AdamW):
    """``torch.optim.AdamW(fused=True)`` with the outputs and the skip rule of ``NVLamb``.

    Args:
        params, lr, betas, eps, weight_decay: as ``NVLamb``; ``lr`` may be a 0-d tensor.
        max_grad_norm: gradients are divided by ``||G|| / max_grad_norm`` where that is above 1; None: never.

    After each step: ``grad_norm`` (0-d float64, unscaled, before clipping) and ``skipped`` (0-d float32: 1.0 if
    ``||G||`` was not finite or ``found_inf`` set; weights, moments and step counts are then unchanged).

    Raises ``ConfigError`` as ``NVLamb`` does, and for bf16 or fp16 parameters, which would need masters.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        max_grad_norm: float | None = None,
    ) -> None:
        found = max_grad_norm
        require(found is None or 0 < found < math.inf, "max_grad_norm", found, "a finite number above 0, or null")
        self.max_grad_norm = max_grad_norm
        check_options({"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        super().__init__(params, lr, (float(betas[0]), float(betas[1])), eps, weight_decay, fused=True)
        device = self.param_groups[0]["params"][0].device
        self.grad_norm = torch.zeros((), dtype=torch.float64, device=device)
        self.skipped = torch.zeros((), dtype=torch.float32, device=device)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle and deepcopy keep what this class adds."""
        keys = ("max_grad_norm", "grad_norm", "skipped", "_step_supports_amp_scaling")
        return super().__getstate__() | {key: self.__dict__[key] for key in keys}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch; raises ``ConfigError`` for its options or parameters."""
        group = prepare_group(param_group, self.defaults, self.param_groups)
        for item in group["params"]:
            dtype = (item[1] if isinstance(item, tuple) else item).dtype
            require(dtype not in LOW_PRECISION, "dtype of a parameter", dtype, "float32 or float64 for adamw")
        super().add_param_group(group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply one update, or skip it on the device; returns what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params = [param for group in self.param_groups for param in group["params"]]
        grads = [param.grad for param in params if param.grad is not None]
        for position, grad in enumerate(grads):
            check_gradient(grad, position)
        # Set by GradScaler or the caller; replaced for torch's step, which reads the same two, and then put back.
        given = {key: getattr(self, key, None) for key in ("grad_scale", "found_inf")}
        clip = self.max_grad_norm
        with torch.no_grad():
            pre_normalization = "none" if clip is None else "clip"
            norm = global_norm(grads).to(params[0].device)
            decision = decide(norm, pre_normalization, clip or 1.0, **given)
            self.grad_norm = decision.grad_norm
            self.skipped = decision.skipped.to(torch.float32)
            divides = clip is not None or given["grad_scale"] is not None
            self.grad_scale = decision.grad_factor.reciprocal().to(torch.float32) if divides else None
            self.found_inf = self.skipped
        rates = [group["lr"] for group in self.param_groups]
        try:
            for group, rate in zip(self.param_groups, rates, strict=True):
                if isinstance(rate, torch.Tensor):  # torch's CUDA kernel reads the rate as float32, whatever it is
                    group["lr"] = rate.to(torch.float32)
            super().step()
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate
            del self.grad_scale, self.found_inf
            for key, value in given.items():
                if value is not None:
                    setattr(self, key, value)
        return loss
