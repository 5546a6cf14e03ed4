"""The numbers of a step on their way from the device to the host, while the next step runs."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class StepNumbers:
    """What a step has to say, over all ranks."""

    skipped: float
    """1 where the gradient was not finite and the update was left out."""
    rate: float
    norm: float
    """||G|| of the global batch."""
    scale: float
    """The loss scale that the step ran with."""
    unhealthy: float
    """Above 0 where a weight or moment is not finite."""
    samples: float
    masked: float
    tokens: float
    squared: float
    """Sum over samples of the squared number of real tokens."""
    stop_requests: float
    """Ranks that were asked to stop."""
    mlm: float
    nsp: float
    mlm_correct: float
    nsp_correct: float
    layers: list[float]
    """The report on the layers; empty where it was not asked for."""

    @property
    def mlm_loss(self) -> float:
        """Mean over the masked tokens of the global batch."""
        return self.mlm / max(self.masked, 1)

    @property
    def nsp_loss(self) -> float:
        """Mean over the samples of the global batch."""
        return self.nsp / self.samples

    @property
    def loss(self) -> float:
        """The loss of the step."""
        return self.mlm_loss + self.nsp_loss


@dataclass(frozen=True)
class StepResult:
    """A dispatched step: its numbers, on their way to the host."""

    numbers: torch.Tensor
    """float64, in the order of ``StepNumbers``."""
    arrived: torch.cuda.Event | None
    """When they are there; None where they never left the host."""

    def read(self) -> StepNumbers:
        """The numbers, once they are there."""
        if self.arrived is not None:
            self.arrived.synchronize()
        values: Any = self.numbers.tolist()
        return StepNumbers(*[*values[:14], values[14:]])


def fetch(numbers: torch.Tensor) -> StepResult:
    """Start the copy to the host; nobody waits for it before the next step is on its way."""
    if numbers.device.type != "cuda":
        return StepResult(numbers, None)
    host = torch.empty_like(numbers, device="cpu", pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return StepResult(host, arrived)
