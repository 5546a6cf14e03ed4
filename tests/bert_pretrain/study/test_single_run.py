"""What a study keeps of a run's metrics."""

import json
from pathlib import Path

import pytest

from bert_pretrain.study.single_run import losses_and_norms

ROWS = [
    {"step": 0, "eval_mlm_loss": 5.0},
    {"step": 1, "grad_norm": 1.0},
    {"step": 2, "grad_norm": 2.0},
    {"step": 2, "eval_mlm_loss": 3.9},
    {"step": 3, "grad_norm": 3.0},
    {"step": 4, "grad_norm": 4.0},
    {"step": 4, "eval_mlm_loss": 3.8},
]


@pytest.mark.parametrize("rows_of_the_run", [4, 5, 6, 7])
def test_a_run_killed_at_any_moment_beyond_the_target_has_the_same_curve(tmp_path: Path, rows_of_the_run: int) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:rows_of_the_run]))
    assert losses_and_norms(metrics, 3.9) == ([(0, 5.0), (2, 3.9)], [1.0, 2.0])


def test_without_a_target_or_before_it_everything_is_kept(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert losses_and_norms(metrics, 3.0) == ([(0, 5.0), (2, 3.9), (4, 3.8)], [1.0, 2.0, 3.0, 4.0])
    assert losses_and_norms(metrics, None) == ([(2, 3.9), (4, 3.8)], [1.0, 2.0, 3.0, 4.0])
