"""A lock dies with its holder, says who holds it, and is seen through links and on mounts without shared locks."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bert_pretrain.errors import ConfigError
from bert_pretrain.files import directory_lock
from bert_pretrain.files.directory_lock import LOCK, lock_directory
from tests.conftest import ROOT

HOLDER = """
import sys, time
from pathlib import Path
from bert_pretrain.files.directory_lock import lock_directory
lock = lock_directory(Path(sys.argv[1]), "run_dir")
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"SLURM_JOB_ID": "4711", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_held_directory_is_refused_by_name_and_free_when_its_holder_is_killed(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    link = tmp_path.with_name(f"{tmp_path.name}-link")
    link.symlink_to(tmp_path)
    for path in (tmp_path, link):
        with pytest.raises(ConfigError, match=f"run_dir .* is in use by process {holder.pid} of job 4711 on .* since"):
            lock_directory(path, "run_dir")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lock_directory(tmp_path, "run_dir").release()
    assert not (tmp_path / LOCK).exists()


def test_a_released_lock_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with lock_directory(tmp_path / "new", "run_dir"):
            assert json.loads((tmp_path / "new" / LOCK).read_text())["process"] == os.getpid()


@pytest.mark.parametrize(("touched", "refused"), [(1, True), (10, True), (0, False)])
def test_without_shared_locks_a_holder_on_another_host_is_seen_by_its_touches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, touched: int, refused: bool
) -> None:
    """``touched``: the pause in which it does; a busy machine may let its thread run only then."""
    pauses: list[float] = []
    (tmp_path / LOCK).write_text(json.dumps({"host": "elsewhere", "process": 7, "since": "noon"}))

    def no_locks(*_: object) -> None:
        raise OSError(95, "not supported")

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == touched:
            os.utime(tmp_path / LOCK, (1, 1))

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    monkeypatch.setattr(directory_lock.time, "sleep", sleep)
    if refused:
        with pytest.raises(ConfigError, match="process 7 on elsewhere since noon"):
            lock_directory(tmp_path, "run_dir")
    else:
        lock_directory(tmp_path, "run_dir").release()
    assert sum(pauses) <= 60.0


def test_an_old_lock_of_another_host_is_taken_without_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LOCK).write_text(json.dumps({"host": "elsewhere", "process": 7}))
    old = time.time() - 3600
    os.utime(tmp_path / LOCK, (old, old))
    monkeypatch.setattr(directory_lock.time, "sleep", lambda _: pytest.fail("waited"))
    lock_directory(tmp_path, "run_dir").release()
