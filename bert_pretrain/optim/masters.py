"""The float32 masters of bf16 and fp16 parameters: what is updated, and copied to the parameter after each update."""

from collections.abc import Iterable

import torch
from torch import Tensor

from bert_pretrain.optim.checks import LOW_PRECISION
from bert_pretrain.optim.dtensors import local_part
from bert_pretrain.optim.layers import Layers


class Masters:
    """Notices when low-precision parameters were written since the last step, and makes their masters follow.

    Otherwise weights that are loaded into the model would be overwritten with the masters of the old ones. Writes are
    noticed by torch's version counters and addresses, at no cost. A write through ``param.data`` is not noticed.
    """

    def __init__(self) -> None:
        self._seen: dict[Tensor, tuple[int, ...]] = {}

    def follow(self, parts: list[Layers]) -> None:
        """Where a parameter is no longer its master's rounded value, the master becomes the parameter."""
        for layers in parts:
            for owner, param, master in self._low(layers):
                if self._seen.get(owner) != _version(owner, param):
                    master.copy_(torch.where(master.to(param.dtype) == param, master, param.to(master.dtype)))

    def note(self, parts: list[Layers]) -> None:
        """Called after a step: from here on a change of the parameters is not the optimizer's."""
        for layers in parts:
            for owner, param, _ in self._low(layers):
                self._seen[owner] = _version(owner, param)

    def loaded(self, params: Iterable[Tensor]) -> None:
        """Called when masters were loaded: they are right, whatever the parameters are now."""
        self._seen = {param: _version(param, local_part(param)) for param in params if param.dtype in LOW_PRECISION}

    def _low(self, layers: Layers) -> list[tuple[Tensor, Tensor, Tensor]]:
        every = zip(layers.owners, layers.params, layers.weights, strict=True)
        return [entry for entry in every if entry[1].dtype in LOW_PRECISION]


def _version(owner: Tensor, param: Tensor) -> tuple[int, ...]:
    if owner.is_inference():  # has no counter
        return (param.data_ptr(),)
    return (owner._version, param._version, param.data_ptr())


def copy_masters(layers: Layers) -> None:
    """Write the masters to their bf16 and fp16 parameters, rounded to nearest."""
    low = [i for i, param in enumerate(layers.params) if param is not layers.weights[i]]
    if low:
        torch._foreach_copy_([layers.params[i] for i in low], [layers.weights[i] for i in low])
