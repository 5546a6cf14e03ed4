"""The search for the best learning rate of an arm, by a rule that is stated before the runs.

The given rates are tried first. As long as the best of those tried is the highest or the lowest, the next rate in that
direction is tried; the grid goes on by the ratio of its last two rates, by 2 if only one rate is given. The search ends
when both neighbours of the best are worse, or after ``MOST_TRIES`` rates.
"""

import math
from collections.abc import Callable

MOST_TRIES = 12

Cost = tuple[float, float]
"""Less is better: what is compared, and what decides between equals."""
WORST: Cost = (math.inf, math.inf)


def best_rate(tried: dict[float, Cost]) -> float:
    """The rate with the lowest cost; the lower of equals."""
    return min(tried, key=lambda rate: (tried[rate], rate))


def is_inside(tried: dict[float, Cost]) -> bool:
    """Whether the best rate has a neighbour on both sides."""
    return min(tried) < best_rate(tried) < max(tried)


def listed(tried: dict[float, Cost]) -> str:
    """The rates, for a table; and whether the best has no neighbour on one side."""
    rates = ", ".join(f"{rate:g}" for rate in sorted(tried)) or "-"
    return rates + (" (best at the edge)" if tried and not is_inside(tried) else "")


def next_rate(tried: dict[float, Cost]) -> float | None:
    """The rate that the rule asks for; None if the search is over."""
    rates = sorted(tried)
    best = best_rate(tried)
    if is_inside(tried) or len(rates) >= MOST_TRIES:
        return None
    if best == rates[-1]:
        found = best * (rates[-1] / rates[-2] if len(rates) > 1 else 2)
    else:
        found = best / (rates[1] / rates[0])
    return float(f"{found:.5g}")


def search(start: list[float], cost: Callable[[float, dict[float, Cost]], Cost]) -> dict[float, Cost]:
    """The cost of every rate that the rule asks for. ``cost`` gets the rate, and those tried before it."""
    tried: dict[float, Cost] = {}
    for rate in start:
        tried[rate] = cost(rate, tried)
    while (rate_or_none := next_rate(tried)) is not None:
        tried[rate_or_none] = cost(rate_or_none, tried)
    return tried
