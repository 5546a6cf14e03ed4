"""What every kernel of an optimizer starts from: the layers that take part, and whether the step is applied.

A layer is one parameter tensor of the model. Which parameters are sound, where their state lies, how large the
gradient is and whether this step is skipped is settled here, once, before anything is written; a kernel computes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bert_pretrain.errors import ConfigError, require
from bert_pretrain.optim.dtensors import Shards, is_cut, local_part
from bert_pretrain.optim.norms import global_norm
from bert_pretrain.optim.trust import Adaptation

LOW_PRECISION = (torch.bfloat16, torch.float16)


@dataclass
class Layers:
    """The layers of one parameter group that have a gradient: parallel lists, a layer at each position."""

    group: dict[str, Any]
    """The parameter group, for its ``lr``, ``betas``, ``eps`` and ``weight_decay``."""
    owners: list[Tensor] = field(default_factory=list)
    """The parameters as the model has them; the other lists hold the local parts of those that are DTensors."""
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    """Read, never written."""
    weights: list[Tensor] = field(default_factory=list)
    """What is updated: the parameter itself, or its float32 master where the parameter is bf16 or fp16."""
    exp_avgs: list[Tensor] = field(default_factory=list)
    exp_avg_sqs: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)
    """Applied updates so far, 0-d float32 each."""


@dataclass(frozen=True)
class Rules:
    """The options of the algorithm that hold for all layers."""

    pre_normalization: str
    """``unit`` | ``clip`` | ``none``."""
    max_grad_norm: float
    """The norm above which ``clip`` divides."""
    adaptation: Adaptation
    bias_correction: bool


@dataclass
class Work:
    """One step, as a kernel receives it."""

    parts: list[Layers]
    """All layers that are updated; at least one part."""
    device: torch.device
    rules: Rules
    grad_scale: Tensor | float | None
    """What every stored gradient is the gradient times; None: 1."""
    found_inf: Tensor | float | None
    """Not 0: skip the step."""
    workspace: dict[str, Any]
    """What a kernel keeps between steps, under keys of its own: buffers, plans."""
    norm_grads: list[Tensor]
    """The gradients that make up ``G``: those of the parts, and of layers that other ranks update."""
    shards: Shards | None = None
    """Set where this rank holds a slice of every layer: norms have to be completed over the ranks."""

    def decide(self) -> "Decision":
        """Measure ``||G||`` over ``norm_grads`` and decide, by torch's operations."""
        norm = self.whole(global_norm(self.norm_grads).to(self.device))
        return decide(norm, self.rules.pre_normalization, self.rules.max_grad_norm, self.grad_scale, self.found_inf)

    def whole(self, norms: Tensor) -> Tensor:
        """Norms of whole layers from those of what lies here: the same, unless layers are cut into slices."""
        return norms if self.shards is None else self.shards.whole(norms)


@dataclass
class Decision:
    """What ``||G||`` settles for all layers of all groups, on the device: nothing here waits for it."""

    grad_norm: Tensor
    """``||G||``, unscaled, before pre-normalisation: 0-d float64."""
    skipped: Tensor
    """Whether the step leaves everything as it is: 0-d bool."""
    grad_factor: Tensor
    """What a gradient, as stored, is multiplied with: unscaling and pre-normalisation in one, 0-d float64."""


@dataclass
class Outcome:
    """What a kernel reports of a step, on the device."""

    decision: Decision
    nonfinite: Tensor
    """Whether a weight or moment is not finite: 0-d bool."""
    weight_norms: Tensor
    """||w|| before the update, float64, a layer each in the order of the parts; of no meaning in a skipped step."""
    update_norms: Tensor
    """||u||, likewise."""

    @classmethod
    def of_skipped(cls, work: Work, decision: Decision) -> "Outcome":
        """The outcome of a step that left everything as it was."""
        zeros = torch.zeros(sum(len(layers.params) for layers in work.parts), dtype=torch.float64, device=work.device)
        return cls(decision, torch.zeros_like(decision.skipped), zeros, zeros)


def copy_masters(layers: Layers) -> None:
    """Write the masters to the bf16 and fp16 parameters that they are the masters of, rounded to nearest."""
    low = [i for i, param in enumerate(layers.params) if param is not layers.weights[i]]
    if low:
        torch._foreach_copy_([layers.params[i] for i in low], [layers.weights[i] for i in low])


def state_dtype(param: Tensor) -> torch.dtype:
    """Type of a parameter's moments and of the arithmetic: float64 for float64, else float32."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def zeros_for(param: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros shaped and, where it is a DTensor, divided as ``param``; contiguous."""
    return torch.zeros_like(param, dtype=dtype, memory_format=torch.contiguous_format, requires_grad=False)


def gather(group: dict[str, Any], state: dict[Any, dict[str, Any]]) -> list[Layers]:
    """Return the layers of ``group`` that have a gradient, those of one arithmetic type together.

    Creates the state of a parameter when it first has a gradient: zero moments, step 0 and, for bf16 and fp16, a
    float32 master copied from the parameter. Parameters without gradient and without elements are left out.
    Raises ``ConfigError`` for a sparse gradient.
    """
    by_dtype: dict[torch.dtype, Layers] = {}
    for position, param in enumerate(group["params"]):
        grad = param.grad
        if grad is None or param.numel() == 0:
            continue
        check_gradient(grad, position)
        dtype = state_dtype(param)
        own = state[param]
        if "exp_avg" not in own:
            own["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            for key in ("exp_avg", "exp_avg_sq"):
                own[key] = zeros_for(param, dtype)
        if param.dtype in LOW_PRECISION and "master" not in own:
            own["master"] = zeros_for(param, torch.float32).copy_(param)
        layers = by_dtype.setdefault(dtype, Layers(group))
        layers.owners.append(param)
        layers.params.append(local_part(param))
        layers.grads.append(local_part(grad))
        layers.weights.append(local_part(own["master"]) if "master" in own else layers.params[-1])
        layers.exp_avgs.append(local_part(own["exp_avg"]))
        layers.exp_avg_sqs.append(local_part(own["exp_avg_sq"]))
        layers.steps.append(own["step"])
    return list(by_dtype.values())


def gradients_of_model(norm_params: list[Tensor] | None, param_groups: list[dict[str, Any]]) -> list[Tensor]:
    """The gradients that make up ``G``: of ``norm_params`` or, where that is None, of all groups.

    Raises ``ConfigError`` for a sparse one.
    """
    everything = [param for group in param_groups for param in group["params"]]
    params = everything if norm_params is None else norm_params
    for position, param in enumerate(params):
        if param.grad is not None:
            check_gradient(param.grad, position)
    return [local_part(param.grad) for param in params if param.grad is not None and param.numel()]


def check_gradient(grad: Tensor, position: int) -> None:
    """Raise ``ConfigError`` for a sparse gradient."""
    require(grad.layout == torch.strided, f"gradient of parameter {position}", grad.layout, "dense (torch.strided)")


def decide(
    stored_norm: Tensor,
    pre_normalization: str,
    max_grad_norm: float,
    grad_scale: Tensor | float | None,
    found_inf: Tensor | float | None,
) -> Decision:
    """Decide whether the step is applied, without waiting for the device.

    ``stored_norm`` is the norm of all gradients of the model as they are stored, 0-d float64: each ``grad_scale``
    times the gradient. The step is skipped where ``||G||`` is not finite or ``found_inf`` is set.
    ``pre_normalization``: ``unit`` divides by ``||G||`` (by 1 where it is 0), ``clip`` by
    ``||G|| / max_grad_norm`` where that is above 1, ``none`` by nothing.
    """
    scale = torch.ones_like(stored_norm)
    if grad_scale is not None:
        scale = scale * grad_scale
    norm = stored_norm / scale
    skipped = ~torch.isfinite(norm)
    if found_inf is not None:
        skipped = skipped | (torch.zeros((), device=norm.device) + found_inf != 0)
    if pre_normalization == "unit":
        divisor = torch.where(norm == 0, 1.0, norm)
    elif pre_normalization == "clip":
        divisor = torch.clamp(norm / max_grad_norm, min=1.0)
    else:
        divisor = torch.ones_like(norm)
    return Decision(norm, skipped, 1.0 / (divisor * scale))


def prepare_group(
    group: dict[str, Any], defaults: dict[str, Any], earlier_groups: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return a new parameter group with its parameters as a list, once it is sound.

    Raises ``ConfigError`` for an option out of range, and where parameters do not fit together or with the earlier
    groups (see ``check_params``). ``params`` may be one tensor, or any ordered collection of tensors or of
    (name, tensor); what else is wrong with it, torch says.
    """
    params = group["params"]
    if isinstance(params, Tensor):
        params = [params]
    elif not isinstance(params, set):
        params = list(params)
    check_options(defaults | group)
    check_params([param[1] if isinstance(param, tuple) else param for param in params], earlier_groups)
    return group | {"params": params}


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


def check_plain(params: Iterable[Any]) -> None:
    """Raise ``ConfigError`` for parameters that only ``NVLamb`` updates: bf16 and fp16, and DTensors."""
    for item in params:
        param = item[1] if isinstance(item, tuple) else item
        found = param.dtype
        require(found not in LOW_PRECISION, "dtype of a parameter", found, "float32 or float64: masters are NVLamb's")
        require(not is_cut(param), "a parameter", "a DTensor", "ordinary tensors, or NVLamb")


def check_params(params: Iterable[Tensor], earlier_groups: Sequence[dict[str, Any]]) -> None:
    """Raise ``ConfigError`` where parameters of a new group do not fit together or with the earlier groups.

    A parameter must be real floating point, on the one device of all, and its memory must not be that of another
    parameter: a tied weight that was collected twice would be updated twice.
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
            raise ConfigError(f"parameters lie on several devices ({found}); allowed: one device for an optimizer")
        address = local_part(param).data_ptr() if param.device.type != "meta" else 0
        if address == 0:
            continue  # no memory: an empty tensor
        if address in seen:
            raise ConfigError(
                f"{place} shares its memory with {seen[address]}, and would be updated twice; "
                "allowed: each tied parameter once"
            )
        seen[address] = place
