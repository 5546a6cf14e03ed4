"""Two optimizers for one model: hidden matrices by one, all other layers by the other."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bert_pretrain.errors import ConfigError
from bert_pretrain.optim.base import MeasuredOptimizer, eager_step, loss_of, without_hooks
from bert_pretrain.optim.norms import global_norm
from bert_pretrain.optim.torch_fused import TorchFused

Make = Callable[[list[dict[str, Any]]], MeasuredOptimizer]
MATRICES = "matrices"
"""The name of the group of hidden matrices."""


class PairedOptimizer(MeasuredOptimizer):
    """``first`` for the groups named ``matrices``, ``second`` for the others; one ``||G||`` and one decision for both.

    Args:
        groups: parameter groups as ``build.layer_groups`` returns them, those of matrices first.
        first: makes the optimizer of the matrices from their groups.
        second: makes the other.

    The groups and the states are those of the two, so a saved state has each in its own format. After a step
    ``nonfinite_state`` is that of an ``NVLamb`` among them. The norm is measured here; an ``NVLamb`` measures it again.
    """

    _kept = ("parts",)

    def __init__(self, groups: list[dict[str, Any]], first: Make, second: Make) -> None:
        self.parts: list[MeasuredOptimizer] = []
        super().__init__([dict(group) for group in groups], {"lr": 0.0, "weight_decay": 0.0})
        matrices = [group for group in groups if group["name"] == MATRICES]
        others = [group for group in groups if group["name"] != MATRICES]
        self.parts = [first(matrices), second(others)]
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self._forget()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only in the constructor."""
        if self.parts:
            raise ConfigError("a group is added to a PairedOptimizer; allowed: give all groups to its constructor")
        super().add_param_group(param_group)

    def _forget(self) -> None:
        """Give the parts the groups and the state."""
        count = len(self.parts[0].param_groups)
        for part, groups in zip(self.parts, (self.param_groups[:count], self.param_groups[count:]), strict=True):
            part.param_groups, part.state = groups, self.state
            part._forget()

    def _read(self, saved: dict[str, Any]) -> tuple[dict[Tensor, dict[str, Any]], list[dict[str, Any]]]:
        count = len(self.parts[0].param_groups)
        states: dict[Tensor, dict[str, Any]] = {}
        groups: list[dict[str, Any]] = []
        for part, share in zip(self.parts, (slice(count), slice(count, None)), strict=True):
            found, own = part._read({"state": saved["state"], "param_groups": saved["param_groups"][share]})
            states, groups = states | found, groups + own
        return states, groups

    @property
    def nonfinite_state(self) -> Tensor:
        """Whether a weight or moment was not finite, as far as the two know it: 0-d bool."""
        flags = [part.nonfinite_state for part in self.parts if hasattr(part, "nonfinite_state")]
        return torch.stack(flags).any() if flags else torch.zeros((), dtype=torch.bool, device=self._device())

    @property
    def averages_weights(self) -> bool:  # type: ignore[override]
        """Whether a part does."""
        return any(part.averages_weights for part in self.parts)

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """As the parts."""
        with self.parts[0].evaluation_weights(), self.parts[1].evaluation_weights():
            yield

    def layer_report(self) -> Tensor:
        """As ``NVLamb.layer_report``; NaN for layers of an optimizer that has none."""
        reports = []
        for part in self.parts:
            layers = sum(len(group["params"]) for group in part.param_groups)  # sharded: a rank may have none
            report = torch.full((3, layers), torch.nan, dtype=torch.float64, device=self._device())
            if layers and hasattr(part, "layer_report"):
                report = part.layer_report()
            reports.append(report.to(torch.float64))
        return torch.cat(reports, 1)

    @eager_step
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply one update, or skip it; returns what ``closure`` returns."""
        loss = loss_of(closure)
        params = self.norm_params or self._params()
        for part in self.parts:
            part._check_step()
            part.norm_params = params
        self.stored_norm = global_norm(self._norm_grads()).to(self._device())
        self._decide("none", 1.0)
        for part in sorted(self.parts, key=lambda part: isinstance(part, TorchFused)):  # writes gradients: the last
            part.stored_norm, part.found_inf = self.stored_norm, self.skipped  # type: ignore[attr-defined]
            part.grad_scale = getattr(self, "grad_scale", None)  # type: ignore[attr-defined]
            guarded = vars(part).get("step")  # until its first update is compared (first_update)
            guarded() if guarded else without_hooks(type(part).step)(part)
        return loss
