"""How the steps to one loss depend on the batch size.

The model of McCandlish et al. ("An Empirical Model of Large-Batch Training", arXiv 1812.06162, section 2.2; their
equation 2.11 in terms of steps and samples): ``S(B) = S_min (1 + B_crit / B)``. Far below the critical batch size the
steps halve as the batch doubles (perfect scaling); at it they are twice the least; far above they no longer fall.
"""

import math
from dataclasses import dataclass

import numpy as np

from bert_pretrain.study.statistics import CONFIDENCE


@dataclass(frozen=True)
class CriticalBatch:
    """The fit of one optimizer."""

    least_steps: float
    """S_min, which no batch size falls below."""
    batch: float
    """B_crit."""
    low: float
    """Lower end of its interval."""
    high: float
    """Upper end."""

    def steps(self, batch: np.ndarray) -> np.ndarray:
        """S(B)."""
        return self.least_steps * (1 + self.batch / batch)


def fit_critical_batch(batches: list[int], steps: list[float]) -> CriticalBatch | None:
    """Least squares of log S over the points, one per batch size; None with fewer than three.

    The interval has 95 % by Student's t, from the distances of the points from the curve. It is that of log B_crit,
    and holds what the points are off by any cause: seeds, learning rates between those tried, the model itself.
    """
    from scipy.optimize import curve_fit  # takes a second to load
    from scipy.stats import t

    if len(batches) < 3:
        return None
    x, y = np.array(batches, float), np.log(steps)

    def log_steps(batch: np.ndarray, log_least: float, log_critical: float) -> np.ndarray:
        return log_least + np.logaddexp(0.0, log_critical - np.log(batch))

    begin = float(y.min()), float(np.log(x).mean())
    found, covariance = curve_fit(log_steps, x, y, p0=begin, maxfev=10_000)
    error = float(np.sqrt(covariance[1, 1])) * float(t.ppf((1 + CONFIDENCE) / 2, len(batches) - 2))
    least, critical = math.exp(found[0]), math.exp(found[1])
    return CriticalBatch(least, critical, critical * math.exp(-error), critical * math.exp(min(error, 700.0)))
