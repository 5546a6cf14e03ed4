"""Checkpoint files: throttled writing, checksums."""

import errno
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

CHECKSUMS = "checksums.json"
_ESSENTIAL = {"model/config.json", "model/model.safetensors", "optimizer.pt", "progress.json", "config.yaml"}
_CHUNK = 1 << 20
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)

Throttle = Callable[[], None]
"""Called after each MiB read or written; it may sleep."""


def find_fault(path: Path, throttle: Throttle = lambda: None) -> str | None:
    """What is wrong with a checkpoint directory, by the checksums of all its files; None for a valid one.

    Raises OSError where a file is there and cannot be read: nothing is known about it.
    """
    try:
        for name, digest in _read_checksums(path).items():
            if _sha256(path / name, throttle) != digest:
                return f"{name} does not match its checksum"
    except OSError as error:
        if error.errno not in _MISSING:
            raise
        return f"it is incomplete ({error})"
    except (ValueError, AttributeError, TypeError, RecursionError):
        return f"{CHECKSUMS} is damaged"
    return None


def find_fault_quickly(path: Path, throttle: Throttle = lambda: None) -> str | None:
    """As ``find_fault``, but files that are older than their checksums are not read: they have not changed since."""
    try:
        written = (path / CHECKSUMS).stat().st_mtime_ns
        if all((path / name).stat().st_mtime_ns <= written for name in _read_checksums(path)):
            return None
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        pass
    return find_fault(path, throttle)


def _read_checksums(path: Path) -> dict[str, str]:
    """The file ``checksums.json``. Raises ``ValueError`` and others if it is damaged."""
    text = (path / CHECKSUMS).read_text(encoding="utf-8")
    expected: dict[str, str] = json.loads(text)
    if text != json.dumps(expected, indent=2) or not expected.keys() >= _ESSENTIAL:
        raise ValueError(CHECKSUMS)
    return expected


def save_state(state: dict[str, Any], path: Path, throttle: Throttle) -> None:
    """``torch.save``, but a disk fault raises its own OSError: torch hides the cause."""
    import torch  # takes seconds to load; what looks for checkpoints does without

    with open(path, "wb") as file:
        throttled = _ThrottledFile(file, throttle)
        try:
            torch.save(state, cast(IO[bytes], throttled))
        except RuntimeError as error:
            raise throttled.error or error from error


class _ThrottledFile:
    """A file object that writes in chunks and calls ``throttle`` after each.

    Given a path instead, ``torch.save`` holds the GIL while it writes a tensor: training steps then take twice as long.
    """

    def __init__(self, file: BinaryIO, throttle: Throttle) -> None:
        self.file, self.throttle, self.flush = file, throttle, file.flush
        self.error: OSError | None = None

    def write(self, data: memoryview) -> int:
        """Write all of ``data``."""
        data = memoryview(data)
        try:
            for start in range(0, len(data), _CHUNK):
                self.file.write(data[start : start + _CHUNK])
                self.throttle()
        except OSError as error:
            self.error = error
            raise
        return len(data)


def write_checksums(path: Path, throttle: Throttle) -> None:
    """Write the SHA-256 of every file under ``path`` to ``checksums.json`` there."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    digests = {str(file.relative_to(path)): _sha256(file, throttle) for file in files}
    (path / CHECKSUMS).write_text(json.dumps(digests, indent=2), encoding="utf-8")


def _sha256(path: Path, throttle: Throttle) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            throttle()
    return digest.hexdigest()
