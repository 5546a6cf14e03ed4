"""Measured peaks of this machine: matrix rate and copy bandwidth."""

import platform
import time
from collections.abc import Callable

import torch


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds that ``run`` takes, including a device synchronisation."""
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


_matrix_rates: dict[tuple[torch.device, torch.dtype], float] = {}


def measured_matrix_rate(device: torch.device, dtype: torch.dtype, reached: float = 0.0, seconds: float = 0.3) -> float:
    """Peak matrix rate of ``device`` in FLOP/s: the best of repeated square products. Synchronises the device.

    Measured once per process, since a study trains many models; again if it is below a rate that was ``reached``.
    """
    known = _matrix_rates.get((device, dtype), 0.0)
    if known <= reached:
        size = 8192 if device.type == "cuda" else 1024
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        known = max(known, 2.0 * size**3 / _shortest(lambda: a @ b, device, seconds))
        _matrix_rates[device, dtype] = known
    return known


def measured_copy_bandwidth(device: torch.device, seconds: float = 0.5) -> float:
    """Bytes read plus written per second: the best of repeated copies. Synchronises the device.

    Copies 256 MiB, on a GPU 2 GiB: there the launch and the synchronisation would be a tenth of a shorter copy.
    """
    source = torch.zeros(1 << (29 if device.type == "cuda" else 26), device=device)
    target = torch.zeros_like(source)
    return 2.0 * source.nbytes / _shortest(lambda: target.copy_(source), device, seconds)


def _shortest(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    times, end = [timed(run, device)], time.perf_counter() + seconds
    while time.perf_counter() < end:
        times.append(timed(run, device))
    return min(times)


def device_name(device: torch.device) -> str:
    """Name of the device; for a CPU also its instruction set and the number of torch threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
