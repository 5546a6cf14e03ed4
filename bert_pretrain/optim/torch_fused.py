"""Adam, AdamW and SGD beside NVLAMB: torch's own, fused, with the same surface.

The updates are torch's. Added here: ``||G||`` and whether the step was skipped, and clipping of the global norm, for
which no extra pass is made: the fused kernels divide gradients by ``grad_scale``, and that is loss scale times clip.

Known difference from NVLAMB: where they divide, torch's kernels also write the divided gradient back. So after a
step with loss scaling or ``max_grad_norm``, ``param.grad`` holds the unscaled, clipped gradient (not where the step
was skipped). With neither, gradients are left alone.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from bert_pretrain.errors import require
from bert_pretrain.optim.layers import (
    check_options,
    check_plain,
    decide,
    gradients_of_model,
    prepare_group,
)
from bert_pretrain.optim.norms import global_norm


class TorchFused(torch.optim.Optimizer):
    """What the three have in common; comes before torch's class in the order of bases.

    After each step: ``grad_norm`` (0-d float64, unscaled, before clipping) and ``skipped`` (0-d float32: 1.0 if
    ``||G||`` was not finite or ``found_inf`` set; weights, state and step counts are then unchanged).
    ``norm_params``: as in ``NVLamb``.
    """

    def __init__(self, params: Iterable[Any], *, max_grad_norm: float | None, **options: Any) -> None:
        found = max_grad_norm
        require(found is None or 0 < found < math.inf, "max_grad_norm", found, "a finite number above 0, or null")
        self.max_grad_norm = max_grad_norm
        self.norm_params: list[Tensor] | None = None
        check_options(options)
        super().__init__(params, fused=True, **options)  # type: ignore[call-arg]  # torch's class, next in line
        device = self.param_groups[0]["params"][0].device
        self.grad_norm = torch.zeros((), dtype=torch.float64, device=device)
        self.skipped = torch.zeros((), dtype=torch.float32, device=device)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle and deepcopy keep what this class adds."""
        keys = ("max_grad_norm", "norm_params", "grad_norm", "skipped", "_step_supports_amp_scaling")
        return super().__getstate__() | {key: self.__dict__[key] for key in keys}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch; raises ``ConfigError`` for its options or parameters."""
        group = prepare_group(param_group, self.defaults, self.param_groups)
        check_plain(group["params"])
        super().add_param_group(group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply one update, or skip it on the device; returns what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Set by GradScaler or the caller; replaced for torch's step, which reads the same two, and then put back.
        given = {key: getattr(self, key, None) for key in ("grad_scale", "found_inf")}
        clip = self.max_grad_norm
        with torch.no_grad():
            pre_normalization = "none" if clip is None else "clip"
            norm = global_norm(gradients_of_model(self.norm_params, self.param_groups)).to(self.grad_norm.device)
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


class AdamW(TorchFused, torch.optim.AdamW):
    """``torch.optim.AdamW(fused=True)`` (Loshchilov and Hutter, arXiv 1711.05101).

    ``w <- (1 - lr decay) w - lr m'/(sqrt(v') + eps)``: no trust ratio.

    Args:
        params, lr, betas, eps, weight_decay: as ``NVLamb``; ``lr`` may be a 0-d tensor.
        max_grad_norm: gradients are divided by ``||G|| / max_grad_norm`` where that is above 1; None: never.

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
        options = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, max_grad_norm=max_grad_norm, **options)


class Adam(TorchFused, torch.optim.Adam):
    """``torch.optim.Adam(fused=True)`` (Kingma and Ba, arXiv 1412.6980).

    As ``AdamW``, but the decay is added to the (unscaled, clipped) gradient, ``g <- g + decay w``, and so goes
    through the moments. Arguments and errors as there.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        max_grad_norm: float | None = None,
    ) -> None:
        options = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, max_grad_norm=max_grad_norm, **options)


class SGD(TorchFused, torch.optim.SGD):
    """``torch.optim.SGD(fused=True)`` with momentum: ``b <- momentum b + g + decay w``; ``w <- w - lr b``.

    ``momentum``: in [0, 1). The other arguments and the errors as ``AdamW``.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        max_grad_norm: float | None = None,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, max_grad_norm=max_grad_norm, **options)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As the others. torch would leave new buffers unwritten where the very first step is skipped: zeros here."""
        for group in self.param_groups:
            for param in group["params"] if group["momentum"] else ():
                if self.state[param].get("momentum_buffer") is None:
                    self.state[param]["momentum_buffer"] = torch.zeros_like(param, requires_grad=False)
        return super().step(closure)
