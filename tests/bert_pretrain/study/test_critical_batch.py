"""The fit of steps over batch size, on curves whose parameters are known."""

import numpy as np
import pytest

from bert_pretrain.study.critical_batch import CriticalBatch, fit_critical_batch

BATCHES = [64, 256, 1024, 2048, 8192]


@pytest.mark.parametrize(("least", "critical"), [(150.0, 700.0), (20.0, 64.0), (80.0, 8192.0)])
def test_the_fit_finds_the_parameters_of_an_exact_curve(least: float, critical: float) -> None:
    found = fit_critical_batch(BATCHES, [least * (1 + critical / batch) for batch in BATCHES])
    assert found is not None
    assert (found.least_steps, found.batch) == (pytest.approx(least, rel=1e-4), pytest.approx(critical, rel=1e-4))
    assert (found.low, found.high) == (pytest.approx(critical, rel=1e-3), pytest.approx(critical, rel=1e-3))
    assert found.steps(np.array([critical])) == pytest.approx(2 * least, rel=1e-4)


def test_the_interval_holds_the_truth_in_19_of_20_noisy_curves() -> None:
    """Steps that are off by 5 % (standard deviation)."""
    rng, inside = np.random.default_rng(2), 0
    for _ in range(300):
        noisy = [100 * (1 + 500 / batch) * np.exp(rng.normal(0, 0.05)) for batch in BATCHES]
        found = fit_critical_batch(BATCHES, noisy)
        assert isinstance(found, CriticalBatch)
        inside += found.low < 500 < found.high
    assert inside / 300 == pytest.approx(0.95, abs=0.04)


def test_two_batch_sizes_are_too_few() -> None:
    assert fit_critical_batch([64, 256], [100.0, 50.0]) is None
