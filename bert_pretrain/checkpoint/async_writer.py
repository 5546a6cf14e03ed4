"""Checkpoints written in the background: a step waits only for a copy in memory, a thread does the rest.

The thread sleeps as long as it has worked (50 % duty cycle), because training steps share caches and memory bandwidth
with it, unless the trainer waits for it. A save that fails for the disk or for lack of memory does not stop a run: it
is reported with its cause, earlier checkpoints stay, and the next save tries again. After ``max_failed`` such saves in
a row the run ends, and the last save of a run must succeed. Any other error is a bug and ends the run at once.
"""

import copy
import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from bert_pretrain.checkpoint.store import CheckpointStore, Progress
from bert_pretrain.errors import OUTAGES, as_config_error, on_one_line


def _empty_on_host(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of ``model`` in host memory with uninitialised weights. Takes no device memory."""
    memo: dict[int, Any] = {
        id(weight): torch.nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype)) for weight in model.parameters()
    }
    memo |= {id(buffer): buffer.cpu().clone() for buffer in model.buffers()}
    return copy.deepcopy(model, memo)


def _copied(value: Any, kept: Any) -> Any:
    """``value`` with its tensors copied to the host, into those of ``kept`` if shape and dtype match."""
    if isinstance(value, torch.Tensor):
        if not isinstance(kept, torch.Tensor) or (kept.shape, kept.dtype) != (value.shape, value.dtype):
            kept = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        return kept.copy_(value, non_blocking=True)
    if isinstance(value, dict):
        known = kept if isinstance(kept, dict) else {}
        return {key: _copied(part, known.get(key)) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        before = kept if isinstance(kept, (list, tuple)) and len(kept) == len(value) else [None] * len(value)
        return type(value)(_copied(part, old) for part, old in zip(value, before, strict=True))
    return value


class CheckpointWriter:
    """Saves to ``store`` in a background thread, one checkpoint at a time; ``report`` gets messages about failures."""

    def __init__(
        self,
        store: CheckpointStore,
        report: Callable[[str], None],
        max_failed: int,
        saved: Callable[[Path, int], None] = lambda path, step: None,
    ) -> None:
        """``saved`` gets the path and the step of each checkpoint that is on disk."""
        self.store = store
        self._report = report
        self._max_failed = max_failed
        self._saved = saved
        self._awaited, self._worked = threading.Event(), 0.0
        self._model: PreTrainedModel | None = None
        self._optimizer_state: dict[str, Any] = {}
        self._copied: torch.cuda.Event | None = None
        self._thread: threading.Thread | None = None
        self._failed, self._fault = 0, ""
        self._fault_error: OSError | None = None
        self._error: BaseException | None = None

    def save(
        self, model: PreTrainedModel, optimizer_state: dict[str, Any], progress: Progress, config_yaml: str
    ) -> None:
        """Copy, and start to write. Waits first for the checkpoint before this one, and raises as ``wait`` does.

        If one more failure in a row is one too many, waits for this one too, and raises as ``finish`` does.
        """
        self.wait()
        is_last_attempt = self._failed + 1 >= self._max_failed
        try:
            self._copy_to_host(model, optimizer_state)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            self._note_failure(progress, OSError(errno.ENOMEM, on_one_line(error)))
        else:
            self._awaited.clear()
            self._thread = threading.Thread(target=self._write, args=(progress, config_yaml), name="checkpoint")
            self._thread.start()
        if is_last_attempt:
            self.finish()

    @torch.no_grad()
    def _copy_to_host(self, model: PreTrainedModel, optimizer_state: dict[str, Any]) -> None:
        """Copy weights and optimizer state, from a GPU on the current stream, ahead of the steps that follow.

        Every copy reuses the memory of the last one: the page faults of fresh memory would cost more than the copy.
        """
        if self._model is None:
            self._model = _empty_on_host(model)
        for kept, weight in zip(self._model.parameters(), model.parameters(), strict=True):
            if weight.is_cuda and not kept.is_pinned():
                kept.data = kept.data.pin_memory()
            kept.copy_(weight, non_blocking=True)
        self._optimizer_state = _copied(optimizer_state, self._optimizer_state)
        if any(weight.is_cuda for weight in model.parameters()):
            self._copied = torch.cuda.Event()
            self._copied.record()

    def join(self) -> None:
        """Return when nothing is being written."""
        if self._thread is not None:
            self._awaited.set()
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """``join``, and raise the thread's error, unless it is one of the disk or of memory."""
        self.join()
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """``wait``, and raise ``ConfigError`` if the last checkpoint could not be written (``OutageError``: outage)."""
        self.wait()
        if self._fault_error is not None:
            again = f", as {self._failed - 1} before it" if self._failed > 1 else ""
            message = f"{self._fault}{again}; {_advice(self._fault_error)}, and start again with the same command"
            raise type(as_config_error(self._fault_error))(message)

    def _note_failure(self, progress: Progress, error: OSError) -> None:
        self._failed, self._fault_error = self._failed + 1, error
        self._fault = (
            f"the checkpoint of step {progress.step} could not be written under {self.store.directory} ({error}); "
            "earlier ones are unchanged"
        )
        self._report(
            f"{self._fault}; training goes on, and the next save tries again ({self._failed} of "
            f"{self._max_failed} failures in a row, which end the run: checkpoint.max_failed_saves)"
        )

    def _throttle(self) -> None:
        """Sleep as long as this thread has worked since the last call."""
        now = time.thread_time()
        self._awaited.wait(now - self._worked)
        self._worked = now

    def _write(self, progress: Progress, config_yaml: str) -> None:
        self._worked = time.thread_time()
        try:
            if self._copied is not None:
                self._copied.synchronize()
            assert self._model is not None
            path = self.store.save(self._model, self._optimizer_state, progress, config_yaml, self._throttle)
            self._saved(path, progress.step)
            self._failed, self._fault_error = 0, None
        except OSError as error:
            self._note_failure(progress, error)
        except BaseException as error:  # raised in the main thread by wait
            self._error = error


def _advice(error: OSError) -> str:
    """What to do about a failed save, by its cause."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "make room"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "make the directory writable for this user"
    if error.errno == errno.ENOMEM:
        return "free memory: a save copies weights and moments into it"
    if error.errno in OUTAGES:
        return "wait until the disk answers"
    return "mend the cause"
