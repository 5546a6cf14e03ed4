"""Numbers on their way from the device to the host, which goes on meanwhile."""

import time
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
