"""The schedule against values computed by hand and against known values of the published code."""

import math

import pytest

from bert_pretrain.optim.options import ScheduleConfig
from bert_pretrain.optim.schedule import learning_rate, learning_rate_table

PHASE_1 = {"total_steps": 7038, "warmup_proportion": 0.2843, "degree": 0.5}
PHASE_2 = {"total_steps": 1563, "warmup_proportion": 0.128, "degree": 0.5}


def test_phase_1_of_the_article():
    schedule = ScheduleConfig(**PHASE_1, decay_from="warmup_end")
    assert schedule.warmup == 2001  # 0.2843 * 7038 = 2000.9
    assert learning_rate(0, 6e-3, schedule) == pytest.approx(6e-3 / 2001, rel=1e-12)
    assert learning_rate(2000, 6e-3, schedule) == pytest.approx(6e-3, rel=1e-12)
    assert learning_rate(2001, 6e-3, schedule) == pytest.approx(6e-3, rel=1e-12)  # continuous
    assert learning_rate(2002, 6e-3, schedule) == pytest.approx(6e-3 * math.sqrt(5036 / 5037), rel=1e-12)
    assert learning_rate(7037, 6e-3, schedule) == pytest.approx(6e-3 * math.sqrt(1 / 5037), rel=1e-12)
    assert learning_rate(7037, 6e-3, schedule) > 0
    assert learning_rate(7038, 6e-3, schedule) == 0


@pytest.mark.parametrize(
    ("phase", "base", "update", "before", "after"),
    [(PHASE_1, 6e-3, 2000, 5.997e-3, 5.076e-3), (PHASE_2, 4e-3, 200, 3.999e-3, 3.734e-3)],
)
def test_published_code_drops_at_the_end_of_warmup(phase, base, update, before, after):
    """Known values of the published code: -15.4 % at update 2001 of phase 1, -6.6 % in phase 2."""
    schedule = ScheduleConfig(**phase, decay_from="start")
    last, first = learning_rate(update - 1, base, schedule), learning_rate(update, base, schedule)
    assert last == pytest.approx(before, abs=5e-7)
    assert first == pytest.approx(after, abs=5e-7)
    assert first / last - 1 == pytest.approx(-0.154 if phase is PHASE_1 else -0.066, abs=5e-4)
    total = phase["total_steps"]
    assert learning_rate(0, base, schedule) == pytest.approx(base / (phase["warmup_proportion"] * total), rel=1e-12)
    assert learning_rate(total - 2, base, schedule) > 0
    assert learning_rate(total - 1, base, schedule) == 0  # as published
    assert learning_rate(total, base, schedule) == 0  # published: NaN


@pytest.mark.parametrize("decay_from", ["warmup_end", "start"])
@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.3333, 0.999, 1.0])
@pytest.mark.parametrize("total", [1, 2, 7, 100])
@pytest.mark.parametrize("degree", [0.0, 0.5, 1.0, 2.0])
def test_never_negative_never_nan_never_above_base(decay_from, warmup, total, degree):
    schedule = ScheduleConfig(total, warmup, degree, decay_from)
    rates = [learning_rate(k, 0.1, schedule) for k in range(-2, total + 5)]
    assert all(0 <= rate <= 0.1 for rate in rates)
    if decay_from == "warmup_end":
        assert rates[2 + total - 1] > 0
    ahead = min(schedule.warmup, total)
    if decay_from == "warmup_end" and 0 < ahead < total:
        assert learning_rate(ahead - 1, 0.1, schedule) == pytest.approx(learning_rate(ahead, 0.1, schedule))


def test_table_has_the_rate_of_every_update_and_of_the_end():
    schedule = ScheduleConfig(50, 0.1, 1.0, "warmup_end")
    table = learning_rate_table(0.3, schedule)
    assert table == [learning_rate(k, 0.3, schedule) for k in range(51)]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("total_steps", 0),
        ("warmup_proportion", -0.1),
        ("warmup_proportion", 1.1),
        ("warmup_proportion", float("nan")),
        ("degree", -1.0),
        ("degree", float("inf")),
        ("decay_from", "middle"),
    ],
)
def test_bad_option_is_named(option, value):
    good = {"total_steps": 10, "warmup_proportion": 0.1, "degree": 0.5, "decay_from": "start"}
    with pytest.raises(ValueError, match=f"{option} is .*allowed: "):
        ScheduleConfig(**(good | {option: value}))
