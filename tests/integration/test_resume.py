"""Killed anywhere, started again with the same command: the same weights, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, TEST_RECIPE

# 100 samples in three shards, 12 a step: shards end within steps 5 and 8, epochs within steps 9, 17, 25 and 34.
OPTIONS = (*TEST_RECIPE, "schedule.total_steps=36", "checkpoint.every_steps=4", "training.evaluate_every_steps=6")


def start(run_dir: Path, shard_dir: Path, processes: int, *changes: str) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    options = [*OPTIONS, f"data.dir={shard_dir}", f"run_dir={run_dir}", "model.hidden_dropout_prob=0.1", *changes]
    return subprocess.Popen(
        [*launcher, "bert_pretrain.pretrain", *options],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> str:
    out = process.communicate(timeout=200)[0]
    assert process.returncode == 0, out
    return out


def workers(process: subprocess.Popen) -> list[int]:
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in text.split()]


def kill_one_rank_at(process: subprocess.Popen, run_dir: Path, step: int, rng: random.Random) -> bool:
    """SIGKILL a random rank once ``step`` is logged; False where the run ended first."""
    metrics = run_dir / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            time.sleep(rng.random() * 0.05)
            pids = workers(process)
            if not pids:
                break
            os.kill(rng.choice(pids), signal.SIGKILL)
            process.communicate(timeout=120)
            return True
        time.sleep(0.005)
    process.communicate(timeout=120)
    return False


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints/step_00000036/model/model.safetensors")


def rows(run_dir: Path) -> list[dict]:
    timed = ("tokens_per_second", "mfu", "matrix_peak_share", "data_wait_share")
    parsed = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in timed} for row in parsed]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, shard_dir: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(start(run_dir, shard_dir, 2))
    return run_dir


def test_sigkill_leaves_no_trace(tmp_path: Path, shard_dir: Path, undisturbed: Path) -> None:
    """Two kills in one run: in the first epoch across a shard's end, and in a later epoch."""
    rng = random.Random(20)
    run_dir = tmp_path / "run"
    kills = [
        kill_one_rank_at(start(run_dir, shard_dir, 2), run_dir, step, rng)
        for step in (rng.randint(5, 12), rng.randint(18, 26))
    ]
    assert all(kills), "the run ended before it could be killed"
    finish(start(run_dir, shard_dir, 2))
    expected = weights(undisturbed)
    assert all(torch.equal(value, expected[name]) for name, value in weights(run_dir).items())
    assert rows(run_dir) == rows(undisturbed)
    started_again = finish(start(run_dir, shard_dir, 2))
    assert "step 36" in started_again
    assert rows(run_dir) == rows(undisturbed)


def test_another_number_of_processes_sees_the_same_samples(tmp_path: Path, shard_dir: Path) -> None:
    """Two processes up to a kill, then one: the counts and losses of every step are those of one process alone."""
    alone, changed = tmp_path / "alone", tmp_path / "changed"
    exact = ("model.hidden_dropout_prob=0", "precision.compute=fp32")  # the cut decides what is dropped, and rounds
    finish(start(alone, shard_dir, 1, *exact))
    assert kill_one_rank_at(start(changed, shard_dir, 2, *exact), changed, 18, random.Random(1))
    assert "going on from" in finish(start(changed, shard_dir, 1, *exact))
    for found, expected in zip(rows(changed), rows(alone), strict=True):
        assert found["step"] == expected["step"]
        assert found.get("samples_seen") == expected.get("samples_seen")
        for loss in ("mlm_loss", "eval_mlm_loss"):
            assert found.get(loss, 0) == pytest.approx(expected.get(loss, 0), abs=1e-5)
