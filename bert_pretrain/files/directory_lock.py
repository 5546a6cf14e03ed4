"""A lock on a directory, so that two processes do not write one run at the same time.

The file ``.lock`` in the directory says who holds it: host, process, job and since when. It is locked with POSIX
``lockf``, which local disks, NFS and Lustre share between nodes, and which ends with its process. Some mounts lock on
their own node only, or not at all. So the holder also touches the file every few seconds, and a process on another
host that gets the lock waits until the last touch is a minute ago: a busy machine may let no thread run for a while. A
crashed holder blocks nobody longer.
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import socket
import threading
import time
from pathlib import Path
from typing import IO, Any

from bert_pretrain.errors import ConfigError
from bert_pretrain.files.file_system import require_writable
from bert_pretrain.files.retry import say

LOCK = ".lock"
INTERVAL = 5.0
"""Seconds between two touches."""
SILENCE = 60.0
"""Seconds without a touch after which a holder on another host counts as dead."""
_JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
_NOT_SUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class DirectoryLock:
    """Holds a lock until ``release``, or until the process ends."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self._path, self._file, self._released = path, file, threading.Event()
        threading.Thread(target=self._touch, name="lock", daemon=True).start()

    def _touch(self) -> None:
        while not self._released.wait(INTERVAL):
            with contextlib.suppress(OSError, ValueError):  # a disk that fails for a while; a file just closed
                os.utime(self._file.fileno())

    def release(self) -> None:
        """Remove the lock file, and with it the lock."""
        if not self._released.is_set():
            self._released.set()
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._file.close()

    def __enter__(self) -> "DirectoryLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def lock_directory(directory: Path, option: str, name: str = LOCK) -> DirectoryLock:
    """Lock ``directory``, which is created if needed; ``option`` is for messages, ``name`` is the lock file's.

    Raises ``ConfigError`` if another process holds it, or the file cannot be written.
    """
    path = directory / name
    require_writable(directory, option)
    try:
        while True:
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  (open as long as the lock is held)
            locked = _try_lock(file)
            if locked is False or _is_alive(path, _facts(file), shared_lock=locked is True):
                holder = _holder(file)
                file.close()
                raise ConfigError(
                    f"{option} {directory} is in use{holder}; wait until that process has ended, or give another "
                    f"{option.split()[0]}"
                )
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
            file.close()  # its holder has just removed it
        file.truncate(0)
        file.write(json.dumps(_own_facts()))
        file.flush()
    except OSError as error:
        raise ConfigError(f"{option} {directory} cannot be written ({error}); give another") from None
    return DirectoryLock(path, file)


def lock_beside(out_dir: Path) -> DirectoryLock:
    """``lock_directory`` for a folder that will be replaced whole: the lock file lies beside it."""
    return lock_directory(out_dir.parent, f"out_dir {out_dir.name} in", f".{out_dir.name}.lock")


def is_touched(directory: Path) -> bool:
    """Whether a process has touched the lock of ``directory`` lately, by this machine's clock. Changes nothing."""
    try:
        return time.time() - (directory / LOCK).stat().st_mtime < SILENCE
    except FileNotFoundError:
        return False


def _try_lock(file: IO[str]) -> bool | None:
    """Whether this process holds the lock now; None if the file system has no locks."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            return None
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def _is_alive(path: Path, holder: dict[str, Any], shared_lock: bool) -> bool:
    """Whether the process that the file names still runs, as far as its lock does not tell.

    On this host by its number; on another one if it touches the file within ``SILENCE`` after its last touch.
    """
    if holder.get("host", socket.gethostname()) == socket.gethostname():
        process = holder.get("process")
        return not shared_lock and process != os.getpid() and Path(f"/proc/{process}").exists()
    before = path.stat().st_mtime_ns
    clock = path.with_name(f"{path.name}.clock")  # the file server's clock, which the touches have too
    clock.touch()
    age = (clock.stat().st_mtime_ns - before) / 1e9
    clock.unlink(missing_ok=True)
    if age < SILENCE:
        say(f"{path} is of a process on {holder['host']}; waiting up to {SILENCE - age:.0f} s for a sign of it")
    for _ in range(math.ceil((SILENCE - age) / INTERVAL)):
        time.sleep(INTERVAL)
        if not path.exists():
            return False
        if path.stat().st_mtime_ns != before:
            return True
    return False


def _own_facts() -> dict[str, Any]:
    job = next((os.environ[name] for name in _JOB_VARIABLES if name in os.environ), None)
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"host": socket.gethostname(), "process": os.getpid(), "job": job, "since": now}


def _facts(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        facts = json.loads(file.read() or "{}")
    except ValueError:  # killed while it wrote
        facts = {}
    return facts if isinstance(facts, dict) else {}


def _holder(file: IO[str]) -> str:
    facts = _facts(file)
    if not facts:
        return " by another process"
    job = f" of job {facts['job']}" if facts.get("job") else ""
    return f" by process {facts.get('process')}{job} on {facts.get('host')} since {facts.get('since')}"
