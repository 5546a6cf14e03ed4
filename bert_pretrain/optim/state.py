"""The state of a parameter: its one format, and how what comes from outside is brought into it or refused.

Native kernels get addresses, so nothing reaches them that was not checked here: not what ``load_state_dict`` loads, not
what somebody writes into ``optimizer.state``, and not a state left behind on another device or in another type.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from bert_pretrain.errors import ConfigError, require
from bert_pretrain.optim.checks import LOW_PRECISION, check_eps, check_options
from bert_pretrain.optim.dtensors import sharded_like
from bert_pretrain.optim.options import MOST_STEPS

_OPTIONS = ("lr", "betas", "eps", "momentum", "weight_decay")
_OF_TORCH = ("amsgrad", "capturable", "differentiable", "foreach", "maximize")
"""Options that only the groups of torch's own optimizers have."""

Group = dict[str, Any]
State = dict[str, Any]
"""What an optimizer keeps for one parameter."""
Tensors = list[Tensor]
States = list[State]


@dataclass(frozen=True)
class StateFormat:
    """The entries that an optimizer keeps for a parameter, float32 (float64 for float64 parameters)."""

    moments: tuple[str, ...]
    """Tensors like the parameter; a state has all of them."""
    optional: tuple[str, ...] = ()
    """Tensors like the parameter that a state may have."""
    counts_steps: bool = True
    """Whether there is ``step``, 0-d float32: the updates applied so far."""
    scalars: tuple[str, ...] = ()
    """Numbers of a state, 0-d float64; it has all of them."""
    ignored: tuple[str, ...] = ()
    """What other implementations keep for their logs."""
    of_torch: bool = False
    """Whether the class is torch's: states of torch's own class are loaded, and moments have the parameter's strides.
    Otherwise moments are contiguous, and momentum and moments of torch's classes mean something else."""

    @cached_property
    def _numbers(self) -> dict[str, torch.dtype]:
        """The 0-d entries and their types."""
        step = {"step": torch.float32} if self.counts_steps else {}
        return step | dict.fromkeys(self.scalars, torch.float64)

    def fits(self, own: Mapping[str, Any], param: Tensor) -> bool:
        """Whether ``own`` is in the format. Called at every step: reads no values, so it never waits for a device."""
        dtype, shape, device = state_dtype(param), param.shape, param.device
        sliced = isinstance(param, DTensor)
        for key, kind in self._numbers.items():
            number = own.get(key)
            if not isinstance(number, Tensor) or number.dtype != kind or number.dim() or number.device != device:
                return False
        keys: Sequence[str] = self.moments
        if len(own) > len(keys) + len(self._numbers):
            if "master" in own and param.dtype not in LOW_PRECISION:
                return False
            keys = (*keys, *(key for key in (*self.optional, "master") if key in own))
        for key in keys:
            value = own.get(key)
            if not isinstance(value, Tensor) or value.dtype != dtype or value.shape != shape or value.device != device:
                return False
            if value.requires_grad or (
                value.stride() != param.stride() if self.of_torch else not value.is_contiguous()
            ):
                return False
            if type(value) is not Tensor and isinstance(value, DTensor) != sliced:
                return False
            if sliced and (type(value) is Tensor or value.placements != param.placements):  # type: ignore[attr-defined]
                return False
        return True

    def conform(self, own: Mapping[str, Any], param: Tensor, name: str, extras: bool) -> dict[str, Any]:
        """Return ``own`` in the format, in memory of its own. ``name``: of the parameter, for messages.

        Types, devices and layouts are converted. Raises ``ConfigError`` for missing entries, for entries that are not
        tensors, for wrong shapes and, unless there may be ``extras``, for other entries.
        """
        needed = (*self._numbers, *self.moments)
        missing = [key for key in needed if own.get(key) is None]
        others = set(own) - {*needed, *self.optional, "master", *self.ignored}
        if missing or (others and not extras):
            found = ", ".join(map(str, own))
            raise ConfigError(f"the state of {name} has {found}; allowed: {', '.join(needed)}")
        result: dict[str, Any] = {key: own[key] for key in others}
        result |= {"step": _step_count(own["step"], param, name)} if self.counts_steps else {}
        for key in self.scalars:
            number = own[key]
            scalar = isinstance(number, Tensor) and number.numel() == 1 and number.is_floating_point()
            require(scalar, f"{key} of {name}", number, "a number, as a 0-d tensor")
            result[key] = number.detach().reshape(()).to(param.device, torch.float64, copy=True)
        for key in (*self.moments, *self.optional, "master"):
            if own.get(key) is None or (key == "master" and param.dtype not in LOW_PRECISION):
                continue  # without low precision the parameter itself holds what the master held
            result[key] = self.zeros(param).copy_(_checked(own[key], param, f"{key} of {name}"))
        return result

    def start(self, param: Tensor) -> dict[str, Any]:
        """The state before the first update, all zero, without optional entries."""
        numbers = {key: torch.zeros((), dtype=kind, device=param.device) for key, kind in self._numbers.items()}
        return numbers | {key: self.zeros(param) for key in self.moments}

    def zeros(self, param: Tensor) -> Tensor:
        """A moment of zeros, sharded like ``param`` if that is a DTensor."""
        layout = torch.preserve_format if self.of_torch else torch.contiguous_format
        return torch.zeros_like(param, dtype=state_dtype(param), memory_format=layout, requires_grad=False)


def state_dtype(param: Tensor) -> torch.dtype:
    """Type of a parameter's moments and of the arithmetic: float64 for float64, else float32."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def _step_count(value: Any, param: Tensor, name: str) -> Tensor:
    """``step`` as 0-d float32 on the parameter's device; other codes keep it as an int, or in shape (1,)."""
    number = value
    if isinstance(value, Tensor):
        require(value.numel() == 1, f"shape of step of {name}", tuple(value.shape), "0-d")
        number = value.item()
    is_count = isinstance(number, int | float) and 0 <= number <= MOST_STEPS and number == int(number)
    require(is_count, f"step of {name}", number, "a number of updates, at least 0")
    return torch.full((), float(number), dtype=torch.float32, device=param.device)


def _checked(value: Any, param: Tensor, name: str) -> Tensor:
    require(isinstance(value, Tensor), name, type(value).__name__, "a tensor")
    real = value.is_floating_point() and value.layout == torch.strided and value.is_meta == param.is_meta
    require(real, name, f"{value.dtype}, {value.layout}, on {value.device}", "a dense tensor of floating point")
    require(value.shape == param.shape, f"shape of {name}", tuple(value.shape), f"{param.shape}")
    return sharded_like(value.detach(), param)


def check_entries(saved: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` unless ``saved`` has the form of a state, with entries for parameters of its groups only.

    Keys that JSON has made text would else be passed over, and all moments begin at 0.
    """
    if not {"state", "param_groups"} <= set(saved):
        found = ", ".join(map(str, list(saved)[:5])) or "nothing"
        raise ConfigError(f"the state of an optimizer has the entries {found}; allowed: state, param_groups")
    ids = {saved_id for group in saved["param_groups"] for saved_id in group["params"]}
    if unknown := [repr(saved_id) for saved_id in saved["state"] if saved_id not in ids]:
        raise ConfigError(f"the state has entries for {', '.join(unknown[:5])}; allowed: for parameters of its groups")


def read_state(
    saved: Mapping[str, Any], groups: Sequence[dict[str, Any]], wanted: StateFormat, name: str
) -> tuple[dict[Tensor, dict[str, Any]], list[dict[str, Any]]]:
    """Return the states and the groups of ``saved`` for the parameters of ``groups``, changing nothing.

    States of other LAMBs keep ``step`` in the group: it becomes that of each parameter. Raises ``ConfigError`` for what
    is not a state of ``name``, the class, or of the same algorithm by others.
    """
    states: dict[Tensor, dict[str, Any]] = {}
    new_groups = []
    for i, (group, own_group) in enumerate(zip(saved["param_groups"], groups, strict=True)):
        missing = [key for key in _OPTIONS if key in own_group and key not in group]
        of_torch = [key for key in _OF_TORCH if key in group and not wanted.of_torch]
        if missing or of_torch:
            what = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(of_torch)}, as torch's optimizers"
            options = ", ".join(key for key in group if key not in ("params", "param_names"))
            raise ConfigError(f"group {i} of the state {what} (found: {options}); allowed: a state of {name}")
        check_options(group)
        check_eps(group, own_group["params"])
        count = {"step": group["step"]} if wanted.counts_steps and "step" in group else {}
        new_groups.append({key: value for key, value in group.items() if key not in count})
        for saved_id, param in zip(group["params"], own_group["params"], strict=True):
            own = saved["state"].get(saved_id)
            if own:
                states[param] = wanted.conform(count | own, param, f"parameter {saved_id}", extras=False)
    return states, new_groups
