"""Branches, extended runs (each ends as the run that had its schedule from the start), frozen and unfrozen layers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from bert_pretrain.config import PretrainConfig
from bert_pretrain.model.bert import build_model
from bert_pretrain.options.config_loading import load_config
from tests.conftest import TEST_RECIPE, metric_rows, run_module

CONSTANT = ("schedule.shape=constant", "schedule.warmup_steps=3", "schedule.total_steps=12")
DECAY = ("schedule.shape=wsd", "schedule.warmup_steps=3", "schedule.total_steps=18", "schedule.decay_steps=6")


def run(run_dir: Path, shard_dir: Path, *changes: str, processes: int = 0) -> tuple[int, str]:
    """Exit status and output of ``pretrain``."""
    fixed = (f"data.dir={shard_dir}", f"run_dir={run_dir}", "model.hidden_dropout_prob=0.1", "checkpoint.every_steps=6")
    done = run_module("bert_pretrain.pretrain", *TEST_RECIPE, *fixed, *changes, processes=processes)
    return done.returncode, done.stdout + done.stderr


def state(run_dir: Path, step: int) -> dict:
    """All of a checkpoint: weights, moments and step counts, progress."""
    path = run_dir / "checkpoints" / f"step_{step:08d}"
    flat: dict = dict(load_file(path / "model/model.safetensors"))
    for number, entry in torch.load(path / "optimizer.pt", weights_only=True)["state"].items():
        flat |= {f"{number}.{name}": value for name, value in entry.items()}
    return flat | {"progress": json.loads((path / "progress.json").read_text())}


def same(first: dict, second: dict) -> bool:
    def equal(a: object, b: object) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b

    return first.keys() == second.keys() and all(equal(value, second[name]) for name, value in first.items())


def rows(run_dir: Path, after: int = 0) -> list[dict]:
    return [row for row in metric_rows(run_dir) if row["step"] > after]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shard_dir: Path) -> Path:
    """18 steps, the last 6 of them decay."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert run(run_dir, shard_dir, *DECAY)[0] == 0
    return run_dir


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory, shard_dir: Path) -> Path:
    """12 steps, warm-up and constant."""
    run_dir = tmp_path_factory.mktemp("stable") / "run"
    assert run(run_dir, shard_dir, *CONSTANT)[0] == 0
    return run_dir


def test_a_branch_goes_on_as_the_run_itself(tmp_path: Path, shard_dir: Path, whole: Path, stable: Path) -> None:
    branch, source = tmp_path / "branch", stable / "checkpoints/step_00000012"
    from_there = (f"init_from={source}", "init_progress=keep")
    assert run(branch, shard_dir, *DECAY, *from_there)[0] == 0
    assert same(state(branch, 18), state(whole, 18))
    assert not same(state(branch, 18), state(stable, 12))
    assert rows(branch, after=12) == rows(whole, after=12)
    assert [row["lr"] for row in rows(branch, 12) if "lr" in row] == pytest.approx(
        [0.0075 * (1 - done / 6) for done in range(6)]
    )
    code, printed = run(branch, shard_dir, *DECAY)  # its origin is not needed again
    assert code == 0
    assert "resuming from" in printed
    assert str(source) not in printed


def test_a_branch_that_would_not_go_on_is_refused(tmp_path: Path, shard_dir: Path, whole: Path, stable: Path) -> None:
    branch = tmp_path / "branch"
    source = whole / "checkpoints/step_00000018"
    code, printed = run(branch, shard_dir, *CONSTANT, f"init_from={source}", "init_progress=keep")
    assert code == 2
    assert "18 steps are done already" in printed
    longer = ("schedule.total_steps=30", f"init_from={source}", "init_progress=keep")
    code, printed = run(branch, shard_dir, *DECAY, *longer)
    assert code == 2
    assert "this changes the learning rate of step 14, which is done, from 0.00625 to 0.0075" in printed
    assert "init_progress=keep goes on from a checkpoint of step 13 or before" in printed
    code, printed = run(branch, shard_dir, *DECAY, f"init_from={stable}", "init_progress=keep", "seed=3")
    assert code == 2
    assert "cannot go on as this run: seed was 42 and is 3" in printed
    code, printed = run(
        branch, shard_dir, *DECAY, f"init_from={stable}/checkpoints/step_00000012/model", "init_progress=keep"
    )
    assert code == 2
    assert "holds no progress.json" in printed
    code, printed = run(branch, shard_dir, *DECAY, "init_progress=keep")
    assert code == 2
    assert "init_progress is 'keep' with init_from=None" in printed
    assert not branch.exists()


def test_an_extended_run_is_the_longer_run(tmp_path: Path, shard_dir: Path, whole: Path, stable: Path) -> None:
    extended = tmp_path / "run"
    shutil.copytree(stable, extended)
    before = (extended / "config.yaml").read_text()
    code, printed = run(extended, shard_dir, *DECAY)
    assert code == 0, printed
    assert same(state(extended, 18), state(whole, 18))
    assert rows(extended) == rows(whole)
    assert (extended / "config_history/until_step_00000012.yaml").read_text() == before
    schedules = [yaml.safe_load((path / "config.yaml").read_text())["schedule"] for path in (extended, whole)]
    assert schedules[0] == schedules[1]
    assert "step 18" in run(extended, shard_dir, *DECAY)[1], "it is finished, under its new schedule"
    assert len(list((extended / "config_history").iterdir())) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("schedule.total_steps=24",), "this changes the learning rate of step 14, which is done"),
        (("schedule.total_steps=17", "schedule.decay_steps=5"), "18 steps are done already"),
        (("schedule.warmup_steps=4",), "of step 1, which is done, from 0.0025 to 0.001875"),
        (("schedule.total_steps=24", "batch.global_batch_size=10"), "batch.global_batch_size was 12 and is 10"),
    ],
)
def test_a_changed_past_is_refused(changes: tuple[str, ...], message: str, shard_dir: Path, whole: Path) -> None:
    before = (whole / "config.yaml").read_text()
    code, printed = run(whole, shard_dir, *DECAY, *changes)
    assert code == 2
    assert message in printed
    assert f"run_dir {whole} belongs to another run" in printed
    assert (whole / "config.yaml").read_text() == before
    assert not (whole / "config_history").exists()


FROZEN = ("bert.embeddings.", "bert.encoder.layer.0.")
FREEZE = "optimizer.freeze=[bert.embeddings.*,bert.encoder.layer.0.*]"
EXACT = ("model.hidden_dropout_prob=0", "model.attention_probs_dropout_prob=0", "precision.compute=fp32")


def test_frozen_layers_on_two_sharded_ranks_and_later_unfrozen(tmp_path: Path, shard_dir: Path) -> None:
    """The weights of one rank; frozen ones keep their bits; their moments start at 0 when a new run trains them."""
    alone, sharded = tmp_path / "alone", tmp_path / "sharded"
    words = (*EXACT, FREEZE, "logging.layers_every_steps=3", "schedule.total_steps=6")
    code, printed = run(alone, shard_dir, *words)
    assert code == 0, printed
    assert "frozen        21 of 46 layers, 4,096 parameters: bert.embeddings (5), bert.encoder.layer.0 (16)" in printed
    assert run(sharded, shard_dir, *words, "optimizer.sharded=true", processes=2)[0] == 0
    first, second = (load_file(path / "checkpoints/step_00000006/model/model.safetensors") for path in (alone, sharded))
    config = load_config("pretrain", [*TEST_RECIPE], PretrainConfig)
    start = build_model(config.model, config.speed, 42, torch.device("cpu"))
    for name, value in start.bert.state_dict().items():
        if name in first:
            assert torch.equal(first[name], value) == name.startswith(FROZEN), name
            assert torch.equal(second[name], value) == name.startswith(FROZEN), name
            if not name.endswith("key.bias"):  # its gradient is rounding alone
                assert torch.allclose(first[name], second[name], atol=1e-4), name
    (reported,) = ({*row["trust_ratio"]} for row in rows(sharded, 4) if "trust_ratio" in row)
    assert len(reported) == 46 - 21
    assert not any(name.startswith(FROZEN) for name in reported)
    code, printed = run(alone, shard_dir, *words, "optimizer.freeze=[]")
    assert code == 2
    assert "optimizer.freeze was ['bert.embeddings.*', 'bert.encoder.layer.0.*'] and is []" in printed
    whole = tmp_path / "whole"
    code, printed = run(whole, shard_dir, *EXACT, f"init_from={sharded}")
    assert code == 0, printed
    assert "25 layers keep their moments; 21 were not trained before and start at 0" in printed
    counts = {int(value) for name, value in state(whole, 6).items() if name.endswith(".step")}
    assert counts == {6, 12}
