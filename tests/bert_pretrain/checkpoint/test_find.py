"""Which checkpoint a run goes on from, and when it must not begin again."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from bert_pretrain.checkpoint import files, find
from bert_pretrain.checkpoint.find import RECORD, newest_to_resume, newest_valid, resolve_checkpoint, saved_step
from bert_pretrain.checkpoint.store import CheckpointStore, Progress
from bert_pretrain.errors import EXIT_OUTAGE, ConfigError, OutageError
from bert_pretrain.files import retry
from tests.bert_pretrain.checkpoint.test_store import small_bert


def found(run_dir: Path, trained: bool = False) -> tuple[Path | None, list[str]]:
    messages: list[str] = []
    record = run_dir / RECORD
    return newest_to_resume(run_dir / "checkpoints", record, messages.append, lambda: None, trained), messages


def saved(run_dir: Path, steps: tuple[int, ...]) -> CheckpointStore:
    store = CheckpointStore(run_dir / "checkpoints", 10, None, record=run_dir / RECORD)
    for step in steps:
        store.save(small_bert(step), {"state": {}}, Progress(step=step), "seed: 1\n")
    return store


def test_a_run_that_has_saved_nothing_begins(tmp_path: Path) -> None:
    assert found(tmp_path) == (None, [])
    (tmp_path / "checkpoints/.step_00000001.partial").mkdir(parents=True)  # killed in its first save
    assert found(tmp_path) == (None, [])


def test_a_run_whose_checkpoints_are_gone_does_not_begin_again(tmp_path: Path) -> None:
    saved(tmp_path, (2, 4))
    assert saved_step(tmp_path / RECORD) == 4
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(
        ConfigError, match=r"checkpoints holds no checkpoint, but .* up to step 4; put a copy .*run_dir"
    ):
        found(tmp_path)
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(ConfigError, match="has saved some; put a copy"):
        found(tmp_path)
    (tmp_path / RECORD).unlink()
    assert found(tmp_path) == (None, [])
    with pytest.raises(ConfigError, match="has saved some"):
        found(tmp_path, trained=True)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again(tmp_path: Path) -> None:
    store = saved(tmp_path, (2, 4))
    for path in store.all():
        (path / "optimizer.pt").write_bytes(b"")
    with pytest.raises(
        ConfigError, match=r"holds 2 checkpoints, and none is valid .*optimizer.pt does not match"
    ) as error:
        found(tmp_path)
    assert "\n" not in str(error.value)
    assert len(store.all()) == 2


def test_a_newer_one_that_is_gone_is_told(tmp_path: Path) -> None:
    store = saved(tmp_path, (2, 4))
    shutil.rmtree(store.all()[1])
    path, messages = found(tmp_path)
    assert path == store.all()[0]
    assert messages == [f"the checkpoint of step 4, the newest that was saved, is gone from {store.directory}"]
    assert found(tmp_path) == (path, [])  # once is enough


def test_a_run_of_an_earlier_version_gets_its_record(tmp_path: Path) -> None:
    saved(tmp_path, (2,))
    (tmp_path / RECORD).unlink()
    found(tmp_path)
    assert saved_step(tmp_path / RECORD) == 2


def failing_read(monkeypatch: pytest.MonkeyPatch, number: int, times: int) -> list[int]:
    """The next ``times`` checksums fail to be read with this error."""
    left, original = [number] * times, files._sha256

    def sha256(*arguments: object) -> str:
        if left:
            raise OSError(left.pop(), os.strerror(number))
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "_sha256", sha256)
    monkeypatch.setattr(retry.time, "sleep", lambda _: None)
    return left


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_an_outage_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """It is waited out, with a sign of progress; the newest checkpoint is taken, not the one before it."""
    store, messages, progress = saved(tmp_path, (2, 4)), list[str](), list[int]()
    failing_read(monkeypatch, number, 3)
    path = newest_valid(store.directory, messages.append, lambda: progress.append(1))
    assert path == store.all()[1]
    assert len(progress) == 3
    assert "cannot be read now" in messages[0]
    assert len(messages) == 2


def test_an_outage_that_lasts_ends_with_the_status_that_is_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = saved(tmp_path, (2, 4))
    failing_read(monkeypatch, errno.EIO, 100)
    with pytest.raises(OutageError) as error:
        newest_valid(store.directory, lambda _: None)
    assert error.value.exit_status == EXIT_OUTAGE


def test_a_directory_that_cannot_be_listed_is_not_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, (2,))
    times = iter([1, 1])
    listdir = os.listdir

    def stale(path: Path) -> list[str]:
        if next(times, 0):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return listdir(path)

    monkeypatch.setattr(find.os, "listdir", stale)
    monkeypatch.setattr(retry.time, "sleep", lambda _: None)
    assert found(tmp_path)[0] == tmp_path / "checkpoints/step_00000002"


def test_a_missing_permission_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = saved(tmp_path, (2, 4))
    failing_read(monkeypatch, errno.EACCES, 1)
    with pytest.raises(ConfigError, match=r"step_00000004 cannot be read .*Permission denied.*make it readable"):
        newest_valid(store.directory, lambda _: None)


def saving_while_read(monkeypatch: pytest.MonkeyPatch, run_dir: Path, times: int) -> list[int]:
    """For ``times`` checksums, a run with ``keep_last=1`` saves the next step first, and removes the one before."""
    steps, original = [2], files._sha256

    def sha256(*arguments: object) -> str:
        if len(steps) <= times:
            steps.append(steps[-1] + 2)
            with monkeypatch.context() as patch:
                patch.setattr(files, "_sha256", original)
                store = saved(run_dir, (steps[-1],))
            shutil.rmtree(store.directory / f"step_{steps[-2]:08d}")
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "_sha256", sha256)
    return steps


def test_one_that_its_run_removes_while_it_is_read_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    saved(tmp_path, (2,))
    saving_while_read(monkeypatch, tmp_path, 3)
    path = resolve_checkpoint(tmp_path, "run_dir", said.append)
    assert (path.name, said) == ("step_00000008", [])


def test_a_run_that_always_saves_again_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, (2,))
    steps = saving_while_read(monkeypatch, tmp_path, 1000)
    assert newest_valid(tmp_path / "checkpoints", lambda _: None) is None
    assert len(steps) == 1 + find._LISTINGS
