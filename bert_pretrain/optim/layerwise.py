"""Optimizers whose update is written twice, as kernels ``reference`` and ``foreach`` that compute the same.

``reference`` updates layer by layer, by the equations of its module. ``foreach`` uses torch's multi-tensor operations
and never waits for the device: in a skipped step factors become 1 and what is added becomes -0.0, which leaves every
number unchanged, bit for bit. On CPU a skipped step returns at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from bert_pretrain.errors import require, require_choice
from bert_pretrain.optim.base import MeasuredOptimizer, eager_step, loss_of
from bert_pretrain.optim.joined import Joined, joined_gradients
from bert_pretrain.optim.layers import on_device
from bert_pretrain.optim.norms import layer_norms
from bert_pretrain.optim.ranges import TWO_KERNELS, check_ranges
from bert_pretrain.optim.state import Group, State, States, Tensors
from bert_pretrain.optim.trust import layer_table


class LayerwiseOptimizer(MeasuredOptimizer, ABC):
    """What these optimizers share. Parameters are float32 or float64. Gradients are never written.

    Args:
        params: as for ``NVLamb``.
        defaults: options of the groups.
        pre_normalization, max_grad_norm, kernel: as in ``options.AlgorithmConfig``.

    Raises ``ConfigError`` as ``NVLamb`` does, and for bf16 or fp16 parameters.
    """

    _kept: tuple[str, ...] = ("pre_normalization", "max_grad_norm", "kernel")

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        *,
        pre_normalization: str = "none",
        max_grad_norm: float | None = None,
        kernel: str = "foreach",
    ) -> None:
        check_ranges(pre_normalization=pre_normalization, max_grad_norm=max_grad_norm)
        require_choice("kernel", kernel, TWO_KERNELS)
        self.pre_normalization = pre_normalization
        self.max_grad_norm = max_grad_norm
        self.kernel = kernel
        self._updated: list[tuple[list[Tensor], Tensor]] = []
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and deepcopy keep."""
        return super().__getstate__() | {"_updated": []}

    def add_param_group(self, param_group: Group) -> None:
        """As for the others. Raises ``ConfigError`` for parameters that the algorithm does not take."""
        super().add_param_group(param_group)
        group = self.param_groups.pop()
        self._check_group(group)
        self.param_groups.append(group)

    def _check_group(self, group: Group) -> None:
        """Refuse parameters and options that the algorithm does not take."""

    def layer_report(self) -> Tensor:
        """As ``NVLamb.layer_report``: the step of a layer is lr times trust ratio times u."""
        return layer_table(self.param_groups, self._updated)

    @eager_step
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply one update, or skip it; returns what ``closure`` returns. ``foreach`` never waits for the device."""
        loss = loss_of(closure)
        self._check_step()
        decision = self._decide(self.pre_normalization, self.max_grad_norm or 1.0)
        self._updated = []
        on_host = self.kernel == "reference" or decision.skipped.device.type == "cpu"
        if on_host and bool(decision.skipped):
            return loss
        for group, params in self._parts():
            for param in params:
                if not self.state[param]:
                    self.state[param] = self._new_state(param)
            grads = joined_gradients(params, decision.grad_factor, self.workspace)
            states = [self.state[param] for param in params]
            if self.kernel == "foreach":
                rows = self._update_all(group, params, grads, states, decision.skipped)
            else:
                each = zip(params, grads.each, states, strict=True)
                rows = torch.tensor([self._update(group, w, g, own) for w, g, own in each], dtype=torch.float64).T
            self._updated.append((params, rows))
        return loss

    def _new_state(self, param: Tensor) -> State:
        """The state before the first update."""
        return self._format.start(param)

    @abstractmethod
    def _update(self, group: Group, w: Tensor, g: Tensor, own: State) -> tuple[float, float, float]:
        """Update one layer by the equations; returns the trust ratio, ||w|| before the update and ||u||."""

    @abstractmethod
    def _update_all(self, group: Group, params: Tensors, grads: Joined, states: States, skipped: Tensor) -> Tensor:
        """Update all layers of a group, unless ``skipped`` (0-d bool on the device); returns the rows of the report.

        ``grads`` may be overwritten. Rows: (3, layers) float64.
        """


def check_matrices(group: Group) -> None:
    """Refuse parameters that are no matrices."""
    for i, param in enumerate(group["params"]):
        require(
            param.dim() == 2, f"shape of parameter {i}", tuple(param.shape), "that of a matrix; use PairedOptimizer"
        )


def norm_of(tensor: Tensor) -> float:
    """The L2 norm of one tensor."""
    return layer_norms([tensor]).item()


# In a skipped step these leave every number unchanged, bit for bit.


def average(moments: list[Tensor], news: Joined, beta: float, skipped: Tensor) -> None:
    """``moment <- beta moment + (1 - beta) new``; overwrites ``news`` with ``(1 - beta) new``."""
    news.flat.mul_(1 - beta)
    torch._foreach_mul_(moments, on_device(beta, skipped.device).masked_fill(skipped, 1.0).to(news.flat.dtype))
    news.add_to(moments, skipped)


def count_steps(states: States, skipped: Tensor) -> Tensor:
    """Count the update of each layer; returns t of each, 1-d float64, at least 1."""
    steps = [own["step"] for own in states]
    torch._foreach_add_(steps, [(~skipped).to(torch.float32)] * len(steps))  # one 0-d tensor would be read by the host
    return torch.stack(steps).double().clamp(min=1)


def root_of(moments: list[Tensor], correction: Tensor, eps: float, out: Joined) -> Tensor:
    """``sqrt(v / correction) + eps`` of each second moment, in ``out.flat``; ``correction``: 1-d float64."""
    out.copy_(moments).flat.sqrt_()
    out.scale_(correction.rsqrt())
    return out.flat.add_(eps)
