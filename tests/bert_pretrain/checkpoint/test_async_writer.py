"""Background checkpoints: a consistent copy, disk faults, throttling, milestones."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bert_pretrain.checkpoint import async_writer
from bert_pretrain.checkpoint.async_writer import CheckpointWriter
from bert_pretrain.checkpoint.files import find_fault
from bert_pretrain.checkpoint.store import CheckpointStore, Progress, load_optimizer_state
from bert_pretrain.errors import EXIT_MISTAKE, EXIT_OUTAGE, ConfigError
from tests.bert_pretrain.checkpoint.test_store import small_bert


class BlockedStore(CheckpointStore):
    """Writes nothing before ``unblocked`` is set."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, 5, None)
        self.unblocked = threading.Event()

    def save(self, *arguments: Any) -> Path:
        assert self.unblocked.wait(60)
        return super().save(*arguments)


def test_a_checkpoint_has_the_values_at_the_time_of_the_call(tmp_path: Path) -> None:
    store, model = BlockedStore(tmp_path / "checkpoints"), small_bert()
    state = {"state": {0: {"exp_avg": torch.arange(4.0)}}, "param_groups": []}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    writer = CheckpointWriter(store, lambda _: None, 5)
    for step in (1, 2):  # the second copy reuses the memory of the first
        writer.save(model, state, Progress(step=step), "seed: 1\n")
        assert not store.all() or step == 2, "save returned before anything was written"
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        state["state"][0]["exp_avg"].add_(1.0)
        store.unblocked.set()
        writer.finish()
        saved = load_file(store.all()[-1] / "model" / "model.safetensors")
        assert all(torch.equal(value, before[name] + (step - 1)) for name, value in saved.items())
        moments = load_optimizer_state(store.all()[-1], torch.device("cpu"))["state"][0]["exp_avg"]
        assert torch.equal(moments, torch.arange(4.0) + step - 1)
        store.unblocked.clear()


def test_a_disk_fault_is_reported_and_the_next_save_tries_again(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    directory.write_text("a file where the directory should be")
    messages: list[str] = []
    writer = CheckpointWriter(CheckpointStore(directory, 5, None), messages.append, 5)
    writer.save(small_bert(), {}, Progress(step=3), "seed: 1\n")
    with pytest.raises(ConfigError, match=r"step 3 could not be written under .*; mend the cause"):
        writer.finish()
    assert len(messages) == 1
    assert "training goes on" in messages[0]
    directory.unlink()
    writer.save(small_bert(), {}, Progress(step=4), "seed: 1\n")
    writer.finish()
    assert find_fault(directory / "step_00000004") is None


def test_an_error_other_than_a_disk_fault_is_raised(tmp_path: Path) -> None:
    writer = CheckpointWriter(CheckpointStore(tmp_path, 5, None), lambda _: None, 5)
    writer.save(small_bert(), {"not": lambda: None}, Progress(step=3), "seed: 1\n")  # cannot be pickled
    with pytest.raises(Exception, match=r"pickle|lambda"):
        writer.wait()


def test_milestones_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 2, None, keep_every_steps=4)
    for step in range(2, 15, 2):
        store.save(small_bert(), {}, Progress(step=step), "seed: 1\n")
    assert [int(path.name[5:]) for path in store.all()] == [4, 8, 12, 14]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, whose memory is measured")
def test_a_copy_takes_no_device_memory(tmp_path: Path) -> None:
    model = small_bert().cuda()
    writer = CheckpointWriter(CheckpointStore(tmp_path / "checkpoints", 5, None), lambda _: None, 5)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    writer.save(model, {"state": {0: {"exp_avg": torch.zeros(9, device="cuda")}}}, Progress(step=1), "seed: 1\n")
    writer.finish()
    size = sum(weight.nbytes for weight in model.parameters())
    assert torch.cuda.max_memory_allocated() - before < size / 4


def test_the_thread_sleeps_as_long_as_it_works_until_it_is_awaited(tmp_path: Path, monkeypatch) -> None:
    """A mocked clock: 3 s of work before each sleep."""
    sleeps: list[tuple[float, bool]] = []
    slept, worked = threading.Event(), iter(range(0, 3000, 3))

    class Awaited(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            sleeps.append((timeout, self.is_set()))
            slept.set()
            return super().wait(60)

    monkeypatch.setattr(async_writer.time, "thread_time", lambda: next(worked))
    writer = CheckpointWriter(CheckpointStore(tmp_path / "checkpoints", 1, None), lambda _: None, 5)
    writer._awaited = Awaited()
    writer.save(small_bert(), {"state": torch.zeros(3 << 18)}, Progress(step=1), "seed: 1\n")  # 3 MB
    assert slept.wait(60)
    assert sleeps == [(3, False)]
    writer.finish()
    assert len(sleeps) >= 6, "3 MB were written, and read for their checksum"
    assert set(sleeps[1:]) == {(3, True)}


class FailingStore(CheckpointStore):
    """Every save fails."""

    def __init__(self, directory: Path, number: int) -> None:
        super().__init__(directory, 5, None)
        self.number: int | None = number

    def save(self, *arguments: Any) -> Path:
        if self.number is not None:
            raise OSError(self.number, os.strerror(self.number))
        return super().save(*arguments)


@pytest.mark.parametrize(
    ("number", "advice", "status"),
    [
        (errno.ENOSPC, "make room", EXIT_MISTAKE),
        (errno.EACCES, "make the directory writable", EXIT_MISTAKE),
        (errno.EIO, "wait until the disk answers", EXIT_OUTAGE),
        (errno.ENOMEM, "free memory", EXIT_OUTAGE),
    ],
)
def test_failed_saves_in_a_row_end_the_run_with_their_cause(
    tmp_path: Path, number: int, advice: str, status: int
) -> None:
    messages: list[str] = []
    store = FailingStore(tmp_path, number)
    writer = CheckpointWriter(store, messages.append, 3)
    for step in (1, 2):
        writer.save(small_bert(), {}, Progress(step=step), "seed: 1\n")
    with pytest.raises(ConfigError, match=rf"step 3 .*{os.strerror(number)}.*as 2 before it; .*{advice}") as error:
        writer.save(small_bert(), {}, Progress(step=3), "seed: 1\n")
    assert error.value.exit_status == status
    assert len(messages) == 3
    assert "2 of 3 failures in a row" in messages[1]


def test_a_save_between_failed_ones_starts_the_count_again(tmp_path: Path) -> None:
    store = FailingStore(tmp_path, errno.ENOSPC)
    writer = CheckpointWriter(store, lambda _: None, 2)
    for number in (errno.ENOSPC, None, errno.ENOSPC, None):
        writer.wait()
        store.number = number
        writer.save(small_bert(), {}, Progress(step=1), "seed: 1\n")
    writer.finish()


def test_a_copy_that_does_not_fit_into_memory_is_a_failed_save(tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    messages: list[str] = []
    writer = CheckpointWriter(CheckpointStore(tmp_path, 5, None), messages.append, 2)
    monkeypatch.setattr(async_writer, "_empty_on_host", fail)
    writer.save(small_bert(), {}, Progress(step=1), "seed: 1\n")
    assert len(messages) == 1
    with pytest.raises(ConfigError, match="free memory"):
        writer.finish()
