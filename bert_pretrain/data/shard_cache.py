"""Shards at an address, downloaded whole to a folder of this machine that never grows above a bound.

:func:`bert_pretrain.data.shard_directory.shard_folder` makes a folder for a set of shards, with its manifest and
tokenizer; a shard comes when ``held`` is first asked for it.

All processes of a machine share the cache, by ``flock``. Whoever reads a shard has a shared lock on its file; whoever
downloads one has an exclusive lock on ``NAME.partial``, which has its full size from the beginning. Room is made under
the lock of the cache: the shard that was used longest ago and that nobody reads is removed first.
"""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bert_pretrain.errors import ConfigError, as_config_error, require
from bert_pretrain.files.addresses import BLOCK, Address, RangeFile, look_up
from bert_pretrain.files.retry import DamagedError

_LOCK = ".cache.lock"
PARTIAL = ".partial"
_WAIT = 0.05  # seconds, for a lock that another process holds


@dataclass
class CacheConfig:
    """Where shards at an address (``s3://``, ``gs://``, ``hf://``, ``https://``) are kept on this machine."""

    cache_dir: str
    """Folder for the shards of a data.dir that is an address; on a disk of this machine."""
    cache_gib: float
    """Most GiB of shards in cache_dir; the longest unused are removed. Not of use for shards on a disk."""

    def __post_init__(self) -> None:
        require(self.cache_gib > 0, "cache_gib", self.cache_gib, "above 0")


@dataclass
class RemoteFolder:
    """The folder of one set in the cache."""

    address: Address
    path: Path
    limit: int
    """Bytes of all shards in the cache, the folder above ``path``."""
    check: Callable[[Path], None]
    """Raises ``ConfigError`` for a file that is not the shard of the manifest."""
    _asked: list[str] = field(default_factory=list)
    _wanted: list[str] = field(default_factory=list)
    _thread: threading.Thread | None = None

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """The shard ``name`` is in the folder as long as the block runs. Raises ``ConfigError``."""
        try:
            file = self._locked(name)
        except OSError as error:
            kind = type(as_config_error(error))
            raise kind(f"data.cache_dir {self.path.parent} cannot be written ({error}); give another") from None
        try:
            yield
        finally:
            os.close(file)

    def prefetch(self, names: list[str]) -> None:
        """Download these shards in the background, in this order. Errors are raised by ``held``, once it asks."""
        if names == self._asked:
            return
        self._asked = names
        self._wanted = [name for name in names if not (self.path / name).exists()]
        if self._wanted and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._fetch_wanted, name="prefetch", daemon=True)
            self._thread.start()

    def _fetch_wanted(self) -> None:
        with contextlib.suppress(IndexError):  # all are there
            while True:
                with contextlib.suppress(ConfigError), self.held(self._wanted.pop(0)):
                    pass

    def _locked(self, name: str) -> int:
        """The descriptor of a shard that is there, with a lock on it; downloads it if needed."""
        path = self.path / name
        partial = path.with_name(name + PARTIAL)
        while True:
            with contextlib.suppress(FileNotFoundError):
                file = os.open(path, os.O_RDWR)
                fcntl.flock(file, fcntl.LOCK_SH)
                if _is_at(file, path):
                    os.utime(file)
                    return file
                os.close(file)  # it was just removed
            file = os.open(partial, os.O_RDWR | os.O_CREAT, 0o644)
            if _try_lock(file) and _is_at(file, partial):
                try:
                    if not path.exists():
                        self._download(name, partial, file)
                        with _lock(self.path.parent):  # nobody counts meanwhile
                            partial.rename(path)
                        return file
                finally:
                    if _is_at(file, partial):
                        partial.unlink()
                        os.close(file)
            else:
                os.close(file)
                time.sleep(_WAIT)  # another process downloads it

    def _download(self, name: str, partial: Path, file: int) -> None:
        address = look_up(self.address / name)
        os.truncate(file, 0)  # what a killed process left
        self._make_room(address.size or 0, file, str(address))
        for attempt in (1, 2):
            with RangeFile(address) as source:
                position = 0
                while content := source.read(BLOCK):
                    position += os.pwrite(file, content, position)
            try:
                self.check(partial)
                return
            except ConfigError as error:
                if attempt == 2 or not isinstance(error, DamagedError):
                    reason = str(error).partition("; ")[0].replace(str(partial), name)
                    raise ConfigError(
                        f"{address} is not the shard that its manifest.json lists, or is damaged ({reason}); upload "
                        "the set again, whole"
                    ) from None

    def _make_room(self, size: int, file: int, what: str) -> None:
        """Remove shards until ``size`` bytes more fit, and give them to ``file``."""
        if size > self.limit:
            raise ConfigError(
                f"{what} has {size / 2**30:.3g} GiB, but data.cache_gib is {self.limit / 2**30:.3g}; give at least "
                f"{2 * size / 2**30:.3g}"
            )
        while True:
            with _lock(self.path.parent):
                found = sorted(_files(self.path.parent))
                there = sum(bytes_there for _, bytes_there, _ in found)
                for _, bytes_there, path in found:
                    if there + size > self.limit and _remove_unused(path):
                        there -= bytes_there
                if there + size <= self.limit:
                    return os.truncate(file, size)
            time.sleep(_WAIT)  # for those that are read now


_folders: dict[Path, RemoteFolder] = {}


def add_folder(folder: RemoteFolder) -> None:
    """From now on, shards in ``folder.path`` are downloaded when they are read."""
    _folders[folder.path] = folder


def remote_folder(path: Path) -> RemoteFolder | None:
    """The remote set whose shards are in ``path``; None of a folder of the user's."""
    return _folders.get(path)


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """The shard ``path`` stays as long as the block runs; True if it may be removed after it."""
    folder = None if path.name.endswith(PARTIAL) else _folders.get(path.parent)
    with folder.held(path.name) if folder else contextlib.nullcontext():
        yield folder is not None


@contextmanager
def _lock(cache: Path) -> Iterator[None]:
    with open(cache / _LOCK, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _files(cache: Path) -> list[tuple[float, int, Path]]:
    """(when last used, bytes, path) of the shards in the cache and of those that come."""
    found = []
    for path in cache.glob("*/*.*"):
        if path.name.removesuffix(PARTIAL).endswith((".hdf5", ".h5")):
            with contextlib.suppress(FileNotFoundError):  # given up
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
    return found


def _remove_unused(path: Path) -> bool:
    """Remove a file unless a process has a lock on it; whether it is gone."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        if not _try_lock(file):
            return False
        if _is_at(file, path):
            path.unlink()
        return True
    finally:
        os.close(file)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file still has the name ``path``."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), path.stat())
    return False
