"""One step as a kernel receives it: the layers to update, their state, and whether the step is skipped.

A layer is one parameter tensor of the model. Everything here runs before a kernel writes anything.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bert_pretrain.optim.checks import LOW_PRECISION
from bert_pretrain.optim.dtensors import Shards, local_gradient, local_part
from bert_pretrain.optim.norms import global_norm, layer_norms
from bert_pretrain.optim.state import StateFormat, state_dtype
from bert_pretrain.optim.trust import TrustRatio

NVLAMB_STATE = StateFormat(("exp_avg", "exp_avg_sq"), ignored=("weight_norm", "adam_norm", "trust_ratio"))


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
    trust_ratio: TrustRatio
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
    shared_norm: bool = False
    """Whether ``G`` includes layers of other ranks: then it is summed in the same order on all of them."""

    def decide(self) -> Decision:
        """Compute ``||G||`` over ``norm_grads`` and decide, with torch operations."""
        if self.shards is None:
            norm = global_norm(self.norm_grads).to(self.device)
        else:
            owners = [owner for layers in self.parts for owner in layers.owners]
            norm = self.shards.global_norm(layer_norms(self.norm_grads).to(self.device), owners)
        return decide(norm, self.rules.pre_normalization, self.rules.max_grad_norm, self.grad_scale, self.found_inf)

    def whole_norms(self, norms: Tensor, owners: list[Tensor]) -> Tensor:
        """Norms of whole layers from those of this rank's slices, (..., owners); unchanged if layers are not sliced."""
        return norms if self.shards is None else self.shards.whole_norms(norms, owners)


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
        scale = scale * on_device(grad_scale, stored_norm.device)
    norm = stored_norm / scale
    skipped = ~torch.isfinite(norm)
    if found_inf is not None:
        skipped = skipped | (on_device(found_inf, norm.device) != 0)
    if pre_normalization == "unit":
        divisor = torch.where(norm == 0, 1.0, norm)
    elif pre_normalization == "clip":
        divisor = torch.clamp(norm / max_grad_norm, min=1.0)
    else:
        divisor = torch.ones_like(norm)
    return Decision(norm, skipped, 1.0 / (divisor * scale))


def on_device(number: float | Tensor, device: torch.device) -> Tensor:
    """``number`` as 0-d float64, created on the device: a copy from the host would wait for it."""
    if isinstance(number, Tensor) and number.device.type != "cpu":
        return number.detach().reshape(()).to(device, torch.float64, non_blocking=True)
    return torch.full((), float(number), dtype=torch.float64, device=device)


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """Return ``array`` on ``device``. torch's host allocator keeps the pinned memory until the copy is done."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.clone()


def gather(group: dict[str, Any], state: dict[Any, dict[str, Any]]) -> list[Layers]:
    """Return the layers of ``group`` that have a gradient, one ``Layers`` for each type of arithmetic.

    Creates the state of a parameter when it first has a gradient: zero moments, step 0 and, for bf16 and fp16, a
    float32 master copied from the parameter. Parameters without a gradient or without elements are left out.
    """
    by_dtype: dict[torch.dtype, Layers] = {}
    for param in group["params"]:
        if param.grad is None or param.numel() == 0:
            continue
        own = state[param]
        if not own:
            own |= NVLAMB_STATE.start(param)
        if param.dtype in LOW_PRECISION and "master" not in own:
            own["master"] = NVLAMB_STATE.zeros(param).copy_(param)
        layers = by_dtype.setdefault(state_dtype(param), Layers(group))
        layers.owners.append(param)
        layers.params.append(local_part(param))
        layers.grads.append(local_gradient(param))
        layers.weights.append(local_part(own["master"]) if "master" in own else layers.params[-1])
        layers.exp_avgs.append(local_part(own["exp_avg"]))
        layers.exp_avg_sqs.append(local_part(own["exp_avg_sq"]))
        layers.steps.append(own["step"])
    return list(by_dtype.values())
