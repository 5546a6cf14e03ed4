"""The device of a process, and what torch and the C library are told before they use it."""

import ctypes
import os
from contextlib import suppress

import torch

from bert_pretrain.control_group import available_cores
from bert_pretrain.distributed.options import DEVICES
from bert_pretrain.errors import ConfigError, require_choice

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST = 32 * 2**20
"""glibc's own limit of the second: larger blocks are always mapped one by one."""


def pick_device(name: str, local_rank: int, local_size: int = 1) -> torch.device:
    """The device for the option ``device``; ``auto`` is this rank's GPU if there is one. Raises ``ConfigError``."""
    require_choice("device", name, DEVICES)
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but torch sees no CUDA device; use device=cpu, or check the driver")
    if local_size > torch.cuda.device_count():
        raise ConfigError(
            f"{local_size} processes on a node with {torch.cuda.device_count()} GPUs; "
            "start torchrun with --nproc-per-node equal to the number of GPUs"
        )
    return torch.device("cuda", local_rank)


def set_up_device(device: torch.device, size: int, local_size: int) -> None:
    """Prepare ``device`` for one of ``local_size`` processes of this node, ``size`` in all."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # precision.deterministic needs it
        # Read when CUDA is initialised. Micro-batches of several shapes would else leave memory in pieces.
        if not os.environ.get("PYTORCH_CUDA_ALLOC_CONF"):  # the name until torch 2.9, which is read too
            os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
        torch.cuda.set_device(device)
        return
    keep_freed_memory()
    if "OMP_NUM_THREADS" not in os.environ or size > 1:
        # torchrun sets OMP_NUM_THREADS=1 whatever the number of cores. More threads than cores are as bad: OpenMP
        # teams that share cores run 20 to 40 times slower.
        torch.set_num_threads(max(1, available_cores() // local_size))


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for its next tensors.

    glibc gives large blocks back to the system. Each step would get them anew, page by page: a tenth of the CPU time of
    a model of 384 hidden units. Without glibc, no effect.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
