"""torch's own fused Adam, AdamW and SGD, with ``grad_norm``, ``skipped`` and clipping like the optimizers here.

The updates are torch's. Clipping the global norm needs no extra pass: the fused kernels divide the gradients by
``grad_scale``, which is set to the loss scale times the clipping divisor.

Difference from NVLAMB: torch's kernels also write the divided gradient back. After a step with loss scaling or
``max_grad_norm``, ``param.grad`` holds the unscaled, clipped gradient (unless the step was skipped). With neither,
gradients are not written.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from bert_pretrain.errors import require
from bert_pretrain.optim.base import MeasuredOptimizer, check_options, loss_of


class TorchFused(MeasuredOptimizer):
    """What the three classes share; precedes torch's class among their bases.

    Args:
        params, lr: as ``NVLamb``; ``lr`` may be a 0-d tensor.
        max_grad_norm: gradients are divided by ``||G|| / max_grad_norm`` if that is above 1; None: never.
        options: those of torch's class. Where one is not given, ``option_defaults`` hold.

    Raises ``ConfigError`` as ``NVLamb`` does, and for bf16 or fp16 parameters, which would need masters.
    """

    option_defaults: ClassVar[dict[str, Any]]
    _kept = ("max_grad_norm",)

    def __init__(
        self, params: Iterable[Any], lr: float | Tensor, *, max_grad_norm: float | None = None, **options: Any
    ) -> None:
        found = max_grad_norm
        require(found is None or 0 < found < math.inf, "max_grad_norm", found, "a finite number above 0, or null")
        self.max_grad_norm = max_grad_norm
        options = self.option_defaults | {"lr": lr} | options
        if "betas" in options:
            options["betas"] = tuple(options["betas"])
        check_options(options)
        super().__init__(params, fused=True, **options)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply one update, or skip it on the device; returns what ``closure`` returns."""
        loss = loss_of(closure)
        # Set by GradScaler or the caller. torch's step reads the same two: replaced for the call, then restored.
        given = {key: getattr(self, key, None) for key in ("grad_scale", "found_inf")}
        clip = self.max_grad_norm
        with torch.no_grad():
            decision = self._decide("none" if clip is None else "clip", clip or 1.0)
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
    """

    option_defaults: ClassVar[dict[str, Any]] = {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01}


class Adam(TorchFused, torch.optim.Adam):
    """``torch.optim.Adam(fused=True)`` (Kingma and Ba, arXiv 1412.6980).

    As ``AdamW``, but the decay is added to the (unscaled, clipped) gradient, ``g <- g + decay w``, and so enters the
    moments.
    """

    option_defaults: ClassVar[dict[str, Any]] = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}


class SGD(TorchFused, torch.optim.SGD):
    """``torch.optim.SGD(fused=True)`` with momentum: ``b <- momentum b + g + decay w``; ``w <- w - lr b``."""

    option_defaults: ClassVar[dict[str, Any]] = {"momentum": 0.9, "weight_decay": 0.0}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As the others. Buffers start at zero here: torch leaves them uninitialised if the first step is skipped."""
        for group in self.param_groups:
            for param in group["params"] if group["momentum"] else ():
                if self.state[param].get("momentum_buffer") is None:
                    self.state[param]["momentum_buffer"] = torch.zeros_like(param, requires_grad=False)
        return super().step(closure)
