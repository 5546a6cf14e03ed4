"""One step as a kernel receives it: the layers to update, their state, and whether the step is skipped.

A layer is one parameter tensor of the model. Everything here runs before a kernel writes anything.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bert_pretrain.errors import require
from bert_pretrain.optim.dtensors import Shards, local_part
from bert_pretrain.optim.norms import global_norm
from bert_pretrain.optim.trust import Adaptation

LOW_PRECISION = (torch.bfloat16, torch.float16)


@dataclass
class Layers:
    """The layers of one parameter group that have a gradient: parallel lists, one entry per layer."""

    group: dict[str, Any]
    """The parameter group, for its ``lr``, ``betas``, ``eps`` and ``weight_decay``."""
    owners: list[Tensor] = field(default_factory=list)
    """The parameters as the model has them. Where these are DTensors, the other lists hold their local parts."""
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    """Read, never written."""
    weights: list[Tensor] = field(default_factory=list)
    """What is updated: the parameter, or its float32 master if the parameter is bf16 or fp16."""
    exp_avgs: list[Tensor] = field(default_factory=list)
    exp_avg_sqs: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)
    """Updates applied so far, 0-d float32 each."""


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
class Decision:
    """What follows from ``||G||`` for all layers. On the device: nothing here waits for it."""

    grad_norm: Tensor
    """``||G||``, unscaled, before pre-normalisation: 0-d float64."""
    skipped: Tensor
    """Whether the step is skipped: 0-d bool."""
    grad_factor: Tensor
    """Factor of the stored gradients: unscaling and pre-normalisation in one, 0-d float64."""


@dataclass
class Work:
    """One step, as a kernel receives it."""

    parts: list[Layers]
    """All layers that are updated; at least one part."""
    device: torch.device
    rules: Rules
    grad_scale: Tensor | float | None
    """The loss scale that the stored gradients contain; None: 1."""
    found_inf: Tensor | float | None
    """Not 0: skip the step."""
    workspace: dict[str, Any]
    """Buffers and plans that a kernel keeps between steps, under keys of its own."""
    norm_grads: list[Tensor]
    """The gradients that ``G`` consists of: those of the parts, and of layers that other ranks update."""
    shards: Shards | None = None
    """Set if this rank holds a slice of every layer: norms must be completed over the ranks."""

    def decide(self) -> Decision:
        """Compute ``||G||`` over ``norm_grads`` and decide, with torch operations."""
        norm = self.whole(global_norm(self.norm_grads).to(self.device))
        return decide(norm, self.rules.pre_normalization, self.rules.max_grad_norm, self.grad_scale, self.found_inf)

    def whole(self, norms: Tensor) -> Tensor:
        """Norms of whole layers from the norms of this rank's slices; unchanged if the layers are not sliced."""
        return norms if self.shards is None else self.shards.whole(norms)


@dataclass
class Outcome:
    """The results of a step, on the device."""

    decision: Decision
    nonfinite: Tensor
    """Whether a weight or moment is not finite: 0-d bool."""
    weight_norms: Tensor
    """||w|| before the update, float64, one per layer in the order of the parts; meaningless in a skipped step."""
    update_norms: Tensor
    """||u||, likewise."""

    @classmethod
    def of_skipped(cls, work: Work, decision: Decision) -> "Outcome":
        """The outcome of a skipped step."""
        zeros = torch.zeros(sum(len(layers.params) for layers in work.parts), dtype=torch.float64, device=work.device)
        return cls(decision, torch.zeros_like(decision.skipped), zeros, zeros)


def decide(
    stored_norm: Tensor,
    pre_normalization: str,
    max_grad_norm: float,
    grad_scale: Tensor | float | None,
    found_inf: Tensor | float | None,
) -> Decision:
    """Decide whether the step is applied, without waiting for the device.

    ``stored_norm`` is the norm of all gradients of the model as they are stored, that is times ``grad_scale``: 0-d
    float64. The step is skipped if ``||G||`` is not finite or ``found_inf`` is set. ``pre_normalization``: ``unit``
    divides by ``||G||`` (by 1 if it is 0), ``clip`` by ``||G|| / max_grad_norm`` if that is above 1, ``none`` not.
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


def gather(group: dict[str, Any], state: dict[Any, dict[str, Any]]) -> list[Layers]:
    """Return the layers of ``group`` that have a gradient, one ``Layers`` for each type of arithmetic.

    Creates the state of a parameter when it first has a gradient: zero moments, step 0 and, for bf16 and fp16, a
    float32 master copied from the parameter. Parameters without a gradient or without elements are left out.
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


def check_gradient(grad: Tensor, position: int) -> None:
    """Raise ``ConfigError`` for a sparse gradient."""
    require(grad.layout == torch.strided, f"gradient of parameter {position}", grad.layout, "dense (torch.strided)")


def state_dtype(param: Tensor) -> torch.dtype:
    """Type of a parameter's moments and of the arithmetic: float64 for float64, else float32."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def zeros_for(param: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous zeros in the shape of ``param``, sharded like it if it is a DTensor."""
    return torch.zeros_like(param, dtype=dtype, memory_format=torch.contiguous_format, requires_grad=False)


def copy_masters(layers: Layers) -> None:
    """Write the masters to their bf16 and fp16 parameters, rounded to nearest."""
    low = [i for i, param in enumerate(layers.params) if param is not layers.weights[i]]
    if low:
        torch._foreach_copy_([layers.params[i] for i in low], [layers.weights[i] for i in low])
