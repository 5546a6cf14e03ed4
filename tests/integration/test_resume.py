"""Killed at any moment and started again with the same command, a run ends with the same weights, bit for bit."""

import random
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import TEST_RECIPE, metric_rows, succeed
from tests.forked import Forked

# 100 samples in three shards, 12 a step: shards end within steps 5 and 8, epochs within steps 9, 17, 25 and 34.
OPTIONS = (*TEST_RECIPE, "schedule.total_steps=36", "checkpoint.every_steps=4", "training.evaluate_every_steps=6")


def options(run_dir: Path, shard_dir: Path, *changes: str) -> list[str]:
    return [*OPTIONS, f"data.dir={shard_dir}", f"run_dir={run_dir}", "model.hidden_dropout_prob=0.1", *changes]


def train(words: list[str], processes: int) -> str:
    """Train to the end; what was printed."""
    return succeed("bert_pretrain.pretrain", *words, processes=processes)


def kill_one_rank(words: list[str], step: int, rng: random.Random) -> None:
    """Train with two processes until one of them, by chance, is killed within ``step`` or soon after."""
    rank = rng.randrange(2)
    run = Forked("tests.integration.killed_rank", f"{rank}:{step}:{rng.randrange(1000)}", *words, ranks=2)
    done = run.wait()
    assert run.statuses[rank] == -signal.SIGKILL, done.stdout + done.stderr


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints/step_00000036/model/model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, shard_dir: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(options(run_dir, shard_dir), 2)
    return run_dir


def test_sigkill_leaves_no_trace(tmp_path: Path, shard_dir: Path, uninterrupted: Path) -> None:
    """Two kills in one run: in the first epoch across a shard's end, and in a later epoch."""
    rng = random.Random(20)
    run_dir = tmp_path / "run"
    words = options(run_dir, shard_dir)
    for step in (rng.randint(5, 12), rng.randint(18, 26)):
        kill_one_rank(words, step, rng)
        assert len(metric_rows(run_dir)) < len(metric_rows(uninterrupted))
    assert "resuming from" in train(words, 2)
    expected = weights(uninterrupted)
    assert all(torch.equal(value, expected[name]) for name, value in weights(run_dir).items())
    assert metric_rows(run_dir) == metric_rows(uninterrupted)
    assert "step 36" in train(words, 2), "a finished run has nothing left to do"
    assert metric_rows(run_dir) == metric_rows(uninterrupted)


def test_another_number_of_processes_sees_the_same_samples(tmp_path: Path, shard_dir: Path) -> None:
    """Two processes up to a kill, then one: the counts and losses of every step are those of one process alone."""
    alone, changed = tmp_path / "alone", tmp_path / "changed"
    exact = ("model.hidden_dropout_prob=0", "precision.compute=fp32")  # the cut decides what is dropped, and rounds
    train(options(alone, shard_dir, *exact), 1)
    kill_one_rank(options(changed, shard_dir, *exact), 18, random.Random(1))
    assert "resuming from" in train(options(changed, shard_dir, *exact), 1)
    for found, expected in zip(metric_rows(changed), metric_rows(alone), strict=True):
        assert found["step"] == expected["step"]
        assert found.get("samples_seen") == expected.get("samples_seen")
        for loss in ("mlm_loss", "eval_mlm_loss"):
            assert found.get(loss, 0) == pytest.approx(expected.get(loss, 0), abs=1e-5)
