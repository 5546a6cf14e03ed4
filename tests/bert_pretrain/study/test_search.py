"""The search for a learning rate: which rates it asks for, and where it ends."""

import math

import pytest

from bert_pretrain.study.search import MOST_TRIES, WORST, best_rate, is_inside, next_rate, search


def parabola(best: float):
    return lambda rate, _: (math.log(rate / best) ** 2, 0.0)


@pytest.mark.parametrize(
    ("start", "best", "tried"),
    [
        ([0.01], 0.01, [0.01, 0.02, 0.005]),
        ([0.01], 0.05, [0.01, 0.02, 0.04, 0.08]),  # log(0.08 / 0.05) > log(0.05 / 0.04)
        ([0.01], 0.002, [0.01, 0.02, 0.005, 0.0025, 0.00125]),
        ([3.0, 10.0, 30.0], 10.0, [3.0, 10.0, 30.0]),
        ([3.0, 10.0, 30.0], 60.0, [3.0, 10.0, 30.0, 90.0, 270.0]),  # the ratio of the last two rates
        ([3.0, 10.0, 30.0], 1.0, [3.0, 10.0, 30.0, 0.9, 0.27]),  # and that of the first two
    ],
)
def test_the_grid_goes_on_until_the_best_is_inside(start: list[float], best: float, tried: list[float]) -> None:
    found = search(start, parabola(best))
    assert list(found) == pytest.approx(tried)
    assert is_inside(found)
    assert min(found) < best_rate(found) < max(found)


def test_a_search_without_a_worse_neighbour_ends_at_the_edge() -> None:
    found = search([1.0], lambda rate, _: (1 / rate, 0.0))
    assert len(found) == MOST_TRIES
    assert best_rate(found) == max(found) == 2 ** (MOST_TRIES - 1)
    assert not is_inside(found)


def test_of_equal_costs_the_second_number_decides_and_then_the_lower_rate() -> None:
    tried = {0.1: (math.inf, 5.0), 0.2: (math.inf, 4.0), 0.4: WORST}
    assert best_rate(tried) == 0.2
    assert next_rate(tried) is None
    assert best_rate({0.4: (1.0, 1.0), 0.2: (1.0, 1.0)}) == 0.2


def test_a_cost_sees_the_rates_before_it() -> None:
    seen = []
    search([1.0, 2.0, 4.0], lambda rate, before: seen.append((rate, list(before))) or (abs(rate - 2), 0.0))
    assert seen == [(1.0, []), (2.0, [1.0]), (4.0, [1.0, 2.0])]
