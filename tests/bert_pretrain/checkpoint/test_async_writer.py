"""Checkpoints in the background: a consistent copy, faults of the disk, milestones."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bert_pretrain.checkpoint import async_writer as checkpoint_writer
from bert_pretrain.checkpoint.async_writer import CheckpointWriter
from bert_pretrain.checkpoint.files import find_fault
from bert_pretrain.checkpoint.store import CheckpointStore, Progress, load_optimizer_state
from bert_pretrain.errors import ConfigError
from tests.bert_pretrain.checkpoint.test_store import small_bert


class HeldStore(CheckpointStore):
    """Writes nothing before it is let go."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, 5, None)
        self.let_go = threading.Event()

    def save(self, *arguments: Any) -> Path:
        assert self.let_go.wait(60)
        return super().save(*arguments)


def test_what_is_written_is_what_was_when_it_was_asked_for(tmp_path: Path) -> None:
    store, model = HeldStore(tmp_path / "checkpoints"), small_bert()
    state = {"state": {0: {"exp_avg": torch.arange(4.0)}}, "param_groups": []}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    writer = CheckpointWriter(store, lambda _: None)
    for step in (1, 2):  # the second copy goes to the memory of the first
        writer.save(model, state, Progress(step=step), "seed: 1\n")
        assert not store.all() or step == 2, "save returned before anything was written"
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        state["state"][0]["exp_avg"].add_(1.0)
        store.let_go.set()
        writer.finish()
        saved = load_file(store.all()[-1] / "model" / "model.safetensors")
        assert all(torch.equal(value, before[name] + (step - 1)) for name, value in saved.items())
        moments = load_optimizer_state(store.all()[-1], torch.device("cpu"))["state"][0]["exp_avg"]
        assert torch.equal(moments, torch.arange(4.0) + step - 1)
        store.let_go.clear()


def test_a_disk_that_takes_nothing_is_said_and_tried_again(tmp_path: Path) -> None:
    place = tmp_path / "checkpoints"
    place.write_text("a file where the directory should be")
    said: list[str] = []
    writer = CheckpointWriter(CheckpointStore(place, 5, None), said.append)
    writer.save(small_bert(), {}, Progress(step=3), "seed: 1\n")
    with pytest.raises(ConfigError, match=r"step 3 could not be written under .*; make room"):
        writer.finish()
    assert len(said) == 1
    assert "training goes on" in said[0]
    place.unlink()
    writer.save(small_bert(), {}, Progress(step=4), "seed: 1\n")
    writer.finish()
    assert find_fault(place / "step_00000004") is None


def test_a_fault_that_is_not_the_disk_s_reaches_the_run(tmp_path: Path) -> None:
    writer = CheckpointWriter(CheckpointStore(tmp_path, 5, None), lambda _: None)
    writer.save(small_bert(), {"not": lambda: None}, Progress(step=3), "seed: 1\n")  # cannot be stored
    with pytest.raises(Exception, match=r"pickle|lambda"):
        writer.wait()


def test_milestones_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 2, None, keep_every_steps=4)
    for step in range(2, 15, 2):
        store.save(small_bert(), {}, Progress(step=step), "seed: 1\n")
    assert [int(path.name[5:]) for path in store.all()] == [4, 8, 12, 14]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, whose memory is looked at")
def test_a_copy_takes_no_memory_of_the_device(tmp_path: Path) -> None:
    model = small_bert().cuda()
    writer = CheckpointWriter(CheckpointStore(tmp_path / "checkpoints", 5, None), lambda _: None)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    writer.save(model, {"state": {0: {"exp_avg": torch.zeros(9, device="cuda")}}}, Progress(step=1), "seed: 1\n")
    writer.finish()
    size = sum(weight.nbytes for weight in model.parameters())
    assert torch.cuda.max_memory_allocated() - before < size / 4


def test_the_thread_rests_as_long_as_it_works_until_somebody_waits(tmp_path: Path, monkeypatch) -> None:
    """By a clock that stands but for 3 s of work before each rest."""
    rests: list[tuple[float, bool]] = []
    rested, worked = threading.Event(), iter(range(0, 3000, 3))

    class Awaited(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            rests.append((timeout, self.is_set()))
            rested.set()
            return super().wait(60)

    monkeypatch.setattr(checkpoint_writer.time, "thread_time", lambda: next(worked))
    writer = CheckpointWriter(CheckpointStore(tmp_path / "checkpoints", 1, None), lambda _: None)
    writer._awaited = Awaited()
    writer.save(small_bert(), {"state": torch.zeros(3 << 18)}, Progress(step=1), "seed: 1\n")  # 3 MB
    assert rested.wait(60)
    assert rests == [(3, False)]
    writer.finish()
    assert len(rests) >= 6, "3 MB were written, and read for their checksum"
    assert set(rests[1:]) == {(3, True)}
