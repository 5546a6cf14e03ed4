"""torchrun's environment, read once, and what the ranks say to each other.

This is the only file that reads ``os.environ``. Without torchrun the world is this one process.
"""

import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist

from bert_pretrain.config_loading import print_error
from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.preflight import check_ranks_agree, environment_facts, rank_label
from bert_pretrain.distributed.watchdog import Watchdog
from bert_pretrain.errors import ConfigError, SharedError, require

Result = TypeVar("Result")
Said = TypeVar("Said")
Options = TypeVar("Options")


@dataclass(frozen=True)
class World:
    """Who this process is among ``size`` ranks, and the device it computes on."""

    rank: int
    local_rank: int
    size: int
    device: torch.device
    watchdog: Watchdog | None = None

    @property
    def is_first(self) -> bool:
        """True on the rank that writes files and talks to the user."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum ``tensor`` over all ranks, in place; every rank gets the result."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def smallest(self, number: int) -> int:
        """The smallest of all ranks' numbers."""
        if self.size == 1:
            return number
        found = torch.tensor(number, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return int(found)

    def broadcast(self, text: str) -> str:
        """What rank 0 says, on every rank."""
        said = [text]
        if self.size > 1:
            dist.broadcast_object_list(said, src=0)
        return said[0]

    def run_on_all_ranks(self, work: Callable[[], Result]) -> Result:
        """``work()`` on every rank; where any fails, all raise a ``SharedError`` that names the lowest such rank.

        For all work before the first step: a directory need not be seen, nor a compiler be there, on every node.
        ``work`` must hold no collective, in which the others would wait for the rank that failed. ``OSError`` counts
        as a mistake too.
        """
        fault, result = "", None
        try:
            result = work()
        except BrokenPipeError:  # who read the output has left: nothing that the user could be told
            raise
        except (ConfigError, OSError) as error:
            fault = str(error) or type(error).__name__
            if self.size == 1:
                raise error if isinstance(error, ConfigError) else ConfigError(fault) from error
        heard = self.gather((fault, rank_label(self.rank)))
        found = next((said for said in heard if said[0]), None)
        if found is not None:
            raise SharedError(found[0] if all(said == found[0] for said, _ in heard) else "".join(found))
        return result  # type: ignore[return-value]

    def report_progress(self, step: int | None = None) -> None:
        """This rank gets on, in ``step`` where one begins: the others need not take it for hung. Costs nothing."""
        if self.watchdog is not None:
            self.watchdog.report_progress(step)

    def gather(self, said: Said) -> list[Said]:
        """What every rank says, in their order, on every rank."""
        heard = [said] * self.size
        if self.size > 1:
            dist.all_gather_object(heard, said)
        return heard

    def wait_for_all(self) -> None:
        """Return when every rank has arrived here."""
        if self.size > 1:
            dist.barrier()


def _environment(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def pick_device(name: str, local_rank: int, local_size: int = 1) -> torch.device:
    """``auto`` is this rank's GPU where there is one, else the CPU. Raises ``ConfigError``."""
    require(name in ("auto", "cpu", "cuda"), "device", name, "auto, cpu, cuda")
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


def cores_per_rank(local_size: int) -> int:
    """Threads for one rank: busy OpenMP teams that share cores run 20 to 40 times slower."""
    return max(1, len(os.sched_getaffinity(0)) // local_size)


@contextmanager
def open_world(
    device: str = "auto", options: str = "", timeout_seconds: float = 1800.0, stop: StopRequest | None = None
) -> Iterator[World]:
    """Join the process group that torchrun describes (gloo on CPU, NCCL on GPUs) and leave it at the end.

    ``options`` has to be the same text on all ranks. Raises ``ConfigError``, the same on every rank, where it is not,
    where versions or sources differ, where a rank finds no device for itself, or where one does not come. A rank
    that is lost or hung later ends the process with a message and ``watchdog.EXIT_LOST_RANK``.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler prints when it starts and stops
    local_rank, local_size = _environment("LOCAL_RANK", 0), _environment("LOCAL_WORLD_SIZE", 1)
    rank, size = _environment("RANK", 0), _environment("WORLD_SIZE", 1)
    timeout, store = timedelta(seconds=timeout_seconds), None
    here, fault = torch.device("cpu"), ""
    try:
        here = pick_device(device, local_rank, local_size)
    except ConfigError as error:
        fault = str(error)
    if size > 1:
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
        fault = check_ranks_agree(store, rank, size, fault, environment_facts(here, options))
    if fault:
        raise SharedError(fault)
    watchdog = Watchdog(store, rank, size, timeout_seconds, local_rank == 0, stop) if store is not None else None
    world = World(rank, local_rank, size, here, watchdog)
    if here.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it precision.deterministic cannot hold
        torch.cuda.set_device(here)
    elif "OMP_NUM_THREADS" not in os.environ or world.size > 1:
        # torchrun sets OMP_NUM_THREADS=1 for every rank, whatever the number of cores.
        torch.set_num_threads(cores_per_rank(local_size))
    if world.size > 1:
        _join(world, store, timeout)
    if watchdog is not None:
        watchdog.start()
    try:
        yield world
        # Not in a finally: a rank that fails while its peers wait in a collective must die, not wait for them.
        world.wait_for_all()
    except SharedError:
        with suppress(RuntimeError):  # of a lost rank: the mistake is what has to be told
            world.wait_for_all()  # a launcher ends the others when one has left: one may have to speak, or to save
        raise
    except RuntimeError as error:
        if watchdog is None or not is_collective_error(error):
            raise
        first = str(error).strip().partition("\n")[0].partition(". ")[0]
        watchdog.collective_failed(re.sub(r"^\[\S+\] ", "", first))  # without the place in gloo's source
    finally:
        if watchdog is not None:
            watchdog.end()
    if world.size > 1:
        dist.destroy_process_group()


def _join(world: World, store: dist.Store | None, timeout: timedelta) -> None:
    # Else NCCL's own watchdog aborts the process at a lost peer, before the watchdog has said who it was.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    on_gpu = world.device.type == "cuda"
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        timeout=2 * timeout,  # the watchdog speaks first
        device_id=world.device if on_gpu else None,
        store=store,
        rank=world.rank,
        world_size=world.size,
    )


def is_collective_error(error: RuntimeError) -> bool:
    """Whether a collective failed for want of a peer."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def report_once(error: ConfigError) -> None:
    """Print a user's error: what all ranks raise once, any other where it is raised, so that none ends in silence.

    Before the ranks meet the mistake is most likely the same on all of them: there it is once a node. After it the
    process ends here (see ``leave``).
    """
    rank, local_rank = _environment("RANK", 0), _environment("LOCAL_RANK", 0)
    if isinstance(error, SharedError):
        if rank == 0:
            print_error(error)
    elif dist.is_initialized():
        print_error(ConfigError(f"{error}{rank_label(rank)}"))
    elif local_rank == 0:
        print_error(error)
    if dist.is_initialized():
        leave(2)


def one_message_for_all_ranks(function: Callable[[Options], None]) -> Callable[[Options], None]:
    """End ``function`` with status 2 and one message, whichever ranks raise a ``ConfigError`` in it."""

    @functools.wraps(function)
    def guarded(config: Options) -> None:
        try:
            function(config)
        except ConfigError as error:
            report_once(error)
            sys.exit(2)

    return guarded


def leave(status: int) -> NoReturn:
    """End the process, where the group of ranks still stands not as ``sys.exit`` does.

    When a peer leaves at that moment, gloo's threads may abort an interpreter that is ending.
    """
    if not dist.is_initialized():
        sys.exit(status)
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    os._exit(status)


def wandb_key_present() -> bool:
    """True where wandb could log in without asking."""
    return "WANDB_API_KEY" in os.environ or os.path.exists(os.path.expanduser("~/.netrc"))
