"""Time of each phase of a training step, and its memory."""

import itertools
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

PHASES = ("forward", "backward", "optimizer")


class Stopwatch:
    """Seconds of each phase of a step, by hooks that synchronise the device, which makes the step slightly slower."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.seconds = defaultdict[str, float](float)
        self._device = device
        self._phase, self._since = "", 0.0
        self._hooks = [
            network.register_forward_pre_hook(lambda *_: self._now("forward")),
            network.register_forward_hook(lambda *_: self._now("backward")),
            optimizer.register_step_pre_hook(lambda *_: self._now("optimizer")),
        ]

    def measure(self, step: Callable[[], object]) -> None:
        """Run one step. Time before the first forward counts as forward, time after the update as optimizer."""
        self._phase, self._since = "forward", time.perf_counter()
        step()
        self._now("")

    def _now(self, phase: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def remove(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()


def peak_memory(step: Callable[[], object], device: torch.device) -> int:
    """Peak bytes of tensors that ``step`` allocates beyond those allocated before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = recorded.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate(size for _, size in changes), default=0)


def state_bytes(network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of weights and optimizer state, which stay allocated between steps."""
    kept = [*network.parameters(), *(t for state in optimizer.state.values() for t in state.values())]
    return sum(tensor.nbytes for tensor in kept if isinstance(tensor, torch.Tensor))
