"""Entry: ``python -m bert_pretrain.distributed.launch [torchrun's options] -m bert_pretrain.pretrain recipe=NAME ...``.

torchrun itself, told of four things. SIGTERM, SIGUSR1 and SIGINT go to the ranks, which save and leave in their own
time (torchrun would kill them after 30 seconds, and would itself die of SIGUSR1). A run that stopped as asked ends with
status 75, one that lost a rank with 76, a mistake of the user with 2 (torchrun ends with 1 whatever the reason); after
75 and 2 nothing is started again under ``--max-restarts``. And a meeting place that is not reached, or where nodes are
missing, is said in one line.
"""

import logging
import os
import signal
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

from bert_pretrain.config_loading import print_error
from bert_pretrain.distributed.preemption import EXIT_STOPPED, STOP_SIGNALS
from bert_pretrain.distributed.watchdog import EXIT_LOST_RANK
from bert_pretrain.errors import ConfigError

_MISTAKE = 2
Monitor = Callable[[LocalElasticAgent, WorkerGroup], RunResult]
_LEFT_TO_TORCHRUN = "SIGHUP,SIGQUIT"


def forward(number: int, frame: FrameType | None) -> None:
    """Hand a stop signal on to the children of this process, the ranks."""
    for child in _children():
        os.kill(child, number)


def _children() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):  # it ended meanwhile
            continue
        if int(parent) == os.getpid() and state != "Z":
            found.append(int(path.parent.name))
    return found


def status(error: ChildFailedError) -> int:
    """The exit status that the ranks' failure stands for; torchrun's is 1 for all of them."""
    code: int = error.get_first_failure()[1].exitcode
    return code if code in (EXIT_STOPPED, EXIT_LOST_RANK, _MISTAKE) else 1


def without_restart(monitor: Monitor) -> Monitor:
    """torchrun's look at the ranks, after which those that stopped as asked, or for a mistake, are not restarted."""

    def look(agent: LocalElasticAgent, group: WorkerGroup) -> RunResult:
        result = monitor(agent, group)
        if any(failure.exitcode in (EXIT_STOPPED, _MISTAKE) for failure in result.failures.values()):
            assert hasattr(agent, "_remaining_restarts"), "private: another torch may call it otherwise"
            agent._remaining_restarts = 0
        return result

    return look


def main(words: list[str] | None = None) -> None:
    """Run torchrun; end with a status that says why."""
    words = sys.argv[1:] if words is None else words
    arguments = torchrun.get_args_parser().parse_args(["--signals-to-handle", _LEFT_TO_TORCHRUN, *words])
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks have said it themselves
    for number in STOP_SIGNALS:
        signal.signal(number, forward)
    LocalElasticAgent._monitor_workers = without_restart(LocalElasticAgent._monitor_workers)  # type: ignore[method-assign]
    try:
        torchrun.run(arguments)
    except ChildFailedError as error:
        code = status(error)
        if code == 1:
            print(error, file=sys.stderr)
        sys.exit(code)
    except (DistNetworkError, DistStoreError, RendezvousError) as error:
        print_error(not_met(arguments, error))
        sys.exit(_MISTAKE)


def not_met(arguments: Namespace, error: Exception) -> ConfigError:
    """Why the nodes did not meet, for the user."""
    place = arguments.rdzv_endpoint or f"{arguments.master_addr}:{arguments.master_port}"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ConfigError(
        f"the {arguments.nnodes} nodes did not meet at {place} ({reason}); check the address and the port on node 0, "
        "that a firewall lets it through, and that every node was started"
    )


if __name__ == "__main__":
    main()
