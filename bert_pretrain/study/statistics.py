"""Differences of two arms: mean, confidence interval, p-value, and the smallest difference that would show.

Runs of two arms with one seed share initial weights, order and masks of the samples, so their differences by seed are
what is tested (Student's t for pairs). Arms that share no seeds are compared by Welch's test. The p-values of a study
are corrected together by Holm's method.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
POWER = 0.8


@dataclass(frozen=True)
class Difference:
    """Mean of one arm minus that of another."""

    mean: float
    low: float
    """Lower end of the confidence interval."""
    high: float
    """Upper end."""
    p: float
    """Two-sided; of Student's t for pairs, or Welch's."""
    pairs: int
    """Seeds that both arms have; 0: none are shared."""
    smallest: float
    """The difference that such a test, at the level it is given, finds in 80 % of such studies."""


def compare(arm: dict[int, float], against: dict[int, float], tests: int = 1) -> Difference | None:
    """The difference of two arms, whose results are given by seed; None with fewer than two results on a side.

    ``tests``: the pairs of arms that the study compares. The smallest difference is that of a test at the level
    0.05 / tests, which is the strictest of Holm's, if the true spread is the one seen (noncentral t).
    """
    from scipy import optimize, stats  # take a second to load

    seeds = sorted(arm.keys() & against.keys())
    if len(seeds) >= 2:
        differences = [arm[seed] - against[seed] for seed in seeds]
        mean, error, freedom = mean_of(differences), math.sqrt(_variance(differences) / len(seeds)), len(seeds) - 1.0
    elif min(len(arm), len(against)) >= 2:
        sides = [list(side.values()) for side in (arm, against)]
        mean = mean_of(sides[0]) - mean_of(sides[1])
        parts = [_variance(side) / len(side) for side in sides]
        error = math.sqrt(sum(parts))
        divisor = sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
        freedom = sum(parts) ** 2 / divisor if divisor else float(min(map(len, sides)) - 1)
        seeds = []
    else:
        return None
    width = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    least = stats.t.ppf(1 - ALPHA / tests / 2, freedom)
    shift = optimize.brentq(lambda shift: stats.nct.sf(least, freedom, shift) - POWER, 0.0, 10 * least)
    return Difference(mean, mean - width, mean + width, p, len(seeds), shift * error)


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean, and its 95 % interval of Student's t; of a single value the interval is that value."""
    from scipy import stats

    mean, freedom = mean_of(values), len(values) - 1
    if not freedom:
        return mean, mean, mean
    width = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(_variance(values) / len(values))
    return mean, mean - width, mean + width


def holm(p_values: list[float]) -> list[float]:
    """The p-values corrected for their number (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def mean_of(values: Collection[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def _variance(values: list[float]) -> float:
    mean = mean_of(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)
