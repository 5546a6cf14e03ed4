"""The held-out loss of one run, and where it crosses a target."""

import math
from dataclasses import dataclass, replace
from statistics import median

OUTLIER = 10


def count_outliers(norms: list[float]) -> int:
    """How many of a run's gradient norms are above ``OUTLIER`` times their median; those that are not finite too."""
    middle = median(filter(math.isfinite, norms)) if any(map(math.isfinite, norms)) else 0.0
    return sum(not norm <= OUTLIER * middle for norm in norms)


@dataclass(frozen=True)
class Curve:
    """Held-out MLM loss of one run over samples."""

    arm: str
    rate: float
    """Peak learning rate."""
    seed: int
    samples: list[int]
    losses: list[float]
    diverged: bool
    batch: int = 0
    """Samples of a step; 0: not recorded."""
    command: str = ""
    """The command that repeats the run."""
    commit: str = ""
    """The program that ran it."""
    norms: int = 0
    """Steps whose gradient norm was logged."""
    outliers: int = 0
    """Those of them whose norm is above ``OUTLIER`` times the median of the run."""
    cpu_seconds: float = 0.0
    """Time of the process in all its threads, from the last start of the run."""

    @property
    def final(self) -> float:
        """The last loss; infinite if the run diverged."""
        if self.diverged or not self.losses or math.isnan(self.losses[-1]):
            return math.inf
        return self.losses[-1]

    def until(self, steps: int) -> "Curve":
        """The curve of the same run if it had ended after ``steps``."""
        kept = sum(samples <= steps * self.batch for samples in self.samples)
        diverged = self.diverged and kept == len(self.samples)
        return replace(self, samples=self.samples[:kept], losses=self.losses[:kept], diverged=diverged)

    def samples_to(self, target: float) -> float:
        """Samples to the loss ``target``: between the first evaluation at or below it and the one before, linear in
        the loss. Infinite if there is none."""
        before: tuple[int, float] | None = None
        for samples, loss in zip(self.samples, self.losses, strict=True):
            if loss <= target:
                if before is None:
                    return float(samples)
                share = (before[1] - target) / (before[1] - loss)
                return before[0] + share * (samples - before[0])
            before = samples, loss
        return math.inf

    def steps_to(self, target: float) -> float:
        """Steps to the loss ``target``, as ``samples_to``."""
        return self.samples_to(target) / self.batch
