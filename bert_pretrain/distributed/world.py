"""The process group: torchrun's environment, collectives, and errors that all ranks share.

Without torchrun the world is this one process.
"""

import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist

from bert_pretrain.distributed.device import pick_device, set_up_device
from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.preflight import check_ranks_agree, environment_facts, rank_label
from bert_pretrain.distributed.watchdog import Watchdog
from bert_pretrain.errors import ConfigError, SharedError, as_config_error, system_fault
from bert_pretrain.launch_environment import check_interface, read_launch
from bert_pretrain.options.entry_point import print_error, print_error_of_node

Result = TypeVar("Result")
Item = TypeVar("Item")
Options = TypeVar("Options")
_FOREVER = timedelta(days=365)


@dataclass(frozen=True)
class World:
    """This process's rank among ``size`` ranks, and its device."""

    rank: int
    local_rank: int
    size: int
    device: torch.device
    watchdog: Watchdog | None = None
    local_size: int = 1
    """Ranks on this node."""

    @property
    def is_first(self) -> bool:
        """True on the rank that writes files and prints."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """All-reduce ``tensor`` in place and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, item: Item) -> Item:
        """Rank 0's ``item``, on every rank."""
        items = [item]
        if self.size > 1:
            dist.broadcast_object_list(items, src=0)
        return items[0]

    def gather(self, item: Item) -> list[Item]:
        """Every rank's ``item`` in the order of ranks, on every rank."""
        items = [item] * self.size
        if self.size > 1:
            dist.all_gather_object(items, item)
        return items

    def barrier(self) -> None:
        """Barrier: return when every rank has called this."""
        if self.size > 1:
            dist.barrier()

    def run_on_all_ranks(self, work: Callable[[], Result], doing: str = "") -> Result:
        """``work()`` on every rank; if it fails anywhere, all raise a ``SharedError`` that names the lowest such rank.

        For everything before the first step that can fail on one node alone: a missing directory or compiler.
        ``work`` must not contain a collective, in which the others would wait for the rank that failed. An ``OSError``
        counts as a ``ConfigError``. ``doing``: what the work is, for the watchdog, by default its name.
        """
        fault, result = None, None
        try:
            with self.busy(doing or _name_of(work)):
                result = work()
        except BrokenPipeError:  # the reader of the output is gone: there is nobody to report to
            raise
        except ConfigError as error:
            fault = error
        except OSError as error:
            fault = as_config_error(error)
        except Exception as error:  # of a library, about a disk
            fault = system_fault(error)
            if fault is None:
                raise
        if self.size == 1 and fault is not None:
            raise fault
        faults = self.gather((str(fault or ""), rank_label(self.rank), fault.exit_status if fault else 0))
        first = next((found for found in faults if found[0]), None)
        if first is not None:
            message, label, status = first
            raise SharedError(message if all(other == message for other, *_ in faults) else message + label, status)
        return result  # type: ignore[return-value]

    def run_on_first_rank(self, work: Callable[[], Result], doing: str = "") -> Result:
        """Rank 0's ``work()``, on every rank; if it fails, all raise. For what would be the same on all ranks."""
        own = self.run_on_all_ranks(lambda: work() if self.is_first else None, doing or _name_of(work))
        return self.broadcast(own)  # type: ignore[return-value]

    def report_progress(self, step: int | None = None) -> None:
        """Tell the watchdog that this rank makes progress; ``step``: the step that it begins. Costs nothing."""
        if self.watchdog is not None:
            self.watchdog.report_progress(step)

    def busy(self, work: str) -> AbstractContextManager[None]:
        """Context of local work that may take long and is no fault: a disk, a compilation. No collectives in it."""
        return self.watchdog.busy(work) if self.watchdog is not None else nullcontext()

    def busy_once(self, work: str) -> AbstractContextManager[None]:
        """``busy``, the first time only. Synchronises the device before: its queue may hold a collective."""
        if self.watchdog is None or work in self.watchdog.begun:
            return nullcontext()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.watchdog.busy(work)


def _name_of(work: Callable[[], object]) -> str:
    """``check_data`` as ``check data``; a lambda by the function that it is in."""
    function = getattr(work, "func", work)
    parts = getattr(function, "__qualname__", type(function).__name__).split(".")
    return next(part for part in reversed(parts) if not part.startswith("<")).strip("_").replace("_", " ")


@contextmanager
def open_world(
    device: str = "auto", options: str = "", timeout_seconds: float = 1800.0, stop: StopRequest | None = None
) -> Iterator[World]:
    """Join the process group that torchrun describes (gloo on CPU, NCCL on GPUs), and destroy it at the end.

    ``options`` must be the same text on all ranks. Raises ``ConfigError``, the same on every rank, if options, versions
    or sources differ, a rank has no device, or a rank does not connect. If a rank dies or hangs later, the watchdog
    prints a message and exits with ``EXIT_LOST_RANK``.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler prints when it starts and stops
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    launch = read_launch()
    rank = launch.rank
    size = launch.size
    local_rank = launch.local_rank
    local_size = launch.local_size
    timeout, store = timedelta(seconds=timeout_seconds), None
    own_device, fault = torch.device("cpu"), ""
    try:
        own_device = pick_device(device, local_rank, local_size)
        check_interface()
    except ConfigError as error:
        fault = str(error)
    if size > 1:
        store = _connect(timeout)
        fault = check_ranks_agree(store, rank, size, fault, environment_facts(own_device, options), timeout)
    if fault:
        raise SharedError(fault)
    watchdog = Watchdog(store, rank, size, timeout_seconds, local_rank == 0, stop) if store is not None else None
    world = World(rank, local_rank, size, own_device, watchdog, local_size)
    set_up_device(world.device, size, local_size)
    if watchdog is not None:
        watchdog.start()
        _init_process_group(world, store)
    try:
        yield world
        # Not in a finally: a rank that fails while its peers wait in a collective must exit, not wait for them.
        world.barrier()
    except SharedError:
        # The launcher kills the other ranks once one has exited: wait until each has printed its error, or saved.
        with suppress(RuntimeError):  # a lost rank, which matters less than the error to report
            world.barrier()
        raise
    except RuntimeError as error:
        if watchdog is None or not is_collective_error(error):
            raise
        watchdog.collective_failed(re.sub(r"^\[\S+\] ", "", _first_sentence(error)))  # without gloo's file and line
    finally:
        if watchdog is not None:
            watchdog.stop()
    if watchdog is not None:
        dist.destroy_process_group()


def _connect(timeout: timedelta) -> dist.Store:
    """Meet the other ranks at ``MASTER_ADDR:MASTER_PORT``. Raises ``ConfigError`` if that fails."""
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ConfigError(
            f"the ranks did not meet at {place} ({_first_sentence(error)}); check that every rank was started with "
            "this address, that the port is free on rank 0's node, and that no firewall blocks it"
        ) from None
    return store


def _first_sentence(error: Exception) -> str:
    """Of the first line of a message of torch, which goes on with advice or a stack."""
    return str(error).strip().partition("\n")[0].partition(". ")[0]


def _init_process_group(world: World, store: dist.Store | None) -> None:
    # Otherwise NCCL's own watchdog aborts the process at a lost peer, before ours has named the rank.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    on_gpu = world.device.type == "cuda"
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        timeout=_FOREVER,  # the watchdog knows which ranks are only slow
        device_id=world.device if on_gpu else None,
        store=store,
        rank=world.rank,
        world_size=world.size,
    )


def is_collective_error(error: RuntimeError) -> bool:
    """Whether ``error`` is a collective that failed because a peer is gone."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def one_message_for_all_ranks(function: Callable[[Options], None]) -> Callable[[Options], None]:
    """Wrap ``function``: after a ``ConfigError`` on any ranks, print it once and exit with its status.

    Rank 0 prints what all ranks raise; any other error is printed by its own rank. Before the process group exists, all
    ranks most likely have the same error: one rank per node prints it.
    """

    @functools.wraps(function)
    def guarded(config: Options) -> None:
        try:
            function(config)
        except ConfigError as error:
            if isinstance(error, SharedError):
                if read_launch().rank == 0:
                    print_error(error)
            elif dist.is_initialized():
                print_error(ConfigError(f"{error}{rank_label(dist.get_rank())}"))
            else:
                print_error_of_node(error)
            exit_process(error.exit_status)

    return guarded


def exit_process(status: int) -> NoReturn:
    """Exit; while a process group exists, by ``os._exit``.

    If a peer exits at the same moment, gloo's threads may abort an interpreter that is shutting down.
    """
    if not dist.is_initialized():
        sys.exit(status)
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    os._exit(status)
