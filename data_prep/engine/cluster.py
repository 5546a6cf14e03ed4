"""Parts of a stage on the workers of ``dask.distributed``.

Without ``engine.scheduler`` a cluster of this machine's cores is started, with one process a worker and a limit on its
memory. With ``scheduler=tcp://host:port`` the parts run on a cluster that exists; it has to see ``out_dir`` and the
corpus under the same paths, and to have this package installed. A worker that is killed loses the part that it was
at; dask starts another worker and gives the part to it.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster, as_completed
from distributed.scheduler import KilledWorker

from bert_pretrain.errors import ConfigError
from data_prep.engine.local import Engine, PartsLostError, Record, run_part

_SECONDS_TO_CONNECT = 5
_IN_FLIGHT = 3  # jobs a worker: one runs, the others wait at its door


class Cluster(Engine):
    """Runs the parts of stages on the workers of one cluster."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.workers = len(client.scheduler_info(n_workers=-1)["workers"])

    def check_folder(self, folder: Path) -> None:
        """Raise ``ConfigError`` unless every worker sees ``folder``, an absolute path."""
        seen = self._client.run(os.path.isdir, str(folder))
        blind = [address for address, there in seen.items() if not there]
        if blind:
            raise ConfigError(
                f"engine.scheduler: the worker {blind[0]} does not see {folder}; the workers of a cluster need "
                "out_dir and the corpus on a file system that they share with this machine"
            )

    def _completed(
        self, function: Callable[[Any], Record], jobs: Sequence[Any], folder: Path, waiting: Iterator[int]
    ) -> Iterator[tuple[int, Record]]:
        """Keep a few jobs a worker in flight, so that the scheduler's memory does not grow with the corpus."""
        numbers: dict[Any, int] = {}
        running = as_completed([])

        def submit() -> None:
            number = next(waiting, None)
            if number is not None:
                future = self._client.submit(run_part, function, jobs[number], folder, pure=False)
                numbers[future] = number
                running.add(future)

        for _ in range(_IN_FLIGHT * self.workers):
            submit()
        for future in running:
            number = numbers.pop(future)
            try:
                record = future.result()
            except KilledWorker:
                raise PartsLostError(
                    f"part {jobs[number].name} of {folder.name} ended {future.key!r}'s workers again and again, most "
                    "likely for want of memory; the parts that were finished are kept: run again with a larger "
                    "engine.worker_memory_gb or a smaller piece_mb"
                ) from None
            submit()
            yield number, record


@contextlib.contextmanager
def open_local_cluster(workers: int, worker_memory_gb: float, dashboard: str) -> Iterator[Cluster]:
    """A cluster of this machine; its dashboard's address is printed."""
    # workers share the cores one each: a tokenizer with threads of its own would only get in their way
    environment = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=int(worker_memory_gb * 1e9),
            dashboard_address=dashboard,
            worker_dashboard_address=None,
            silence_logs=logging.CRITICAL,
            env=environment,
        ) as cluster,
        Client(cluster) as client,
    ):
        print(f"{workers} workers; dashboard {client.dashboard_link}", flush=True)
        yield Cluster(client)


@contextlib.contextmanager
def open_cluster(scheduler: str) -> Iterator[Cluster]:
    """The user's cluster. Raises ``ConfigError`` where it does not answer or has no workers."""
    try:
        client = Client(scheduler, timeout=_SECONDS_TO_CONNECT)
    except (OSError, ValueError) as error:
        raise ConfigError(f"engine.scheduler is {scheduler!r}, where no scheduler answers ({error})") from None
    with client:
        cluster = Cluster(client)
        if cluster.workers == 0:
            raise ConfigError(f"engine.scheduler {scheduler} has no workers; start some: dask worker ADDRESS")
        print(f"{cluster.workers} workers of {scheduler}; dashboard {client.dashboard_link}", flush=True)
        yield cluster
