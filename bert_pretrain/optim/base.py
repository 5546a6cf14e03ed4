"""What all optimizers of this package have in common: checked parameter groups and a measured gradient norm."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from bert_pretrain.errors import ConfigError, require
from bert_pretrain.optim.dtensors import local_part
from bert_pretrain.optim.layers import LOW_PRECISION, Decision, check_gradient, decide
from bert_pretrain.optim.norms import global_norm


class MeasuredOptimizer(torch.optim.Optimizer):
    """A torch optimizer that measures ``||G||``, the norm of the gradient of the whole model, and skips bad steps.

    After each step ``grad_norm`` (0-d float64) is ``||G||``, unscaled, before clipping or pre-normalisation, and
    ``skipped`` (0-d float32) is 1.0 if ``||G||`` was not finite or ``found_inf`` was set. A skipped step leaves
    weights, state and step counts unchanged, bit for bit.

    ``norm_params``: the parameters over whose gradients ``G`` is taken, if this instance updates only a part of the
    model. None: its own.

    Loss scaling follows torch's protocol for fused optimizers: ``grad_scale`` and ``found_inf``, if set, are 0-d
    tensors that ``torch.amp.GradScaler`` or the caller provides.
    """

    _step_supports_amp_scaling = True
    _kept: tuple[str, ...] = ()
    """Attributes of a subclass that pickle and deepcopy keep; torch's own version keeps only state and groups."""
    _only_plain_params = True
    """Whether bf16 and fp16 parameters and DTensors are refused."""

    def __init__(self, params: Iterable[Any], *args: Any, **options: Any) -> None:
        self.norm_params: list[Tensor] | None = None
        super().__init__(params, *args, **options)
        device = self._device()
        self.grad_norm = torch.zeros((), dtype=torch.float64, device=device)
        self.skipped = torch.zeros((), dtype=torch.float32, device=device)

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and deepcopy keep."""
        keys = ("norm_params", "grad_norm", "skipped", *self._kept)
        return super().__getstate__() | {key: getattr(self, key) for key in keys}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch. Raises ``ConfigError`` for what the checks below refuse; torch checks the rest."""
        params = param_group["params"]
        if not isinstance(params, set):  # torch's own message refuses a set
            params = [params] if isinstance(params, Tensor) else list(params)
        tensors = [param[1] if isinstance(param, tuple) else param for param in params]
        check_options(self.defaults | param_group)
        check_params(tensors, self.param_groups)
        if self._only_plain_params:
            check_plain(tensors)
        super().add_param_group(param_group | {"params": params})

    def _device(self) -> torch.device:
        return next(param.device for group in self.param_groups for param in group["params"])

    def _norm_grads(self) -> list[Tensor]:
        """The gradients that make up ``G``. Raises ``ConfigError`` for a sparse one."""
        own = [param for group in self.param_groups for param in group["params"]]
        params = own if self.norm_params is None else self.norm_params
        for position, param in enumerate(params):
            if param.grad is not None:
                check_gradient(param.grad, position)
        return [local_part(param.grad) for param in params if param.grad is not None and param.numel()]

    def _decide(self, pre_normalization: str, max_grad_norm: float) -> Decision:
        """Measure ``||G||``, set ``grad_norm`` and ``skipped``, and return the decision."""
        norm = global_norm(self._norm_grads()).to(self.grad_norm.device)
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        decision = decide(norm, pre_normalization, max_grad_norm, scale, found_inf)
        self.grad_norm, self.skipped = decision.grad_norm, decision.skipped.to(torch.float32)
        return decision


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """Call the closure of ``Optimizer.step`` with gradients enabled."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def check_options(group: dict[str, Any]) -> None:
    """Raise ``ConfigError`` for a learning rate, betas, eps, momentum or weight decay out of range."""
    lr, decay = group["lr"], group["weight_decay"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ConfigError(f"lr is a tensor of shape {tuple(lr.shape)}; allowed: a number or a 0-d tensor")
    require(0 <= float(lr) < math.inf, "lr", float(lr), "a finite number, at least 0")
    if "betas" in group:
        betas = group["betas"]
        require(len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "betas", betas, "two numbers in [0, 1)")
    if "eps" in group:
        require(0 < group["eps"] < math.inf, "eps", group["eps"], "a finite number above 0")
    if "momentum" in group:
        require(0 <= group["momentum"] < 1, "momentum", group["momentum"], "a number in [0, 1)")
    require(0 <= decay < math.inf, "weight_decay", decay, "a finite number, at least 0")


def check_plain(params: Iterable[Tensor]) -> None:
    """Raise ``ConfigError`` for parameters that only ``NVLamb`` can update: bf16, fp16 and DTensors."""
    for param in params:
        allowed = "float32 or float64; for others use NVLamb, which keeps float32 masters"
        require(param.dtype not in LOW_PRECISION, "dtype of a parameter", param.dtype, allowed)
        if isinstance(param, DTensor):
            raise ConfigError("a parameter is 'a DTensor'; allowed: ordinary tensors, or NVLamb")


def check_params(params: Iterable[Tensor], earlier_groups: Sequence[dict[str, Any]]) -> None:
    """Raise ``ConfigError`` if parameters of a new group do not fit together or with the earlier groups.

    All parameters must be real floating point and on one device, and no two may share memory: a tied weight that is
    listed twice would be updated twice.
    """
    number = len(earlier_groups)
    seen: dict[int, str] = {}
    devices: dict[torch.device, str] = {}
    everything = [(g, i, p) for g, group in enumerate(earlier_groups) for i, p in enumerate(group["params"])]
    everything += [(number, i, p) for i, p in enumerate(params)]
    for g, i, param in everything:
        if not isinstance(param, Tensor):
            continue  # torch's own message names the type
        place = f"parameter {i} of group {g}"
        require(param.is_floating_point(), f"dtype of {place}", param.dtype, "real floating point")
        devices.setdefault(param.device, place)
        if len(devices) > 1:
            found = ", ".join(f"{where} on {device}" for device, where in devices.items())
            raise ConfigError(f"parameters are on several devices ({found}); allowed: one device for an optimizer")
        address = local_part(param).data_ptr() if param.device.type != "meta" else 0
        if address == 0:
            continue  # an empty tensor has no memory
        if address in seen:
            raise ConfigError(
                f"{place} shares its memory with {seen[address]} and would be updated twice; "
                "allowed: each tied parameter once"
            )
        seen[address] = place
