"""The first update of a fast kernel, compared with ``foreach`` on the same gradients.

A kernel may be wrong on a device, driver or compiler that nobody has tried: then weights are wrong and nothing else
shows it. So the first update that is not skipped is computed twice from the same weights, moments and gradients. If
the two differ, or the fast kernel raises an error, the run keeps the result of ``foreach`` and goes on with it.

Tolerance: of each layer, the largest difference of the new weights is at most ``TOLERANCE`` of the largest change of a
weight, plus one rounding; that of a moment at most ``TOLERANCE`` of its largest element; ||G|| likewise. All kernels
compute in float32 with other orders of summation, which differ by 1e-6; apex's float32 betas by 1e-5 (``nvlamb_apex``).
A wrong sum, scale or offset is off by more than 1e-3.

It costs one more update, and for its time a copy of weights and state, when the activations are freed. A fault after
which CUDA answers nothing more (an illegal address) ends the run all the same.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bert_pretrain.errors import with_type
from bert_pretrain.optim.base import MeasuredOptimizer
from bert_pretrain.optim.paired import PairedOptimizer
from bert_pretrain.optim.sharded import ShardedOptimizer

TOLERANCE = 1e-3
_RESULTS = ("grad_norm", "skipped", "nonfinite_state", "_outcome", "_updated")
Gather = Callable[[Any], list[Any]]
"""Every rank's value, in the order of ranks."""


def guard_first_update(optimizer: torch.optim.Optimizer, gather: Gather, report: Callable[[str], None]) -> None:
    """Make the first step of ``optimizer`` that is not skipped the comparison described above.

    The kernel is the same on all ranks from here on: one that only some ranks can run, or that is wrong on one, is
    used on none. Nothing is done for an optimizer without a fast kernel. Collective, and so is the first step.
    """
    own = optimizer.optim if isinstance(optimizer, ShardedOptimizer) else optimizer
    if isinstance(own, PairedOptimizer):
        for part in own.parts:
            guard_first_update(part, gather, report)
        return
    if not isinstance(own, MeasuredOptimizer):
        return
    inner: Any = own
    kernels = gather(inner.running_kernel)
    if len(set(kernels)) > 1:
        report(f"optimizer.kernel={inner.kernel} is {' and '.join(sorted(set(kernels)))} on different ranks: foreach")
        inner.kernel = "foreach"
    if inner.running_kernel in ("foreach", "reference"):
        return
    kernel = inner.running_kernel

    def step(closure: None = None) -> None:
        del inner.step  # this function, which hides the method
        comparison = _Comparison(inner)
        fault, decided = "", False
        try:
            fault = comparison.compare()
            decided = not bool(inner.skipped)
        except torch.OutOfMemoryError:  # of the copies, not of the kernel: the kernel's own is a fault
            comparison.undo()
            inner.step()
            decided = True
        if found := first_fault(gather(fault)):
            comparison.take_foreach()
            report(f"optimizer kernel {kernel}{found}; the run goes on with kernel=foreach")
            inner.kernel = "foreach"
        elif not decided:
            inner.step = step
        elif comparison.compared:
            report(f"optimizer kernel {kernel}: the first update agrees with that of foreach")

    inner.step = step


def first_fault(faults: list[str]) -> str:
    """The first that is not empty of what is wrong on each rank, with the rank, for a message; empty if all are."""
    rank = next((rank for rank, fault in enumerate(faults) if fault), None)
    return "" if rank is None else f"{f' on rank {rank}' if len(faults) > 1 else ''}: {faults[rank]}"


class _Comparison:
    """The weights, state and results that an optimizer has, and a second set of them, with which they are swapped."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.params: list[Tensor] = []
        self.names: list[str] = []
        # Of two optimizers for one model, the state has the other's layers too.
        self.owned = [param for group in optimizer.param_groups for param in group["params"]]
        for group in optimizer.param_groups:
            names = group.get("param_names", ())
            if len(names) != len(group["params"]):  # a sharded one has the names of all ranks' layers
                names = [f"layer {i} of {tuple(p.shape)}" for i, p in enumerate(group["params"])]
            found = [(p, name) for p, name in zip(group["params"], names, strict=True) if p.grad is not None]
            self.params += [p for p, _ in found if p.numel()]
            self.names += [name for p, name in found if p.numel()]
        self.weights: list[Tensor] = []
        self.states: dict[Tensor, dict[str, Any]] = {}
        self.results = {name: getattr(optimizer, name) for name in _RESULTS if hasattr(optimizer, name)}
        self.compared = self._has_foreach = self._is_kept = False

    @torch.no_grad()
    def compare(self) -> str:
        """Update with ``foreach``, then from the same state with the kernel; what is wrong with that, or empty.

        Raises ``torch.OutOfMemoryError`` if there is no room for the copies.
        """
        optimizer, wanted = self.optimizer, self.optimizer.kernel
        self.weights = [param.clone() for param in self.params]
        for param in filter(optimizer.state.__contains__, self.owned):
            own = optimizer.state[param]
            self.states[param] = {key: value.clone() if torch.is_tensor(value) else value for key, value in own.items()}
        self._is_kept = True
        optimizer.kernel = "foreach"
        try:
            optimizer.step()
        finally:
            optimizer.kernel = wanted
        changes = [_largest(param - kept) for param, kept in zip(self.params, self.weights, strict=True)]
        self._swap()
        self.compared = self._has_foreach = True
        try:
            optimizer.step()
            return self._difference(changes)
        except Exception as error:  # compilers and drivers fail in many ways
            return with_type(error)

    @torch.no_grad()
    def _swap(self) -> None:
        """Give the optimizer the set that is kept here, and keep the optimizer's."""
        for param, kept in zip(self.params, self.weights, strict=True):
            now = param.clone()
            param.copy_(kept)
            kept.copy_(now)
        state = self.optimizer.state
        kept_states = self.states
        self.states = {p: state.pop(p) for p in self.owned if p in state}
        state.update(kept_states)
        kept_results = self.results
        self.results = {name: getattr(self.optimizer, name) for name in self.results}
        vars(self.optimizer).update(kept_results)

    def undo(self) -> None:
        """After an update with ``foreach`` that failed: back to what was before it."""
        if self._is_kept and not self._has_foreach:
            self._swap()

    def take_foreach(self) -> None:
        """Give the optimizer the result of ``foreach``."""
        if self._has_foreach:
            self._swap()

    def _difference(self, changes: list[Tensor]) -> str:
        """The first and largest excess over the tolerance. Waits for the device."""
        checks: list[tuple[str, Any, Any, Tensor | None]] = [
            ("||G||", self.optimizer.grad_norm, self.results["grad_norm"], None),
            ("the decisions to skip", self.optimizer.skipped, self.results["skipped"], None),
        ]
        for name, param, kept, change in zip(self.names, self.params, self.weights, changes, strict=True):
            checks.append((f"weights of {name}", param.detach(), kept, change))
            fast = self.optimizer.state.get(param, {})
            plain = self.states.get(param, {})
            if fast.keys() != plain.keys():
                return f"the state of {name} is {sorted(fast)}, not {sorted(plain)}"
            for key, value in plain.items():
                if torch.is_tensor(value):
                    checks.append((f"{key} of {name}", fast[key], value, change if key == "master" else None))
        found = torch.stack([_excess(*tensors) for _, *tensors in checks]).tolist()
        worst = max(range(len(found)), key=lambda i: math.inf if math.isnan(found[i]) else found[i])
        if found[worst] <= 1.0:
            return ""
        return f"{checks[worst][0]} differ from foreach's by {found[worst]:.2g} times what rounding explains"


def _largest(values: Tensor) -> Tensor:
    return values.abs().amax().double()


def _excess(fast: Tensor, plain: Tensor, change: Tensor | None) -> Tensor:
    """The largest difference over the allowed one, 0-d float64; 0 where ``plain`` itself is not finite."""
    if not plain.is_floating_point() or not plain.numel():
        return torch.zeros((), dtype=torch.float64, device=plain.device)
    size = _largest(plain)
    allowed = TOLERANCE * size if change is None else TOLERANCE * change + torch.finfo(plain.dtype).eps * size
    excess = _largest(fast - plain.to(fast.device)) / allowed.clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(torch.isfinite(size), excess, 0.0)
