"""torch's own fused Adam, AdamW and SGD, with ``grad_norm``, ``skipped`` and clipping like the optimizers here.

The updates are torch's. Clipping the global norm needs no extra pass: the fused kernels divide the gradients by
``grad_scale``, which is set to the loss scale times the clipping divisor.

Difference from NVLAMB: torch's kernels also write the divided gradient back. After a step with loss scaling or
``max_grad_norm``, ``param.grad`` holds the unscaled, clipped gradient (unless the step was skipped). With neither,
gradients are not written.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from bert_pretrain.errors import ConfigError
from bert_pretrain.optim.base import MeasuredOptimizer, eager_step, loss_of, without_hooks
from bert_pretrain.optim.checks import check_options
from bert_pretrain.optim.ranges import check_ranges
from bert_pretrain.optim.state import StateFormat


class TorchFused(MeasuredOptimizer):
    """What the three classes share; precedes torch's class among their bases.

    Args:
        params: as for ``NVLamb``.
        lr: learning rate, a float or a 0-d tensor.
        pre_normalization: as for ``NVLamb``; None: ``clip`` if there is a ``max_grad_norm``, else ``none``.
        max_grad_norm: gradients are divided by ``||G|| / max_grad_norm`` if that is above 1.
        options: ``betas``, ``eps``, ``momentum`` and ``weight_decay``, as far as the algorithm has them.

    Raises ``ConfigError`` as ``NVLamb`` does, and for bf16 or fp16 parameters, which would need masters.
    """

    _kept = ("max_grad_norm", "pre_normalization", "kernel")
    _default_options: ClassVar[dict[str, Any]] = {}
    _format = StateFormat(("exp_avg", "exp_avg_sq"), ("max_exp_avg_sq",), of_torch=True)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        *,
        max_grad_norm: float | None = None,
        pre_normalization: str | None = None,
        **options: Any,
    ) -> None:
        how = pre_normalization or ("none" if max_grad_norm is None else "clip")
        check_ranges(pre_normalization=how, max_grad_norm=max_grad_norm)
        self.max_grad_norm = max_grad_norm
        self.pre_normalization = how
        self.kernel = "fused"
        options = self._default_options | options | {"lr": lr}
        if "betas" in options:
            options["betas"] = tuple(options["betas"])
        check_options(options)
        super().__init__(params, fused=True, **options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As for the others; parameters must be dense in memory, since torch's kernels go through it in one line."""
        super().add_param_group(param_group)
        for i, param in enumerate(self.param_groups[-1]["params"]):
            if torch.empty_like(param, device="meta").stride() != param.stride():
                del self.param_groups[-1]
                raise ConfigError(f"parameter {i} has gaps (strides {param.stride()}); allowed: dense, or use NVLamb")

    def _read(self, saved: dict[str, Any]) -> tuple[dict[Tensor, dict[str, Any]], list[dict[str, Any]]]:
        """With the implementation of this class, and refused if torch's class of the state is another algorithm."""
        states, groups = super()._read(saved)
        loaded = []
        for group, own in zip(groups, self.param_groups, strict=True):
            decoupled = own.get("decoupled_weight_decay")
            found = group.get("decoupled_weight_decay")
            if None not in (decoupled, found) and decoupled != found:
                other = "AdamW" if found else "Adam"
                raise ConfigError(f"the state is one of {other}; allowed: one of {type(self).__name__}")
            kept = {key: own[key] for key in ("fused", "foreach", "capturable", "differentiable") if key in own}
            loaded.append(group | kept)
        return states, loaded

    @eager_step
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply one update, or skip it on the device; returns what ``closure`` returns."""
        loss = loss_of(closure)
        self._check_step()
        # Set by GradScaler or the caller. torch's step reads the same two: replaced for the call, then restored.
        given = {key: getattr(self, key, None) for key in ("grad_scale", "found_inf")}
        decision = self._decide(self.pre_normalization, self.max_grad_norm or 1.0)
        if self.kernel == "foreach":
            self._foreach_step(decision.grad_factor)
            return loss
        divides = self.pre_normalization != "none" or given["grad_scale"] is not None
        self.grad_scale = decision.grad_factor.reciprocal().to(torch.float32) if divides else None
        self.found_inf = self.skipped
        rates = [group["lr"] for group in self.param_groups]
        try:
            for group, rate in zip(self.param_groups, rates, strict=True):
                if isinstance(rate, torch.Tensor):  # torch's CUDA kernel reads the rate as float32, whatever it is
                    group["lr"] = rate.detach().reshape(()).to(torch.float32)
            with _fitting_gradients(self.param_groups):
                without_hooks(super().step.__func__)(self)  # type: ignore[attr-defined]
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate
            del self.grad_scale, self.found_inf
            for key, value in given.items():
                if value is not None:
                    setattr(self, key, value)
        return loss

    def _foreach_step(self, factor: Tensor) -> None:
        """The same update with torch's multi-tensor operations: they know no loss scale, so the host waits for the
        device and leaves out a skipped step. Gradients are not written."""
        if bool(self.skipped):
            return
        given: dict[str, Any] = {key: vars(self).pop(key) for key in ("grad_scale", "found_inf") if key in vars(self)}
        grads = [(param, param.grad) for param in self._params()]
        groups = [dict(group) for group in self.param_groups]
        flags = {"fused": False, "foreach": True, "capturable": self._device().type == "cuda"}
        try:
            for group in self.param_groups:
                group |= {key: value for key, value in flags.items() if key in group} | {"lr": float(group["lr"])}
            for param, grad in grads:
                if grad is not None:
                    _set_gradient(param, torch.empty_like(param, requires_grad=False).copy_(grad).mul_(factor))
            without_hooks(super().step.__func__)(self)  # type: ignore[attr-defined]
        finally:
            for param, grad in grads:
                if grad is not None:
                    _set_gradient(param, grad)
            for group, before in zip(self.param_groups, groups, strict=True):
                group |= before
            vars(self).update(given)


@contextmanager
def _fitting_gradients(groups: list[dict[str, Any]]) -> Iterator[None]:
    """Lend copies of gradients whose type or layout differs from the parameter's: torch's kernels would misread them.

    What the kernel writes back is copied to the caller's gradients.
    """
    replaced: list[tuple[Tensor, Tensor, Tensor]] = []
    for group in groups:
        for param in group["params"]:
            grad = param.grad
            if grad is not None and (grad.dtype != param.dtype or grad.stride() != param.stride()):
                lent = torch.empty_like(param, requires_grad=False).copy_(grad)
                replaced.append((param, grad, lent))
                _set_gradient(param, lent)
    try:
        yield
    finally:
        for param, grad, lent in replaced:
            if grad.is_contiguous():  # not one that repeats its elements
                grad.copy_(lent)
            _set_gradient(param, grad)


def _set_gradient(param: Tensor, grad: Tensor) -> None:
    param.grad = None
    if grad.dtype != param.dtype or getattr(param, "grad_dtype", param.dtype) != param.dtype:
        param.grad_dtype = grad.dtype
    param.grad = grad


class AdamW(TorchFused, torch.optim.AdamW):
    """``torch.optim.AdamW(fused=True)`` (Loshchilov and Hutter, arXiv 1711.05101).

    ``w <- (1 - lr decay) w - lr m'/(sqrt(v') + eps)``: no trust ratio.
    """

    _default_options: ClassVar[dict[str, Any]] = {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01}


class Adam(TorchFused, torch.optim.Adam):
    """``torch.optim.Adam(fused=True)`` (Kingma and Ba, arXiv 1412.6980).

    As ``AdamW``, but the decay is added to the (unscaled, clipped) gradient, ``g <- g + decay w``, and so enters the
    moments.
    """

    _default_options: ClassVar[dict[str, Any]] = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}


class SGD(TorchFused, torch.optim.SGD):
    """``torch.optim.SGD(fused=True)`` with momentum: ``b <- momentum b + g + decay w``; ``w <- w - lr b``."""

    _default_options: ClassVar[dict[str, Any]] = {"momentum": 0.9, "weight_decay": 0.0}
    _format = StateFormat((), ("momentum_buffer",), counts_steps=False, of_torch=True)

    @eager_step
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As the others. Buffers start at zero here: torch leaves them uninitialised if the first step is skipped."""
        for group in self.param_groups:
            for param in group["params"] if group["momentum"] else ():
                if self.state[param].get("momentum_buffer") is None:
                    self.state[param]["momentum_buffer"] = self._format.zeros(param)
        return super().step(closure)
