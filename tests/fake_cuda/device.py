"""One fake CUDA device, an H100 by its capability. ``stand_in.load`` must have been called before torch is imported."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import _disable_current_modes

from tests.fake_cuda.guard import DeviceFault, DeviceGuard, Event

DEVICE = torch.device("cuda", 0)
_ALIGNMENT = 512  # of CUDA's allocations


def _cuda_functions(guard: DeviceGuard) -> dict[str, Any]:
    return {
        "is_available": lambda: True,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_name": lambda *_: "NVIDIA H100",
        "is_bf16_supported": lambda *_, **__: True,
        "device_count": lambda: 1,
        "manual_seed_all": lambda *_: None,
        "device": lambda *_: nullcontext(),
        "Stream": MagicMock(),
        "stream": lambda *_: nullcontext(),
        "current_stream": MagicMock(),
        "Event": type("Event", (Event,), {"guard": guard}),
        "synchronize": lambda *_: guard.host_wait("torch.cuda.synchronize"),
    }


class Addresses:
    """Addresses for fake tensors: each storage has a range of its own, aligned as CUDA's."""

    def __init__(self) -> None:
        self._ranges: dict[int, tuple[StorageWeakRef, int]] = {}
        self._end = _ALIGNMENT

    def of(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        known = self._ranges.get(storage._cdata)
        if known is None or known[0].expired():
            known = self._ranges[storage._cdata] = StorageWeakRef(storage), self._end
            self._end += -(-storage.nbytes() // _ALIGNMENT) * _ALIGNMENT
        return known[1] + tensor.storage_offset() * tensor.element_size()


@contextmanager
def fake_cuda() -> Iterator[DeviceGuard]:
    """Context in which ``cuda:0`` exists and all tensors of this thread are fake."""
    guard, addresses = DeviceGuard(), Addresses()
    real_data_ptr, real_numpy = Tensor.data_ptr, Tensor.numpy

    def pin(tensor: Tensor, *_: object) -> Tensor:
        return guard.pin(torch.empty_like(tensor).copy_(tensor))

    def numpy(tensor: Tensor, **options: Any) -> Any:
        with _disable_current_modes():  # which would give the memory of a fake copy
            return real_numpy(tensor, **options)

    def data_ptr(tensor: Tensor) -> int:
        return addresses.of(tensor) if isinstance(tensor, FakeTensor) else real_data_ptr(tensor)

    patches = [patch.object(torch.cuda, name, value) for name, value in _cuda_functions(guard).items()]
    patches += [
        patch.object(torch.amp.autocast_mode.torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        patch.object(FakeTensorMode, "avoid_device_init", True),  # torch.tensor(..., device="cuda") shows its copy
        patch.object(Tensor, "record_stream", lambda *_: None),
        patch.object(Tensor, "pin_memory", pin),
        patch.object(Tensor, "is_pinned", lambda tensor, *_: guard.is_pinned(tensor)),
        patch.object(Tensor, "data_ptr", data_ptr),
        patch.object(Tensor, "numpy", numpy),
    ]
    with ExitStack() as stack:
        for each in patches:
            stack.enter_context(each)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(guard)
        yield guard


@contextmanager
def fake_triton(launches: list[str]) -> Iterator[None]:
    """Context in which a launch of a Triton kernel only checks the devices of its tensors, and is noted."""
    import triton

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        on = {arg.device for arg in (*args, *options.values()) if isinstance(arg, Tensor)}
        if on != {DEVICE}:
            raise DeviceFault(f"{kernel.__name__} gets tensors on {', '.join(sorted(map(str, on)))}")
        launches.append(kernel.__name__)

    with patch.object(triton.runtime.jit.JITFunction, "run", run):
        yield
