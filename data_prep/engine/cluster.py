"""Runs the tasks of a stage on the workers of ``dask.distributed``.

Without ``engine.scheduler`` a cluster is started on this machine, one process a worker, each with a memory limit.
With ``engine.scheduler=tcp://host:port`` an existing cluster is used; its workers need this package and must see
``out_dir`` and the corpus under the same paths. If a worker is killed, dask starts another and runs the task again.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster, as_completed
from distributed.scheduler import KilledWorker

from bert_pretrain.errors import ConfigError
from data_prep.engine.local import Engine, Record, Task, TasksLostError, run_task

_SECONDS_TO_CONNECT = 5
_TASKS_PER_WORKER = 3  # submitted at once: one runs, the others are queued


class Cluster(Engine):
    """Runs the tasks of a stage on the workers of a dask cluster."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.workers = len(client.scheduler_info(n_workers=-1)["workers"])

    def check_folder(self, folder: Path) -> None:
        """Raise ``ConfigError`` unless every worker can see ``folder``, an absolute path."""
        for address, exists in self._client.run(os.path.isdir, str(folder)).items():
            if not exists:
                raise ConfigError(
                    f"engine.scheduler: the worker {address} does not see {folder}; put out_dir and the corpus on a "
                    "file system that this machine and all workers share"
                )

    def _completed(self, tasks: Sequence[Task], folder: Path, waiting: Iterator[int]) -> Iterator[tuple[int, Record]]:
        """Submit only a few tasks a worker at a time, so that the scheduler's memory does not grow with the corpus."""
        numbers: dict[Any, int] = {}
        running = as_completed([])

        def submit() -> None:
            number = next(waiting, None)
            if number is not None:
                future = self._client.submit(run_task, tasks[number], folder, pure=False)
                numbers[future] = number
                running.add(future)

        for _ in range(_TASKS_PER_WORKER * self.workers):
            submit()
        for future in running:
            number = numbers.pop(future)
            try:
                record = future.result()
            except KilledWorker:
                raise TasksLostError(
                    f"task {tasks[number].name} of stage {folder.name} killed every worker that ran it, probably "
                    "because memory ran out; finished tasks are kept: run again with a larger engine.worker_memory_gb "
                    "or a smaller piece_mb"
                ) from None
            submit()
            yield number, record


@contextlib.contextmanager
def open_local_cluster(workers: int, worker_memory_gb: float, dashboard: str) -> Iterator[Cluster]:
    """Start a cluster on this machine and print its dashboard's address."""
    # One core a worker: the tokenizer must not start threads of its own.
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
    """Connect to the user's cluster. Raises ``ConfigError`` if it does not answer or has no workers."""
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
