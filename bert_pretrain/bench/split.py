"""Where the time and the memory of one step go."""

import itertools
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

PHASES = ("forward", "backward", "optimizer")


class Stopwatch:
    """Seconds of each phase of a step, by hooks that wait for the device: their sum is a little more than a step."""

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
        """Run one step; what precedes its first forward counts as forward, what follows the update as optimizer."""
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
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()


def peak_memory(step: Callable[[], object], device: torch.device) -> int:
    """Most bytes of tensors that ``step`` holds beyond those that were there before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        step()
    events = watched.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate(size for _, size in changes), default=0)


def kept_bytes(network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of weights and of the optimizer's state, which stay between steps."""
    kept = [*network.parameters(), *(t for state in optimizer.state.values() for t in state.values())]
    return sum(tensor.nbytes for tensor in kept if isinstance(tensor, torch.Tensor))
