"""The numbers of a step, copied to the host while the next step runs."""

import time
from dataclasses import dataclass
from typing import Any

import torch


class HostCopy:
    """A copy of a tensor to the host that has begun."""

    def __init__(self, numbers: torch.Tensor) -> None:
        """Start to copy ``numbers``, without waiting for it: from a GPU, to pinned memory."""
        self.numbers = numbers
        self.ended = time.perf_counter()
        """When the device had computed the numbers: on a GPU, known once they are read."""
        self._copied: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self.numbers = torch.empty_like(numbers, device="cpu", pin_memory=True)
            self.numbers.copy_(numbers, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> Any:
        """Wait for the copy, but not for what the device was given after it; the numbers, as of ``tolist``."""
        if self._copied is not None:
            self._copied.synchronize()
            self.ended = time.perf_counter()
        return self.numbers.tolist()


@dataclass(frozen=True)
class StepNumbers:
    """The numbers of one step, over all ranks."""

    skipped: float
    """1 if the update was skipped because the gradient was not finite."""
    lr: float
    grad_norm: float
    """||G|| of the global batch."""
    loss_scale: float
    """The scale that this step ran with."""
    nonfinite_state: float
    """Above 0 if a weight or moment is not finite."""
    samples: float
    masked: float
    tokens: float
    squared_lengths: float
    """Sum over samples of the squared number of real tokens."""
    stop_requests: float
    """Ranks that were asked to stop."""
    mlm_sum: float
    nsp_sum: float
    mlm_correct: float
    nsp_correct: float
    layers: list[float]
    """The optimizer's ``layer_report``; empty if it was not requested."""

    @property
    def loss(self) -> float:
        """The loss of the step: means over the masked tokens and over the samples of the global batch."""
        return self.mlm_sum / max(self.masked, 1) + self.nsp_sum / self.samples

    def row(self, next_sentence: bool) -> dict[str, float]:
        """For the metrics of a training step."""
        row = {
            "loss": self.loss,
            "mlm_loss": self.mlm_sum / max(self.masked, 1),
            "nsp_loss": self.nsp_sum / self.samples,
            "mlm_accuracy": self.mlm_correct / max(self.masked, 1),
            "nsp_accuracy": self.nsp_correct / self.samples,
            "lr": self.lr,
            "grad_norm": self.grad_norm,
        }
        return row if next_sentence else without_next_sentence(row)


def without_next_sentence(row: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a model that does not predict the next sentence."""
    return {name: value for name, value in row.items() if "nsp" not in name}


class StepResult(HostCopy):
    """An enqueued step, whose numbers are being copied to the host."""

    def __init__(self, numbers: torch.Tensor, waited: float) -> None:
        """``numbers``: float64, in the order of ``StepNumbers``. ``waited``: seconds that the step waited for data."""
        super().__init__(numbers)
        self.waited = waited

    def read(self) -> StepNumbers:
        """Wait for the copy; the numbers."""
        values = super().read()
        return StepNumbers(*[*values[:14], values[14:]])
