"""The schedule against values computed by hand and against known values of the published code."""

import math

import pytest

from bert_pretrain.errors import ConfigError
from bert_pretrain.optim.options import ScheduleConfig
from bert_pretrain.optim.schedule import changed_past, learning_rate, learning_rate_table

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


def schedule_of(shape: str, total: int = 10, warmup: int | None = 2, **options: object) -> ScheduleConfig:
    polynomial = {"degree": 1.0, "decay_from": "warmup_end"} if shape == "polynomial" else {}
    return ScheduleConfig(**{"total_steps": total, "shape": shape, "warmup_steps": warmup, **polynomial, **options})


# Rates of lr = 8 by hand; warm-up over 2 steps of 10.
ROOT = math.sqrt(0.5)
BY_HAND = {
    "wsd, linear": (schedule_of("wsd", decay_steps=4), [4, 8, 8, 8, 8, 8, 8, 6, 4, 2, 0]),
    "wsd, to a quarter": (schedule_of("wsd", decay_steps=4, final_share=0.25), [4, *[8] * 6, 6.5, 5, 3.5, 2]),
    "wsd, 1-sqrt": (
        schedule_of("wsd", decay_steps=4, decay_form="1-sqrt"),
        [4, *[8] * 6, 4, 8 * (1 - ROOT), 8 * (1 - math.sqrt(0.75)), 0],
    ),
    "wsd, 30 % of 10": (schedule_of("wsd", decay_proportion=0.3), [4, *[8] * 7, 8 * 2 / 3, 8 / 3, 0]),
    "wsd, all of it decay": (schedule_of("wsd", 4, 0, decay_steps=4), [8, 6, 4, 2, 0]),
    "wsd without decay": (schedule_of("wsd", 4, 0, decay_steps=0), [8] * 5),
    "cosine": (
        schedule_of("cosine"),
        [4, 8, 8, 4 + 4 * math.cos(math.pi / 8), 4 + 4 * ROOT, 4 + 4 * math.cos(3 * math.pi / 8), 4,
         4 - 4 * math.cos(3 * math.pi / 8), 4 - 4 * ROOT, 4 - 4 * math.cos(math.pi / 8), 0],
    ),
    "cosine, to a quarter": (schedule_of("cosine", 6, final_share=0.25), [4, 8, 8, 5 + 3 * ROOT, 5, 5 - 3 * ROOT, 2]),
    "constant": (schedule_of("constant"), [4, *[8] * 10]),
    "polynomial": (schedule_of("polynomial", 6), [4, 8, 8, 6, 4, 2, 0]),
}  # fmt: skip


@pytest.mark.parametrize(("schedule", "expected"), BY_HAND.values(), ids=list(BY_HAND))
def test_shapes_by_hand(schedule, expected):
    assert learning_rate_table(8.0, schedule) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("total", [1, 2, 3, 10, 101])
@pytest.mark.parametrize("warmup", [0.0, 0.13, 0.5, 1.0])
@pytest.mark.parametrize("decay", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_shapes_rise_to_the_peak_and_then_never_rise(total, warmup, decay, final):
    for shape in ("wsd", "cosine", "constant"):
        for form in ("linear", "1-sqrt"):
            share = min(decay, 1 - warmup)
            options = {"decay_proportion": share, "decay_form": form, "final_share": final}
            used = {"wsd": options, "cosine": {"final_share": final}, "constant": {}}[shape]
            schedule = ScheduleConfig(total, warmup_proportion=warmup, shape=shape, **used)
            rates = learning_rate_table(0.1, schedule)
            ahead = schedule.warmup
            assert all(0 <= rate <= 0.1 for rate in rates)
            assert rates[:ahead] == pytest.approx([0.1 * (k + 1) / ahead for k in range(ahead)])
            assert all(after <= before for before, after in zip(rates[ahead:], rates[ahead + 1 :], strict=False))
            assert rates[ahead] == pytest.approx(0.1)  # continuous: the last of warm-up is the peak, too
            assert all(rate > 0 for rate in rates[:-1])
            if shape != "constant" and ahead < total and (shape == "cosine" or schedule.decay):
                assert rates[-1] == pytest.approx(0.1 * final, abs=1e-15)
            assert learning_rate(total + 5, 0.1, schedule) == rates[-1]
            assert learning_rate(-3, 0.1, schedule) == rates[0]


def test_polynomial_takes_its_warmup_in_steps_too():
    for decay_from in ("warmup_end", "start"):
        by_share = ScheduleConfig(20, 0.25, 0.5, decay_from)
        by_steps = ScheduleConfig(20, None, 0.5, decay_from, warmup_steps=5)
        assert learning_rate_table(0.3, by_share) == learning_rate_table(0.3, by_steps)


@pytest.mark.parametrize(
    ("before", "now", "applied", "reason"),
    [
        (schedule_of("constant"), schedule_of("constant", 20), 10, ""),
        (schedule_of("constant"), schedule_of("wsd", 14, decay_steps=4), 10, ""),
        (schedule_of("wsd", decay_steps=4), schedule_of("wsd", 20, decay_steps=4), 7, ""),
        (
            schedule_of("wsd", decay_steps=4),
            schedule_of("wsd", 20, decay_steps=4),
            8,
            "step 8, which is done, from 6 to 8",
        ),
        (schedule_of("polynomial"), schedule_of("polynomial", 20), 3, ""),
        (schedule_of("polynomial"), schedule_of("polynomial", 20), 4, "of step 4, which is done, from 7 to"),
        (schedule_of("polynomial", degree=0.0), schedule_of("polynomial", 20, degree=0.0), 10, ""),
        (schedule_of("cosine"), schedule_of("cosine", 11), 9, "checkpoint of step 3 or before"),
        (schedule_of("constant", 20), schedule_of("constant", 10), 10, ""),
        (schedule_of("constant", 20), schedule_of("constant", 10), 11, "11 steps are done already"),
        (
            schedule_of("constant", 10, None, warmup_proportion=0.2),
            schedule_of("constant", 20, None, warmup_proportion=0.2),
            1,
            "from 4 to 2; schedule.warmup_steps=2 keeps the warm-up where it was",
        ),
        (
            schedule_of("constant", 10, None, warmup_proportion=0.2),
            schedule_of("constant", 20, warmup_proportion=0.2),
            10,
            "",
        ),
    ],
)
def test_a_schedule_may_change_in_what_is_to_come(before, now, applied, reason):
    found = changed_past(before, now, 8.0, applied)
    assert reason in found
    assert bool(reason) == bool(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "linear"}, "schedule.shape is 'linear'; allowed: polynomial, wsd, cosine, constant"),
        ({"degree": None}, "schedule.degree is not set; schedule.shape=polynomial needs it"),
        ({"warmup_proportion": None}, "schedule.warmup_proportion is not set; give it, or schedule.warmup_steps"),
        ({"warmup_steps": 11}, "schedule.warmup_steps is 11; allowed: 0 to schedule.total_steps (10)"),
        ({"warmup_steps": -1}, "schedule.warmup_steps is -1; allowed: 0 to"),
        (
            {"shape": "wsd"},
            "schedule.decay_steps is not set; schedule.shape=wsd needs it, or",
        ),
        (
            {"shape": "wsd", "decay_steps": 10},
            "schedule.decay_steps is 10; allowed: at least 0, and with warm-up",
        ),
        ({"shape": "wsd", "decay_steps": -1}, "schedule.decay_steps is -1; allowed: at least 0"),
        (
            {"shape": "wsd", "decay_proportion": 0.99, "warmup_steps": 5},
            "schedule.decay_proportion is 0.99;",
        ),
        ({"shape": "wsd", "decay_proportion": 2.0}, "schedule.decay_proportion is 2.0; allowed: 0 to 1"),
        ({"final_share": -0.1}, "schedule.final_share is -0.1; allowed: 0 to 1"),
        (
            {"final_share": 0.1},
            "schedule.final_share is 0.1; allowed: 0.0 with schedule.shape=polynomial; it is for wsd",
        ),
        ({"shape": "constant", "decay_steps": 3}, "schedule.decay_steps is 3; allowed: null with schedule.shape=const"),
        ({"decay_form": "sqrt"}, "schedule.decay_form is 'sqrt'; allowed: linear, 1-sqrt (did you mean 1-sqrt?)"),
    ],
)
def test_what_a_shape_needs_is_named(options, message):
    good = {"total_steps": 10, "warmup_proportion": 0.1, "degree": 0.5, "decay_from": "start"}
    with pytest.raises(ConfigError) as error:
        ScheduleConfig(**(good | options))
    assert message in str(error.value)
