"""Differences and their corrections, by hand and by scipy's own tests."""

import math

import numpy as np
import pytest
from scipy import stats

from bert_pretrain.study.statistics import compare, holm


def by_seed(values) -> dict[int, float]:
    return dict(enumerate(values, 1))


def test_runs_that_share_seeds_are_compared_in_pairs() -> None:
    """Differences 0.1, 0.2, 0.3: mean 0.2, standard error 0.1 / sqrt(3), t(0.975, 2) = 4.303."""
    arm, against = by_seed([2.1, 3.2, 4.3]), by_seed([2.0, 3.0, 4.0])
    found = compare(arm, {**against, 9: 7.0})
    assert found is not None
    assert (found.mean, found.pairs) == (pytest.approx(0.2), 3)
    width = 4.302652729749464 * 0.1 / math.sqrt(3)
    assert (found.low, found.high) == (pytest.approx(0.2 - width), pytest.approx(0.2 + width))
    assert found.p == pytest.approx(stats.ttest_rel(list(arm.values()), list(against.values())).pvalue)


def test_without_shared_seeds_it_is_welch_s_test() -> None:
    arm, against = {1: 2.1, 2: 3.4, 3: 2.2}, {4: 1.0, 5: 1.3, 6: 0.9, 7: 1.4}
    expected = stats.ttest_ind(list(arm.values()), list(against.values()), equal_var=False)
    found = compare(arm, against)
    assert found is not None
    assert found.pairs == 0
    assert found.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_too_few_runs_and_equal_runs() -> None:
    assert compare({1: 2.0}, {1: 1.0}) is None
    same = compare(by_seed([1.0, 2.0]), by_seed([1.0, 2.0]))
    assert same is not None
    assert (same.mean, same.low, same.high, same.p, same.smallest) == (0.0, 0.0, 0.0, 1.0, 0.0)
    apart = compare(by_seed([1.5, 2.5]), by_seed([1.0, 2.0]))
    assert apart is not None
    assert apart.p == 0.0


@pytest.mark.parametrize("tests", [1, 5])
def test_the_smallest_effect_is_found_in_four_of_five_studies(tests: int) -> None:
    """10,000 studies of five pairs, whose true difference is what would show with their true spread."""
    pairs, spread = 5, 0.3
    # differences with exactly this standard deviation
    unit = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    found = compare(by_seed(unit * spread / unit.std(ddof=1)), by_seed([0.0] * pairs), tests)
    assert found is not None
    drawn = np.random.default_rng(1).normal(found.smallest, spread, (10_000, pairs))
    p = stats.ttest_1samp(drawn, 0.0, axis=1).pvalue
    assert (p < 0.05 / tests).mean() == pytest.approx(0.8, abs=0.02)


def test_holm_by_hand() -> None:
    """Smallest times 4, the next times 3 and so on; never smaller than one before, at most 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
