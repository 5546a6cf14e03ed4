"""Rates against the time that steps took, on a clock that the test sets."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_pretrain.training.metrics import read_rows
from bert_pretrain.training.throughput import Throughput
from tests.bert_pretrain.training.test_trainer import trainer_for

SECONDS = st.integers(1, 1000)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("step"), SECONDS, st.integers(0, 5000)),
        st.tuples(st.sampled_from(["pause", "row"]), SECONDS, st.just(0)),
    ),
    max_size=40,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(events=EVENTS, late=st.booleans())
def test_every_step_is_in_one_rate_with_the_time_it_took(events: list[tuple[str, int, int]], late: bool) -> None:
    """``late``: as on CPU, a step is counted only when the next one has run, and before a pause."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", clock)
        throughput = Throughput(lambda reached: 1e18, 1)
        pending: list[tuple[int, float]] = []
        seconds, tokens, rows = 0, 0, []

        def count_pending() -> None:
            nonlocal seconds, tokens
            for size, ended in pending:
                throughput.count(size, 0.0, 0.0, ended)
            pending.clear()

        for kind, duration, size in events:
            if kind == "step":
                clock.now += duration
                if late:
                    count_pending()
                pending.append((size, clock.now))
                seconds, tokens = seconds + duration, tokens + size
                if not late:
                    count_pending()
            elif kind == "pause":
                if duration % 2:  # an evaluation; an even one is a measurement of the peak, beside a pending step
                    count_pending()
                with throughput.paused():
                    clock.now += duration
            else:
                count_pending()
                if throughput.seconds:
                    rows.append((throughput.seconds, throughput.rates()["tokens_per_second"]))
        count_pending()
        if throughput.seconds:
            rows.append((throughput.seconds, throughput.rates()["tokens_per_second"]))
    assert sum(row[0] for row in rows) == pytest.approx(seconds)
    assert sum(row[0] * row[1] for row in rows) == pytest.approx(tokens)


def test_a_rate_above_the_measured_peak_measures_it_again() -> None:
    peaks = iter([10.0, 200.0])
    throughput = Throughput(lambda reached: next(peaks), 2)
    throughput.seconds, throughput.flops = 1.0, 200.0  # 100 a device
    assert throughput.rates()["mfu"] == 0.5


def test_rows_beside_evaluations_and_saves_have_the_rate_of_their_step(
    tmp_path: Path, shard_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step takes 2 s and each evaluation 100 s on the test's clock."""
    options = ("training.evaluate_every_steps=3", "checkpoint.every_steps=2", "logging.every_steps=1")
    trainer = trainer_for(tmp_path, shard_dir, *options, "schedule.total_steps=7")
    clock = Clock()

    def taking(seconds: float, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            clock.now += seconds
            return work(*args)

        return run

    monkeypatch.setattr(time, "perf_counter", clock)
    trainer._accumulate = taking(2.0, trainer._accumulate)  # type: ignore[method-assign]
    trainer.evaluate = taking(100.0, trainer.evaluate)  # type: ignore[method-assign]
    trainer.throughput.restart()
    trainer.run()
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if "loss" in row]
    assert len(rows) == 7
    seen = sum(row["tokens_per_second"] * 2.0 for row in rows)
    assert seen == pytest.approx(trainer.progress.tokens_seen)
    assert max(row["tokens_per_second"] for row in rows) < 2 * min(row["tokens_per_second"] for row in rows)
