"""Checkpoints written in the background: a step waits only for a copy in memory, a thread does the rest.

The thread sleeps as long as it has worked (50 % duty cycle), because training steps share caches and memory bandwidth
with it, unless the trainer waits for it. A full or read-only disk does not stop a run: it is reported, earlier
checkpoints stay, and the next save tries again. Only the last save of a run must succeed.
"""

import copy
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from bert_pretrain.checkpoint.store import CheckpointStore, Progress
from bert_pretrain.errors import ConfigError


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

    def __init__(self, store: CheckpointStore, report: Callable[[str], None]) -> None:
        self.store, self._report = store, report
        self._awaited, self._worked = threading.Event(), 0.0
        self._model: PreTrainedModel | None = None
        self._optimizer_state: dict[str, Any] = {}
        self._copied: torch.cuda.Event | None = None
        self._thread: threading.Thread | None = None
        self._disk_fault = ""
        self._error: BaseException | None = None

    def save(
        self, model: PreTrainedModel, optimizer_state: dict[str, Any], progress: Progress, config_yaml: str
    ) -> None:
        """Copy, and start to write. Waits first for the checkpoint before this one, and raises as ``wait`` does."""
        self.wait()
        self._copy_to_host(model, optimizer_state)
        self._disk_fault = ""
        self._awaited.clear()
        self._thread = threading.Thread(target=self._write, args=(progress, config_yaml), name="checkpoint")
        self._thread.start()

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
        """``join``, and raise the thread's error, unless it is a disk fault."""
        self.join()
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """``wait``, and raise ``ConfigError`` if the last checkpoint could not be written."""
        self.wait()
        if self._disk_fault:
            raise ConfigError(f"{self._disk_fault}; make room, and start again with the same command")

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
            self.store.save(self._model, self._optimizer_state, progress, config_yaml, self._throttle)
        except OSError as error:
            self._disk_fault = (
                f"the checkpoint of step {progress.step} could not be written under {self.store.directory} ({error}); "
                "earlier ones are unchanged"
            )
            self._report(f"{self._disk_fault}; training goes on, and the next save tries again")
        except BaseException as error:  # raised in the main thread by wait
            self._error = error
