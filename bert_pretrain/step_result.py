"""The numbers of a step on their way from the device to the host, while the next step runs."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StepResult:
    """A dispatched step: its numbers, on their way to the host."""

    numbers: torch.Tensor
    """float64: skipped, lr, gradient norm, loss scale, whether weights or moments are not finite, the four global
    counts, ranks asked to stop, four sums over all ranks; then the report on the layers where it may be asked for."""
    arrived: torch.cuda.Event | None
    """When they are there; None where they never left the host."""


def fetch(numbers: torch.Tensor) -> StepResult:
    """Start the copy to the host; nobody waits for it before the next step is on its way."""
    if numbers.device.type != "cuda":
        return StepResult(numbers, None)
    host = torch.empty_like(numbers, device="cpu", pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return StepResult(host, arrived)
