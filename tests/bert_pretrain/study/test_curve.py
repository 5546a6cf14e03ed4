"""Where a curve crosses a target."""

import math

import pytest

from bert_pretrain.study.curve import Curve, count_outliers


def curve(losses: list[float], diverged: bool = False) -> Curve:
    return Curve("arm", 0.1, 1, [640 * i for i in range(len(losses))], losses, diverged, batch=64)


def test_the_crossing_lies_between_two_evaluations() -> None:
    """From 5 to 3 in 640 samples: 4 after half of them, and the later rise does not count."""
    run = curve([6.0, 5.0, 3.0, 4.5])
    assert run.samples_to(4.0) == pytest.approx(640 + 320)
    assert run.steps_to(4.0) == pytest.approx(15.0)
    assert run.steps_to(3.0) == 20.0
    assert run.samples_to(2.9) == math.inf
    assert run.samples_to(6.0) == 0.0


def test_the_last_loss() -> None:
    assert curve([5.0, 4.0]).final == 4.0
    assert curve([5.0, 4.0], diverged=True).final == math.inf
    assert curve([5.0, math.nan]).final == math.inf
    assert curve([]).final == math.inf


def test_a_curve_is_cut_as_if_the_run_had_ended_there() -> None:
    """Evaluations at steps 0, 10, 20, 30."""
    run = curve([6.0, 5.0, 4.0, 3.0], diverged=True)
    assert run.until(25) == curve([6.0, 5.0, 4.0])
    assert run.until(20) == curve([6.0, 5.0, 4.0])
    assert run.until(30) == run


def test_outliers_are_above_ten_times_the_median() -> None:
    assert count_outliers([1.0, 1.0, 1.0, 1.0, 10.0, 10.1, math.inf]) == 2
    assert count_outliers([1.0, 1.0, 1.0, math.nan]) == 1
    assert count_outliers([]) == 0
