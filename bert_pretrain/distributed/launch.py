"""Entry: ``python -m bert_pretrain.distributed.launch [torchrun's options] -m bert_pretrain.pretrain recipe=NAME ...``.

torchrun, changed in five points:

- SIGTERM, SIGUSR1, SIGINT and SIGHUP are forwarded to the ranks, which save and exit in their own time. torchrun would
  kill them after 30 seconds, and SIGUSR1 would kill torchrun itself.
- The exit status is one of ``bert_pretrain.errors``, else 1, where torchrun always exits with 1.
- After 75 and 2, ``--max-restarts`` restarts nothing.
- A rendezvous that fails, or lacks nodes, is reported on one line.
- With ``--standalone`` the ranks meet at localhost.
"""

import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from torch.distributed import DistNetworkError, DistStoreError
from torch.distributed import run as torchrun
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError

from bert_pretrain.distributed.preemption import handle_stop_signals
from bert_pretrain.errors import EXIT_LOST_RANK, EXIT_MISTAKE, EXIT_OUTAGE, EXIT_STOPPED, ConfigError
from bert_pretrain.options.entry_point import print_error

Monitor = Callable[[LocalElasticAgent, WorkerGroup], RunResult]
_LEFT_TO_TORCHRUN = "SIGQUIT"


def forward(number: int, frame: FrameType | None) -> None:
    """Signal handler: send a stop signal to the child processes, the ranks."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):  # it has exited meanwhile
            continue
        if int(parent) == os.getpid() and state != "Z":
            os.kill(int(path.parent.name), number)


def exit_status(error: ChildFailedError) -> int:
    """The launcher's exit status for a failure of the ranks."""
    code: int = error.get_first_failure()[1].exitcode
    return code if code in (EXIT_MISTAKE, EXIT_OUTAGE, EXIT_STOPPED, EXIT_LOST_RANK) else 1


def without_restart(monitor: Monitor) -> Monitor:
    """Wrap torchrun's check of the ranks: none is restarted after a stop on request or a user's mistake."""

    def check(agent: LocalElasticAgent, group: WorkerGroup) -> RunResult:
        result = monitor(agent, group)
        if any(failure.exitcode in (EXIT_STOPPED, EXIT_MISTAKE) for failure in result.failures.values()):
            assert hasattr(agent, "_remaining_restarts"), "private attribute of torch, renamed in this version"
            agent._remaining_restarts = 0
        return result

    return check


def main(words: list[str] | None = None) -> None:
    """Run torchrun, and exit with a status that tells the reason."""
    words = sys.argv[1:] if words is None else words
    arguments = torchrun.get_args_parser().parse_args(["--signals-to-handle", _LEFT_TO_TORCHRUN, *words])
    if arguments.standalone and not arguments.local_addr:
        arguments.local_addr = "localhost"  # not the host's name, which need not resolve, as in some containers
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks print their own errors
    logging.getLogger("torch.distributed.run").setLevel(logging.ERROR)  # and choose their threads themselves
    handle_stop_signals(forward)
    LocalElasticAgent._monitor_workers = without_restart(LocalElasticAgent._monitor_workers)  # type: ignore[method-assign]
    try:
        torchrun.run(arguments)
    except ChildFailedError as error:
        code = exit_status(error)
        if code == 1:
            print(error, file=sys.stderr)
        sys.exit(code)
    except ValueError as error:
        if "rendezvous endpoint" not in str(error):
            raise
        print_error(ConfigError(f"{error} torchrun takes no zone (%eth0) in an address: give one that needs none"))
        sys.exit(EXIT_MISTAKE)
    except (DistNetworkError, DistStoreError, RendezvousError) as error:
        print_error(rendezvous_error(arguments, error))
        sys.exit(EXIT_MISTAKE)


def rendezvous_error(arguments: Namespace, error: Exception) -> ConfigError:
    """A failed rendezvous as a message to the user."""
    endpoint = arguments.rdzv_endpoint or f"{arguments.master_addr}:{arguments.master_port}"
    reason = str(error).partition("\n")[0]  # a stack of C++ follows
    return ConfigError(
        f"the {arguments.nnodes} nodes did not meet at {endpoint} ({reason}); check the address and the port on node "
        "0, that no firewall blocks it, and that every node was started"
    )


if __name__ == "__main__":
    main()
