"""Traces of single steps, and garbage that is collected between the same steps on all ranks."""

import gc
import json
from pathlib import Path

import pytest
import torch

from bert_pretrain.errors import ConfigError
from bert_pretrain.training import garbage_collection
from bert_pretrain.training.garbage_collection import collected_together
from tests.bert_pretrain.training.test_trainer import rows, trainer_for


def test_a_trace_of_two_steps_has_the_parts_of_a_step(tmp_path: Path, shard_dir: Path, capsys) -> None:
    """Each step has three micro-batches. The run is the one without the profile."""
    trainer_for(tmp_path / "plain", shard_dir).run()
    trainer_for(tmp_path / "profiled", shard_dir, "logging.profile_steps=[2,3]").run()
    losses = [[row.get("loss") for row in rows(tmp_path / run)] for run in ("plain", "profiled")]
    assert losses[0] == losses[1]
    (path,) = (tmp_path / "profiled" / "profile").iterdir()
    assert path.name == "rank_0_steps_2_3.json"
    names = [event["name"] for event in json.loads(path.read_text())["traceEvents"] if event.get("ph") == "X"]
    counted = {name: names.count(name) for name in ("forward", "backward", "optimizer", "wait for samples")}
    assert counted == {"forward": 6, "backward": 6, "optimizer": 2, "wait for samples": 2}
    assert "aten::addmm" in names
    assert capsys.readouterr().out.count(f"profile of steps 2 to 3 in {path.with_suffix('')}") == 1
    assert not (tmp_path / "plain" / "profile").exists()


def test_a_profile_that_cannot_be_written_ends_no_run(tmp_path: Path, shard_dir: Path, capsys) -> None:
    tmp_path.joinpath("profile").write_text("in the way")
    assert trainer_for(tmp_path, shard_dir, "logging.profile_steps=[1,1]").run()
    assert "the profile could not be written" in capsys.readouterr().out


@pytest.mark.parametrize("steps", ["[3]", "[0,1]", "[3,2]", "[1,21]", "[1,2,3]"])
def test_steps_that_are_no_range_are_refused(tmp_path: Path, shard_dir: Path, steps: str) -> None:
    with pytest.raises(ConfigError, match=r"logging\.profile_steps is .*; allowed: \[FIRST, LAST\], from 1 on"):
        trainer_for(tmp_path, shard_dir, f"logging.profile_steps={steps}")


def test_steps_after_the_last_are_refused(tmp_path: Path, shard_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"profile_steps is 7; allowed: steps up to schedule\.total_steps \(6\)"):
        trainer_for(tmp_path, shard_dir, "logging.profile_steps=[7,8]")


def test_a_step_leaves_no_garbage_that_holds_a_tensor(tmp_path: Path, shard_dir: Path) -> None:
    """Else memory would grow until the next collection."""
    trainer = trainer_for(tmp_path, shard_dir, "model.hidden_dropout_prob=0.1")
    steps = trainer.data.steps(0)
    with collected_together():
        trainer.train_step(next(steps))  # what the first step makes is made once
        gc.collect()
        for _ in range(2):
            trainer.train_step(next(steps))
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            gc.collect()
            tensors = [item for item in gc.garbage if isinstance(item, torch.Tensor)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
    steps.close()
    assert not tensors


def test_garbage_is_collected_at_agreed_steps_only(tmp_path: Path, shard_dir: Path, monkeypatch) -> None:
    monkeypatch.setattr(garbage_collection, "EVERY", 2)
    trainer = trainer_for(tmp_path, shard_dir)
    found: list[tuple[int, bool]] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            found.append((trainer.progress.attempts + len(trainer._pending), gc.isenabled()))

    gc.callbacks.append(note)
    try:
        trainer.run()
    finally:
        gc.callbacks.remove(note)
    at_steps = [attempt for attempt, automatic in found if not automatic]
    assert at_steps[:3] == [0, 2, 4]
    assert set(at_steps) <= {0, 2, 4}
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
