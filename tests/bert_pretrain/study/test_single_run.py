"""What a study keeps of a run's metrics."""

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from bert_pretrain.config import PretrainConfig, resolved_yaml
from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.world import World
from bert_pretrain.errors import ConfigError
from bert_pretrain.options.config_loading import load_config
from bert_pretrain.study.curve import Curve
from bert_pretrain.study.single_run import SingleRun, losses_and_norms

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


class Counted(SingleRun):
    """A run whose loss falls from 5 by 0.1 a step, evaluated every 10 steps and at its end."""

    done: ClassVar[list[int]] = []

    def _train(self, run_dir: Path, world: World, stop: StopRequest) -> bool:
        end = self.config.schedule.total_steps
        self.done.append(end)
        (run_dir / "config.yaml").write_text(resolved_yaml(self.config))
        rows = [{"step": step, "eval_mlm_loss": 5 - step / 10} for step in [*range(0, end, 10), end]]
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return False


def curve_of(run_dir: Path, steps: int, target: float, *words: str) -> Curve:
    constant = ["schedule.shape=constant", "schedule.warmup_steps=4"]
    given = ["recipe=study_small", "data.dir=shards", f"run_dir={run_dir}", *constant, *words]
    config = load_config("pretrain", given, PretrainConfig)
    run = Counted("arm", replace(config, schedule=replace(config.schedule, total_steps=steps)), [], target=target)
    return run.curve(World(0, 0, 1, torch.device("cpu")), StopRequest())


@pytest.mark.parametrize(
    ("target", "steps", "then", "again"),
    [
        (2.0, 50, 80, []),  # reached after 30 steps
        (2.0, 50, 20, []),  # longer than asked, and not reached then
        (0.0, 45, 20, []),
        (0.0, 20, 45, [45]),  # given up too early to tell
    ],
)
def test_a_run_given_up_earlier_or_later_has_the_curve_of_a_new_one(tmp_path, monkeypatch, target, steps, then, again):
    monkeypatch.setattr(Counted, "done", [])
    curve_of(tmp_path / "run", steps, target)
    found, new = curve_of(tmp_path / "run", then, target), curve_of(tmp_path / "new", then, target)
    assert Counted.done == [steps, *again, then]
    assert (found.samples, found.losses, found.diverged) == (new.samples, new.losses, new.diverged)
    assert found.samples_to(target) == new.samples_to(target)


def test_a_run_whose_rates_depend_on_its_end_is_run_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Counted, "done", [])
    for steps in (50, 80):
        curve_of(tmp_path / "run", steps, 2.0, "schedule.shape=polynomial")
    assert Counted.done == [50, 80]


def test_a_run_with_other_options_is_refused_whatever_its_length(tmp_path: Path) -> None:
    curve_of(tmp_path / "run", 50, 2.0)
    with pytest.raises(ConfigError, match=r"belongs to another run: optimizer\.lr was"):
        curve_of(tmp_path / "run", 80, 2.0, "optimizer.lr=0.5")
    assert (tmp_path / "run/result.json").exists()
