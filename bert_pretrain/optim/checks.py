"""Checks of an optimizer's options, parameters and gradients; each raises ``ConfigError`` (a ``ValueError``)."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from bert_pretrain.errors import ConfigError, require
from bert_pretrain.optim.dtensors import local_part
from bert_pretrain.optim.ranges import check_ranges

LOW_PRECISION = (torch.bfloat16, torch.float16)
_TINY = torch.finfo(torch.float32).tiny
_OF_GROUPS = ("betas", "eps", "momentum", "weight_decay")


def check_options(group: dict[str, Any]) -> None:
    """Refuse a learning rate, betas, eps, momentum or weight decay out of range. Never waits for a device.

    Groups of other programs have more, with their own meaning: DeepSpeed's ``max_grad_norm`` of 0 is none.
    """
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ConfigError(f"lr is a tensor of shape {tuple(lr.shape)}; allowed: a number or a 0-d tensor")
    if not isinstance(lr, Tensor) or lr.device.type == "cpu":
        require(0 <= float(lr) < math.inf, "lr", float(lr), "a finite number, at least 0")
    check_ranges(**{name: group[name] for name in _OF_GROUPS if name in group})


def check_eps(group: dict[str, Any], params: Iterable[Tensor]) -> None:
    """Refuse an eps that vanishes in float32: an element whose gradient is 0 would become 0 / 0.

    The smallest that is used is ``eps sqrt(1 - b2)``, at the first update.
    """
    if "betas" in group and any(isinstance(param, Tensor) and param.dtype != torch.float64 for param in params):
        least = _TINY / math.sqrt(1 - group["betas"][1])
        require(group["eps"] >= least, "eps", group["eps"], f"at least {least:.1e}, below which it vanishes in float32")


def check_plain(params: Iterable[Tensor]) -> None:
    """Refuse parameters that only ``NVLamb`` can update: bf16, fp16 and DTensors."""
    for param in params:
        allowed = "float32 or float64; for others use NVLamb, which keeps float32 masters"
        require(param.dtype not in LOW_PRECISION, "dtype of a parameter", param.dtype, allowed)
        if isinstance(param, DTensor):
            raise ConfigError("a parameter is 'a DTensor'; allowed: ordinary tensors, or NVLamb")


def check_gradient(param: Tensor, position: int) -> None:
    """Raise ``ConfigError`` for a gradient that is sparse, or not of the parameter's shape or on its device."""
    grad = param.grad
    if grad is None or (
        grad.layout == torch.strided and grad.shape == param.shape and grad.device == param.device
    ):  # at every step, so no message is made
        return
    require(grad.layout == torch.strided, f"gradient of parameter {position}", grad.layout, "dense (torch.strided)")
    found = f"{tuple(grad.shape)} on {grad.device}"
    raise ConfigError(f"gradient of parameter {position} is {found}; allowed: {tuple(param.shape)} on {param.device}")


def check_params(params: Iterable[Tensor], earlier_groups: Sequence[dict[str, Any]]) -> None:
    """Refuse parameters of a new group that do not fit together or with the earlier groups.

    All parameters must be dense, real floating point and on one device, and no two may share memory: a tied weight
    that is listed twice would be updated twice.
    """
    number = len(earlier_groups)
    devices: dict[torch.device, str] = {}
    memory: list[tuple[int, int, str, Tensor]] = []
    everything = [(g, i, p) for g, group in enumerate(earlier_groups) for i, p in enumerate(group["params"])]
    everything += [(number, i, p) for i, p in enumerate(params)]
    for g, i, param in everything:
        if not isinstance(param, Tensor):
            continue  # torch's own message names the type
        place = f"parameter {i} of group {g}"
        require(param.is_floating_point(), f"dtype of {place}", param.dtype, "real floating point")
        require(param.layout == torch.strided, f"layout of {place}", param.layout, "dense (torch.strided)")
        devices.setdefault(param.device, place)
        if len(devices) > 1:
            found = ", ".join(f"{where} on {device}" for device, where in devices.items())
            raise ConfigError(f"parameters are on several devices ({found}); allowed: one device for an optimizer")
        part = local_part(param)
        address = part.data_ptr() if param.device.type != "meta" else 0
        if address:  # an empty tensor has no memory
            found = f"{place} has several elements at one address (strides {part.stride()})"
            if _may_repeat(part) and torch.unique(_offsets(part)).numel() < part.numel():
                raise ConfigError(f"{found}; allowed: one element an address, so clone() it first")
            memory.append((address, address + _extent(part), place, part))
    _check_apart(memory)


def _check_apart(memory: list[tuple[int, int, str, Tensor]]) -> None:
    """Refuse two tensors that share an element. ``memory``: first byte, end, name, tensor; in the order of groups."""
    overlapping: list[int] = []  # entries whose bytes may reach those of the next
    for i in sorted(range(len(memory)), key=lambda i: memory[i][:2]):
        begin, _, name, tensor = memory[i]
        overlapping = [j for j in overlapping if memory[j][1] > begin]
        for j in overlapping:
            other_begin, _, other_name, other = memory[j]
            plainly = begin == other_begin or (tensor.is_contiguous() and other.is_contiguous())
            if plainly or _share_an_element(tensor, other, begin - other_begin):
                first, second = (other_name, name) if j < i else (name, other_name)
                raise ConfigError(
                    f"{second} shares its memory with {first} and would be updated twice; "
                    "allowed: each tied parameter once"
                )
        overlapping.append(i)


def _share_an_element(one: Tensor, other: Tensor, gap: int) -> bool:
    """Whether an element of ``one``, ``gap`` bytes after ``other``, lies where one of ``other`` does."""
    places = _offsets(one) * one.element_size() + gap
    return bool(torch.isin(places, _offsets(other) * other.element_size()).any())


def _extent(tensor: Tensor) -> int:
    """Bytes from the first element to the end of the last one."""
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (steps + 1) * tensor.element_size()


def _may_repeat(tensor: Tensor) -> bool:
    """Whether two elements may be at one address: False if every stride steps over all that smaller strides reach."""
    reached = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reached:
            return True
        reached += (size - 1) * stride
    return False


def _offsets(tensor: Tensor) -> Tensor:
    """Offset of every element from the first, in elements: int64, 1-d, on the CPU."""
    offsets = torch.zeros((), dtype=torch.long, device="cpu")
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = offsets.unsqueeze(-1) + torch.arange(size, device="cpu") * stride
    return offsets.flatten()
