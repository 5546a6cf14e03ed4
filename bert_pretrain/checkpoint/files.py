"""Checkpoint files: throttled writing, checksums, fsync."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

CHECKSUMS = "checksums.json"
_ESSENTIAL = {"model/config.json", "model/model.safetensors", "optimizer.pt", "progress.json", "config.yaml"}
_CHUNK = 1 << 20

Throttle = Callable[[], None]
"""Called after each MiB read or written; it may sleep."""


def find_fault(path: Path, throttle: Throttle = lambda: None) -> str | None:
    """What is wrong with a checkpoint directory, by the checksums of all its files; None for a valid one."""
    try:
        text = (path / CHECKSUMS).read_text(encoding="utf-8")
        expected = json.loads(text)
        if text != json.dumps(expected, indent=2) or not expected.keys() >= _ESSENTIAL:
            return f"{CHECKSUMS} is damaged"
        for name, digest in expected.items():
            if _sha256(path / name, throttle) != digest:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        return f"it is incomplete ({error})"
    return None


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


def fsync(*paths: Path) -> None:
    """Flush files, and the names in directories, to disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
