"""torchrun's environment, read once, and what the ranks say to each other.

This is the only file that reads ``os.environ``. Without torchrun the world is this one process.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from bert_pretrain.errors import ConfigError, require
from bert_pretrain.structured import print_error


@dataclass(frozen=True)
class World:
    """Who this process is among ``size`` ranks, and the device it computes on."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True on the rank that writes files and talks to the user."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum ``tensor`` over all ranks, in place; every rank gets the result."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, text: str) -> str:
        """What rank 0 says, on every rank."""
        said = [text]
        if self.size > 1:
            dist.broadcast_object_list(said, src=0)
        return said[0]

    def wait_for_all(self) -> None:
        """Return when every rank has arrived here."""
        if self.size > 1:
            dist.barrier()


def _environment(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def pick_device(name: str, local_rank: int) -> torch.device:
    """``auto`` is this rank's GPU where there is one, else the CPU. Raises ``ConfigError``."""
    require(name in ("auto", "cpu", "cuda"), "device", name, "auto, cpu, cuda")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but torch sees no CUDA device; use device=cpu, or check the driver")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"{local_rank + 1} or more processes on a node with {torch.cuda.device_count()} GPUs; "
            "start torchrun with --nproc-per-node equal to the number of GPUs"
        )
    return torch.device("cuda", local_rank)


def cores_per_rank(local_size: int) -> int:
    """Threads for one rank: busy OpenMP teams that share cores run 20 to 40 times slower."""
    return max(1, len(os.sched_getaffinity(0)) // local_size)


@contextmanager
def open_world(device: str = "auto", timeout_seconds: float = 1800.0) -> Iterator[World]:
    """Join the process group that torchrun describes (gloo on CPU, NCCL on GPUs) and leave it at the end."""
    local_rank, local_size = _environment("LOCAL_RANK", 0), _environment("LOCAL_WORLD_SIZE", 1)
    here = pick_device(device, local_rank)
    world = World(_environment("RANK", 0), local_rank, _environment("WORLD_SIZE", 1), here)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    elif "OMP_NUM_THREADS" not in os.environ or world.size > 1:
        # torchrun sets OMP_NUM_THREADS=1 for every rank, whatever the number of cores.
        torch.set_num_threads(cores_per_rank(local_size))
    if world.size > 1:
        dist.init_process_group(
            "nccl" if here.type == "cuda" else "gloo",
            timeout=timedelta(seconds=timeout_seconds),
            device_id=here if here.type == "cuda" else None,
        )
    yield world
    # Not in a finally: a rank that fails while its peers wait in a collective must die, not wait for them.
    world.wait_for_all()
    if world.size > 1:
        dist.destroy_process_group()


def report_once(error: ConfigError) -> None:
    """Print a user's error on rank 0 only: every rank finds the same mistake in the same configuration."""
    if _environment("RANK", 0) == 0:
        print_error(error)
    sys.stdout.flush()


def wandb_key_present() -> bool:
    """True where wandb could log in without asking."""
    return "WANDB_API_KEY" in os.environ or os.path.exists(os.path.expanduser("~/.netrc"))
