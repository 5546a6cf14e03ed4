"""What is on the disk is what was written: in pieces, with checksums, flushed.

Each function that goes over much data calls ``rest`` after each piece of it.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

CHECKSUMS = "checksums.json"
_ESSENTIAL = {"model/config.json", "model/model.safetensors", "optimizer.pt", "progress.json", "config.yaml"}
_PIECE = 1 << 20

Throttle = Callable[[], None]


def no_throttle() -> None:
    """Go on."""


def find_fault(path: Path, throttle: Throttle = no_throttle) -> str | None:
    """What is wrong with a checkpoint directory, or None."""
    try:
        text = (path / CHECKSUMS).read_text(encoding="utf-8")
        expected = json.loads(text)
        if text != _as_json(expected) or not expected.keys() >= _ESSENTIAL:
            return f"{CHECKSUMS} is not as it was written"
        for name, digest in expected.items():
            if _sha256(path / name, throttle) != digest:
                return f"{name} is not as it was written"
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        return f"it is incomplete ({error})"
    return None


def save_state(state: dict[str, Any], path: Path, throttle: Throttle) -> None:
    """``torch.save``. Raises the disk's own error, of which torch only says that something failed."""
    with open(path, "wb") as file:
        pieces = _InPieces(file, throttle)
        try:
            torch.save(state, cast(IO[bytes], pieces))
        except RuntimeError as error:
            raise pieces.fault or error from error


class _InPieces:
    """A file that is written a piece at a time, without Python's lock.

    Into a path ``torch.save`` writes whole tensors under that lock, and the steps beside it take twice as long.
    """

    def __init__(self, file: BinaryIO, throttle: Throttle) -> None:
        self.file, self.throttle, self.flush = file, throttle, file.flush
        self.fault: OSError | None = None

    def write(self, data: memoryview) -> int:
        """All of ``data``."""
        whole = memoryview(data)
        try:
            for start in range(0, len(whole), _PIECE):
                self.file.write(whole[start : start + _PIECE])
                self.throttle()
        except OSError as error:
            self.fault = error
            raise
        return len(whole)


def write_checksums(path: Path, throttle: Throttle) -> None:
    """SHA-256 of all files under ``path``, into one more."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    digests = {str(file.relative_to(path)): _sha256(file, throttle) for file in files}
    (path / CHECKSUMS).write_text(_as_json(digests), encoding="utf-8")


def _as_json(digests: dict[str, str]) -> str:
    return json.dumps(digests, indent=2)


def _sha256(path: Path, throttle: Throttle) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            throttle()
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Return when all under ``path`` is on the disk."""
    for file in path.rglob("*"):
        if file.is_file():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        else:
            flush_directory(file)
    flush_directory(path)


def flush_directory(path: Path) -> None:
    """Return when the names in ``path`` are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
