"""Watches every operation on fake CUDA tensors for what would make a GPU wait for the host, or fail there.

A fault is raised at the operation, so that the traceback names the line of the program. In a hot part (a training step,
an evaluation) the host may read nothing but ``landed`` numbers: pinned memory to which they were copied, after waiting
for an event that was recorded behind the copy. Outside of hot parts reads are allowed, and give 1.
"""

import gc
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
SMALL_COPY = 1 << 16
"""Bytes up to which CUDA copies from memory that is not pinned without waiting: they travel with the command."""
_WITHOUT_FAKE = {aten._fused_adamw_.tensor_lr, aten._fused_adam_.tensor_lr, aten._fused_sgd_.tensor_lr}
"""Operations that change their arguments in place and give nothing back, for which torch has no fake."""


class DeviceFault(RuntimeError):
    """What would be wrong on a GPU."""


class Event:
    """``torch.cuda.Event`` on a fake device; it tells the guard what was copied before it, and who waits for it."""

    guard: "DeviceGuard"

    def __init__(self, *_: object, **__: object) -> None:
        self.copies: list[int] = []
        self.step = 0

    def record(self, *_: object) -> None:
        self.step = self.guard.step
        self.copies, self.guard.enqueued = self.guard.enqueued, []

    def synchronize(self) -> None:
        self.guard.landed.update(dict.fromkeys(self.copies, self.step))
        self.guard.flying.difference_update(self.copies)
        if threading.current_thread() is threading.main_thread():  # the thread that saves may wait
            self.guard.waits.append((self.step, self.guard.step))

    def wait(self, *_: object) -> None:
        """A stream waits, not the host."""


class DeviceGuard(TorchDispatchMode):
    """Enter it inside ``FakeTensorMode``, so that it sees each operation first."""

    def __init__(self) -> None:
        super().__init__()
        self.hot = False
        self.step = 0
        """Training steps that were enqueued so far."""
        self.waits: list[tuple[int, int]] = []
        """For each wait for an event: ``step`` when it was recorded, and at the wait."""
        self._pinned: dict[int, StorageWeakRef] = {}
        self.enqueued: list[int] = []
        """Pinned memory to which copies were enqueued since the last event."""
        self.flying: set[int] = set()
        """Pinned memory to which copies were enqueued, and no event behind them was waited for."""
        self.landed: dict[int, int] = {}
        """Pinned memory whose numbers may be read; ``step`` when they were computed."""
        self.slow_lists: Counter[str] = Counter()
        """Multi-tensor operations whose lists differ in shape, for which torch launches a kernel for each tensor."""
        self.answers: Callable[[int, int, int], float] = lambda _size, _place, _step: 0.0
        """(numbers that landed together, index of one, ``step`` when they were computed) -> its value."""
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    @contextmanager
    def watching(self, hot: bool = True) -> Iterator[None]:
        """Context of a hot part, or of a cold one within it."""
        before, self.hot = self.hot, hot
        try:
            yield
        finally:
            self.hot = before

    def live(self) -> tuple[int, int]:
        """Storages that exist now on the device, and pinned ones that the program has made itself; and their bytes."""
        gc.collect()
        for key, kept in self._pinned.copy().items():  # in place: the loader's thread pins meanwhile
            if kept.expired() and self._pinned[key] is kept:
                del self._pinned[key]
        self.flying &= self._pinned.keys()
        self.landed = {key: step for key, step in self.landed.items() if key in self._pinned}
        self._storages = {key: kept for key, kept in self._storages.items() if not kept[0].expired()}
        return len(self._storages), sum(size for _, size in self._storages.values())

    def host_wait(self, what: str) -> None:
        """Called where the host waits for the device."""
        if self.hot:
            raise DeviceFault(f"the host waits for the device: {what}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        devices = {tensor.device.type for tensor in _tensors((*args, *kwargs.values()))}
        if func is aten._local_scalar_dense.default:
            return self._read(args[0])
        if func is aten._to_copy.default:
            out = func(*args, **kwargs)
            self._copied(out, args[0], bool(kwargs.get("non_blocking")), fresh=True)
            return self._kept(out)
        if func is aten.copy_.default:
            self._copied(args[0], args[1], bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2])))
            return func(*args, **kwargs)
        if func is aten._foreach_copy_.default:
            for target, source in zip(args[0], args[1], strict=True):
                self._copied(target, source, bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2])))
            return func(*args, **kwargs)
        if len(devices) > 1:
            raise DeviceFault(f"{_name(func)} has tensors on {' and '.join(sorted(devices))}")
        if "cuda" in devices and self.hot and self._depends_on_values(func, args, kwargs):
            self.host_wait(_name(func))
        if "cuda" in devices and isinstance(args[0], (list, tuple)) and _name(func).startswith("_foreach"):
            self._check_foreach(_name(func), args)
        if func in _WITHOUT_FAKE:
            return None
        pinned = kwargs.pop("pin_memory", False)
        out = func(*args, **kwargs)
        if pinned:
            self.pin(out)
        return self._kept(out)

    @staticmethod
    def _depends_on_values(func: Any, args: Any, kwargs: Any) -> bool:
        """Whether a shape or an answer depends on what is in the tensors."""
        if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
            masks = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
            return masks and (func is aten.index.Tensor or args[2].numel() > 1)
        if func is aten.repeat_interleave.Tensor:
            return kwargs.get("output_size") is None
        return torch.Tag.dynamic_output_shape in func.tags or torch.Tag.data_dependent_output in func.tags

    def _check_foreach(self, name: str, args: Any) -> None:
        """Two lists whose tensors differ in shape: torch then launches a kernel for each pair."""
        lists = [arg for arg in args if isinstance(arg, (list, tuple)) and arg and isinstance(arg[0], Tensor)]
        pairs = [pair for others in lists[1:] for pair in zip(lists[0], others, strict=True)]
        if self.hot and any(one.shape != other.shape for one, other in pairs):
            self.slow_lists[name] += len(lists[0])

    def _copied(self, target: Tensor, source: Tensor, non_blocking: bool, fresh: bool = False) -> None:
        """Check a copy of ``source`` to ``target``, which torch has made if ``fresh``: pinned, if it does not wait."""
        to, of, size = target.device.type, source.device.type, source.numel() * source.element_size()
        if to == of:
            return
        if to == "cuda":
            if not non_blocking:
                self.host_wait(f"a copy of {size:,} bytes from the host without non_blocking")
            elif size > SMALL_COPY and not self.is_pinned(source):
                self.host_wait(f"a copy of {size:,} bytes from memory that is not pinned")
            return
        if fresh and non_blocking:
            self.pin(target)
        if not non_blocking or not self.is_pinned(target):
            self.host_wait(f"a copy of {size:,} bytes to the host")
        else:
            self.enqueued.append(_storage(target))
            self.flying.add(_storage(target))
            self.landed.pop(_storage(target), None)

    def _read(self, tensor: Tensor) -> bool | int | float:
        """The value of a 0-d tensor."""
        answer = 1.0
        storage = _storage(tensor)
        if storage in self.landed:
            size = tensor.untyped_storage().nbytes() // tensor.element_size()
            answer = self.answers(size, tensor.storage_offset(), self.landed[storage])
        elif storage in self.flying or tensor.device.type == "cuda":
            self.host_wait("a number is read, and not from memory in which it has landed")
        elif getattr(tensor, "constant", None) is not None:  # a fake tensor made of a number
            return tensor.constant.item()
        elif type(tensor) is Tensor:
            return tensor.numpy().item()
        return bool(answer) if tensor.dtype == torch.bool else answer if tensor.is_floating_point() else int(answer)

    def pin(self, tensor: Tensor) -> Tensor:
        """Note that ``tensor`` is in pinned memory."""
        self._pinned[_storage(tensor)] = StorageWeakRef(tensor.untyped_storage())
        if isinstance(tensor, FakeTensor):  # the loader's are not: how many there are depends on its thread
            self._note(tensor)
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` is in pinned memory."""
        return _storage(tensor) in self._pinned

    def _kept(self, out: Any) -> Any:
        for tensor in _tensors((out,)):
            if tensor.device.type == "cuda":
                self._note(tensor)
        return out

    def _note(self, tensor: Tensor) -> None:
        key = _storage(tensor)
        if key not in self._storages:
            storage = tensor.untyped_storage()
            self._storages[key] = StorageWeakRef(storage), storage.nbytes()


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments or results of an operation, those in lists too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _name(func: Any) -> str:
    name: str = func.name()
    return name.removeprefix("aten::")


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
