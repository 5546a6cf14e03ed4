"""Peaks of this machine: matrix rate and copy bandwidth as measured, and the matrix rate of the data sheet.

The data sheets, all for dense products in 16 bits with float32 sums:

- A100: nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf
- H100: nvidia.com/en-us/data-center/h100; H200: nvidia.com/en-us/data-center/h200; half of the rates with sparsity
- B200: nvidia.com/en-us/data-center/hgx, likewise, one of the eight
- L40S: nvidia.com/en-us/data-center/l40s
- V100: images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf
- T4: nvidia.com/en-us/data-center/tesla-t4
- RTX 4090: images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf, appendix A
- MI300X: amd.com/en/products/accelerators/instinct/mi300/mi300x.html
"""

import platform
import re
import time
from collections.abc import Callable

import torch

_DATA_SHEETS = {
    r"A100": 312.0,
    r"H100 PCIe": 756.0,
    r"H[12]00 NVL": 835.0,
    r"H[12]00": 989.0,
    r"B200": 2250.0,
    r"L40S": 362.0,
    r"V100S": 130.0,
    r"V100-PCIE": 112.0,
    r"V100": 125.0,
    r"T4": 65.0,
    r"RTX 4090$": 165.2,
    r"MI300X": 1307.4,
}
"""Dense TFLOP/s by what torch calls the device; the first that matches."""
_WITHOUT_BF16 = r"V100|\bT4\b"


def data_sheet_rate(name: str, dtype: torch.dtype) -> float | None:
    """FLOP/s of matrix products in ``dtype`` by the data sheet of the device ``name``; None if it is not known."""
    known = (torch.float16,) if re.search(_WITHOUT_BF16, name) else (torch.float16, torch.bfloat16)
    if dtype not in known or "MIG" in name:  # a part of a device
        return None
    rates = (rate for pattern, rate in _DATA_SHEETS.items() if re.search(rf"\b{pattern}(\b|$)", name))
    return next((rate * 1e12 for rate in rates), None)


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

    Measured once per process, since a study trains many models; again if it is below a rate that was ``reached``, which
    it becomes if there is no memory left for matrices.
    """
    known = _matrix_rates.get((device, dtype), 0.0)
    if known <= reached:
        size = 8192 if device.type == "cuda" else 1024
        try:
            a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
            known = max(known, 2.0 * size**3 / _shortest(lambda: a @ b, device, seconds))
        except torch.OutOfMemoryError:  # in a run that fills the memory
            known = max(known, reached)
        _matrix_rates[device, dtype] = known
    return known


def measured_copy_bandwidth(device: torch.device) -> float:
    """Bytes read plus written per second: the best of repeated copies. Synchronises the device.

    Copies 256 MiB, on a GPU 2 GiB: there the launch and the synchronisation would be a tenth of a shorter copy.
    """
    source = torch.zeros(1 << (29 if device.type == "cuda" else 26), device=device)
    target = torch.zeros_like(source)
    return 2.0 * source.nbytes / _shortest(lambda: target.copy_(source), device, 0.5)


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
